//! What every layer needs to know about the batch.

use tensor::Ints;
use tensor::ops::{Segment, Segments};

/// What every layer needs to know about the batch.
pub(crate) struct BatchInfo {
    /// Its sequences.
    pub(crate) segments: Segments,
    /// Of each token in its sequence.
    pub(crate) positions: Ints,
    /// Tokens of each sequence.
    pub(crate) lens: Vec<usize>,
    /// Weight of the balance loss.
    pub(crate) alpha: f32,
}

impl BatchInfo {
    pub(crate) fn new(segments: &[Segment], balance_alpha: f32) -> BatchInfo {
        let positions = segments.iter().flat_map(|s| (s.past..s.past + s.rows).map(|p| p as u32));
        BatchInfo {
            positions: positions.collect::<Vec<_>>().into(),
            lens: segments.iter().map(|s| s.rows).collect(),
            segments: segments.to_vec().into(),
            alpha: balance_alpha,
        }
    }
}
