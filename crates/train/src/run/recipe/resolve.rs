//! Fills in what a recipe leaves out and what has no fixed default.

use super::optimizer::OptimizerKind;
use super::reinforce::Objective;
use super::source::TaskMix;
use super::{DistillMethod, Recipe, Stage};
use crate::problems::HELD_OUT;

/// The tasks of a recipe that draws problems and does not say which.
pub const DEFAULT_MIX: [&str; 3] = ["arithmetic", "countdown", "word"];

/// A stage without a name is called as its kind.
pub(super) fn names(recipe: &mut Recipe) {
    for stage in &mut recipe.stages {
        if stage.name().is_empty() {
            *stage.name_mut() = stage.kind().to_owned();
        }
    }
}

/// A stage goes on from what came before it, unless it says otherwise.
pub(super) fn references(recipe: &mut Recipe) {
    let mut tokenizer = String::new();
    let mut models: Vec<String> = Vec::new();
    let mut traces = None;
    for stage in &mut recipe.stages {
        let last = models.last().cloned().unwrap_or_default();
        match stage {
            Stage::Tokenizer(stage) => tokenizer.clone_from(&stage.name),
            Stage::Pretrain(stage) => {
                if stage.tokenizer.is_empty() {
                    stage.tokenizer = stage.from.clone().unwrap_or_else(|| tokenizer.clone());
                }
            }
            Stage::Sft(stage) => fill(&mut stage.from, last),
            Stage::Grpo(stage) => fill(&mut stage.from, last),
            Stage::Reject(stage) => {
                fill(&mut stage.from, last);
                traces = Some(stage.name.clone());
            }
            Stage::Distill(stage) => {
                fill(&mut stage.teacher, last);
                if stage.method == DistillMethod::Traces && stage.traces.is_none() {
                    stage.traces.clone_from(&traces);
                }
            }
            Stage::Eval(stage) => {
                if stage.of.is_empty() {
                    stage.of.clone_from(&models);
                }
            }
        }
        if stage.makes_model() {
            models.push(stage.name().to_owned());
        }
    }
    let problems = &mut recipe.problems;
    let own = problems.jsonl.is_some() || !problems.command.is_empty();
    if problems.mix.is_empty() && !own && recipe.stages.iter().any(Stage::draws_problems) {
        problems.mix = DEFAULT_MIX.map(TaskMix::plain).to_vec();
    }
    // How many a file has is not known yet.
    if problems.jsonl.is_none() {
        problems.held_out.get_or_insert(HELD_OUT);
    }
}

fn fill(reference: &mut String, default: String) {
    if reference.is_empty() {
        *reference = default;
    }
}

/// Learning rates by the kind of stage, clipping by the objective.
pub(super) fn numbers(recipe: &mut Recipe) {
    for stage in &mut recipe.stages {
        let rate = match stage {
            Stage::Grpo(_) => 1e-4,
            Stage::Sft(_) => 1e-3,
            _ => 3e-3,
        };
        if let Some(optimizer) = stage.optimizer_mut() {
            let muon = optimizer.kind == OptimizerKind::Muon;
            set(&mut optimizer.learning_rate, if muon { 10.0 * rate } else { rate });
            let learning_rate = optimizer.learning_rate;
            set(&mut optimizer.adam_learning_rate, if muon { rate } else { learning_rate });
        }
        if let Stage::Grpo(stage) = stage {
            let (low, high) = match stage.objective {
                Objective::Grpo | Objective::DrGrpo | Objective::Bnpo => (0.2, 0.2),
                Objective::Dapo => (0.2, 0.28),
                Objective::Gspo => (3e-4, 4e-4),
                Objective::Cispo => (1.0, 4.0),
            };
            set(&mut stage.clip_low, low);
            set(&mut stage.clip_high, high);
        }
    }
}

fn set(number: &mut f64, default: f64) {
    if number.is_nan() {
        *number = default;
    }
}
