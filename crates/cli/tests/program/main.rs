//! The program as its users have it: every file here runs the commands of one field.
//!
//! One test program for all: each that is linked has the whole of Shoestring in it.

mod adapter;
mod common;
mod convert;
mod device;
#[path = "../../../tensor/tests/common/emulator.rs"]
mod emulator;
mod ends;
mod eval_and_chat;
mod generate;
#[cfg(unix)]
mod killed_server;
mod resume;
mod run;
mod score;
mod smollm2;
mod teach;
