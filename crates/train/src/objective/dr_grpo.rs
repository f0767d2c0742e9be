//! Dr. GRPO: centred advantages, a constant instead of the completion's length.

use super::{Clip, Norm, Objective, Sequence, Slopes, centred, clipped_surrogate};

pub(super) struct DrGrpo;

impl Objective for DrGrpo {
    fn advantages(&self, rewards: &[f32]) -> Vec<f32> {
        centred(rewards)
    }
    fn slopes(&self, s: &Sequence, clip: Clip, norm: Norm) -> Slopes {
        clipped_surrogate(s, clip, 1.0 / (norm.max_new * norm.sequences) as f32)
    }
}
