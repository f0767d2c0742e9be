//! DAPO: every token of the rollout weighs the same, in whichever step it comes; the upper clip is higher than the lower.

use super::{Norm, Objective};

pub(super) struct Dapo;

impl Objective for Dapo {
    fn weight(&self, _: usize, norm: Norm) -> f32 {
        1.0 / norm.mean_tokens.max(1.0)
    }
}
