//! DAPO: every token of the step weighs the same; the upper clip is higher than the lower.

use super::{Clip, Norm, Objective, Sequence, Slopes, clipped_surrogate, standardised};

pub(super) struct Dapo;

impl Objective for Dapo {
    fn advantages(&self, rewards: &[f32]) -> Vec<f32> {
        standardised(rewards)
    }
    fn slopes(&self, s: &Sequence, clip: Clip, norm: Norm) -> Slopes {
        clipped_surrogate(s, clip, 1.0 / norm.tokens.max(1) as f32)
    }
}
