//! Random numbers that are a pure function of a seed and a position, so that a resumed run draws the same.

use ground::seeds::{GOLDEN, mix};

/// A counter-based generator (SplitMix64 over a 64-bit counter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// Calls of [`Rng::next_u64`] for one [`Rng::normal`].
    pub const PER_NORMAL: u64 = 2;

    /// The stream of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng { state: mix(seed ^ GOLDEN) }
    }
    /// The stream of a seed and a path of numbers, such as (step, sample).
    pub fn at(seed: u64, path: &[u64]) -> Rng {
        Rng { state: path.iter().fold(mix(seed ^ GOLDEN), |s, &p| mix(s ^ mix(p.wrapping_add(1)))) }
    }
    /// Passes over as many calls of [`Rng::next_u64`].
    pub fn skip(&mut self, calls: u64) {
        self.state = self.state.wrapping_add(calls.wrapping_mul(GOLDEN));
    }
    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }
    /// Uniform in [0, 1) with 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / (1 << 24) as f32)
    }
    /// Uniform in `0..n` (n > 0), by multiplication.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
    /// Standard normal, from [`Rng::PER_NORMAL`] calls: the sum of twelve uniforms would be cheap, Box-Muller with our own
    /// functions is exact.
    pub fn normal(&mut self) -> f32 {
        let u = (self.next_u64() >> 40) as f32 * (1.0 / (1 << 24) as f32) + 0.5 / (1 << 24) as f32;
        let angle = self.uniform() * std::f32::consts::TAU;
        (-2.0 * crate::cpu::math::ln(u)).sqrt() * crate::cpu::math::sin_cos(angle).1
    }
}
