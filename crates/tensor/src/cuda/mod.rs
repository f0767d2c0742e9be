//! One NVIDIA GPU. In exact mode it is one more instruction set: every output has the bits of the processor's.
//!
//! Kernels are CUDA C++ beside the op that they belong to (`ops/<op>.cu`), compiled by NVRTC when they are first used.
//! All work goes to one stream, so that kernels see what earlier ones wrote, and a slab that is dropped may be handed out
//! again at once. The host waits only where it reads.

use std::sync::OnceLock;

mod compiler;
mod cublaslt;
mod driver;
mod emulated;
mod error;
pub(crate) mod gemm;
mod gpu;
mod libraries;
mod library;
mod sources;
mod versions;

pub use error::GpuError;
/// Parameters from which on a GPU calculates fast unless it is told otherwise: where exact products would take long.
pub const FAST_PARAMETERS: usize = 100_000_000;

/// The GPU that new models are placed on, if any, and how it is to calculate, if that was said.
static DEVICE: OnceLock<Chosen> = OnceLock::new();

struct Chosen {
    gpu: Gpu,
    math: Option<Math>,
    named: bool,
}

/// Sets the device of models that this process makes from now on; without `math`, a model's size decides. `named` says that
/// it was asked for, not found. Only the first call has an effect.
pub fn set_device(gpu: Gpu, math: Option<Math>, named: bool) {
    let _ = DEVICE.set(Chosen { gpu, math, named });
}

/// Whether this process has a GPU because one was asked for, and not because one was found.
pub fn device_is_named() -> bool {
    DEVICE.get().is_some_and(|d| d.named)
}

/// The GPU that a new model of so many parameters is placed on, if any.
pub fn device(parameters: usize) -> Option<Gpu> {
    let Chosen { gpu, math, .. } = DEVICE.get()?;
    let by_size = if parameters < FAST_PARAMETERS { Math::Exact } else { Math::Fast };
    Some(gpu.with_math(math.unwrap_or(by_size)))
}

pub(crate) use gpu::{Arg, Operand, Ptr, Slab, args, give_up};
pub use gpu::{DeviceInfo, Gpu, Math};

/// The most components of an attention head that there are kernels for.
pub const MAX_HEAD_DIM: usize = 256;

/// Threads of a block that walks one row.
pub(crate) const ROW_THREADS: usize = 128;

/// The GPU, where it calculates fast.
pub(crate) fn fast(gpu: Option<&Gpu>) -> Option<&Gpu> {
    gpu.filter(|gpu| gpu.math() == Math::Fast)
}

/// The grid of a kernel that has a block for every row, or several where a row has more than four values a thread.
pub(crate) fn row_grid(rows: usize, values: usize) -> [usize; 3] {
    [rows, values.div_ceil(4 * ROW_THREADS), 1]
}
