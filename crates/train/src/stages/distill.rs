//! `distill`: what a teacher knows, taught to a student: by its accepted traces, by its distribution over every token
//! of worked solutions, or by scoring the student's own answers.

use data::{Document, Tokenizer, pack};
use engine::Sampling;
use model::{Model, whole};
use serde::{Deserialize, Serialize};
use tasks::{Mix, Style};
use tensor::{Tape, ops};

use super::conversations::{
    conversations, fill_batch, held_out_documents, left_out_words, log_held_out, nth, worked,
};
use super::grpo::note_unfiltered;
use super::{Earlier, Known, Makes, Stage, StageResult, Work};
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::learner::{Learner, Now, StepOutcome, Steps};
use crate::policy::{flatten, shards};
use crate::rollout::{Group, SampleSettings, sample};
use crate::room::StageProblems;
use crate::run::metrics::{Metrics, keys};
use crate::settings::check::{At, Checked, POSITIVE};
use crate::settings::one_table;
use crate::source::{TaskMix, check_own_mix};
use crate::speaker::{stop_tokens, teach_ends};
use crate::step::{Descent, StepOptions, descend, score, split};
use crate::training::{Adapting, Packing, Training};

/// Training problems of this stage come after those of rejection sampling.
const FIRST_PROBLEM: u64 = 1 << 35;

/// Problems of one pass over the student's answers.
const PASS_PROBLEMS: usize = 64;

/// Teaches a student what a teacher knows.
#[derive(Debug, Clone, PartialEq)]
pub struct DistillStage {
    /// How it trains; `recompute` is for method `traces`.
    pub training: Training,
    /// How batches are filled.
    pub packing: Packing,
    /// What of the student it trains.
    pub adapting: Adapting,
    /// What is its own.
    pub own: Distill,
}

one_table!(DistillStage { training, packing, adapting, own });

/// What `distill` alone has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Distill {
    /// What the student learns from.
    pub method: DistillMethod,
    /// An earlier stage or a model folder; by default the last model before this stage.
    pub teacher: String,
    /// One of `[models]` with random weights, an earlier stage or a model folder.
    pub student: String,
    /// The reject stage whose traces are learnt (method `traces`); by default the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<String>,
    /// Draws these tasks instead of the recipe's (methods `logits` and `on_policy`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// Optimizer steps; 0 leaves it to `epochs` (method `traces`).
    pub steps: u64,
    /// Passes over the traces, where `steps` is 0.
    pub epochs: u64,
    /// Problems of one rollout (method `on_policy`).
    pub prompts: usize,
    /// The longest answer, in tokens (method `on_policy`).
    pub max_new: usize,
    /// Temperature of the student's samples, and of both models where they are compared (method `on_policy`).
    pub temperature: f64,
}

impl Default for Distill {
    fn default() -> Self {
        Distill {
            method: DistillMethod::Traces,
            teacher: String::new(),
            student: String::new(),
            traces: None,
            mix: None,
            steps: 0,
            epochs: 2,
            prompts: 64,
            max_new: 256,
            temperature: 1.0,
        }
    }
}

/// Ways to distil.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillMethod {
    /// Fine-tuning on the teacher's accepted answers.
    Traces,
    /// The teacher's distribution over every token of worked solutions.
    Logits,
    /// Reverse KL on the student's own answers.
    OnPolicy,
}

impl Stage for DistillStage {
    fn makes(&self) -> Makes {
        Makes::Model
    }

