//! Ranks: processes that work on one thing together. This crate carries values and messages from one to another and knows
//! nothing of what they mean; what is added to what, and in which order, is said by whoever calls.
//!
//! A transport is a type that implements [`Comm`]: [`single`] for one process alone, [`local`] for ranks that are threads of one
//! process. That for processes which an MPI started is the program's own, so that building with it compiles the program alone anew. What several ranks do together is written once, upon that
//! trait, in [`collective`].

pub mod collective;
pub mod local;
pub mod single;

use std::time::Duration;

/// What a rank does with others.
///
/// None of its calls returns an error: of work that is done together nothing can be gone on with once a rank is [`Lost`]. The
/// transport says so to whoever has joined it, and the process ends.
pub trait Comm {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn ranks(&self) -> usize;
    /// Sends values to another rank.
    fn send(&self, to: usize, values: &[f32]);
    /// Takes values that another rank sends: as many as there is room for.
    fn receive(&self, from: usize, values: &mut [f32]);
    /// Sends to a rank while taking from it. Either may be empty, where both ranks know it.
    fn exchange(&self, with: usize, out: &[f32], into: &mut [f32]);
    /// Sends a message to another rank.
    fn tell(&self, to: usize, message: &[u8]);
    /// Takes a message that another rank sends.
    fn hear(&self, from: usize) -> Vec<u8>;
    /// Sends a message to a rank while taking one from it.
    fn swap(&self, with: usize, message: &[u8]) -> Vec<u8>;
    /// The time that this rank has waited for others, so far.
    fn waited(&self) -> Duration;
    /// Bytes of values that this rank has sent, so far.
    fn sent(&self) -> u64;
    /// Leaves the others in good order, once all have done their work; nothing can be sent afterwards.
    fn leave(&self);
    /// Ends all ranks with an exit code, this one included.
    fn end(&self, code: i32) -> !;
}

/// Another rank does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Which one.
    pub rank: usize,
    /// What happened.
    pub what: String,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} {}", self.rank, self.what)
    }
}

impl std::error::Error for Lost {}
