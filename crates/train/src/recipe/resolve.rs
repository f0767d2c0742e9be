//! Fills in what a recipe leaves out and what has no fixed default.

use super::Recipe;
use crate::forgetting::{BUILT_IN, NONE};
use crate::source::{HELD_OUT, TaskMix};
use crate::stages::{AnyStage, Earlier, Outline};

/// The tasks of a recipe that draws problems and does not say which.
pub const DEFAULT_MIX: [&str; 3] = ["arithmetic", "countdown", "word"];

/// The stages as they see each other, and the names of `[models]`.
pub(super) fn outlines(recipe: &Recipe) -> (Vec<Outline>, Vec<String>) {
    let outline = |s: &crate::stages::NamedStage| Outline {
        name: s.name().to_owned(),
        kind: s.kind(),
        makes: s.makes(),
    };
    (recipe.stages.iter().map(outline).collect(), recipe.models.keys().cloned().collect())
}

/// A stage goes on from what came before it, unless it says otherwise; problems are drawn where any stage draws them.
pub(super) fn all(recipe: &mut Recipe) {
    let (all, models) = outlines(recipe);
    for (before, stage) in recipe.stages.iter_mut().enumerate() {
        stage.stage_mut().resolve(&Earlier {
            all: &all,
            before,
            models: &models,
            problems: &recipe.problems,
        });
    }
    let from_outside: Vec<bool> = recipe
        .stages
        .iter()
        .map(|s| s.measures().is_some_and(|(of, _)| of.iter().any(|name| recipe.is_from_outside(name))))
        .collect();
    for (stage, from_outside) in recipe.stages.iter_mut().zip(from_outside) {
        if let AnyStage::Eval(eval) = stage.stage_mut() {
            let text = if from_outside { BUILT_IN } else { NONE };
            eval.held_text.get_or_insert_with(|| text.to_owned());
        }
    }
    let draws = recipe.draws_problems();
    let problems = &mut recipe.problems;
    let own = problems.jsonl.is_some() || !problems.command.is_empty();
    if problems.mix.is_empty() && !own && draws {
        problems.mix = DEFAULT_MIX.map(TaskMix::plain).to_vec();
    }
    // How many a file has is not known yet.
    if problems.jsonl.is_none() {
        problems.held_out.get_or_insert(HELD_OUT);
    }
}
