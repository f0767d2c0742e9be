//! What can be wrong with a GPU, each with what to do about it.

use thiserror::Error;

/// Why a GPU cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GpuError {
    /// The driver's library is not there.
    #[error("no NVIDIA driver was found (libcuda.so.1): install the driver, or use --device cpu")]
    NoDriver,
    /// The driver sees no GPU.
    #[error("the NVIDIA driver sees no GPU ({0}): use --device cpu")]
    NoDevice(String),
    /// No GPU of this number.
    #[error("there is no GPU {wanted}: the driver sees {present} (0 to {})", present - 1)]
    NoSuchDevice {
        /// The number asked for.
        wanted: usize,
        /// GPUs that are there.
        present: usize,
    },
    /// Too old for the kernels.
    #[error(
        "{name} has compute capability {major}.{minor}; 8.0 (Ampere) or later is needed: use --device cpu"
    )]
    TooOld {
        /// The GPU.
        name: String,
        /// Its compute capability.
        major: u32,
        /// See `major`.
        minor: u32,
    },
    /// The driver does not load what the compiler makes.
    #[error(
        "the NVIDIA driver, for CUDA {}.{}, does not load what NVRTC {compiler} makes ({reason}): install a driver for CUDA \
         {major}, or in place of that NVRTC an earlier one (`pip install nvidia-cuda-nvrtc-cu12` for CUDA 12); or use \
         --device cpu",
        driver.0, driver.1
    )]
    OldDriver {
        /// The newest CUDA version that the driver knows, major and minor.
        driver: (i32, i32),
        /// The compiler's version.
        compiler: String,
        /// The first number of that.
        major: i32,
        /// What is wrong.
        reason: String,
    },
    /// The compiler is older than the card.
    #[error(
        "NVRTC {version} makes no code for compute capability {major}.{minor}, the newest that it knows is {}.{}: install a \
         newer CUDA toolkit, or `pip install --upgrade nvidia-cuda-nvrtc`; or use --device cpu",
        newest / 10, newest % 10
    )]
    OldCompiler {
        /// The compiler's version.
        version: String,
        /// The card's compute capability.
        major: u32,
        /// See `major`.
        minor: u32,
        /// The newest architecture that the compiler knows: 90 is sm_90.
        newest: u32,
    },
    /// The compiler's library is not there.
    #[error(
        "CUDA's run-time compiler was not found (libnvrtc.so): install the CUDA toolkit and set CUDA_HOME, or \
         `pip install nvidia-cuda-nvrtc` and activate that environment; or use --device cpu"
    )]
    NoCompiler,
    /// The compiler refuses the kernels.
    #[error("NVRTC {version} cannot compile {file} for {arch}: {log}")]
    Compiler {
        /// The compiler's version.
        version: String,
        /// The kernels' file.
        file: String,
        /// What it was to be compiled for.
        arch: String,
        /// What the compiler says.
        log: String,
    },
    /// The driver has no memory left.
    #[error("the GPU has no memory left")]
    NoMemory,
    /// Heads that no kernel is made for.
    #[error("heads of {qk_dim} and {v_dim} components: the GPU's kernels take up to 256, use --device cpu")]
    WideHeads {
        /// Components of a query or key.
        qk_dim: usize,
        /// Components of a value.
        v_dim: usize,
    },
    /// The memory does not suffice.
    #[error(
        "the GPU has no {wanted} MiB left ({held} MiB are in use here, {total} MiB are there): lower the batch, the \
         number of sequences or the context, or use --device cpu"
    )]
    OutOfMemory {
        /// MiB asked for.
        wanted: usize,
        /// MiB held by this process.
        held: usize,
        /// MiB of the GPU.
        total: usize,
    },
    /// Anything else the driver says.
    #[error("the GPU failed at {call}: {reason}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
}
