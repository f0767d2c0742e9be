//! What happens to gradients: optimizers and learning-rate schedules.

mod muon;
mod optimizer;
pub mod schedule;
mod settings;

pub(crate) use muon::muon_operations;
pub use optimizer::{Optimizer, StepReport};
pub use settings::{OptimizerKind, OptimizerSettings};
