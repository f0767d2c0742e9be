//! Which device a model runs on: that of the process, unless something in the model has no kernels there.

use tensor::Gpu;

use crate::config::{ModelConfig, TensorSpec, tensor_specs};

/// Where a model is placed.
#[derive(Clone)]
pub struct Place {
    /// The GPU, and how it calculates; none for the processor.
    pub gpu: Option<Gpu>,
    /// Why it is not the process's device, in a sentence.
    pub notice: Option<String>,
}

/// Where a model of this description runs.
///
/// # Errors
/// A sentence, where a GPU was named that has no kernels for the model.
pub fn place_of(config: &ModelConfig) -> Result<Place, String> {
    let parameters = tensor_specs(config).iter().map(TensorSpec::elements).sum();
    let gpu = tensor::device(parameters);
    match config.without_gpu().filter(|_| gpu.is_some()) {
        None => Ok(Place { gpu, notice: None }),
        Some(what) if tensor::cuda::device_is_named() => {
            Err(format!("{what} runs on the processor alone so far: --device cpu"))
        }
        Some(what) => {
            let notice = format!("note: running on the processor: {what} has no kernels on a GPU so far");
            Ok(Place { gpu: None, notice: Some(notice) })
        }
    }
}
