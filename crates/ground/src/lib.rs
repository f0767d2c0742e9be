//! What several rooms need and none owns: files that appear whole or not at all, the GGUF container, and the mixer behind
//! every seed.

pub mod atomic;
pub mod gguf;
pub mod seeds;
