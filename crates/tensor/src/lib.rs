//! The engine: buffers, threads, kernels, the gradient tape and its fused ops.
#![allow(unsafe_code)] // the one crate that has it, under safe functions
pub mod buffer;
pub mod cpu;
pub mod rng;
pub mod threads;
