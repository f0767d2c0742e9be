//! `eval`: held-out problems, answered greedily and by sampling, for every model of the run.

use serde_json::{Value, json};

use super::StageResult;
use crate::TrainError;
use crate::context::{Context, Progress};
use crate::evaluate::{EvalSettings, EvaluateError, evaluate};
use crate::run::recipe::EvalStage;

/// Completions that are kept for the report.
const KEPT: usize = 12;

pub(super) fn run(ctx: &Context, s: &EvalStage) -> Result<StageResult, TrainError> {
    let source = ctx.problems()?;
    let limit = if s.limit == 0 { usize::MAX } else { s.limit };
    let problems: Vec<_> = source.held_out().take(limit).cloned().collect();
    let mut meter = ctx.meter(&s.name, None);
    let clock = std::time::Instant::now();
    let mut results = serde_json::Map::new();
    let mut words = Vec::new();
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
        let by_task: serde_json::Map<String, Value> =
            e.by_task.iter().map(|(t, s2)| (t.clone(), s2.to_json(s.samples))).collect();
        let right: Vec<u8> = e.greedy.iter().map(|g| u8::from(g.is_right())).collect();
        let kept: Vec<Value> = e.greedy.iter().take(KEPT).map(|g| json!({"task": g.problem.task, "prompt": g.problem.prompt, "answer": g.problem.answer, "completion": g.completion, "score": g.score, "reason": g.reason})).collect();
        let figures = json!({
            "scores": e.all.to_json(s.samples), "by_task": by_task, "greedy_right": right, "samples": kept,
            "mean_tokens": e.mean_tokens, "truncated_share": e.truncated_share,
        });
        results.insert(name.clone(), figures);
        words.push(format!("{name} {:.1} %", 100.0 * e.all.pass_at_1.value));
        let (done, elapsed) = ((i + 1) as f64, clock.elapsed().as_secs_f64());
        ctx.reporter.progress(&Progress {
            stage: &s.name,
            step: done as u64,
            total: s.of.len() as u64,
            headline: ("pass@1", e.all.pass_at_1.value),
            tokens_per_second: meter.tokens() as f64 / elapsed,
            ceiling_share: ctx.ceiling.share(meter.operations() as f64 / elapsed),
            seconds_left: elapsed / done * (s.of.len() as f64 - done),
        });
    }
    Ok(StageResult {
        cost: meter.stop(),
        summary: format!("pass@1: {}", words.join(", ")),
        figures: json!({"of": results}),
    })
}
