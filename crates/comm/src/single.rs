//! One process alone.

use std::time::Duration;

use crate::Comm;

/// The only rank.
pub struct Single;

impl Comm for Single {
    fn rank(&self) -> usize {
        0
    }
    fn ranks(&self) -> usize {
        1
    }
    fn send(&self, to: usize, _: &[f32]) {
        nobody(to)
    }
    fn receive(&self, from: usize, _: &mut [f32]) {
        nobody(from)
    }
    fn exchange(&self, with: usize, _: &[f32], _: &mut [f32]) {
        nobody(with)
    }
    fn tell(&self, to: usize, _: &[u8]) {
        nobody(to)
    }
    fn hear(&self, from: usize) -> Vec<u8> {
        nobody(from)
    }
    fn swap(&self, with: usize, _: &[u8]) -> Vec<u8> {
        nobody(with)
    }
    fn waited(&self) -> Duration {
        Duration::ZERO
    }
    fn sent(&self) -> u64 {
        0
    }
    fn leave(&self) {}
    fn end(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}

fn nobody(rank: usize) -> ! {
    panic!("there is no rank {rank} beside the only one")
}
