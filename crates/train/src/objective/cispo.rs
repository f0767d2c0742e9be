//! CISPO: the importance weight is capped from above and carries no gradient, so that no token is dropped.

use super::{Clip, Norm, Objective, Sequence, Slopes, standardised};

pub(super) struct Cispo;

impl Objective for Cispo {
    fn advantages(&self, rewards: &[f32]) -> Vec<f32> {
        standardised(rewards)
    }
    fn slopes(&self, s: &Sequence, clip: Clip, norm: Norm) -> Slopes {
        let mut out = Slopes::default();
        for (new, old) in s.new.iter().zip(s.old) {
            let (ratio, cap) = ((new - old).exp(), 1.0 + clip.high);
            out.clipped += usize::from(ratio > cap);
            out.slopes.push(-s.advantage * ratio.min(cap) / norm.tokens.max(1) as f32);
        }
        out
    }
}
