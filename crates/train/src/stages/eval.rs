//! `eval`: held-out problems, answered greedily and by sampling, for every model of the run.

use serde::{Deserialize, Serialize};

use super::{Earlier, Makes, Stage, StageResult};
use crate::TrainError;
use crate::context::{Context, Progress};
use crate::evaluate::{EvalSettings, EvaluateError, Graded, evaluate};
use crate::finished::{Answered, Figures, Measured};
use crate::report::Completion;
use crate::room::held_out_with_room;
use crate::settings::check::{At, Checked};
use crate::settings::one_or_many;

/// Completions that are kept for the report.
const KEPT: usize = 12;

/// Measures models on the held-out problems: greedy once, then `samples` times at `temperature`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalStage {
    /// Earlier stages and model folders to measure; by default every earlier stage that makes a model.
    #[serde(deserialize_with = "one_or_many")]
    pub of: Vec<String>,
    /// Samples of each problem, the k of pass@k and maj@k.
    pub samples: usize,
    /// Temperature of the samples.
    pub temperature: f64,
    /// The longest answer, in tokens.
    pub max_new: usize,
    /// Held-out problems to use, at most; 0 uses all.
    pub limit: usize,
}

impl Default for EvalStage {
    fn default() -> Self {
        EvalStage {
            of: Vec::new(),
            samples: 8,
            temperature: 1.0,
            max_new: 256,
            limit: 0,
        }
    }
}

impl Stage for EvalStage {
    fn makes(&self) -> Makes {
        Makes::Figures
    }

    fn resolve(&mut self, earlier: &Earlier) {
        if self.of.is_empty() {
            self.of = earlier.that_make(Makes::Model).map(str::to_owned).collect();
        }
    }

    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        if self.of.is_empty() {
            return Err(at.error("of", "no earlier stage makes a model; name a model folder"));
        }
        for name in &self.of {
            earlier.model(at, "of", name)?;
        }
        at.positive(&[("samples", self.samples as u64), ("max_new", self.max_new as u64)])?;
        at.number("temperature", self.temperature, 0.0..)
    }

    fn measures(&self) -> Option<(&[String], usize)> {
        Some((&self.of, self.samples))
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
    let source = ctx.problems()?;
    let limit = if self.limit == 0 { usize::MAX } else { self.limit };
    let problems = held_out_with_room(ctx, name, &self.of, limit)?;
    let mut meter = ctx.meter(name, None);
    let clock = std::time::Instant::now();
    let (mut measured, mut words) = (Vec::new(), Vec::new());
    for (i, model_name) in self.of.iter().enumerate() {
        let (model, tokenizer) = ctx.reader(model_name)?;
        let settings = EvalSettings {
            samples: self.samples,
            temperature: self.temperature as f32,
            max_new: self.max_new,
            seed: ctx.seed,
        };
        let counts = tensor::operations::counts();
        let reporter = ctx.reporter;
        let keep_going = || !reporter.stop();
        let e = match evaluate(&model, &tokenizer, &problems, source.verifier(), &settings, &keep_going) {
            Err(EvaluateError::Stopped) => return Err(TrainError::Interrupted),
            other => other?,
        };
        meter.add(e.tokens as u64, tensor::operations::counts().since(&counts).total());
        words.push(format!("{model_name} {:.1} %", 100.0 * e.all.pass_at_1.value));
        let (pass_at_1, answers) = (e.all.pass_at_1.value, e.greedy.iter().take(KEPT));
        measured.push(Measured {
            stage: model_name.clone(),
            scores: e.all,
            answers: answers.map(|g| answered(model_name, g)).collect(),
            by_task: e.by_task,
            outcomes: e.outcomes,
            mean_tokens: e.mean_tokens,
            truncated_share: e.truncated_share,
        });
        let (done, elapsed) = ((i + 1) as f64, clock.elapsed().as_secs_f64());
        ctx.reporter.progress(&Progress {
            stage: name,
            step: done as u64,
            total: self.of.len() as u64,
            headline: ("pass@1", pass_at_1),
            tokens_per_second: meter.tokens() as f64 / elapsed,
            ceiling_share: ctx.ceiling.share(meter.operations() as f64 / elapsed),
            seconds_left: elapsed / done * (self.of.len() as f64 - done),
        });
    }
    Ok(StageResult {
        cost: meter.stop(),
        summary: format!("pass@1: {}", words.join(", ")),
        figures: Figures { measured, ..Figures::default() },
    })
    }
}

fn answered(stage: &str, g: &Graded) -> Answered {
    Answered {
        task: g.problem.task.clone(),
        prompt: g.problem.prompt.clone(),
        answer: g.problem.answer.clone(),
        completion: Completion {
            stage: stage.to_owned(),
            text: g.completion.clone(),
            score: f64::from(g.score),
            reason: g.reason.clone(),
        },
    }
}
