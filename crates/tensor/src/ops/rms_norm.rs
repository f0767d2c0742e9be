//! RMSNorm, alone and fused with the residual addition before it.

use crate::cpu::math;
use crate::cpu::simd::{LANES, Simd, kernel};
use crate::cuda::{Gpu, Ptr, Slab, args, fast};
use crate::memory::Data;
use crate::params::{Params, Weight};
use crate::tape::{Grad, Tape, Tensor};
use crate::threads::{SharedMut, parallel};
use std::sync::Arc;

/// Rows of one piece of work; fixed, because the weight's gradient sums piece by piece.
const ROWS: usize = 64;
/// Features up to which a row has half a warp on a GPU, and not a block.
const NARROW: usize = 128;

/// Threads of the block that has a row on a GPU.
fn threads_of(features: usize) -> usize {
    features.div_ceil(8).next_multiple_of(32).min(256)
}

/// `y = x / sqrt(mean(x²) + eps) * w` per row; `x [tokens, hidden]`, `w [hidden]`.
pub fn rms_norm(tape: &Tape, x: &Tensor, w: Weight, eps: f32) -> Tensor {
    grouped_rms_norm(tape, x, w, eps)
}

/// The same where each row holds several groups of `w.len()` features that are normalised apart (Qwen3's heads).
pub fn grouped_rms_norm(tape: &Tape, x: &Tensor, w: Weight, eps: f32) -> Tensor {
    let h = w.len();
    assert!(x.cols().is_multiple_of(h), "rms_norm: {} features in groups of {h}", x.cols());
    let n = x.rows() * x.cols() / h;
    let (y, rstd) = forward(tape, &x.data, n, w, eps);
    let y = tape.output(y, x.rows(), x.cols());
    if let Some(dy) = y.grad.clone() {
        let x = x.clone();
        tape.record(move |params| {
            let Some(dy) = dy.take() else { return };
            let dx = backward(params, &x.data, &dy, &rstd, w, None);
            if let Some(g) = &x.grad {
                g.give(dx);
            }
        });
    }
    y
}

/// The norms of `n` rows, and the factor of each.
fn forward(tape: &Tape, x: &Data, n: usize, w: Weight, eps: f32) -> (Data, Data) {
    let h = w.len();
    let mut rstd = Data::new(tape.gpu(), n);
    if let Some(gpu) = fast(tape.gpu()).filter(|_| suits_fast(tape, w)) {
        let y = Data::halves(gpu, n * h);
        fast_forward(gpu, tape.params().on(gpu, w), eps, (x, None), (&y, rstd.on_mut(gpu)), [n, h]);
        return (y, rstd);
    }
    let mut y = Data::new(tape.gpu(), n * h);
    match tape.gpu() {
        Some(gpu) => {
            let (w, rstd) = (tape.params().on(gpu, w), rstd.on_mut(gpu));
            let (x, y) = (x.on(gpu), y.on_mut(gpu));
            if h <= NARROW {
                let args = args![x, w, eps, y, rstd, n, h];
                gpu.launch("rms_norm_forward_groups", [n.div_ceil(16), 1, 1], 256, args);
            } else {
                let args = args![x, w, eps, y, rstd, h];
                gpu.launch_shared("rms_norm_forward", [n, 1, 1], threads_of(h), 4 * h, args);
            }
        }
        None => {
            let (x, weight) = (x.host(), tape.params().get(w));
            let (out, rs) = (SharedMut::new(y.host_mut()), SharedMut::new(rstd.host_mut()));
            parallel(n.div_ceil(ROWS), |i| {
                let (r0, rows) = piece(i, n);
                // SAFETY: pieces own disjoint rows.
                let (out, rs) = unsafe { (out.slice(r0 * h, rows * h), rs.slice(r0, rows)) };
                forward_rows(&x[r0 * h..][..rows * h], weight, eps, out, rs);
            });
        }
    }
    (y, rstd)
}

/// Whether a row and its weight can be read in pairs.
fn suits_fast(tape: &Tape, w: Weight) -> bool {
    w.len().is_multiple_of(2) && tape.params().is_in_pairs(w)
}

/// `y` and `rstd` in fast mode, from `a` or, with `(b, s)`, from `s = a + b`, which is written.
fn fast_forward(
    gpu: &Gpu,
    w: Ptr,
    eps: f32,
    (a, more): (&Data, Option<(&Data, &Slab)>),
    (y, rstd): (&Data, &Slab),
    [n, h]: [usize; 2],
) {
    let (b, s) = more.map_or((Ptr::NULL, Ptr::NULL), |(b, s)| (b.on(gpu).at(0), s.at(0)));
    let args = args![a.on(gpu), b, w, eps, s, y.operand(gpu).at(0), rstd, h];
    gpu.launch_shared("fast_elementwise_norm", [n, 1, 1], threads_of(h), 4 * h, args);
}

