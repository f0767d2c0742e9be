//! Documents side by side in one flat row of tokens, with next-token targets that never cross a document.

use std::ops::Range;

use crate::chat::Sample;

/// A training document: token ids and the loss weight of predicting each.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Document {
    /// Token ids.
    pub ids: Vec<u32>,
    /// `weights[i]` is the loss weight of predicting `ids[i]` from what is before it; `weights[0]` is ignored.
    pub weights: Vec<f32>,
}

impl Document {
    /// A document in which every token counts fully, as in pretraining.
    pub fn plain(ids: Vec<u32>) -> Document {
        Document { weights: vec![1.0; ids.len()], ids }
    }
}

impl From<Sample> for Document {
    /// Weight 1 where the sample has a loss, 0 elsewhere.
    fn from(sample: Sample) -> Document {
        let weights = sample.loss.iter().map(|&l| if l { 1.0 } else { 0.0 }).collect();
        Document { ids: sample.ids, weights }
    }
}

/// Flat rows of packed documents; the first three fields have one entry per input token.
///
/// Attention must not cross a boundary of `lens`: document `d` occupies the inputs from the sum of `lens[..d]`
/// to the sum of `lens[..=d]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Packed {
    /// Input tokens: each document's `ids[..n - 1]`.
    pub tokens: Vec<u32>,
    /// The token to predict at each input: each document's `ids[1..]`.
    pub targets: Vec<u32>,
    /// The loss weight of each target: each document's `weights[1..]`.
    pub weights: Vec<f32>,
    /// Input length of each document; the sum is `tokens.len()`.
    pub lens: Vec<usize>,
}

/// Packs documents in the order given. A document with fewer than two tokens has nothing to predict and is left out.
///
/// # Panics
/// When a document's `weights` and `ids` differ in length.
pub fn pack(docs: &[Document]) -> Packed {
    let total: usize = docs.iter().map(|d| d.ids.len().saturating_sub(1)).sum();
    let mut packed = Packed {
        tokens: Vec::with_capacity(total),
        targets: Vec::with_capacity(total),
        weights: Vec::with_capacity(total),
        lens: Vec::with_capacity(docs.len()),
    };
    for (i, doc) in docs.iter().enumerate() {
        let (n, w) = (doc.ids.len(), doc.weights.len());
        assert_eq!(n, w, "pack: document {i} has {n} ids and {w} weights");
        if n < 2 {
            continue;
        }
        packed.tokens.extend_from_slice(&doc.ids[..n - 1]);
        packed.targets.extend_from_slice(&doc.ids[1..]);
        packed.weights.extend_from_slice(&doc.weights[1..]);
        packed.lens.push(n - 1);
    }
    packed
}

/// Splits a long document into pieces of at most `max_len` inputs (`max_len + 1` ids).
///
/// Neighbouring pieces share one token, the last target of one and the first input of the next, so that every
/// token but the first is a target exactly once. A document with fewer than two tokens gives no piece.
///
/// # Panics
/// When `max_len` is 0.
pub fn chunk_document(ids: &[u32], max_len: usize) -> Vec<&[u32]> {
    chunk_ranges(ids.len(), max_len).map(|range| &ids[range]).collect()
}

/// The ranges of the pieces that [`chunk_document`] makes of a document of `len` tokens, without the document.
///
/// # Panics
/// When `max_len` is 0.
pub fn chunk_ranges(len: usize, max_len: usize) -> impl Iterator<Item = Range<usize>> {
    assert!(max_len > 0, "chunk_document: max_len must be at least 1");
    (0..len.saturating_sub(1))
        .step_by(max_len)
        .map(move |start| start..len.min(start.saturating_add(max_len).saturating_add(1)))
}

/// Groups consecutive documents into batches of at most `tokens_per_batch` tokens each.
///
/// A document longer than that gets a batch of its own; [`chunk_document`] avoids those. Every document is in
/// exactly one batch, in order, and the grouping depends on the arguments alone.
pub fn plan_batches(doc_lens: &[usize], tokens_per_batch: usize) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut filled) = (0, 0usize);
    for (i, &len) in doc_lens.iter().enumerate() {
        if i > start && filled.saturating_add(len) > tokens_per_batch {
            batches.push(start..i);
            (start, filled) = (i, 0);
        }
        filled = filled.saturating_add(len);
    }
    if start < doc_lens.len() {
        batches.push(start..doc_lens.len());
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Protects: whatever the piece length, each token but a document's first is predicted exactly once,
        /// and from the token before it.
        #[test]
        fn every_target_once(lens in prop::collection::vec(0usize..60, 0..12), max_len in 1usize..20) {
            let mut next = 0u32;
            let mut pieces = Vec::new();
            let mut expected: Vec<u32> = Vec::new();
            for len in lens {
                let ids: Vec<u32> = (next..next + len as u32).collect();
                next += len as u32;
                expected.extend(&ids[ids.len().min(1)..]);
                for piece in chunk_document(&ids, max_len) {
                    prop_assert!((2..=max_len + 1).contains(&piece.len()));
                    pieces.push(Document::plain(piece.to_vec()));
                }
            }
            let packed = pack(&pieces);
            prop_assert_eq!(&packed.targets, &expected);
            prop_assert_eq!(packed.lens.iter().sum::<usize>(), packed.tokens.len());
            prop_assert_eq!(packed.weights.len(), packed.tokens.len());
            for (token, target) in packed.tokens.iter().zip(&packed.targets) {
                prop_assert_eq!(token + 1, *target);
            }
        }

        /// Protects: batching loses no document and overflows only for a document that is too long by itself.
        #[test]
        fn batches_cover_all(lens in prop::collection::vec(0usize..50, 0..40), limit in 1usize..100) {
            let mut next = 0;
            for batch in plan_batches(&lens, limit) {
                prop_assert_eq!(batch.start, next);
                next = batch.end;
                let sum: usize = lens[batch.clone()].iter().sum();
                prop_assert!(sum <= limit || batch.len() == 1);
            }
            prop_assert_eq!(next, lens.len());
        }
    }

    /// Protects: weights travel with their targets, not with the inputs.
    #[test]
    fn weights_belong_to_targets() {
        let doc = Document { ids: vec![10, 11, 12], weights: vec![9.0, 0.0, 0.5] };
        let short = Document::plain(vec![7]);
        let packed = pack(&[doc, short]);
        assert_eq!(packed.tokens, [10, 11]);
        assert_eq!(packed.targets, [11, 12]);
        assert_eq!(packed.weights, [0.0, 0.5]);
        assert_eq!(packed.lens, [2]);
    }
}
