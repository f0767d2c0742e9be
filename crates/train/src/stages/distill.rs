//! `distill`: what a teacher knows, taught to a student: by its accepted traces, by its distribution over every token
//! of worked solutions, or by scoring the student's own answers.

use data::{Conversation, Document, Message, Tokenizer, encode_chat, pack};
use engine::Sampling;
use model::{Model, whole};
use serde_json::json;
use tasks::{Mix, Problem, RewardConfig, Style};
use tensor::{Tape, ops};

use super::StageResult;
use super::grpo::note_unfiltered;
use super::pretrain::step_outcome;
use super::sft::{
    all_too_long, conversations, held_out_documents, leave_out, left_out_words, log_held_out, nth,
};
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::learner::{Learner, Rhythm, StepOutcome};
use crate::policy::{Rollout, flatten};
use crate::rollout::{SampleSettings, sample};
use crate::run::metrics::keys;
use crate::run::recipe::{DistillMethod, DistillStage, Reference};
use crate::speaker::{stop_tokens, teach_ends};
use crate::step::{StepOptions, score, split};

/// Training problems of this stage come after those of rejection sampling.
const FIRST_PROBLEM: u64 = 1 << 35;

pub(super) fn run(ctx: &Context, s: &DistillStage) -> Result<StageResult, TrainError> {
    let teacher = ctx.model(&s.teacher)?;
    let (mut model, tokenizer) = match ctx.recipe.reference(&s.student) {
        Reference::Model(_) => {
            let mut fresh = ctx.fresh_model(&s.student, &teacher.1)?;
            // A student with the teacher's tokens ends its answers where the teacher does.
            fresh.generation_mut().eos_token_id = stop_tokens(&teacher.0, &teacher.1);
            (fresh, teacher.1)
        }
        _ => ctx.model(&s.student)?,
    };
    let teacher = teacher.0;
    let seq_len = s.seq_len.min(model.config().max_position_embeddings());
    if teacher.config().vocab_size() != model.config().vocab_size() && s.method != DistillMethod::Traces {
        let what = format!(
            "stage `{}`: teacher and student have different vocabularies; only method = \"traces\" can do that",
            s.name
        );
        return Err(TrainError::Recipe(what));
    }
    let traces = match (&s.traces, s.method) {
        (Some(stage), DistillMethod::Traces) => {
            conversations(ctx, &tokenizer, &ctx.dir(stage)?.join("traces.jsonl"), seq_len)?
        }
        _ => Vec::new(),
    };
    let tokens: usize = traces.iter().map(|d| d.ids.len() - 1).sum();
    let total =
        if s.steps > 0 { s.steps } else { (s.epochs * tokens as u64).div_ceil(s.batch_tokens as u64).max(1) };
    let rhythm = Rhythm {
        total,
        scheduled: total,
        sample_every: s.sample_every,
        checkpoint_every: s.checkpoint_every,
        checkpoint_seconds: s.checkpoint_seconds,
    };
    let mix = ctx.problems.as_ref().map(|p| p.training_mix(&s.mix)).transpose()?.flatten();
    match s.method {
        DistillMethod::Traces => teach_ends(ctx, &s.name, &mut model, &tokenizer, &traces),
        DistillMethod::Logits => {
            let first = worked(&tokenizer, ctx.problems()?.train(mix.as_ref(), FIRST_PROBLEM), 0)?;
            teach_ends(ctx, &s.name, &mut model, &tokenizer, &[first]);
        }
        DistillMethod::OnPolicy => {
            note_unfiltered(ctx, &s.name, &model);
            let source = ctx.problems()?;
            source.check_lengths(&model, &tokenizer, mix.as_ref(), FIRST_PROBLEM, s.max_new)?;
        }
    }
    let mut learner = Learner::new(model, tokenizer, &s.optimizer);
    let seed = ctx.recipe.seed;
    learner.figures = json!({"left_out": 0});
    let held_out =
        if s.eval_every > 0 { held_out_documents(ctx, &learner.tokenizer, seq_len)? } else { Vec::new() };
    let cost = learner.run(
        ctx,
        &s.name,
        &s.schedule,
        rhythm,
        |l, step, factor, _| match s.method {
            DistillMethod::Traces => {
                let mut docs = Vec::new();
                let mut tokens = 0;
                while tokens < s.batch_tokens {
                    let doc = nth(&traces, seed, l.cursor).clone();
                    l.cursor += 1;
                    tokens += doc.ids.len() - 1;
                    docs.push(doc);
                }
                let options = StepOptions {
                    recompute: s.recompute,
                    accumulate: s.accumulate,
                    loss_limit: l.loss_limit(),
                    ..StepOptions::default()
                };
                step_outcome(l, pack(&docs), options, factor)
            }
            DistillMethod::Logits => logits_step(ctx, s, l, &teacher, mix.as_ref(), factor),
            DistillMethod::OnPolicy => on_policy_step(ctx, s, l, &teacher, mix.as_ref(), step, factor),
        },
        |l, step, metrics| log_held_out(l, s.eval_every, step, &held_out, metrics),
    )?;
    let summary = format!("{total} steps, {} traces{}", traces.len(), left_out_words(&learner));
    Ok(StageResult {
        cost,
        summary,
        figures: Figures::of([("steps", total as f64), ("traces", traces.len() as f64)]),
    })
}

/// A problem with its worked solution, as a conversation.
fn worked(tokenizer: &Tokenizer, problem: Problem, index: u64) -> Result<Document, TrainError> {
    let answer = tasks::corpus::completion(&problem, Style::Careful, index);
    let turns = [Message::user(problem.prompt), Message::assistant(answer)];
    Ok(encode_chat(tokenizer, &Conversation::of(turns))?.into())
}

