//! The engine: buffers, threads, kernels, the gradient tape and its fused ops.
//!
//! Not a general tensor library: an activation is a matrix with one row per token, and an op exists because a
//! model or a loss needs it. What holds for all of it is the bitwise contract (see `ARCHITECTURE.md`): a token's
//! result depends on its context and the weights alone, and gradients do not depend on the number of threads.
#![allow(unsafe_code)] // the one crate that has it, under safe functions

pub mod blocks;
pub mod buffer;
pub mod cpu;
pub mod cuda;
pub mod mapped;
pub mod memory;
pub mod operations;
pub mod ops;
pub mod params;
pub mod rng;
pub mod tape;
pub mod threads;

pub use buffer::Buf;
pub use cuda::{Gpu, GpuError, Math, device, set_device};
pub use memory::{Data, Ints};
pub use params::{Hold, Params, Weight};
pub use rng::Rng;
pub use tape::{Tape, Tensor};
