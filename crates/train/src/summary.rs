//! From finished stages to the report: evaluations, samples, claims, the ledger.

use serde_json::Value;

use crate::TrainError;
use crate::context::Context;
use crate::held_out::HeldOut;
use crate::ledger::{Claim, StageCost};
use crate::pipeline::finished;
use crate::report::{self, Completion, Evaluation, Overlay, RunReport, Sample};
use crate::run::metrics::read_lines;
use crate::run::recipe::{Data, Source, Stage};
use crate::stats::{Estimate, ratio_paired};

type Done = Vec<(String, Value)>;

/// Writes `report.json`, `report.html` and `curve.svg` from what is finished.
pub(crate) fn write(ctx: &Context) -> Result<(), TrainError> {
    let done = finished(ctx)?;
    let (evaluation, evaluation_by_task, samples) = evaluations(&done);
    let measured = |name: &str| evaluation.iter().any(|(n, _)| n == name);
    let grpo = ctx
        .recipe
        .stages
        .iter()
        .find_map(|s| if let Stage::Grpo(g) = s { Some((g.from.clone(), g.name.clone())) } else { None });
    let first = done.iter().find(|(_, v)| v["figures"]["parameters"].is_u64());
    let report = RunReport {
        name: ctx.recipe.name.clone(),
        seed: ctx.recipe.seed,
        model: first.map(|(_, v)| model_words(&v["figures"])).unwrap_or_else(|| "a model".into()),
        task: task_words(ctx),
        machine: machine_words(),
        price_per_core_hour: ctx.recipe.machine.price_per_core_hour,
        stages: done
            .iter()
            .filter_map(|(_, v)| serde_json::from_value::<StageCost>(v["cost"].clone()).ok())
            .collect(),
        claims: claims(ctx, &done)?,
        taught: grpo.as_ref().and_then(|(from, _)| taught(ctx, from)),
        reinforcement: grpo.filter(|(a, b)| measured(a) && measured(b)),
        overlays: overlays(&done),
        recipe: ctx.recipe.resolved_toml(),
        evaluation,
        evaluation_by_task,
        samples,
    };
    Ok(report::write(ctx.folder.path(), &report, &read_lines(ctx.folder.path())?)?)
}

fn estimate(v: &Value) -> Option<Estimate> {
    let n = |k: &str| v[k].as_f64();
    Some(Estimate { value: n("value")?, low: n("low")?, high: n("high")? })
}

fn scores(v: &Value) -> Option<Evaluation> {
    let with = |prefix: &str| {
        let found = v.as_object()?.iter().find(|(k, _)| k.starts_with(prefix) && *k != "pass@1");
        found.map(|(k, v)| (k[prefix.len()..].parse::<u64>().unwrap_or(0), estimate(v)))
    };
    let (samples, maj_at_k) = with("maj@")?;
    // Of one sample the two are the same, and `pass@1` is the greedy answer's.
    let pass_at_k = if samples == 1 { maj_at_k } else { with("pass@")?.1 };
    Some(Evaluation {
        problems: v["problems"].as_u64()?,
        samples,
        pass_at_1: estimate(&v["pass@1"])?,
        pass_at_k: pass_at_k?,
        maj_at_k: maj_at_k?,
    })
}

type ByTask = Vec<(String, Vec<(String, Evaluation)>)>;

/// Per model, per task and model, and the same problems answered by several models.
fn evaluations(done: &Done) -> (Vec<(String, Evaluation)>, ByTask, Vec<Sample>) {
    let (mut all, mut by_task, mut samples): (Vec<_>, ByTask, Vec<Sample>) =
        (Vec::new(), Vec::new(), Vec::new());
    for (name, of) in done
        .iter()
        .filter(|(_, v)| v["kind"] == "eval")
        .flat_map(|(_, v)| v["figures"]["of"].as_object().into_iter().flatten())
    {
        all.extend(scores(&of["scores"]).map(|s| (name.clone(), s)));
        for (task, v) in of["by_task"].as_object().into_iter().flatten() {
            let Some(s) = scores(v) else { continue };
            match by_task.iter_mut().find(|(t, _)| t == task) {
                Some((_, list)) => list.push((name.clone(), s)),
                None => by_task.push((task.clone(), vec![(name.clone(), s)])),
            }
        }
        for g in of["samples"].as_array().into_iter().flatten() {
            let text = |k: &str| g[k].as_str().unwrap_or_default().to_owned();
            let completion = Completion {
                stage: name.clone(),
                text: text("completion"),
                score: g["score"].as_f64().unwrap_or(0.0),
                reason: text("reason"),
            };
            match samples.iter_mut().find(|s| s.prompt == text("prompt")) {
                Some(s) => s.completions.push(completion),
                None => samples.push(Sample {
                    task: text("task"),
                    prompt: text("prompt"),
                    answer: text("answer"),
                    completions: vec![completion],
                }),
            }
        }
    }
    (all, by_task, samples)
}

