//! `silu(gate) * up`, from one tensor that holds both side by side.

use crate::cpu::math::sigmoid;
use crate::cpu::simd::{LANES, Simd, kernel};
use crate::cuda::{Gpu, ROW_THREADS, args, row_grid};
use crate::memory::Data;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// Rows of one piece of work.
const ROWS: usize = 32;

/// `gate_up [tokens, 2 * inner]` → `[tokens, inner]`.
pub fn swiglu(tape: &Tape, gate_up: &Tensor) -> Tensor {
    assert!(gate_up.cols().is_multiple_of(2), "swiglu: {} features are not two halves", gate_up.cols());
    let (n, inner) = (gate_up.rows(), gate_up.cols() / 2);
    let mut y = Data::new(tape.gpu(), n * inner);
    match tape.gpu() {
        Some(gpu) => {
            let args = args![gate_up.data.on(gpu), y.on_mut(gpu), inner];
            gpu.launch("swiglu_forward", row_grid(n, inner), ROW_THREADS, args);
        }
        None => {
            let gate_up = gate_up.host();
            parallel_chunks(y.host_mut(), ROWS * inner, |at, y| {
                forward_rows(&gate_up[at * 2..][..y.len() * 2], inner, None, y);
            });
        }
    }
    let y = tape.output(y, n, inner);
    if let Some(dy) = y.grad.clone() {
        let gate_up = gate_up.clone();
        tape.record(move |params| {
            if let (Some(dy), Some(g)) = (dy.take(), &gate_up.grad) {
                g.give(backward(params.gpu(), &gate_up, &dy));
            }
        });
    }
    y
}

fn backward(gpu: Option<&Gpu>, gate_up: &Tensor, dy: &Data) -> Data {
    let (n, inner) = (gate_up.rows(), gate_up.cols() / 2);
    let mut d = Data::new(gpu, n * 2 * inner);
    match gpu {
        Some(gpu) => {
            let args = args![gate_up.data.on(gpu), dy.on(gpu), d.on_mut(gpu), inner];
            gpu.launch("swiglu_backward", row_grid(n, inner), ROW_THREADS, args);
        }
        None => {
            let (gate_up, dy) = (gate_up.host(), dy.host());
            parallel_chunks(d.host_mut(), ROWS * 2 * inner, |at, d| {
                backward_rows(&gate_up[at..][..d.len()], &dy[at / 2..][..d.len() / 2], inner, d);
            });
        }
    }
    d
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
