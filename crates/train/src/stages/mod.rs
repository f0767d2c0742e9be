//! The stages of a recipe, one file each. Every stage is a function of the context and its own settings, writes into
//! its own folder, and gives what it cost and a few words on what came of it.

mod distill;
mod eval;
mod grpo;
mod pretrain;
mod reject;
mod sft;
mod tokenizer;

use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::ledger::StageCost;
use crate::run::recipe::Stage;

/// What a finished stage leaves for the report, beside its folder.
pub struct StageResult {
    /// What it cost.
    pub cost: StageCost,
    /// A few words.
    pub summary: String,
    /// Figures for the report.
    pub figures: Figures,
}

/// Performs a stage, or goes on with it.
pub fn run(ctx: &Context, stage: &Stage) -> Result<StageResult, TrainError> {
    match stage {
        Stage::Tokenizer(s) => tokenizer::run(ctx, s),
        Stage::Pretrain(s) => pretrain::run(ctx, s),
        Stage::Sft(s) => sft::run(ctx, s),
        Stage::Grpo(s) => grpo::run(ctx, s),
        Stage::Reject(s) => reject::run(ctx, s),
        Stage::Distill(s) => distill::run(ctx, s),
        Stage::Eval(s) => eval::run(ctx, s),
    }
}
