//! A recipe from its first stage to its last, resuming where it stopped, and what its report says.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use crate::TrainError;
use crate::context::{Ceiling, Context, Reporter};
use crate::finished::Finished;
use crate::problems::ProblemSource;
use crate::recipe::Recipe;
use crate::run::folder::RunFolder;
use crate::run::share::Scratch;
use crate::stages::{NamedStage, StageResult};
use crate::team::Team;

/// Performs the recipe's stages into `dir`, skipping those that are done, and writes the report after each: all of them, or
/// those that `names` says and what they are built on. All ranks of a team do so together; the first one alone
/// writes. `ceiling` measures the operations per second of large matrix products.
pub fn run(
    recipe: &Recipe,
    names: &[String],
    dir: &Path,
    reporter: &dyn Reporter,
    ceiling: &(dyn Fn() -> f64 + Sync),
    team: Rc<Team>,
) -> Result<(), TrainError> {
    let wanted = wanted(recipe, names)?;
    crate::plan::check_memory(recipe, team.ranks())?;
    crate::plan::check_files(recipe)?;
    let resolved = recipe.resolved_toml();
    let scratch = if team.leads() { None } else { Some(Scratch::new()?) };
    let folder = RunFolder::open(scratch.as_ref().map_or(dir, Scratch::path), &resolved)?;
    let problems = if recipe.draws_problems() {
        Some(ProblemSource::open(&recipe.problems, recipe.seed)?)
    } else {
        None
    };
    crate::same::check(&team, recipe, names, problems.as_ref())?;
    // What can be refused before the first step was refused: from here on the folder is this recipe's.
    folder.claim(&resolved)?;
    let ctx = Context {
        seed: recipe.seed,
        machine: &recipe.machine,
        models: &recipe.models,
        stages: recipe.stages.iter().map(|s| (s.name(), recipe.rounds_before(s.name()))).collect(),
        team,
        folder: &folder,
        reporter,
        problems,
        ceiling: Ceiling::new(ceiling),
    };
    let done = perform(recipe, &wanted, &ctx);
    if done.is_err() {
        folder.release()?;
    }
    done
}

/// The stages to perform: all, or those that are named and what they are built on.
///
/// # Errors
/// A name that no stage has.
pub fn wanted<'a>(recipe: &'a Recipe, names: &'a [String]) -> Result<Vec<&'a NamedStage>, TrainError> {
    let mut wanted = BTreeSet::new();
    for name in names {
        let Some(stage) = recipe.stage(name) else {
            let known: Vec<&str> = recipe.stages.iter().map(NamedStage::name).collect();
            let what = format!("the recipe has no stage `{name}`; it has {}", known.join(", "));
            return Err(TrainError::Recipe(what));
        };
        wanted.extend(recipe.lineage(name));
        let measured = stage.measures().map_or(&[][..], |m| m.0);
        wanted.extend(measured.iter().flat_map(|of| recipe.lineage(of)));
    }
    let is_wanted = |stage: &&NamedStage| names.is_empty() || wanted.contains(stage.name());
    Ok(recipe.stages.iter().filter(is_wanted).collect())
}

fn perform(recipe: &Recipe, stages: &[&NamedStage], ctx: &Context) -> Result<(), TrainError> {
    let (folder, reporter, leads) = (ctx.folder, ctx.reporter, ctx.team.leads());
    let count = stages.len();
    let mut at_work = leads && !folder.path().join("report.json").exists();
    for (i, stage) in stages.iter().enumerate() {
        if ctx.finished(stage.name())?.is_some() {
            continue;
        }
        if ctx.team.from_first(|| reporter.stop()) {
            return Err(TrainError::Interrupted);
        }
        at_work = leads;
        reporter.stage(stage.name(), stage.kind(), i + 1, count);
        let failures = || ctx.problems.as_ref().and_then(|p| p.failures());
        let before = failures().map_or(0, |f| f.0);
        let result = stage.run(ctx, stage.name())?;
        if let Some((count, words)) = failures().filter(|f| f.0 > before) {
            let fresh = count - before;
            reporter.note(&format!(
                "{fresh} answers scored zero because the verifier failed ({words}, since the start)"
            ));
        }
        let StageResult { cost, summary, figures } = result;
        tensor::buffer::release_unused();
        if !leads {
            continue;
        }
        let done = Finished { kind: stage.kind().to_owned(), cost, summary, figures };
        folder.mark_done(stage.name(), &done)?;
        reporter.stage_done(stage.name(), &done.cost, &done.summary);
        crate::summary::write(recipe, ctx)?;
    }
    // The report of a finished run stays that of the machine which made it.
    if at_work {
        let judged = crate::summary::write(recipe, ctx)?;
        let all = count == recipe.stages.len();
        for claim in recipe.claims.iter().filter(|c| all && judged.iter().all(|j| j.name != c.name)) {
            reporter.note(&format!(
                "the claim {:?} cannot be judged: {} was not measured on the same material for {}",
                claim.name,
                claim.figure,
                claim.sides().collect::<Vec<_>>().join(" and ")
            ));
        }
    }
    Ok(())
}
