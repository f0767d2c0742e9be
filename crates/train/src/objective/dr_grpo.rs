//! Dr. GRPO: centred advantages, a constant instead of the completion's length.

use super::{Norm, Objective, centred};

pub(super) struct DrGrpo;

impl Objective for DrGrpo {
    fn advantages(&self, rewards: &[f32]) -> Vec<f32> {
        centred(rewards)
    }
    fn weight(&self, _: usize, norm: Norm) -> f32 {
        1.0 / (norm.max_new * norm.sequences) as f32
    }

    #[cfg(test)]
    fn published(&self, of: &super::tests::Published) -> Option<f64> {
        Some(of.tokens() / of.norm.max_new as f64 / of.norm.sequences as f64)
    }
}
