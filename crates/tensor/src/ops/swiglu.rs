//! `silu(gate) * up`, or `gelu(gate) * up`, from one tensor that holds both side by side.
//!
//! Both are `gate * sigmoid(t)`: with `t = gate` for SiLU, and with `t = 2 sqrt(2 / π) (gate + 0.044715 gate³)` for GELU in its form
//! with tanh (Hendrycks & Gimpel 2016), since `(1 + tanh(u)) / 2 = sigmoid(2 u)`.

use crate::cpu::math::sigmoid;
use crate::cpu::simd::{LANES, Simd, kernel};
use crate::cuda::{Gpu, ROW_THREADS, args, fast, row_grid};
use crate::memory::Data;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// Rows of one piece of work.
const ROWS: usize = 32;

/// What the gate goes through.
const SILU: bool = false;
const GELU: bool = true;

/// `gate_up [tokens, 2 * inner]` → `[tokens, inner]`, through SiLU.
pub fn swiglu(tape: &Tape, gate_up: &Tensor) -> Tensor {
    gated(tape, gate_up, SILU)
}

/// `gate_up [tokens, 2 * inner]` → `[tokens, inner]`, through GELU with tanh.
pub fn geglu(tape: &Tape, gate_up: &Tensor) -> Tensor {
    gated(tape, gate_up, GELU)
}

fn gated(tape: &Tape, gate_up: &Tensor, gelu: bool) -> Tensor {
    assert!(gate_up.cols().is_multiple_of(2), "swiglu: {} features are not two halves", gate_up.cols());
    let y = tape.output(forward(tape.gpu(), gate_up, gelu), gate_up.rows(), gate_up.cols() / 2);
    if let Some(dy) = y.grad.clone() {
        let gate_up = gate_up.clone();
        tape.record(move |params| {
            if let (Some(dy), Some(g)) = (dy.take(), &gate_up.grad) {
                g.give(backward(params.gpu(), &gate_up, &dy, gelu));
            }
        });
    }
    y
}

fn forward(gpu: Option<&Gpu>, gate_up: &Tensor, gelu: bool) -> Data {
    let (n, inner) = (gate_up.rows(), gate_up.cols() / 2);
    if let Some(gpu) = fast(gpu).filter(|_| inner.is_multiple_of(2)) {
        let y = Data::halves(gpu, n * inner);
        let args = args![gate_up.data.on(gpu), y.operand(gpu).at(0), inner];
        let name = if gelu { "fast_elementwise_geglu" } else { "fast_elementwise_swiglu" };
        gpu.launch(name, row_grid(n, inner), ROW_THREADS, args);
        return y;
    }
    let mut y = Data::new(gpu, n * inner);
    match gpu {
        Some(gpu) => {
            let args = args![gate_up.data.on(gpu), y.on_mut(gpu), inner];
            let name = if gelu { "swiglu_gelu_forward" } else { "swiglu_forward" };
            gpu.launch(name, row_grid(n, inner), ROW_THREADS, args);
        }
        None => {
            let gate_up = gate_up.host();
            parallel_chunks(y.host_mut(), ROWS * inner, |at, y| {
                let gate_up = &gate_up[at * 2..][..y.len() * 2];
                if gelu { gelu_rows(gate_up, inner, y) } else { forward_rows(gate_up, inner, None, y) }
            });
        }
    }
    y
}

fn backward(gpu: Option<&Gpu>, gate_up: &Tensor, dy: &Data, gelu: bool) -> Data {
    let (n, inner) = (gate_up.rows(), gate_up.cols() / 2);
    if let Some(gpu) = fast(gpu).filter(|_| inner.is_multiple_of(2)) {
        let d = Data::halves(gpu, n * 2 * inner);
        let args = args![gate_up.data.on(gpu), dy.on(gpu), d.operand(gpu).at(0), inner];
        let name = if gelu { "fast_elementwise_geglu_backward" } else { "fast_elementwise_swiglu_backward" };
        gpu.launch(name, row_grid(n, inner), ROW_THREADS, args);
        return d;
    }
    let mut d = Data::new(gpu, n * 2 * inner);
    match gpu {
        Some(gpu) => {
            let args = args![gate_up.data.on(gpu), dy.on(gpu), d.on_mut(gpu), inner];
            let name = if gelu { "swiglu_gelu_backward" } else { "swiglu_backward" };
            gpu.launch(name, row_grid(n, inner), ROW_THREADS, args);
        }
        None => {
            let (gate_up, dy) = (gate_up.host(), dy.host());
            parallel_chunks(d.host_mut(), ROWS * 2 * inner, |at, d| {
                let (gate_up, dy) = (&gate_up[at..][..d.len()], &dy[at / 2..][..d.len() / 2]);
                backward_rows(gate_up, dy, inner, gelu, d);
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

/// `2 sqrt(2 / π)`.
const TWICE_ROOT: f32 = 2.0 * 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// The argument of GELU's sigmoid, and its slope.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
unsafe fn gelu_argument<S: Simd>(g: S::V) -> (S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        let square = S::mul(S::mul(g, g), S::splat(CUBE));
        let (one, root) = (S::splat(1.0), S::splat(TWICE_ROOT));
        let t = S::mul(root, S::fma(square, g, g));
        (t, S::mul(root, S::fma(S::splat(3.0), square, one)))
    }
}

kernel! {
    /// `y = gelu(gate) * up`.
    fn gelu_rows<S>(gate_up: &[f32], inner: usize, y: &mut [f32]) {
        for (row, y) in gate_up.chunks_exact(2 * inner).zip(y.chunks_exact_mut(inner)) {
            let (g, u) = (row.as_ptr(), row.as_ptr().add(inner));
            let mut i = 0;
            while i < inner {
                let n = LANES.min(inner - i);
                let (gv, uv) = (S::load_partial(g.add(i), n), S::load_partial(u.add(i), n));
                let v = S::mul(S::mul(gv, sigmoid::<S>(gelu_argument::<S>(gv).0)), uv);
                S::store_partial(y.as_mut_ptr().add(i), n, v);
                i += LANES;
            }
        }
    }
}

kernel! {
    fn backward_rows<S>(gate_up: &[f32], dy: &[f32], inner: usize, gelu: bool, d: &mut [f32]) {
        for (r, dy) in dy.chunks_exact(inner).enumerate() {
            let row = &gate_up[r * 2 * inner..][..2 * inner];
            let out = d[r * 2 * inner..][..2 * inner].as_mut_ptr();
            let mut i = 0;
            while i < inner {
                let n = LANES.min(inner - i);
                let (g, u, dy) = (row.as_ptr().add(i), row.as_ptr().add(inner + i), dy.as_ptr().add(i));
                let (dg, du, _) = if gelu { gelu_lanes::<S>(g, u, dy, n) } else { grad_lanes::<S>(g, u, dy, n) };
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

/// [`grad_lanes`] for GELU.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn gelu_lanes<S: Simd>(g: *const f32, u: *const f32, dy: *const f32, n: usize) -> (S::V, S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        let (g, u, dy) = (S::load_partial(g, n), S::load_partial(u, n), S::load_partial(dy, n));
        let (t, slope) = gelu_argument::<S>(g);
        let s = sigmoid::<S>(t);
        let gelu = S::mul(g, s);
        // d gelu / dg = s + gelu * (1 - s) * dt / dg
        let slope = S::fma(S::mul(gelu, S::sub(S::splat(1.0), s)), slope, s);
        (S::mul(S::mul(dy, u), slope), S::mul(dy, gelu), S::mul(gelu, u))
    }
}
