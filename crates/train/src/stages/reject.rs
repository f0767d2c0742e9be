//! `reject`: the best of a model's own traces, checked by the verifiers, as conversations to learn from.

use data::{Conversation, Message, write_jsonl};
use engine::Sampling;
use serde::{Deserialize, Serialize};

use super::{Answers, Earlier, Known, Makes, READ_AT_ONCE, Stage, StageResult, Work, guess};
use crate::TrainError;
use crate::context::{Context, Progress};
use crate::finished::Figures;
use crate::problems::asked;
use crate::rollout::{Answer, Group, SampleSettings, sample};
use crate::room::StageProblems;
use crate::settings::check::{At, Checked};
use crate::source::{TaskMix, check_own_mix};

/// Training problems of this stage come after those of reinforcement.
const FIRST_PROBLEM: u64 = 1 << 34;
/// Problems sampled at a time.
const CHUNK: usize = 128;

/// Samples answers and keeps those that the verifiers accept, as conversations for `sft` and `distill`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RejectStage {
    /// An earlier stage or a model folder; by default the last model before this stage.
    pub from: String,
    /// Draws these tasks instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// Problems to answer.
    pub problems: usize,
    /// Answers to each problem.
    pub samples: usize,
    /// Right answers kept of each problem, at most.
    pub keep: usize,
    /// The longest answer, in tokens.
    pub max_new: usize,
    /// Temperature of the samples.
    pub temperature: f64,
}

impl Default for RejectStage {
    fn default() -> Self {
        RejectStage {
            from: String::new(),
            mix: None,
            problems: 2000,
            samples: 4,
            keep: 1,
            max_new: 256,
            temperature: 1.0,
        }
    }
}

impl Stage for RejectStage {
    fn makes(&self) -> Makes {
        Makes::Traces
    }

    fn resolve(&mut self, earlier: &Earlier) {
        earlier.fill(&mut self.from, Makes::Model);
    }

    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        earlier.model(at, "from", &self.from)?;
        check_own_mix(&self.mix, at)?;
        at.positive(&[
            ("problems", self.problems as u64),
            ("samples", self.samples as u64),
            ("keep", self.keep as u64),
            ("max_new", self.max_new as u64),
        ])?;
        at.number("temperature", self.temperature, 0.0..)
    }

    fn model(&self) -> Option<&str> {
        Some(&self.from)
    }

    fn length(&self) -> Option<(&'static str, usize)> {
        Some(("max_new", self.max_new.saturating_add(1)))
    }

    fn trace_tokens(&self) -> f64 {
        guess(self.problems, self.keep, self.max_new)
    }

    fn work(&self, _: &Known) -> Option<Work<'_>> {
        Some(Work {
            generated: guess(self.problems, self.samples, self.max_new),
            answers: Some(Answers { problems: CHUNK, each: self.samples, max_new: self.max_new }),
            held: READ_AT_ONCE,
            remedy: "take a smaller model, or raise `machine.memory_gib`",
            ..Work::default()
        })
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let (model, tokenizer) = ctx.reader(&self.from)?;
        let source = ctx.problems()?;
        let first = ctx.first_problem(name, FIRST_PROBLEM);
        let of = (&model, &tokenizer);
        let problems = StageProblems::with_room(ctx, name, &self.mix, of, first, self.max_new)?;
        let sampling =
            Sampling { temperature: self.temperature as f32, ..Sampling::wished(model.generation(), 1.0) };
        let mut meter = ctx.meter(name, None);
        let (mut kept, mut right, mut drawn) = (Vec::new(), 0usize, 0usize);
        let clock = std::time::Instant::now();
        for start in (0..self.problems).step_by(CHUNK) {
            let count = CHUNK.min(self.problems - start);
            let drawn_now = (start..start + count).map(|i| problems.train(first + i as u64)).collect();
            let seed = tensor::Rng::at(ctx.seed, &[first, start as u64]).next_u64();
            let settings = SampleSettings { group: self.samples, max_new: self.max_new, sampling, seed };
            let counts = tensor::operations::counts();
            let (groups, tokens) =
                sample(&model, &tokenizer, &ctx.team, drawn_now, &source.accuracy(), settings)?;
            meter.add(tokens, ctx.team.total(tensor::operations::counts().since(&counts).total()));
            for group in groups {
                drawn += group.answers.len();
                let (good, conversations) = self.best(group);
                right += good;
                kept.extend(conversations);
            }
            let elapsed = clock.elapsed().as_secs_f64();
            let done = (start + count) as f64;
            ctx.reporter.progress(&Progress {
                stage: name,
                step: done as u64,
                total: self.problems as u64,
                headline: ("accepted", right as f64 / drawn.max(1) as f64),
                tokens_per_second: meter.tokens() as f64 / elapsed,
                ceiling_share: ctx.ceiling.share(meter.operations() as f64 / elapsed),
                seconds_left: elapsed / done * (self.problems as f64 - done),
                ranks: &[],
            });
            if ctx.team.from_first(|| ctx.reporter.stop()) {
                return Err(TrainError::Interrupted);
            }
        }
        if kept.is_empty() {
            ctx.reporter.note(&format!(
                "{name}: none of {drawn} sampled answers was accepted, so that fine-tuning on them leaves its model \
                 as it is"
            ));
        }
        write_jsonl(&ctx.folder.stage_dir(name)?.join("traces.jsonl"), &kept)?;
        let share = right as f64 / drawn.max(1) as f64;
        let summary = format!("{} traces kept, {:.1} % of {drawn} samples right", kept.len(), 100.0 * share);
        Ok(StageResult {
            cost: meter.stop().over(&ctx.team),
            summary,
            figures: Figures::of([
                ("traces", kept.len() as f64),
                ("accepted_share", share),
                ("problems_left_out", problems.left_out() as f64),
            ]),
        })
    }
}

impl RejectStage {
    /// How many answers to a problem are right, and those to keep as conversations.
    fn best(&self, group: Group) -> (usize, impl Iterator<Item = Conversation>) {
        let accepted = |a: &Answer| a.reward.accuracy >= 1.0 && a.reward.format >= 1.0 && !a.truncated;
        let mut good: Vec<_> = group.answers.into_iter().filter(accepted).collect();
        let count = good.len();
        // The shortest first, so that what is kept is to the point.
        good.sort_by_key(|a| a.sampled.tokens.len());
        good.dedup_by(|a, b| a.text == b.text);
        let problem = group.problem;
        let conversation = move |a: Answer| {
            Conversation::of(asked(&problem).into_iter().chain([Message::assistant(a.text)]).collect::<Vec<_>>())
        };
        (count, good.into_iter().take(self.keep).map(conversation))
    }
}
