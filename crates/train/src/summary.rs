//! From finished stages to the report: evaluations, samples, claims, the ledger.

use std::collections::BTreeSet;

use crate::TrainError;
use crate::claims::{Claim, ClaimSettings, Figure, Side};
use crate::context::Context;
use crate::evaluate::Scores;
use crate::finished::{Finished, ModelSize};
use crate::forgetting::TextMeasure;
use crate::held_out::HeldOut;
use crate::recipe::Recipe;
use crate::report::{self, Overlay, RunReport, Sample};
use crate::rivals;
use crate::run::metrics::read_lines;
use crate::source::{Data, Source};
use crate::stages::{AnyStage, NamedStage};

type Done = Vec<(String, Finished)>;

/// Writes `report.json`, `report.html` and `curve.svg` from what is finished, and gives the claims as they stand.
pub(crate) fn write(recipe: &Recipe, ctx: &Context) -> Result<Vec<Claim>, TrainError> {
    let mut done = Done::new();
    for stage in &recipe.stages {
        done.extend(ctx.folder.done(stage.name())?.map(|f| (stage.name().to_owned(), f)));
    }
    let (evaluation, evaluation_by_task, samples) = evaluations(&done);
    let measured = |name: &str| evaluation.iter().any(|(n, _)| n == name);
    let grpo = recipe.stages.iter().find_map(|s| match s.stage() {
        AnyStage::Grpo(grpo) => Some((grpo.own.from.clone(), s.name().to_owned())),
        _ => None,
    });
    let earned = grpo.as_ref().and_then(|(_, name)| {
        let lineage = recipe.lineage(name);
        let taught = |s: &&NamedStage| matches!(s.stage(), AnyStage::Sft(_)) && lineage.contains(s.name());
        let start = recipe.stages.iter().filter(taught).find(|s| measured(s.name()))?;
        measured(name).then(|| (start.name().to_owned(), name.clone()))
    });
    let report = RunReport {
        name: recipe.name.clone(),
        seed: recipe.seed,
        model: done.iter().find_map(|(_, f)| f.figures.model).map_or("a model".into(), model_words),
        task: task_words(recipe),
        machine: machine_words(),
        price_per_core_hour: recipe.machine.price_per_core_hour,
        stages: done.iter().map(|(_, f)| f.cost.clone()).collect(),
        held_text: held_text(&done),
        claims: claims(recipe, ctx, &done),
        ways: rivals::ways(recipe, &done),
        taught: grpo.as_ref().and_then(|(from, name)| taught(recipe, from, name)),
        earned,
        reinforcement: grpo.filter(|(a, b)| measured(a) && measured(b)),
        overlays: overlays(recipe, &done),
        recipe: recipe.resolved_toml(),
        evaluation,
        evaluation_by_task,
        samples,
    };
    report::write(ctx.folder.path(), &report, &read_lines(ctx.folder.path())?)?;
    Ok(report.claims)
}

/// Once for each model.
fn held_text(done: &Done) -> Vec<(String, TextMeasure)> {
    let mut all: Vec<(String, TextMeasure)> = Vec::new();
    for m in done.iter().flat_map(|(_, f)| &f.figures.measured) {
        if let Some(text) = &m.held_text
            && all.iter().all(|(name, _)| *name != m.stage)
        {
            all.push((m.stage.clone(), text.clone()));
        }
    }
    all
}

type ByTask = Vec<(String, Vec<(String, Scores)>)>;

/// Per model, per task and model, and the same problems answered by several models.
fn evaluations(done: &Done) -> (Vec<(String, Scores)>, ByTask, Vec<Sample>) {
    let (mut all, mut by_task, mut samples): (Vec<_>, ByTask, Vec<Sample>) =
        (Vec::new(), Vec::new(), Vec::new());
    for (eval, m) in done.iter().flat_map(|(name, f)| f.figures.measured.iter().map(move |m| (name, m))) {
        // A stage that is measured again, with other samples, is so under a name of its own.
        let again = all.iter().any(|(name, _)| *name == m.stage);
        let name = if again { format!("{} in {eval}", m.stage) } else { m.stage.clone() };
        all.push((name, m.scores));
        if again {
            continue;
        }
        for (task, scores) in &m.by_task {
            let row = (m.stage.clone(), *scores);
            match by_task.iter_mut().find(|(t, _)| t == task) {
                Some((_, list)) => list.push(row),
                None => by_task.push((task.clone(), vec![row])),
            }
        }
        for a in &m.answers {
            match samples.iter_mut().find(|s| s.prompt == a.prompt) {
                Some(s) => s.completions.push(a.completion.clone()),
                None => samples.push(Sample {
                    task: a.task.clone(),
                    prompt: a.prompt.clone(),
                    answer: a.answer.clone(),
                    completions: vec![a.completion.clone()],
                }),
            }
        }
    }
    (all, by_task, samples)
}

fn model_words(size: ModelSize) -> String {
    let (total, active) = (size.total as f64 / 1e6, size.active as f64 / 1e6);
    if total > 1.01 * active {
        format!("a mixture of experts with {total:.1} M parameters, {active:.1} M of them active")
    } else {
        format!("a dense model with {total:.1} M parameters")
    }
}

