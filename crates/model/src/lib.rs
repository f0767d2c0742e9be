//! Model families: from token ids and weights to logits, and the files that hold both.
//!
//! A model writes its forward pass only; gradients come from the ops of `tensor`, and the same pass serves
//! training (with a recording tape) and generation (with a cache).

pub mod adapter;
mod batch;
pub mod config;
pub mod device;
pub mod family;
pub mod files;
mod gqa;
pub mod inspect;
mod kv_cache;
mod linear;
pub mod load;
mod mla;
mod moe;
mod transformer;

pub use adapter::AdapterConfig;
pub use config::ModelConfig;
pub use kv_cache::KvCache;
pub use load::{HeldAs, Use};
pub use moe::ExpertLoad;
pub use tensor::ops::Segment;
pub use transformer::{Model, Pass, PassOptions, Stream, whole};
