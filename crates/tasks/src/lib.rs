//! Problems and verifiers: text in, score out.
//!
//! A [`Task`] draws [`Problem`]s as a pure function of `(split, seed, index, level)` and writes worked
//! solutions for them; a [`Verifier`] maps `(problem, completion)` to a [`Verdict`]; [`rewards`] adds verdicts
//! up; [`corpus`] turns problems into training text. Nothing here knows of tokens, tensors or models.
//!
//! A completion has the form `<think>reasoning</think><answer>ANSWER</answer>`.

#![forbid(unsafe_code)]

pub mod corpus;
mod error;
mod load;
mod mix;
mod problem;
pub mod problems;
pub mod rewards;
mod rng;
pub mod steps;
pub mod verify;

pub use error::{Error, Result};
pub use load::load_problems;
pub use mix::{Mix, MixEntry};
pub use problem::{Level, Problem, Split, Style, Task};
pub use problems::{task, task_names};
pub use rewards::{NamedReward, Reward, RewardConfig, Scoring};
pub use rng::Rng;
pub use verify::external::{self, ExternalVerifier};
pub use verify::{AnswerPlace, Verdict, Verifier, answer_of, format_score, placed, verifier, verifier_names};

#[cfg(test)]
mod checks;
