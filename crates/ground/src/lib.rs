//! What several rooms need and none owns: files that appear whole or not at all, and the mixer behind every seed.

pub mod atomic;
pub mod seeds;
