//! Training: the stages of a recipe, their optimizers and objectives, runs that resume, evaluation and the ledger.

pub mod claims;
pub mod context;
pub mod error;
pub mod evaluate;
pub mod finished;
pub mod forgetting;
pub mod held_out;
pub mod learner;
pub mod ledger;
pub mod memory;
pub mod objective;
pub mod optim;
pub mod pipeline;
pub mod plan;
pub mod policy;
pub mod problems;
pub mod recipe;
pub mod report;
pub mod rivals;
pub mod rollout;
mod room;
pub mod run;
mod same;
pub mod settings;
pub mod source;
pub mod speaker;
pub mod stages;
pub mod stats;
pub mod step;
mod summary;
pub mod teach;
pub mod team;
pub mod training;

pub use error::TrainError;