    fn resolve(&mut self, earlier: &Earlier) {
        earlier.fill(&mut self.own.teacher, Makes::Model);
        if self.own.method == DistillMethod::Traces && self.own.traces.is_none() {
            self.own.traces = Some(earlier.last(Makes::Traces)).filter(|name| !name.is_empty());
        }
        self.training.resolve(3e-3, 50, 50);
    }

    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        self.training.check(at)?;
        let own = &self.own;
        earlier.model(at, "teacher", &own.teacher)?;
        let model = |makes| makes == Makes::Model;
        earlier.refers(at, "student", &own.student, "a student", model, earlier.models)?;
        if own.method == DistillMethod::Traces {
            earlier.traces(at, "traces", own.traces.as_deref().unwrap_or_default())?;
        }
        check_own_mix(&own.mix, at)?;
        earlier.check_few_solved(at, own.method == DistillMethod::Logits && own.mix.is_some())?;
        let timed = own.steps > 0 || (own.method == DistillMethod::Traces && own.epochs > 0);
        if !timed {
            return Err(at.error("steps", "say how long to train: expected at least 1 step, found 0"));
        }
        at.positive(&[("prompts", own.prompts as u64), ("max_new", own.max_new as u64)])?;
        self.packing.check(at)?;
        at.number("temperature", own.temperature, POSITIVE)
    }

    fn built_on(&self) -> Vec<&str> {
        let names = [Some(&self.own.teacher), Some(&self.own.student), self.own.traces.as_ref()];
        names.into_iter().flatten().map(String::as_str).collect()
    }

    fn draws_problems(&self) -> bool {
        self.own.method != DistillMethod::Traces
    }

    fn model(&self) -> Option<&str> {
        Some(&self.own.student)
    }

    fn work(&self, known: &Known) -> Option<Work<'_>> {
        let tokens = match self.own.steps {
            // As many traces as can be kept.
            0 => self.own.epochs as f64 * self.own.traces.as_deref().map_or(0.0, known.trace_tokens),
            steps => steps as f64 * self.packing.batch_tokens as f64,
        };
        Some(Work::packed(&self.training, &self.packing, tokens))
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let (teacher, mut model, tokenizer) = self.teacher_and_student(ctx, name)?;
        let seq_len = self.packing.seq_len.min(model.config().max_position_embeddings());
        let traces = match (&self.own.traces, self.own.method) {
            (Some(stage), DistillMethod::Traces) => {
                conversations(ctx, &tokenizer, &ctx.dir(stage)?.join("traces.jsonl"), seq_len)?
            }
            _ => Vec::new(),
        };
        let tokens: usize = traces.iter().map(|d| d.ids.len() - 1).sum();
        let total = match self.own.steps {
            0 => (self.own.epochs * tokens as u64).div_ceil(self.packing.batch_tokens as u64).max(1),
            steps => steps,
        };
        let mix = ctx.problems.as_ref().map(|p| p.training_mix(&self.own.mix)).transpose()?.flatten();
        let mut rollouts = None;
        let note = |text: &str| ctx.reporter.note(text);
        match self.own.method {
            DistillMethod::Traces => teach_ends(&note, name, &mut model, &tokenizer, &traces),
            DistillMethod::Logits => {
                let source = ctx.problems()?;
                let problem = source.solved(mix.as_ref(), FIRST_PROBLEM, 0);
                let first = worked(&tokenizer, source, &problem, Style::Careful, 0)?;
                teach_ends(&note, name, &mut model, &tokenizer, &[first]);
            }
            DistillMethod::OnPolicy => {
                note_unfiltered(ctx, name, &model);
                let (of, max_new) = ((&model, &tokenizer), self.own.max_new);
                let own_mix = &self.own.mix;
                rollouts = Some(StageProblems::with_room(ctx, name, own_mix, of, FIRST_PROBLEM, max_new)?);
            }
        }
        let held_out = match self.training.eval_every {
            Some(every) if every > 0 => held_out_documents(ctx, &tokenizer, seq_len)?,
            _ => Vec::new(),
        };
        let kept = traces.len();
        let mut learner = Learner::new(model, tokenizer, &self.training.optimizer, &ctx.team);
        let limit = seq_len + 1;
        let mut steps =
            Distilling { ctx, name, stage: self, teacher, traces, mix, rollouts, held_out, limit };
        let cost = learner.run(ctx, name, &self.training, (total, total), &mut steps)?;
        let summary = format!("{total} steps, {kept} traces{}", left_out_words(&learner));
        let figures = Figures::of([("steps", total as f64), ("traces", kept as f64)]);
        Ok(StageResult { cost, summary, figures })
    }
}