fn task_words(recipe: &Recipe) -> String {
    let p = &recipe.problems;
    let names: Vec<String> =
        if p.mix.is_empty() { p.tasks.clone() } else { p.mix.iter().map(|m| m.task.clone()).collect() };
    let names: Vec<&str> =
        names.iter().map(|n| if n == "word" { "word problems" } else { n.as_str() }).collect();
    match names.split_last() {
        None if recipe.draws_problems() => "the user's problems".into(),
        None => "the user's text".into(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// What the model that reinforcement began with had been taught, where that were worked solutions, and that more of them
/// might have done as well, where no claim compares the two.
fn taught(recipe: &Recipe, from: &str, grpo: &str) -> Option<String> {
    let stage = |name: &str| recipe.stage(name).map(|s| s.stage());
    let Some(AnyStage::Sft(sft)) = stage(from) else { return None };
    if sft.own.data != Data::Problems {
        return None;
    }
    let read = match stage(&sft.own.from) {
        Some(AnyStage::Pretrain(p)) if p.own.source == Source::Problems => {
            "Its base had read worked solutions, and its cold start"
        }
        _ => "Its cold start",
    };
    let hurried = match sft.own.hurried_share {
        0.0 => String::new(),
        share => format!(", {:.0} % of them hurried: the answer without the work", 100.0 * share),
    };
    let is_sft = |name: &String| matches!(stage(name), Some(AnyStage::Sft(_)));
    let compared =
        recipe.claims.iter().any(|c| c.stage == grpo && c.equal_flops && c.baseline.iter().any(is_sft));
    let open = if compared {
        ""
    } else {
        " What fine-tuning on careful solutions reaches from the same base at equal FLOPs is not measured in this run; \
         where worked solutions are plenty, expect more of it than of reinforcement."
    };
    Some(format!("{read} was fine-tuned on worked solutions{hurried}.{open}"))
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

/// Stages whose held-out losses a claim compares belong on one chart.
fn overlays(recipe: &Recipe, done: &Done) -> Vec<Overlay> {
    let has = |name: &String| done.iter().any(|(n, _)| n == name);
    let losses = recipe.claims.iter().filter(|c| c.figure == Figure::HeldOutLoss);
    let both = losses.map(|c| {
        let stages = [vec![c.stage.clone()], c.baseline.clone()].concat();
        Overlay { title: c.name.clone(), stages }
    });
    both.filter(|overlay| overlay.stages.iter().all(has)).collect()
}

/// What came of the recipe's claims, as far as what they compare was measured.
fn claims(recipe: &Recipe, ctx: &Context, done: &Done) -> Vec<Claim> {
    let judge = |claim: &ClaimSettings| match claim.figure {
        Figure::HeldOutLoss => losses(ctx, done, claim),
        _ => answers(recipe, done, claim),
    };
    recipe.claims.iter().filter_map(judge).collect()
}

/// A claim about answers: of each side as the last stage says that measured it so.
fn answers(recipe: &Recipe, done: &Done, claim: &ClaimSettings) -> Option<Claim> {
    let of = |name: &str| {
        let mut all = done.iter().rev().flat_map(|(_, f)| &f.figures.measured);
        all.find(|m| m.stage == name && claim.figure.is_of(m.scores.samples))
    };
    let measured = claim.sides().map(of).collect::<Option<Vec<_>>>()?;
    let flops = flops(recipe, done, claim);
    let mut sides = measured.iter().zip(flops).map(|(m, flops)| Side { outcomes: &m.outcomes, flops });
    let stage = sides.next()?;
    claim.judge_answers(&stage, &sides.collect::<Vec<_>>())
}

/// FLOPs of what each side of a claim is built on, but for what all sides share and what is given.
fn flops(recipe: &Recipe, done: &Done, claim: &ClaimSettings) -> Vec<u64> {
    let built: Vec<BTreeSet<&str>> = claim.sides().map(|name| recipe.lineage(name)).collect();
    let given: BTreeSet<&str> = claim.given.iter().flat_map(|name| recipe.lineage(name)).collect();
    let counts = |name: &str| !given.contains(name) && !built.iter().all(|b| b.contains(name));
    let of = |b: &BTreeSet<&str>| {
        let own = done.iter().filter(|(name, _)| b.contains(name.as_str()) && counts(name));
        own.map(|(_, f)| f.cost.operations).sum()
    };
    built.iter().map(of).collect()
}

/// A claim about losses, at the last step at which both were measured after the same documents.
fn losses(ctx: &Context, done: &Done, claim: &ClaimSettings) -> Option<Claim> {
    let find = |name: &str| done.iter().find(|(n, _)| n == name).map(|(_, f)| f);
    let baseline = claim.baseline.first()?;
    let steps = find(&claim.stage)?.figures.numbers.get("steps")?;
    find(baseline)?;
    let dir = |stage: &str| ctx.folder.path().join(stage);
    let (step, (own, other)) = HeldOut::steps(&dir(&claim.stage)).into_iter().rev().find_map(|step| {
        let both = HeldOut::load(&dir(&claim.stage), step).zip(HeldOut::load(&dir(baseline), step))?;
        both.0.compares_with(&both.1).then_some((step, both))
    })?;
    Some(claim.judge_losses(&own.losses, &other.losses, step, *steps as u64))
}
