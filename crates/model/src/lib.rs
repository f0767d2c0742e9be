//! Model families: from token ids and weights to logits, and the files that hold both.

pub mod config;
pub mod files;
pub mod inspect;