/// `KL(teacher ‖ student)` over the answers of worked problems.
fn logits_step(
    ctx: &Context,
    s: &DistillStage,
    l: &mut Learner,
    teacher: &Model,
    mix: Option<&Mix>,
    factor: f32,
) -> Result<StepOutcome, TrainError> {
    let source = ctx.problems()?;
    let mut docs = Vec::new();
    let (mut tokens, mut too_long) = (0, 0);
    while tokens < s.batch_tokens {
        let index = FIRST_PROBLEM + l.cursor;
        l.cursor += 1;
        let doc = worked(&l.tokenizer, source.train(mix, index), index)?;
        let limit = s.seq_len.min(l.model.config().max_position_embeddings()) + 1;
        if doc.ids.len() <= limit {
            tokens += doc.ids.len() - 1;
            docs.push(doc);
            continue;
        }
        leave_out(l);
        too_long += 1;
        if too_long > 1000 && docs.is_empty() {
            return Err(all_too_long(&s.name, doc.ids.len(), limit));
        }
    }
    let batch = pack(&docs);
    let (tokens, total) = (batch.tokens.len() as u64, batch.weights.iter().sum::<f32>());
    l.model.params_mut().zero_grads();
    let mut loss = 0.0;
    for batch in split(batch, s.accumulate) {
        let weights: Vec<f32> = batch.weights.iter().map(|w| w / total).collect();
        let segments = whole(&batch.lens);
        let student = Tape::recording(l.model.params());
        let pass = l.model.forward(&student, &batch.tokens, &segments, Default::default(), None);
        let given = Tape::inference(teacher.params());
        let taught = teacher.forward(&given, &batch.tokens, &segments, Default::default(), None);
        let kl = ops::distill_kl(
            &student,
            &pass.hidden,
            l.model.head(),
            (teacher.params(), &taught.hidden, teacher.head()),
            &weights,
        );
        student.backward();
        loss += kl.iter().zip(&weights).map(|(k, w)| f64::from(*k) * f64::from(*w)).sum::<f64>();
    }
    let report = l.optimizer.step(l.model.params_mut(), factor);
    let values = vec![(keys::LOSS, loss), ("grad_norm", f64::from(report.grad_norm))];
    Ok(StepOutcome { values, tokens: 2 * tokens, skipped: report.skipped, enough: false })
}

/// Reverse KL on the student's own answers: the slope of `KL(student ‖ teacher)` by each sampled token's
/// log-probability is the difference of the two log-probabilities, both at the temperature of the samples.
fn on_policy_step(
    ctx: &Context,
    s: &DistillStage,
    l: &mut Learner,
    teacher: &Model,
    mix: Option<&Mix>,
    step: u64,
    factor: f32,
) -> Result<StepOutcome, TrainError> {
    let source = ctx.problems()?;
    let problems = (0..s.prompts as u64).map(|i| source.train(mix, FIRST_PROBLEM + l.cursor + i)).collect();
    l.cursor += s.prompts as u64;
    let seed = tensor::Rng::at(ctx.recipe.seed, &[FIRST_PROBLEM, step]).next_u64();
    let temperature = s.temperature as f32;
    let sampling = Sampling { temperature, ..Sampling::default() };
    let settings = SampleSettings { group: 1, max_new: s.max_new, sampling, seed };
    let (groups, sampled) =
        sample(&l.model, &l.tokenizer, problems, source.verifier(), &RewardConfig::default(), settings)?;
    let accuracy = groups.iter().map(|g| f64::from(g.answers[0].reward.components[0].1)).sum::<f64>()
        / groups.len() as f64;
    let rollouts: Vec<Rollout> = groups
        .into_iter()
        .flat_map(|g| g.answers.into_iter().map(move |a| (g.prompt.clone(), a.completion)))
        .map(|(prompt, c)| Rollout {
            prompt,
            completion: c.token_ids,
            old: c.tempered_logprobs,
            reference: None,
            advantage: 0.0,
        })
        .collect();
    let total: usize = rollouts.iter().map(|r| r.completion.len()).sum();
    l.model.params_mut().zero_grads();
    let mut kl = 0.0;
    for part in rollouts.chunks(rollouts.len().div_ceil(s.accumulate).clamp(1, 64)) {
        let flat = flatten(&part.iter().collect::<Vec<_>>());
        let taught = score(teacher, &flat.tokens, &flat.targets, &flat.segments, temperature);
        let tape = Tape::recording(l.model.params());
        let pass = l.model.forward(&tape, &flat.tokens, &flat.segments, Default::default(), None);
        let mut slopes = vec![0.0; flat.tokens.len()];
        for (r, rows) in part.iter().zip(flat.predictions) {
            for (i, old) in rows.zip(&r.old) {
                let gap = old - taught.logprobs[i];
                kl += f64::from(gap) / total as f64;
                slopes[i] = gap / total as f32;
            }
        }
        let (params, head) = (l.model.params(), l.model.head());
        ops::seed_log_probs(params, &pass.hidden, head, &flat.targets, &slopes, temperature);
        tape.backward();
    }
    let report = l.optimizer.step(l.model.params_mut(), factor);
    let values = vec![("kl", kl), (keys::ACCURACY, accuracy), ("grad_norm", f64::from(report.grad_norm))];
    Ok(StepOutcome { values, tokens: sampled + total as u64, skipped: report.skipped, enough: false })
}
