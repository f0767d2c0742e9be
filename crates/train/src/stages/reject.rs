//! `reject`: the best of a model's own traces, checked by the verifiers, as conversations to learn from.

use data::{Conversation, Message, write_jsonl};
use engine::Sampling;
use tasks::RewardConfig;

use super::StageResult;
use crate::TrainError;
use crate::context::{Context, Progress};
use crate::finished::Figures;
use crate::rollout::{SampleSettings, sample};
use crate::run::recipe::RejectStage;

/// Training problems of this stage come after those of reinforcement.
const FIRST_PROBLEM: u64 = 1 << 34;
/// Problems sampled at a time.
const CHUNK: usize = 128;

pub(super) fn run(ctx: &Context, s: &RejectStage) -> Result<StageResult, TrainError> {
    let (model, tokenizer) = ctx.model(&s.from)?;
    let source = ctx.problems()?;
    let mix = source.training_mix(&s.mix)?;
    source.check_lengths(&model, &tokenizer, mix.as_ref(), FIRST_PROBLEM, s.max_new)?;
    let sampling =
        Sampling { temperature: s.temperature as f32, ..Sampling::wished(model.generation(), 1.0) };
    let mut meter = ctx.meter(&s.name, None);
    let (mut kept, mut right, mut drawn) = (Vec::new(), 0usize, 0usize);
    let clock = std::time::Instant::now();
    for start in (0..s.problems).step_by(CHUNK) {
        let count = CHUNK.min(s.problems - start);
        let problems =
            (start..start + count).map(|i| source.train(mix.as_ref(), FIRST_PROBLEM + i as u64)).collect();
        let seed = tensor::Rng::at(ctx.recipe.seed, &[FIRST_PROBLEM, start as u64]).next_u64();
        let settings = SampleSettings { group: s.samples, max_new: s.max_new, sampling, seed };
        let counts = tensor::operations::counts();
        let (groups, tokens) =
            sample(&model, &tokenizer, problems, source.verifier(), &RewardConfig::default(), settings)?;
        meter.add(tokens, tensor::operations::counts().since(&counts).total());
        for g in groups {
            drawn += g.answers.len();
            // Right and well formed; the shortest first, so that what is kept is to the point.
            let mut good: Vec<_> = g
                .answers
                .into_iter()
                .filter(|a| a.reward.components.iter().all(|c| c.1 >= 1.0) && !a.truncated)
                .collect();
            right += good.len();
            good.sort_by_key(|a| a.completion.token_ids.len());
            good.dedup_by(|a, b| a.text == b.text);
            for a in good.into_iter().take(s.keep) {
                let turns = [Message::user(g.problem.prompt.clone()), Message::assistant(a.text)];
                kept.push(Conversation::of(turns));
            }
        }
        let elapsed = clock.elapsed().as_secs_f64();
        let done = (start + count) as f64;
        ctx.reporter.progress(&Progress {
            stage: &s.name,
            step: done as u64,
            total: s.problems as u64,
            headline: ("accepted", right as f64 / drawn.max(1) as f64),
            tokens_per_second: meter.tokens() as f64 / elapsed,
            ceiling_share: ctx.ceiling.share(meter.operations() as f64 / elapsed),
            seconds_left: elapsed / done * (s.problems as f64 - done),
        });
        if ctx.reporter.stop() {
            return Err(TrainError::Interrupted);
        }
    }
    if kept.is_empty() {
        return Err(TrainError::Recipe(format!(
            "stage `{}`: no sampled answer was accepted, so there is nothing to learn from",
            s.name
        )));
    }
    write_jsonl(&ctx.folder.stage_dir(&s.name)?.join("traces.jsonl"), &kept)?;
    let share = right as f64 / drawn.max(1) as f64;
    let summary = format!("{} traces kept, {:.1} % of {drawn} samples right", kept.len(), 100.0 * share);
    Ok(StageResult {
        cost: meter.stop(),
        summary,
        figures: Figures::of([("traces", kept.len() as f64), ("accepted_share", share)]),
    })
}
