//! A recipe from its first stage to its last, resuming where it stopped, and what its report says.

use std::path::Path;

use crate::TrainError;
use crate::context::{Ceiling, Context, Reporter};
use crate::finished::Finished;
use crate::problems::ProblemSource;
use crate::recipe::Recipe;
use crate::run::folder::RunFolder;
use crate::stages::{NamedStage, StageResult};

/// Performs the recipe's stages into `dir`, skipping those that are done, and writes the report after each. `ceiling`
/// measures the operations per second of large matrix products.
pub fn run(
    recipe: &Recipe,
    dir: &Path,
    reporter: &dyn Reporter,
    ceiling: &(dyn Fn() -> f64 + Sync),
) -> Result<(), TrainError> {
    crate::plan::check_memory(recipe)?;
    crate::plan::check_files(recipe)?;
    let resolved = recipe.resolved_toml();
    let folder = RunFolder::open(dir, &resolved)?;
    let problems = if recipe.draws_problems() {
        Some(ProblemSource::open(&recipe.problems, recipe.seed)?)
    } else {
        None
    };
    // What can be refused before the first step was refused: from here on the folder is this recipe's.
    folder.claim(&resolved)?;
    let ctx = Context {
        seed: recipe.seed,
        machine: &recipe.machine,
        models: &recipe.models,
        stages: recipe.stages.iter().map(NamedStage::name).collect(),
        folder: &folder,
        reporter,
        problems,
        ceiling: Ceiling::new(ceiling),
    };
    let done = perform(recipe, &ctx);
    if done.is_err() {
        folder.release()?;
    }
    done
}

fn perform(recipe: &Recipe, ctx: &Context) -> Result<(), TrainError> {
    let (folder, reporter) = (ctx.folder, ctx.reporter);
    let count = recipe.stages.len();
    let mut at_work = !folder.path().join("report.json").exists();
    for (i, stage) in recipe.stages.iter().enumerate() {
        if ctx.finished(stage.name())?.is_some() {
            continue;
        }
        if reporter.stop() {
            return Err(TrainError::Interrupted);
        }
        at_work = true;
        reporter.stage(stage.name(), stage.kind(), i + 1, count);
        let failures = || ctx.problems.as_ref().and_then(|p| p.verifier().failures());
        let before = failures().map_or(0, |f| f.0);
        let result = stage.run(ctx, stage.name())?;
        if let Some((count, words)) = failures().filter(|f| f.0 > before) {
            let fresh = count - before;
            reporter.note(&format!(
                "{fresh} answers scored zero because the verifier failed ({words}, since the start)"
            ));
        }
        let StageResult { cost, summary, figures } = result;
        let done = Finished { kind: stage.kind().to_owned(), cost, summary, figures };
        folder.mark_done(stage.name(), &done)?;
        reporter.stage_done(stage.name(), &done.cost, &done.summary);
        tensor::buffer::release_unused();
        crate::summary::write(recipe, ctx)?;
    }
    // The report of a finished run stays that of the machine which made it.
    if at_work {
        let judged = crate::summary::write(recipe, ctx)?;
        for claim in recipe.claims.iter().filter(|c| judged.iter().all(|j| j.name != c.name)) {
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