impl DistillStage {
    /// Both models, and the student's tokenizer.
    fn teacher_and_student(
        &self,
        ctx: &Context,
        name: &str,
    ) -> Result<(Model, Model, Tokenizer), TrainError> {
        let (teacher, its_tokenizer) = ctx.reader(&self.own.teacher)?;
        let (model, tokenizer) = if ctx.is_fresh(&self.own.student) {
            let mut fresh = ctx.fresh_model(&self.own.student, &its_tokenizer)?;
            // A student with the teacher's tokens ends its answers where the teacher does.
            fresh.generation_mut().eos_token_id = stop_tokens(&teacher, &its_tokenizer);
            (fresh, its_tokenizer)
        } else {
            ctx.model(&self.own.student, self.adapting.wanted())?
        };
        let same = teacher.config().vocab_size() == model.config().vocab_size();
        if !same && self.own.method != DistillMethod::Traces {
            let what = format!(
                "stage `{name}`: teacher and student have different vocabularies; only method = \"traces\" can do that"
            );
            return Err(TrainError::Recipe(what));
        }
        Ok((teacher, model, tokenizer))
    }
}

struct Distilling<'a> {
    ctx: &'a Context<'a>,
    name: &'a str,
    stage: &'a DistillStage,
    teacher: Model,
    traces: Vec<Document>,
    mix: Option<Mix>,
    /// What the student answers (method `on_policy`).
    rollouts: Option<StageProblems<'a>>,
    held_out: Vec<Document>,
    /// Token ids of a document at most.
    limit: usize,
}

impl Steps for Distilling<'_> {
    fn step(&mut self, l: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError> {
        match self.stage.own.method {
            DistillMethod::Traces => {
                let next = |_: &Tokenizer, index| Ok(nth(&self.traces, self.ctx.seed, index).clone());
                let docs = fill_batch(l, self.name, self.stage.packing.batch_tokens, self.limit, next)?;
                let recompute = self.stage.training.recompute;
                let options = StepOptions { recompute, ..StepOptions::default() };
                Ok(l.next_token_step(pack(&docs), options, now.lr_factor))
            }
            DistillMethod::Logits => self.logits_step(l, now),
            DistillMethod::OnPolicy => self.on_policy_step(l, now),
        }
    }

    fn measure(&mut self, l: &Learner, step: u64, metrics: &mut Metrics) -> Result<(), TrainError> {
        log_held_out(l, step, &self.held_out, metrics)
    }
}

