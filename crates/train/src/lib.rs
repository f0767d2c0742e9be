//! Training: the stages of a recipe, their optimizers and objectives, runs that resume, evaluation and the ledger.

pub mod ledger;
pub mod objective;
pub mod optim;
pub mod policy;
pub mod report;
pub mod run;
pub mod stats;
pub mod step;
