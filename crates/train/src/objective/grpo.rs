//! GRPO: standardised advantages, each completion's tokens averaged before completions are.

use super::{Norm, Objective};

pub(super) struct Grpo;

impl Objective for Grpo {
    fn weight(&self, len: usize, norm: Norm) -> f32 {
        1.0 / (len.max(1) * norm.sequences) as f32
    }

    #[cfg(test)]
    fn published(&self, of: &super::tests::Published) -> Option<f64> {
        Some(of.tokens() / of.new.len() as f64 / of.norm.sequences as f64)
    }
}
