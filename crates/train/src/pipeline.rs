//! A recipe from its first stage to its last, resuming where it stopped, and what its report says.

use std::path::Path;

use serde_json::{Value, json};

use crate::TrainError;
use crate::context::{Context, Reporter};
use crate::problems::ProblemSource;
use crate::run::folder::RunFolder;
use crate::run::recipe::Recipe;
use crate::stages;

/// Performs the recipe's stages into `dir`, skipping those that are done, and writes the report after each.
pub fn run(recipe: &Recipe, dir: &Path, reporter: &dyn Reporter, ceiling: f64) -> Result<(), TrainError> {
    let folder = RunFolder::open(dir, recipe)?;
    crate::plan::check_memory(recipe)?;
    let problems = if recipe.draws_problems() {
        Some(ProblemSource::open(&recipe.problems, recipe.seed)?)
    } else {
        None
    };
    let ctx = Context { recipe, folder: &folder, reporter, problems, ceiling };
    let count = recipe.stages.len();
    for (i, stage) in recipe.stages.iter().enumerate() {
        if folder.done(stage.name())?.is_some() {
            continue;
        }
        if reporter.stop() {
            return Err(TrainError::Interrupted);
        }
        reporter.stage(stage.name(), stage.kind(), i + 1, count);
        let result = stages::run(&ctx, stage)?;
        let done = json!({"kind": stage.kind(), "cost": result.cost, "summary": result.summary, "figures": result.figures});
        folder.mark_done(stage.name(), &done)?;
        reporter.stage_done(stage.name(), &result.cost, &result.summary);
        tensor::buffer::release_unused();
        crate::summary::write(&ctx)?;
    }
    crate::summary::write(&ctx)
}

/// What is known of each finished stage, in the recipe's order.
pub(crate) fn finished(ctx: &Context) -> Result<Vec<(String, Value)>, TrainError> {
    let mut out = Vec::new();
    for stage in &ctx.recipe.stages {
        if let Some(done) = ctx.folder.done(stage.name())? {
            out.push((stage.name().to_owned(), done));
        }
    }
    Ok(out)
}
