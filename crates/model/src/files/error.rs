//! What can be wrong with a model folder.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::ConfigError;

/// Why a model file could not be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot {doing} {path}: {source}{}", advice(source))]
    Io {
        /// "read", "write", ...
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file ends before the data that its header lists.
    #[error("{path} is truncated: it should have {expected} bytes and has {found}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header accounts for.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// The file is not safetensors, or its header contradicts itself.
    #[error("{path} is not a valid safetensors file: {reason}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is not GGUF that can be read.
    #[error("{path} cannot be used: {reason}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The folder's weights are in a format that is not read.
    #[error(
        "{path} is not safetensors but {format}; convert the model to safetensors first (for example with \
         save_pretrained of transformers)"
    )]
    ForeignFormat {
        /// The file.
        path: PathBuf,
        /// The format that it seems to be.
        format: &'static str,
    },
    /// The folder has no weights at all.
    #[error("{dir} holds neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// The index of a sharded model is wrong.
    #[error("{path} is not a valid index of a sharded model: {reason}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is absent.
    #[error("{path} has no tensor `{name}`")]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` in {path} has shape {found:?}, but the configuration gives it {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's numbers are of a type that is not read.
    #[error("tensor `{name}` in {path} is of type {found}; F32, BF16, F16 and F64 are supported")]
    ElementType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The type found.
        found: String,
    },
    /// The folder's tensors are not those of the configuration.
    #[error("the weights in {dir} do not fit its configuration: {reason}")]
    Misfit {
        /// The folder.
        dir: PathBuf,
        /// What is missing, misshapen or unexpected.
        reason: String,
    },
    /// A list of tensors to write contains one twice.
    #[error("tensor `{name}` is to be written twice")]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor holds NaN or infinity: it was not written, or is not used.
    #[error("tensor `{name}` holds {value} at element {index}: such weights are neither written nor read")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The element's number.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The model does not run on the chosen device.
    #[error("{path}: {reason}")]
    Device {
        /// The model.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An adapter cannot be used, or does not fit.
    #[error("the adapter of {path} cannot be used: {reason}")]
    Adapter {
        /// The folder, or the model.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A folder that should hold an adapter does not.
    #[error(
        "{dir} holds no adapter: expected adapter_config.json and adapter_model.safetensors, as PEFT writes them"
    )]
    NoAdapter {
        /// The folder.
        dir: PathBuf,
    },
    /// A configuration in the folder was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl FileError {
    /// Wraps an I/O error with the file that it is about.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
        let path = path.to_path_buf();
        move |source| FileError::Io { doing, path, source }
    }
}

/// What to do about it, where that is plain.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free some space and run the same command again, nothing that was saved is lost"
        }
        _ => "",
    }
}
