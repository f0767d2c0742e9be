//! Generation: token ids in, token ids and log-probabilities out. It never sees text.
//!
//! Sequences are batched continuously over a paged cache: finished ones leave and new ones enter between any two
//! steps, prompts are computed in chunks beside the decoding of others, and a group's prompt is computed once. By the
//! engine's bitwise contract none of that changes a sequence's tokens or log-probabilities.

mod generate;
mod pages;
mod sampler;

pub use generate::{Completion, Engine, EngineError, FinishReason, Limits, Request, Token};
pub use sampler::Sampling;