fn model_words(figures: &Value) -> String {
    let millions = |k: &str| figures[k].as_f64().unwrap_or(0.0) / 1e6;
    let (total, active) = (millions("parameters"), millions("active_parameters"));
    if total > 1.01 * active {
        format!("a mixture of experts with {total:.1} M parameters, {active:.1} M of them active")
    } else {
        format!("a dense model with {total:.1} M parameters")
    }
}

fn task_words(ctx: &Context) -> String {
    let p = &ctx.recipe.problems;
    let names: Vec<String> =
        if p.mix.is_empty() { p.tasks.clone() } else { p.mix.iter().map(|m| m.task.clone()).collect() };
    let names: Vec<&str> =
        names.iter().map(|n| if n == "word" { "word problems" } else { n.as_str() }).collect();
    match names.split_last() {
        None if ctx.recipe.draws_problems() => "the user's problems".into(),
        None => "the user's text".into(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// What the model that reinforcement began with had been taught, where that were worked solutions.
fn taught(ctx: &Context, from: &str) -> Option<String> {
    let Some(Stage::Sft(sft)) = ctx.recipe.stage(from) else { return None };
    if sft.data != Data::Problems {
        return None;
    }
    let read = match ctx.recipe.stage(&sft.from) {
        Some(Stage::Pretrain(p)) if p.source == Source::Problems => {
            "Its base had read worked solutions, and its cold start"
        }
        _ => "Its cold start",
    };
    let hurried = match sft.hurried_share {
        0.0 => String::new(),
        share => format!(", {:.0} % of them hurried: the answer without the work", 100.0 * share),
    };
    Some(format!(
        "{read} was fine-tuned on worked solutions{hurried}. What fine-tuning on careful solutions reaches from the same \
         base at equal operations is not measured in this run; from the base of recipes/quick.toml it was 79.3 %, against \
         55.3 % by reinforcement."
    ))
}

fn machine_words() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|x| x.1.trim().to_owned()));
    let threads = tensor::threads::threads();
    format!(
        "{threads} thread{} of {}, {:?}",
        if threads == 1 { "" } else { "s" },
        name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        tensor::cpu::simd::isa()
    )
}

fn overlays(done: &Done) -> Vec<Overlay> {
    let has = |name: &str| done.iter().any(|(n, _)| n == name);
    let chart = |title: &str, stages: &[&str]| {
        stages.iter().all(|s| has(s)).then(|| Overlay {
            title: title.into(),
            stages: stages.iter().map(|s| (*s).to_owned()).collect(),
        })
    };
    let all = [chart(
        "Mixture of experts beside a dense model of equal operations per token",
        &["pretrain", "pretrain_dense"],
    )];
    all.into_iter().flatten().collect()
}

/// What the run was meant to show, where its stages are named as in the launch recipe.
fn claims(ctx: &Context, done: &Done) -> Result<Vec<Claim>, TrainError> {
    let right = |name: &str| -> Option<Vec<f64>> {
        let of = done.iter().rev().find_map(|(_, v)| v["figures"]["of"].get(name))?;
        Some(of["greedy_right"].as_array()?.iter().filter_map(Value::as_f64).collect())
    };
    let mut claims = Vec::new();
    let mut claim = |name: &str, baseline: &str, a: Option<Vec<f64>>, b: Option<Vec<f64>>| {
        // Measurements of other problems, or of nothing, cannot be compared.
        if let (Some(a), Some(b)) = (a, b)
            && a.len() == b.len()
            && !a.is_empty()
        {
            claims.push(Claim::new(name, baseline, ratio_paired(&a, &b)));
        }
    };
    claim("reinforcement lifts pass@1", "the same model after sft", right("grpo"), right("sft"));
    claim(
        "distillation gives the student a higher pass@1",
        "the same student by reinforcement alone at equal operations",
        right("distill"),
        right("distill_rl_only"),
    );
    claims.extend(experts(ctx, done)?);
    Ok(claims)
}

/// The experts beside the dense model, at the dense model's last step, where both have read the same documents.
fn experts(ctx: &Context, done: &Done) -> Result<Option<Claim>, TrainError> {
    let steps =
        |name: &str| done.iter().find(|(n, _)| n == name).and_then(|(_, v)| v["figures"]["steps"].as_u64());
    let Some((all, step)) = steps("pretrain").zip(steps("pretrain_dense")) else { return Ok(None) };
    let load = |stage: &str| Ok::<_, TrainError>(HeldOut::load(&ctx.folder.stage_dir(stage)?, step));
    let both = load("pretrain")?.zip(load("pretrain_dense")?);
    let Some((moe, dense)) = both.filter(|(a, b)| a.compares_with(b)) else { return Ok(None) };
    let mut baseline = "a dense model of equal operations per token on the same tokens".to_owned();
    if step < all {
        baseline += &format!(", both after {step} of {all} steps");
    }
    let ratio = ratio_paired(&dense.losses, &moe.losses);
    Ok(Some(Claim::new("experts lower the held-out loss", &baseline, ratio)))
}