/// `s = a + b`, `y = rms_norm(s)`; returns `(s, y)`. `a`, `b` are `[tokens, hidden]`.
pub fn add_rms_norm(tape: &Tape, a: &Tensor, b: &Tensor, w: Weight, eps: f32) -> (Tensor, Tensor) {
    let h = w.len();
    assert!(a.cols() == h && b.cols() == h && a.rows() == b.rows(), "add_rms_norm: shapes differ");
    let n = a.rows();
    let gpu = tape.gpu();
    let (mut s, mut rstd) = (Data::new(gpu, n * h), Data::new(gpu, n));
    let halves = fast(gpu).filter(|_| suits_fast(tape, w)).map(|gpu| Data::halves(gpu, n * h));
    let is_fast = halves.is_some();
    let mut y = halves.unwrap_or_else(|| Data::new(gpu, n * h));
    match gpu {
        Some(gpu) if is_fast => {
            let (w, sum) = (tape.params().on(gpu, w), s.on_mut(gpu));
            fast_forward(gpu, w, eps, (&a.data, Some((&b.data, sum))), (&y, rstd.on_mut(gpu)), [n, h]);
        }
        Some(gpu) => {
            let (a, b, w) = (a.data.on(gpu), b.data.on(gpu), tape.params().on(gpu, w));
            let args = args![a, b, w, eps, s.on_mut(gpu), y.on_mut(gpu), rstd.on_mut(gpu), h];
            gpu.launch_shared("rms_norm_add_forward", [n, 1, 1], threads_of(h), 4 * h, args);
        }
        None => {
            let (a, b, weight) = (a.host(), b.host(), tape.params().get(w));
            let (sum, out, rs) =
                (SharedMut::new(s.host_mut()), SharedMut::new(y.host_mut()), SharedMut::new(rstd.host_mut()));
            parallel(n.div_ceil(ROWS), |i| {
                let (r0, rows) = piece(i, n);
                let at = r0 * h..(r0 + rows) * h;
                // SAFETY: pieces own disjoint rows.
                let (sum, out, rs) =
                    unsafe { (sum.slice(r0 * h, rows * h), out.slice(r0 * h, rows * h), rs.slice(r0, rows)) };
                sum.copy_from_slice(&a[at.clone()]);
                math::add_assign(sum, &b[at]);
                forward_rows(sum, weight, eps, out, rs);
            });
        }
    }
    let s = tape.output(s, n, h);
    let y = tape.output(y, n, h);
    if let (Some(ds), Some(dy)) = (s.grad.clone(), y.grad.clone()) {
        let (a, b, s) = (a.grad.clone(), b.grad.clone(), s.clone());
        tape.record(move |params| {
            let (ds, dy) = (ds.take(), dy.take());
            let total = match dy {
                Some(dy) => Some(Arc::new(backward(params, &s.data, &dy, &rstd, w, ds.as_deref()))),
                None => ds,
            };
            let Some(total) = total else { return };
            for g in [a, b].iter().flatten() {
                Grad::add(g, total.clone());
            }
        });
    }
    (s, y)
}

fn piece(i: usize, n: usize) -> (usize, usize) {
    (i * ROWS, ROWS.min(n - i * ROWS))
}

kernel! {
    fn forward_rows<S>(x: &[f32], w: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) {
        let h = w.len();
        let whole = h / LANES * LANES;
        let tail = h - whole;
        for (r, rs) in rstd.iter_mut().enumerate() {
            let x = x[r * h..][..h].as_ptr();
            let out = out[r * h..][..h].as_mut_ptr();
            let mut acc = S::splat(0.0);
            let mut i = 0;
            while i < whole {
                let v = S::load(x.add(i));
                acc = S::fma(v, v, acc);
                i += LANES;
            }
            let v = S::load_partial(x.add(i), tail);
            let mean = S::sum(S::fma(v, v, acc)) / h as f32;
            *rs = 1.0 / (mean + eps).sqrt();
            let scale = S::splat(*rs);
            i = 0;
            while i < whole {
                S::store(out.add(i), S::mul(S::mul(S::load(x.add(i)), scale), S::load(w.as_ptr().add(i))));
                i += LANES;
            }
            for j in whole..h {
                *out.add(j) = *x.add(j) * *rs * w[j];
            }
        }
    }
}

