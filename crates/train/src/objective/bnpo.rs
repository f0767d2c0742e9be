//! BNPO, as TRL calls it: every token of the step weighs the same, and every step of a rollout.

use super::{Norm, Objective};

pub(super) struct Bnpo;

impl Objective for Bnpo {
    fn weight(&self, _: usize, norm: Norm) -> f32 {
        1.0 / norm.tokens.max(1) as f32
    }

    #[cfg(test)]
    fn published(&self, of: &super::tests::Published) -> Option<f64> {
        Some(of.tokens() / of.norm.tokens as f64)
    }
}
