//! The commands, one file each.
pub mod bench;
pub mod chat;
pub mod convert;
pub mod devices;
pub mod eval;
pub mod generate;
pub mod inspect;
mod ranges;
pub mod run;
pub mod score;
pub mod serve;
pub mod teach;
mod words;
