//! What happens to gradients: optimizers and learning-rate schedules.

mod muon;
mod optimizer;
pub mod schedule;

pub use optimizer::{Optimizer, StepReport};
