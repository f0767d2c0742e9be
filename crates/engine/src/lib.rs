//! Generation: token ids in, token ids and log-probabilities out. It never sees text.
//!
//! Sequences are batched continuously over a paged cache: finished ones leave and new ones enter between any two
//! steps, prompts are computed in chunks beside the decoding of others, and a group's prompt is computed once. By the
//! engine's bitwise contract none of that changes a sequence's tokens or log-probabilities.
//!
//! A [`Lane`] is open: requests come while others run, and may be cancelled. An [`Engine`] takes a list and gives it back
//! whole; it stands on lanes.

mod generate;
mod guide;
mod lane;
mod pages;
mod prefix;
mod request;
mod sampler;
mod speculate;
#[cfg(test)]
mod tests;

pub use generate::{Batch, Engine};
pub use guide::{Allowed, Guide, MakeGuide};
pub use lane::{Counts, Lane, Limits, Sink, Ticket};
pub use request::{Completion, EngineError, Extras, FinishReason, Request, Token};
pub use sampler::Sampling;
pub use tensor::GpuError;
pub use tensor::ops::Drawn;
