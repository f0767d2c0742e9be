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
}
