//! Passes over parameter arenas: the AdamW update, momentum, and squared norms.

use super::math;
use super::simd::{LANES, kernel};
use crate::threads::{SharedMut, parallel};

/// Values of one piece of work; fixed, because norms sum piece by piece.
pub const PIECE: usize = 1 << 14;

/// The constants of one AdamW step (Loshchilov & Hutter 2019, algorithm 2).
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// `1 - beta1^t`.
    pub correction1: f32,
    /// `1 - beta2^t`.
    pub correction2: f32,
    /// Factor of the gradient (for clipping).
    pub grad_scale: f32,
}

/// What follows from the constants, rounded once for all values.
pub(crate) struct Derived {
    /// `1 - beta1`, `1 - beta2`.
    pub(crate) rest1: f32,
    pub(crate) rest2: f32,
    /// What remains of a weight after its decay.
    pub(crate) keep: f32,
    /// Factor of the corrected first moment.
    pub(crate) step: f32,
    /// Factor of the second moment.
    pub(crate) root: f32,
}

impl AdamW {
    pub(crate) fn derived(&self) -> Derived {
        Derived {
            rest1: 1.0 - self.beta1,
            rest2: 1.0 - self.beta2,
            keep: 1.0 - self.lr * self.weight_decay,
            step: -self.lr / self.correction1,
            root: 1.0 / self.correction2,
        }
    }
}

kernel! {
    fn adamw_piece<S>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: AdamW) {
        let (b1, b2) = (S::splat(c.beta1), S::splat(c.beta2));
        let d = c.derived();
        let (a1, a2) = (S::splat(d.rest1), S::splat(d.rest2));
        let (keep, step, root) = (S::splat(d.keep), S::splat(d.step), S::splat(d.root));
        let (scale, eps) = (S::splat(c.grad_scale), S::splat(c.eps));
        let mut i = 0;
        while i < p.len() {
            let n = LANES.min(p.len() - i);
            let full = n == LANES;
            let load = |q: *const f32| if full { S::load(q.add(i)) } else { S::load_partial(q.add(i), n) };
            let grad = S::mul(load(g.as_ptr()), scale);
            let m1 = S::fma(a1, grad, S::mul(b1, load(m.as_ptr())));
            let v1 = S::fma(a2, S::mul(grad, grad), S::mul(b2, load(v.as_ptr())));
            let d = S::add(S::sqrt(S::mul(v1, root)), eps);
            let p1 = S::fma(step, S::div(m1, d), S::mul(load(p.as_ptr()), keep));
            for (q, x) in [(p.as_mut_ptr(), p1), (m.as_mut_ptr(), m1), (v.as_mut_ptr(), v1)] {
                if full { S::store(q.add(i), x) } else { S::store_partial(q.add(i), n, x) }
            }
            i += LANES;
        }
    }
}

/// One AdamW step over equally long slices, in one pass. Panics if the lengths differ.
pub fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: AdamW) {
    let len = p.len();
    assert!(g.len() == len && m.len() == len && v.len() == len, "adamw: lengths differ");
    let (p, m, v) = (SharedMut::new(p), SharedMut::new(m), SharedMut::new(v));
    parallel(len.div_ceil(PIECE), |i| {
        let (at, n) = (i * PIECE, PIECE.min(len - i * PIECE));
        // SAFETY: pieces are disjoint and inside the slices.
        let (p, m, v) = unsafe { (p.slice(at, n), m.slice(at, n), v.slice(at, n)) };
        adamw_piece(p, &g[at..at + n], m, v, c);
    });
}

/// `Σ x²`, in pieces of fixed size that are summed in order in f64: the same bits for any number of threads.
pub fn squared_norm(x: &[f32]) -> f64 {
    squared_norm_pieces(x).iter().sum()
}

/// `Σ x²` of each piece of [`PIECE`] values.
pub fn squared_norm_pieces(x: &[f32]) -> Vec<f64> {
    let mut sums = vec![0.0f64; x.len().div_ceil(PIECE)];
    crate::threads::parallel_chunks(&mut sums, 1, |i, out| {
        let piece = &x[i * PIECE..x.len().min((i + 1) * PIECE)];
        out[0] = piece.chunks(1024).map(|c| f64::from(math::dot(c, c))).sum();
    });
    sums
}
