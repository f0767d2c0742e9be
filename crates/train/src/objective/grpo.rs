//! GRPO: standardised advantages, each completion's tokens averaged before completions are.

use super::{Norm, Objective};

pub(super) struct Grpo;

impl Objective for Grpo {
    fn weight(&self, len: usize, norm: Norm) -> f32 {
        1.0 / (len.max(1) * norm.sequences) as f32
    }
}
