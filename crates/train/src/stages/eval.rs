//! `eval`: held-out problems, answered greedily and by sampling, for every model of the run.

use super::StageResult;
use crate::TrainError;
use crate::context::{Context, Progress};
use crate::evaluate::{EvalSettings, EvaluateError, Graded, evaluate};
use crate::finished::{Answered, Figures, Measured};
use crate::report::Completion;
use crate::run::recipe::EvalStage;

/// Completions that are kept for the report.
const KEPT: usize = 12;

pub(super) fn run(ctx: &Context, s: &EvalStage) -> Result<StageResult, TrainError> {
    let source = ctx.problems()?;
    let limit = if s.limit == 0 { usize::MAX } else { s.limit };
    let problems: Vec<_> = source.held_out().take(limit).cloned().collect();
    let mut meter = ctx.meter(&s.name, None);
    let clock = std::time::Instant::now();
    let (mut measured, mut words) = (Vec::new(), Vec::new());
    for (i, name) in s.of.iter().enumerate() {
        let (model, tokenizer) = ctx.model(name)?;
        let settings = EvalSettings {
            samples: s.samples,
            temperature: s.temperature as f32,
            max_new: s.max_new,
            seed: ctx.recipe.seed,
        };
        let counts = tensor::operations::counts();
        let reporter = ctx.reporter;
        let keep_going = || !reporter.stop();
        let e = match evaluate(&model, &tokenizer, &problems, source.verifier(), &settings, &keep_going) {
            Err(EvaluateError::Stopped) => return Err(TrainError::Interrupted),
            other => other?,
        };
        meter.add(e.tokens as u64, tensor::operations::counts().since(&counts).total());
        words.push(format!("{name} {:.1} %", 100.0 * e.all.pass_at_1.value));
        let (pass_at_1, answers) = (e.all.pass_at_1.value, e.greedy.iter().take(KEPT));
        measured.push(Measured {
            stage: name.clone(),
            scores: e.all,
            answers: answers.map(|g| answered(name, g)).collect(),
            by_task: e.by_task,
            outcomes: e.outcomes,
            mean_tokens: e.mean_tokens,
            truncated_share: e.truncated_share,
        });
        let (done, elapsed) = ((i + 1) as f64, clock.elapsed().as_secs_f64());
        ctx.reporter.progress(&Progress {
            stage: &s.name,
            step: done as u64,
            total: s.of.len() as u64,
            headline: ("pass@1", pass_at_1),
            tokens_per_second: meter.tokens() as f64 / elapsed,
            ceiling_share: ctx.ceiling.share(meter.operations() as f64 / elapsed),
            seconds_left: elapsed / done * (s.of.len() as f64 - done),
        });
    }
    Ok(StageResult {
        cost: meter.stop(),
        summary: format!("pass@1: {}", words.join(", ")),
        figures: Figures { measured, ..Figures::default() },
    })
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