/// `dx`, with `extra` added; adds to the gradient of `w`. Pieces of fixed size, summed in order.
fn backward(params: &Params, x: &Data, dy: &Data, rstd: &Data, w: Weight, extra: Option<&Data>) -> Data {
    let (h, n) = (w.len(), rstd.len());
    let pieces = n.div_ceil(ROWS);
    let gpu = params.gpu();
    let mut dx = Data::new(gpu, n * h);
    let mut partial = Data::zeros(gpu, pieces * h);
    if let Some(gpu) = gpu {
        let (x, dy, rstd) = (x.on(gpu), dy.on(gpu), rstd.on(gpu));
        let extra = extra.map_or(Ptr::NULL, |e| e.on(gpu).at(0));
        let partial = partial.on_mut(gpu);
        let (weight, to) = (params.on(gpu, w), dx.on_mut(gpu));
        if h <= NARROW {
            let args = args![x, dy, rstd, weight, extra, to, n, h];
            gpu.launch("rms_norm_backward_groups", [n.div_ceil(16), 1, 1], 256, args);
        } else {
            let args = args![x, dy, rstd, weight, extra, to, h];
            gpu.launch_shared("rms_norm_backward", [n, 1, 1], threads_of(h), 4 * h, args);
        }
        if !params.trains(w) {
            return dx;
        }
        let args = args![x, dy, rstd, partial, n, h];
        gpu.launch("rms_norm_weight_partial", [(pieces * h).div_ceil(256), 1, 1], 256, args);
        let args = args![partial, params.grad_on(gpu, w), pieces, h];
        gpu.launch("elementwise_bias_gradient", [h.div_ceil(32), 1, 1], 256, args);
        return dx;
    }
    {
        let (x, dy, rstd, weight) = (x.host(), dy.host(), rstd.host(), params.get(w));
        let extra = extra.map(Data::host);
        let (dx, part) = (SharedMut::new(dx.host_mut()), SharedMut::new(partial.host_mut()));
        parallel(pieces, |i| {
            let (r0, rows) = piece(i, n);
            let at = r0 * h..(r0 + rows) * h;
            // SAFETY: pieces own disjoint rows and their own partial sum.
            let (dx, part) = unsafe { (dx.slice(r0 * h, rows * h), part.slice(i * h, h)) };
            let none: &[f32] = &[];
            let extra = extra.map_or(none, |e| &e[at.clone()]);
            backward_rows(&x[at.clone()], &dy[at], &rstd[r0..r0 + rows], weight, extra, dx, part);
        });
    }
    if !params.trains(w) {
        return dx;
    }
    let mut dw = params.grad_mut(w);
    for p in partial.host().chunks_exact(h) {
        math::add_assign(&mut dw, p);
    }
    drop(dw);
    dx
}

kernel! {
    fn backward_rows<S>(x: &[f32], dy: &[f32], rstd: &[f32], w: &[f32], extra: &[f32], dx: &mut [f32], dw: &mut [f32]) {
        let h = w.len();
        let (wp, dwp) = (w.as_ptr(), dw.as_mut_ptr());
        for (r, &rs) in rstd.iter().enumerate() {
            let (x, dy) = (x[r * h..][..h].as_ptr(), dy[r * h..][..h].as_ptr());
            let dx = dx[r * h..][..h].as_mut_ptr();
            let scale = S::splat(rs);
            let mut acc = S::splat(0.0);
            let mut i = 0;
            while i < h {
                let n = LANES.min(h - i);
                let (xv, dv, wv) = (load::<S>(x.add(i), n), load::<S>(dy.add(i), n), load::<S>(wp.add(i), n));
                let dn = S::mul(dv, S::mul(xv, scale));
                store::<S>(dwp.add(i), n, S::add(load::<S>(dwp.add(i), n), dn));
                acc = S::fma(dn, wv, acc);
                i += LANES;
            }
            let mean = S::splat(-(S::sum(acc) / h as f32) * rs);
            i = 0;
            while i < h {
                let n = LANES.min(h - i);
                let (xv, dv, wv) = (load::<S>(x.add(i), n), load::<S>(dy.add(i), n), load::<S>(wp.add(i), n));
                // rstd * (dy w - x̂ mean(dy w x̂))
                let mut d = S::mul(scale, S::fma(xv, mean, S::mul(dv, wv)));
                if !extra.is_empty() {
                    d = S::add(d, load::<S>(extra[r * h..].as_ptr().add(i), n));
                }
                store::<S>(dx.add(i), n, d);
                i += LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::V {
    // SAFETY: n values are readable (caller).
    unsafe { if n == LANES { S::load(p) } else { S::load_partial(p, n) } }
}

#[inline(always)]
unsafe fn store<S: Simd>(p: *mut f32, n: usize, v: S::V) {
    // SAFETY: n values are writable (caller).
    unsafe { if n == LANES { S::store(p, v) } else { S::store_partial(p, n, v) } }
}
