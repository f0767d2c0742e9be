//! `silu(gate) * up`, from one tensor that holds both side by side.

use crate::buffer::Buf;
use crate::cpu::math::sigmoid;
use crate::cpu::simd::{LANES, Simd, kernel};
use crate::tape::{Tape, Tensor};
use crate::threads::{SharedMut, parallel, parallel_chunks};
use std::sync::Arc;

/// Rows of one piece of work.
const ROWS: usize = 32;

/// `gate_up [tokens, 2 * inner]` → `[tokens, inner]`.
pub fn swiglu(tape: &Tape, gate_up: &Tensor) -> Tensor {
    assert!(gate_up.cols().is_multiple_of(2), "swiglu: {} features are not two halves", gate_up.cols());
    let inner = gate_up.cols() / 2;
    let mut y = Buf::new(gate_up.rows() * inner);
    parallel_chunks(&mut y, ROWS * inner, |at, y| {
        forward_rows(&gate_up.data()[at * 2..][..y.len() * 2], inner, None, y);
    });
    let y = tape.output(y, gate_up.rows(), inner);
    if let Some(dy) = y.grad.clone() {
        let gu = gate_up.clone();
        tape.record(move |_| {
            let (Some(dy), Some(g)) = (dy.take(), &gu.grad) else { return };
            let mut d = Buf::new(gu.data().len());
            let shared = SharedMut::new(&mut d);
            parallel(gu.rows().div_ceil(ROWS), |i| {
                let (r0, rows) = (i * ROWS, ROWS.min(gu.rows() - i * ROWS));
                // SAFETY: pieces own disjoint rows.
                let d = unsafe { shared.slice(r0 * 2 * inner, rows * 2 * inner) };
                backward_rows(
                    &gu.data()[r0 * 2 * inner..][..rows * 2 * inner],
                    &dy[r0 * inner..][..rows * inner],
                    inner,
                    d,
                );
            });
            g.add(Arc::new(d));
        });
    }
    y
}

kernel! {
    /// `y = silu(gate) * up`, times the row's `scale` if given.
    pub(crate) fn forward_rows<S>(gate_up: &[f32], inner: usize, scale: Option<&[f32]>, y: &mut [f32]) {
        for (r, y) in y.chunks_exact_mut(inner).enumerate() {
            let row = &gate_up[r * 2 * inner..][..2 * inner];
            let (g, u) = (row.as_ptr(), row.as_ptr().add(inner));
            let s = scale.map(|s| S::splat(s[r]));
            let mut i = 0;
            while i < inner {
                let n = LANES.min(inner - i);
                let full = n == LANES;
                let gv = if full { S::load(g.add(i)) } else { S::load_partial(g.add(i), n) };
                let uv = if full { S::load(u.add(i)) } else { S::load_partial(u.add(i), n) };
                let mut v = S::mul(S::mul(gv, sigmoid::<S>(gv)), uv);
                if let Some(s) = s {
                    v = S::mul(v, s);
                }
                if full { S::store(y.as_mut_ptr().add(i), v) } else { S::store_partial(y.as_mut_ptr().add(i), n, v) }
                i += LANES;
            }
        }
    }
}

kernel! {
    fn backward_rows<S>(gate_up: &[f32], dy: &[f32], inner: usize, d: &mut [f32]) {
        for (r, dy) in dy.chunks_exact(inner).enumerate() {
            let row = &gate_up[r * 2 * inner..][..2 * inner];
            let out = d[r * 2 * inner..][..2 * inner].as_mut_ptr();
            let mut i = 0;
            while i < inner {
                let n = LANES.min(inner - i);
                let (dg, du, _) = grad_lanes::<S>(row.as_ptr().add(i), row.as_ptr().add(inner + i), dy.as_ptr().add(i), n);
                if n == LANES {
                    S::store(out.add(i), dg);
                    S::store(out.add(inner + i), du);
                } else {
                    S::store_partial(out.add(i), n, dg);
                    S::store_partial(out.add(inner + i), n, du);
                }
                i += LANES;
            }
        }
    }
}

/// Gradients of gate and up, and the forward value, for `n` lanes.
///
/// # Safety
/// `n` values are readable at each pointer, and the machine has `S`.
#[inline(always)]
pub(crate) unsafe fn grad_lanes<S: Simd>(
    g: *const f32,
    u: *const f32,
    dy: *const f32,
    n: usize,
) -> (S::V, S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        let load = |p: *const f32| if n == LANES { S::load(p) } else { S::load_partial(p, n) };
        let (g, u, dy) = (load(g), load(u), load(dy));
        let s = sigmoid::<S>(g);
        let silu = S::mul(g, s);
        // d silu / dg = s + silu * (1 - s)
        let slope = S::fma(silu, S::sub(S::splat(1.0), s), s);
        (S::mul(S::mul(dy, u), slope), S::mul(dy, silu), S::mul(silu, u))
    }
}
