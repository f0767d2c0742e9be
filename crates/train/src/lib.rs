//! Training: the stages of a recipe, their optimizers and objectives, runs that resume, evaluation and the ledger.

pub mod claims;
pub mod context;
pub mod error;
pub mod evaluate;
pub mod finished;
pub mod held_out;
pub mod learner;
pub mod ledger;
pub mod objective;
mod one_or_many;
pub mod optim;
pub mod pipeline;
pub mod plan;
pub mod policy;
pub mod problems;
pub mod report;
pub mod rollout;
pub mod run;
pub mod speaker;
mod stages;
pub mod stats;
pub mod step;
mod summary;

pub use error::TrainError;