impl Distilling<'_> {
    /// `KL(teacher ‖ student)` over the answers of worked problems.
    fn logits_step(&self, l: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError> {
        let (source, teacher) = (self.ctx.problems()?, &self.teacher);
        let docs = fill_batch(l, self.name, self.stage.packing.batch_tokens, self.limit, |tokenizer, index| {
            let problem = source.solved(self.mix.as_ref(), FIRST_PROBLEM, index);
            worked(tokenizer, source, &problem, Style::Careful, FIRST_PROBLEM + index)
        })?;
        let batch = pack(&docs);
        let (tokens, total) = (batch.tokens.len() as u64, batch.weights.iter().sum::<f32>());
        let how = Descent { lr_factor: now.lr_factor, ..Descent::default() };
        let (shards, loss) = (split(batch, &l.team), |[loss]: &[f64; 1]| *loss);
        let done = descend(&mut l.model, &mut l.optimizer, &l.team, how, &shards, loss, |model, batch, _| {
            let weights: Vec<f32> = batch.weights.iter().map(|w| w / total).collect();
            let segments = whole(&batch.lens);
            let student = Tape::recording(model.params());
            let pass = model.forward(&student, &batch.tokens, &segments, Default::default(), None);
            let given = Tape::inference(teacher.params());
            let taught = teacher.forward(&given, &batch.tokens, &segments, Default::default(), None);
            let kl = ops::distill_kl(
                &student,
                &pass.hidden,
                model.head(),
                (teacher.params(), &taught.hidden, teacher.head()),
                &weights,
            );
            student.backward();
            [kl.iter().zip(&weights).map(|(k, w)| f64::from(*k) * f64::from(*w)).sum::<f64>()]
        });
        let [loss] = done.found;
        Ok(StepOutcome {
            headline: (keys::LOSS, loss),
            values: vec![("grad_norm", f64::from(done.report.grad_norm))],
            tokens: 2 * tokens,
            skipped: done.report.skipped,
            enough: false,
            named: Vec::new(),
        })
    }

    /// Reverse KL on the student's own answers: the gradient of `KL(student ‖ teacher)` by each sampled token's
    /// log-probability is the difference of the two log-probabilities, both at the temperature of the samples.
    fn on_policy_step(&self, l: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError> {
        let (source, own, teacher) = (self.ctx.problems()?, &self.stage.own, &self.teacher);
        let drawn = FIRST_PROBLEM + l.cursor..FIRST_PROBLEM + l.cursor + own.prompts as u64;
        let problems = self.rollouts.as_ref().expect("opened for this method");
        let problems = drawn.map(|i| problems.train(i)).collect();
        l.cursor += own.prompts as u64;
        let temperature = own.temperature as f32;
        let settings = SampleSettings {
            group: 1,
            max_new: own.max_new,
            sampling: Sampling { temperature, ..Sampling::default() },
            seed: tensor::Rng::at(self.ctx.seed, &[FIRST_PROBLEM, now.step]).next_u64(),
        };
        let (groups, sampled) =
            sample(&l.model, &l.tokenizer, &l.team, problems, &source.accuracy(), settings)?;
        let right: f64 = groups.iter().flat_map(|g| &g.answers).map(|a| f64::from(a.reward.accuracy)).sum();
        let accuracy = right / groups.len() as f64;
        let total: usize = groups.iter().map(Group::tokens).sum();
        let shards = shards(groups.iter().map(Group::prompted).collect(), &l.team);
        let (how, loss) = (Descent { lr_factor: now.lr_factor, ..Descent::default() }, |[kl]: &[f64; 1]| *kl);
        let done = descend(&mut l.model, &mut l.optimizer, &l.team, how, &shards, loss, |model, groups, _| {
            let mut kl = 0.0;
            for part in groups.chunks(PASS_PROBLEMS) {
                let flat = flatten(part);
                let taught = score(teacher, &flat.tokens, &flat.targets, &flat.segments, temperature);
                let tape = Tape::recording(model.params());
                let pass = model.forward(&tape, &flat.tokens, &flat.segments, Default::default(), None);
                let mut gradients = vec![0.0; flat.tokens.len()];
                for (a, rows) in part.iter().flat_map(|g| &g.answers).zip(flat.predictions) {
                    for (i, old) in rows.zip(&a.old) {
                        let gap = old - taught.logprobs[i];
                        kl += f64::from(gap) / total as f64;
                        gradients[i] = gap / total as f32;
                    }
                }
                let (params, head) = (model.params(), model.head());
                ops::seed_log_probs(params, &pass.hidden, head, &flat.targets, &gradients, temperature);
                tape.backward();
            }
            [kl]
        });
        let [kl] = done.found;
        Ok(StepOutcome {
            headline: ("kl", kl),
            values: vec![(keys::ACCURACY, accuracy), ("grad_norm", f64::from(done.report.grad_norm))],
            tokens: sampled + total as u64,
            skipped: done.report.skipped,
            enough: false,
            named: Vec::new(),
        })
    }
}
