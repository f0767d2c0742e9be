//! One NVIDIA GPU, as one more instruction set: every output has the bits of the CPU's.
//!
//! Kernels are CUDA C++ beside the op that they belong to (`ops/<op>.cu`), compiled by NVRTC when they are first used.
//! All work goes to one stream, so that kernels see what earlier ones wrote, and a slab that is dropped may be handed out
//! again at once. The host waits only where it reads.

use std::sync::OnceLock;

mod compiler;
mod driver;
mod emulated;
mod error;
pub(crate) mod gemm;
mod gpu;
mod sources;

pub use error::GpuError;
static DEVICE: OnceLock<Gpu> = OnceLock::new();

/// Sets the device of models that this process makes from now on. Only the first call has an effect.
pub fn set_device(gpu: Gpu) {
    let _ = DEVICE.set(gpu);
}

/// The GPU that new models are placed on, if any.
pub fn device() -> Option<&'static Gpu> {
    DEVICE.get()
}

pub(crate) use gpu::{Arg, Ptr, Slab, args};
pub use gpu::{DeviceInfo, Gpu};

/// Threads of a block that walks one row.
pub(crate) const ROW_THREADS: usize = 128;

/// The grid of a kernel that has a block for every row, or several where a row has more than four values a thread.
pub(crate) fn row_grid(rows: usize, values: usize) -> [usize; 3] {
    [rows, values.div_ceil(4 * ROW_THREADS), 1]
}
