//! CISPO: the importance weight is clipped and carries no gradient, so that no token is dropped; MiniMax-M1, equation 4. With
//! the defaults there is no lower bound, as there, and the cap is 5, as ScaleRL found it to be good; that is TRL's
//! `epsilon_high = 5`, which states the cap itself.

use super::{Clip, Norm, Objective, Sequence, Gradients};

pub(super) struct Cispo;

impl Objective for Cispo {
    fn clip(&self) -> (f64, f64) {
        (1.0, 4.0)
    }

    fn weight(&self, _: usize, norm: Norm) -> f32 {
        1.0 / norm.mean_tokens.max(1.0)
    }
    fn gradients(&self, s: &Sequence, clip: Clip, weight: f32) -> Gradients {
        let mut out = Gradients::default();
        for (new, old) in s.new.iter().zip(s.old) {
            let ratio = (new - old).exp();
            let held = ratio.clamp(1.0 - clip.low, 1.0 + clip.high);
            out.clipped += usize::from(ratio != held);
            out.gradients.push(-s.advantage * held * weight);
        }
        out
    }

    #[cfg(test)]
    fn published(&self, _: &super::tests::Published) -> Option<f64> {
        // The weight is held fixed by the caller (stop-gradient).
        None
    }
}
