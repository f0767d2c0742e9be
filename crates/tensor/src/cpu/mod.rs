//! Kernels: the virtual vector, elementary functions, and the matrix product.

pub mod coded;
pub mod gemm;
pub mod math;
pub mod simd;
pub mod update;
