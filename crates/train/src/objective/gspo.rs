//! GSPO: the ratio is the sequence's, to the power of one over its length, and is clipped as a whole.

use super::{Clip, Norm, Objective, Sequence, Slopes, clipped_surrogate};

pub(super) struct Gspo;

impl Objective for Gspo {
    fn weight(&self, len: usize, norm: Norm) -> f32 {
        1.0 / (len.max(1) * norm.sequences) as f32
    }
    fn slopes(&self, s: &Sequence, clip: Clip, weight: f32) -> Slopes {
        let len = s.new.len().max(1);
        let mean = s.new.iter().zip(s.old).map(|(n, o)| n - o).sum::<f32>() / len as f32;
        let whole = Sequence { new: &[mean], old: &[0.0], advantage: s.advantage };
        let one = clipped_surrogate(&whole, clip, weight);
        Slopes { slopes: vec![one.slopes[0]; s.new.len()], clipped: one.clipped * s.new.len() }
    }
}
