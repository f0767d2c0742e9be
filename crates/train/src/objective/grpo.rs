//! GRPO: standardised advantages, each completion's tokens averaged before completions are.

use super::{Clip, Norm, Objective, Sequence, Slopes, clipped_surrogate, standardised};

pub(super) struct Grpo;

impl Objective for Grpo {
    fn advantages(&self, rewards: &[f32]) -> Vec<f32> {
        standardised(rewards)
    }
    fn slopes(&self, s: &Sequence, clip: Clip, norm: Norm) -> Slopes {
        clipped_surrogate(s, clip, 1.0 / (s.new.len().max(1) * norm.sequences) as f32)
    }
}
