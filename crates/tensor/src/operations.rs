//! Exact counts of the arithmetic done by matrix products and attention, for the ledger.
//!
//! A multiply-add is two operations. Counted is what the mathematics needs (causal attention counts the pairs that
//! are attended to), forward and backward apart from what an implementation adds, except for recomputation, which is
//! work done and is counted. Elementwise passes are not counted: they are memory traffic, not arithmetic.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the arithmetic was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Dense projections.
    Linear,
    /// Scores and weighted sums of values.
    Attention,
    /// Routed experts.
    Experts,
    /// The output head with its loss.
    Head,
    /// The optimizer's own products (Muon).
    Optimizer,
}

/// All parts, in the order of [`Counts`].
pub const PARTS: [Part; 5] = [Part::Linear, Part::Attention, Part::Experts, Part::Head, Part::Optimizer];

static COUNTS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// Operations of this process so far, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; 5]);

impl Counts {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
    /// One part.
    pub fn of(&self, part: Part) -> u64 {
        self.0[part as usize]
    }
    /// What has come since an earlier count.
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts(std::array::from_fn(|i| self.0[i] - earlier.0[i]))
    }
}

/// The counts now.
pub fn counts() -> Counts {
    Counts(std::array::from_fn(|i| COUNTS[i].load(Relaxed)))
}

/// Adds a product of `m x k` with `k x n`.
pub fn add_product(part: Part, m: usize, k: usize, n: usize) {
    COUNTS[part as usize].fetch_add(2 * (m as u64) * (k as u64) * (n as u64), Relaxed);
}
