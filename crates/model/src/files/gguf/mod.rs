//! GGUF files as models: what their keys say as a configuration, their tensors under Hugging Face's names.

pub(crate) mod keys;
pub(crate) mod names;
mod weights;
mod write;

pub use weights::GgufWeights;
pub use write::{GgufType, write_gguf};

use std::path::Path;

/// Whether a path is a GGUF file: by its ending or by its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    let ending = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    ending || begins_as_gguf(path).unwrap_or(false)
}

fn begins_as_gguf(path: &Path) -> std::io::Result<bool> {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(path)?.read_exact(&mut magic)?;
    Ok(&magic == ground::gguf::MAGIC)
}

#[cfg(test)]
mod tests;
