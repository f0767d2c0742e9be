//! HTTP in front of the engine: OpenAI's and Anthropic's interfaces, and a page to chat on.
//!
//! Every model has a [lane](engine::Lane) on a plain thread of its own; requests go to it through a channel and tokens
//! come back through another. Only this crate is async. It reads what strangers send: every number and length is checked
//! before anything is done with it, and what a client got wrong is never answered with a 5xx.
#![forbid(unsafe_code)]

mod anthropic;
mod app;
mod blocks;
mod error;
mod fields;
mod generation;
mod grammar;
mod guard;
mod lanes;
mod listen;
mod metrics;
mod openai;
mod options;
mod pages;
mod shelf;
mod sse;
mod studio;
mod talk;
mod thinking;
mod tools;
mod votes;

pub use listen::{ServeError, Server};
pub use options::{Options, ReasoningField, Served, Shelf, Shelved, Teacher};
