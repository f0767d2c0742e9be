//! GSPO: the ratio is the sequence's, to the power of one over its length, and is clipped as a whole.

use super::{Clip, Norm, Objective, Sequence, Gradients, clipped_surrogate};

pub(super) struct Gspo;

impl Objective for Gspo {
    fn clip(&self) -> (f64, f64) {
        (3e-4, 4e-4)
    }

    fn weight(&self, len: usize, norm: Norm) -> f32 {
        1.0 / (len.max(1) * norm.sequences) as f32
    }
    fn gradients(&self, s: &Sequence, clip: Clip, weight: f32) -> Gradients {
        let len = s.new.len().max(1);
        let mean = s.new.iter().zip(s.old).map(|(n, o)| n - o).sum::<f32>() / len as f32;
        let whole = Sequence { new: &[mean], old: &[0.0], advantage: s.advantage };
        let one = clipped_surrogate(&whole, clip, weight);
        Gradients { gradients: vec![one.gradients[0]; s.new.len()], clipped: one.clipped * s.new.len() }
    }

    #[cfg(test)]
    fn published(&self, of: &super::tests::Published) -> Option<f64> {
        let mean = of.new.iter().zip(of.old).map(|(n, o)| n - o).sum::<f64>() / of.new.len() as f64;
        Some(of.surrogate(mean) / of.norm.sequences as f64)
    }
}
