//! `eval`: held-out problems, answered greedily and by sampling, for every model of the run.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tasks::Problem;

use super::{Answers, Earlier, Known, Makes, READ_AT_ONCE, Stage, StageResult, Work, guess};
use crate::TrainError;
use crate::context::{Context, Progress};
use crate::evaluate::{PROBLEMS_AT_ONCE, EvalSettings, EvaluateError, Graded, evaluate};
use crate::finished::{Answered, Figures, Measured};
use crate::forgetting::{BUILT_IN, HeldText, NONE};
use crate::report::Completion;
use crate::room::held_out_with_room;
use crate::settings::check::{At, Checked};
use crate::settings::one_or_many;
use crate::source::check_prompt;

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
    /// Where these models put an answer, if not where `problems.answer` says: a model that was not taught yet may do better
    /// asked in its own way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// How problems are put to these models, if not as `problems.prompt` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A text that no stage trains on, whose bits per byte tell what is forgotten: `built_in`, a file, or `none`. By default the
    /// built-in one where any of the models began outside of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_text: Option<String>,
}

impl Default for EvalStage {
    fn default() -> Self {
        EvalStage {
            of: Vec::new(),
            samples: 8,
            temperature: 1.0,
            max_new: 256,
            limit: 0,
            answer: None,
            prompt: None,
            held_text: None,
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
        if let Some(answer) = &self.answer {
            answer.parse::<tasks::AnswerPlace>().map_err(|e| at.error("answer", e.to_string()))?;
        }
        if let Some(prompt) = &self.prompt {
            check_prompt(prompt).map_err(|message| at.error("prompt", message))?;
        }
        at.positive(&[("samples", self.samples as u64), ("max_new", self.max_new as u64)])?;
        at.number("temperature", self.temperature, 0.0..)
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        let file = self.held_text.as_deref().filter(|text| ![BUILT_IN, NONE].contains(text));
        file.map(|file| ("held_text", Path::new(file))).into_iter().collect()
    }

    fn measures(&self) -> Option<(&[String], usize)> {
        Some((&self.of, self.samples))
    }

    fn work(&self, known: &Known) -> Option<Work<'_>> {
        let problems = if self.limit > 0 { self.limit.min(known.held_out) } else { known.held_out };
        let each = 1 + self.samples;
        Some(Work {
            generated: guess(problems, each, self.max_new),
            answers: Some(Answers { problems: problems.min(PROBLEMS_AT_ONCE), each, max_new: self.max_new }),
            held: READ_AT_ONCE,
            remedy: "lower `samples` or `max_new`, or raise `machine.memory_gib`",
            ..Work::default()
        })
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let source = ctx.problems()?;
        let mut asked = source.asked_so(self.answer.as_deref(), self.prompt.as_deref())?;
        if self.limit > 0 {
            asked.problems.truncate(self.limit);
        }
        let numbered = held_out_with_room(ctx, name, &self.of, &asked.problems)?;
        let (numbers, problems): (Vec<usize>, Vec<Problem>) = numbered.into_iter().unzip();
        let held_text = HeldText::of(self.held_text.as_deref().unwrap_or(NONE))?;
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
            let e = match evaluate(&model, &tokenizer, &ctx.team, &problems, &*asked.verifier, &settings, &keep_going) {
                Err(EvaluateError::Stopped) => return Err(TrainError::Interrupted),
                other => other?,
            };
            meter.add(e.tokens as u64, ctx.team.total(tensor::operations::counts().since(&counts).total()));
            words.push(format!("{model_name} {:.1} %", 100.0 * e.all.pass_at_1.value));
            let held_text = held_text.as_ref().map(|text| text.measure(&model, &tokenizer)).transpose()?;
            let pass_at_1 = e.all.pass_at_1.value;
            let answers = e.greedy.iter().zip(&numbers).take(KEPT);
            measured.push(Measured {
                stage: model_name.clone(),
                scores: e.all,
                answers: answers.map(|(g, n)| answered(model_name, g, source.plain_prompt(*n))).collect(),
                by_task: e.by_task,
                outcomes: e.outcomes,
                mean_tokens: e.mean_tokens,
                truncated_share: e.truncated_share,
                held_text,
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
                ranks: &[],
            });
        }
        Ok(StageResult {
            cost: meter.stop().over(&ctx.team),
            summary: format!("pass@1: {}", words.join(", ")),
            figures: Figures { measured, ..Figures::default() },
        })
    }
}

fn answered(stage: &str, g: &Graded, prompt: &str) -> Answered {
    Answered {
        task: g.problem.task.clone(),
        prompt: prompt.to_owned(),
        answer: g.problem.answer.clone(),
        completion: Completion {
            stage: stage.to_owned(),
            text: g.completion.clone(),
            score: f64::from(g.score),
            reason: g.reason.clone(),
        },
    }
}
