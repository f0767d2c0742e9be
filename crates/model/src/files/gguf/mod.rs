//! GGUF files as models: what their keys say as a configuration, their tensors under Hugging Face's names.

pub(crate) mod keys;
pub(crate) mod names;
mod weights;
mod write;

pub use ground::gguf::is_gguf;
pub use weights::GgufWeights;
pub use write::{GgufType, write_gguf};

#[cfg(test)]
mod tests;
