//! DAPO: every token of the rollout weighs the same, in whichever step it comes; the upper clip is higher than the lower.

use super::{Norm, Objective};

pub(super) struct Dapo;

impl Objective for Dapo {
    fn clip(&self) -> (f64, f64) {
        (0.2, 0.28)
    }

    fn weight(&self, _: usize, norm: Norm) -> f32 {
        1.0 / norm.mean_tokens.max(1.0)
    }

    #[cfg(test)]
    fn published(&self, of: &super::tests::Published) -> Option<f64> {
        Some(of.tokens() / f64::from(of.norm.mean_tokens))
    }
}
