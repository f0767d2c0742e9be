//! Models on disk: folders with safetensors, `config.json` and `generation_config.json`, and GGUF files.
//!
//! Everything read here may come from a stranger. Sizes and offsets are checked against the file before
//! anything is allocated, nothing is executed, and what is refused is refused with the file, the tensor and
//! what was expected. Everything written here is written under a temporary name, synced and renamed.

mod error;
pub mod gguf;
mod header;
pub mod hf;
pub mod peft;
pub mod weights;
mod write;

pub use error::FileError;
pub use gguf::{GgufType, is_gguf, write_gguf};
pub use hf::{
    GenerationConfig, ModelFolder, Weights, read_generation_config, write_config, write_generation_config,
};
pub use weights::{SafeFile, TensorReport, WeightsReader};
pub(crate) use write::write_adapter;
pub use write::{WeightType, WrittenWeights, write_weights};

#[cfg(test)]
mod tests;
