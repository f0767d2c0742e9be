//! From projections to attention heads: splitting columns, rotary position embedding, MLA's assembly.
//!
//! Rotated slices are written with the first members of all pairs before the second members, for both layouts of
//! the input; scores do not depend on that order as long as queries and keys agree.

use crate::buffer::Buf;
use crate::cpu::math::sin_cos;
use crate::cpu::simd::kernel;
use crate::cuda::{Gpu, ROW_THREADS, Slab, args, row_grid};
use crate::memory::{Data, Ints};
use crate::tape::{Grad, Tape, Tensor};
use crate::threads::{SharedMut, parallel};
use std::sync::Arc;

/// Rows of one piece of work.
const ROWS: usize = 32;

/// Which components form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `i` with `i + half` (Llama, Qwen).
    Halves,
    /// `2i` with `2i + 1` (DeepSeek).
    Interleaved,
}

/// Cosines and sines, `[positions, half]`.
pub struct RopeTable {
    half: usize,
    cos: Data,
    sin: Data,
    pairs: Pairs,
}

impl RopeTable {
    /// Angles `position * inv_freq[i]`, cosines and sines times `scaling`.
    pub fn new(inv_freq: &[f32], scaling: f32, positions: usize, pairs: Pairs) -> RopeTable {
        let half = inv_freq.len();
        let (mut cos, mut sin) = (Buf::new(positions * half), Buf::new(positions * half));
        for p in 0..positions {
            for (i, &f) in inv_freq.iter().enumerate() {
                let (s, c) = sin_cos(p as f32 * f);
                cos[p * half + i] = c * scaling;
                sin[p * half + i] = s * scaling;
            }
        }
        RopeTable { half, cos: cos.into(), sin: sin.into(), pairs }
    }
    /// Rotated components of a head.
    pub fn dim(&self) -> usize {
        2 * self.half
    }
    /// Positions that the table holds.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(usize::MAX)
    }
    fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let at = position as usize * self.half;
        assert!(at + self.half <= self.cos.len(), "rope: position {position} beyond {}", self.positions());
        (&self.cos.host()[at..at + self.half], &self.sin.host()[at..at + self.half])
    }
    /// Cosines and sines on a GPU.
    pub(super) fn on(&self, gpu: &Gpu) -> (&Slab, &Slab) {
        (self.cos.on(gpu), self.sin.on(gpu))
    }
    /// Panics where a position lies beyond the table: kernels do not look.
    pub(super) fn check(&self, positions: &Ints) {
        if let Some(&last) = positions.host().iter().max() {
            self.at(last);
        }
    }
    pub(super) fn interleaved(&self) -> bool {
        self.pairs == Pairs::Interleaved
    }
}

kernel! {
    fn rotate<S>(x: &[f32], cos: &[f32], sin: &[f32], interleaved: bool, y: &mut [f32]) {
        let half = cos.len();
        let (ya, yb) = y[..2 * half].split_at_mut(half);
        if interleaved {
            for i in 0..half {
                let (a, b) = (x[2 * i], x[2 * i + 1]);
                ya[i] = a.mul_add(cos[i], -(b * sin[i]));
                yb[i] = b.mul_add(cos[i], a * sin[i]);
            }
        } else {
            let (xa, xb) = x[..2 * half].split_at(half);
            for i in 0..half {
                ya[i] = xa[i].mul_add(cos[i], -(xb[i] * sin[i]));
                yb[i] = xb[i].mul_add(cos[i], xa[i] * sin[i]);
            }
        }
    }
}

kernel! {
    /// The transpose of [`rotate`]; adds to `dx`.
    fn rotate_back<S>(dy: &[f32], cos: &[f32], sin: &[f32], interleaved: bool, dx: &mut [f32]) {
        let half = cos.len();
        let (da, db) = dy[..2 * half].split_at(half);
        for i in 0..half {
            let a = da[i].mul_add(cos[i], db[i] * sin[i]);
            let b = db[i].mul_add(cos[i], -(da[i] * sin[i]));
            let (pa, pb) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            dx[pa] += a;
            dx[pb] += b;
        }
    }
}

fn add_to(dst: &mut [f32], src: &[f32]) {
    dst.iter_mut().zip(src).for_each(|(d, s)| *d += s);
}

/// `qkv [tokens, (heads + 2 * kv_heads) * dim]` → queries and keys rotated by position, and values.
pub fn split_qkv<'p>(
    tape: &Tape<'p>,
    qkv: &Tensor,
    (heads, kv_heads, dim): (usize, usize, usize),
    positions: &Ints,
    table: &'p RopeTable,
) -> (Tensor, Tensor, Tensor) {
    let n = qkv.rows();
    let width = (heads + 2 * kv_heads) * dim;
    assert!(qkv.cols() == width && positions.len() == n && table.dim() == dim, "split_qkv: shapes");
    table.check(positions);
    let (wq, wk) = (heads * dim, kv_heads * dim);
    let [mut q, mut k, mut v] = [wq, wk, wk].map(|w| Data::new(tape.gpu(), n * w));
    let interleaved = table.interleaved();
    match tape.gpu() {
        Some(gpu) => {
            let (cos, sin, at) = (table.cos.on(gpu), table.sin.on(gpu), positions.on(gpu));
            let (q, k, v) = (q.on_mut(gpu), k.on_mut(gpu), v.on_mut(gpu));
            let args = args![qkv.data.on(gpu), at, cos, sin, q, k, v, heads, kv_heads, dim / 2, interleaved];
            gpu.launch("heads_split_qkv_forward", row_grid(n, width / 2), ROW_THREADS, args);
        }
        None => {
            let at = positions.host();
            let (q, k, v) =
                (SharedMut::new(q.host_mut()), SharedMut::new(k.host_mut()), SharedMut::new(v.host_mut()));
            let x = qkv.host();
            rows(n, |t| {
                let row = &x[t * width..][..width];
                let (cos, sin) = table.at(at[t]);
                // SAFETY: rows are disjoint.
                let (q, k, v) = unsafe { (q.slice(t * wq, wq), k.slice(t * wk, wk), v.slice(t * wk, wk)) };
                for (x, y) in row[..wq].chunks_exact(dim).zip(q.chunks_exact_mut(dim)) {
                    rotate(x, cos, sin, interleaved, y);
                }
                for (x, y) in row[wq..wq + wk].chunks_exact(dim).zip(k.chunks_exact_mut(dim)) {
                    rotate(x, cos, sin, interleaved, y);
                }
                v.copy_from_slice(&row[wq + wk..]);
            });
        }
    }
    let (q, k, v) = (tape.output(q, n, wq), tape.output(k, n, wk), tape.output(v, n, wk));
    if let Some(gx) = qkv.grad.clone() {
        let (gq, gk, gv) = (q.grad.clone(), k.grad.clone(), v.grad.clone());
        let positions = positions.clone();
        tape.record(move |params| {
            let gpu = params.gpu();
            if let Some(grads) = take_all(gpu, [(gq, wq), (gk, wk), (gv, wk)], n) {
                gx.give(split_qkv_backward(gpu, &grads, (heads, kv_heads, dim), &positions, table));
            }
        });
    }
    (q, k, v)
}

fn split_qkv_backward(
    gpu: Option<&Gpu>,
    [dq, dk, dv]: &[Arc<Data>; 3],
    (heads, kv_heads, dim): (usize, usize, usize),
    positions: &Ints,
    table: &RopeTable,
) -> Data {
    let (n, wq, wk) = (positions.len(), heads * dim, kv_heads * dim);
    let width = wq + 2 * wk;
    let interleaved = table.interleaved();
    let mut dx = Data::zeros(gpu, n * width);
    match gpu {
        Some(gpu) => {
            let (cos, sin, at) = (table.cos.on(gpu), table.sin.on(gpu), positions.on(gpu));
            let (dq, dk, dv) = (dq.on(gpu), dk.on(gpu), dv.on(gpu));
            let args = args![dq, dk, dv, at, cos, sin, dx.on_mut(gpu), heads, kv_heads, dim / 2, interleaved];
            gpu.launch("heads_split_qkv_backward", row_grid(n, width / 2), ROW_THREADS, args);
        }
        None => {
            let (dq, dk, dv, at) = (dq.host(), dk.host(), dv.host(), positions.host());
            let out = SharedMut::new(dx.host_mut());
            rows(n, |t| {
                let (cos, sin) = table.at(at[t]);
                // SAFETY: rows are disjoint.
                let dx = unsafe { out.slice(t * width, width) };
                let (dxq, rest) = dx.split_at_mut(wq);
                let (dxk, dxv) = rest.split_at_mut(wk);
                for (d, x) in dq[t * wq..][..wq].chunks_exact(dim).zip(dxq.chunks_exact_mut(dim)) {
                    rotate_back(d, cos, sin, interleaved, x);
                }
                for (d, x) in dk[t * wk..][..wk].chunks_exact(dim).zip(dxk.chunks_exact_mut(dim)) {
                    rotate_back(d, cos, sin, interleaved, x);
                }
                dxv.copy_from_slice(&dv[t * wk..][..wk]);
            });
        }
    }
    dx
}

/// Rotates every head of `x [tokens, heads * dim]` (for models that normalise heads before rotating).
pub fn rope<'p>(tape: &Tape<'p>, x: &Tensor, positions: &Ints, table: &'p RopeTable) -> Tensor {
    let (n, w, dim) = (x.rows(), x.cols(), table.dim());
    assert!(w.is_multiple_of(dim) && positions.len() == n, "rope: {w} features in heads of {dim}");
    table.check(positions);
    let y = tape.output(turn(tape.gpu(), &x.data, (n, w), positions, table, false), n, w);
    if let (Some(gx), Some(gy)) = (x.grad.clone(), y.grad.clone()) {
        let positions = positions.clone();
        tape.record(move |params| {
            if let Some(dy) = gy.take() {
                gx.give(turn(params.gpu(), &dy, (n, w), &positions, table, true));
            }
        });
    }
    y
}

/// Rotates the heads of `x [n, w]`, or, with `back`, their gradients the other way.
fn turn(
    gpu: Option<&Gpu>,
    x: &Data,
    (n, w): (usize, usize),
    positions: &Ints,
    table: &RopeTable,
    back: bool,
) -> Data {
    let (dim, interleaved) = (table.dim(), table.interleaved());
    let mut y = Data::zeros(gpu, n * w);
    match gpu {
        Some(gpu) => {
            let (cos, sin, at) = (table.cos.on(gpu), table.sin.on(gpu), positions.on(gpu));
            let args = args![x.on(gpu), at, cos, sin, y.on_mut(gpu), w / dim, dim / 2, interleaved];
            let kernel = if back { "heads_rope_backward" } else { "heads_rope_forward" };
            gpu.launch(kernel, row_grid(n, w / 2), ROW_THREADS, args);
        }
        None => {
            let (x, at) = (x.host(), positions.host());
            let out = SharedMut::new(y.host_mut());
            rows(n, |t| {
                let (cos, sin) = table.at(at[t]);
                // SAFETY: rows are disjoint.
                let out = unsafe { out.slice(t * w, w) };
                for (x, y) in x[t * w..][..w].chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                    if back {
                        rotate_back(x, cos, sin, interleaved, y);
                    } else {
                        rotate(x, cos, sin, interleaved, y);
                    }
                }
            });
        }
    }
    y
}

/// Columns of a row-major matrix: the values of a row, the first column.
type Columns = (usize, usize);

/// Copies `width` columns of `n` rows.
fn copy_columns(gpu: Option<&Gpu>, n: usize, width: usize, from: (&Data, Columns), to: (&mut Data, Columns)) {
    let ((x, (from_stride, from_at)), (y, (to_stride, to_at))) = (from, to);
    match gpu {
        Some(gpu) => {
            let (x, y) = (x.on(gpu), y.on_mut(gpu));
            let args = args![x, from_stride, from_at, y, to_stride, to_at, width];
            gpu.launch("elementwise_copy_columns", row_grid(n, width), ROW_THREADS, args);
        }
        None => {
            let (x, y) = (x.host(), y.host_mut());
            for t in 0..n {
                y[t * to_stride + to_at..][..width].copy_from_slice(&x[t * from_stride + from_at..][..width]);
            }
        }
    }
}

/// Copies the columns into tensors of the given widths, which must add up.
pub fn split_cols(tape: &Tape, x: &Tensor, widths: &[usize]) -> Vec<Tensor> {
    assert_eq!(widths.iter().sum::<usize>(), x.cols(), "split_cols: {widths:?}");
    let (n, total) = (x.rows(), x.cols());
    let mut start = 0;
    let mut parts = Vec::new();
    for &w in widths {
        let mut y = Data::new(tape.gpu(), n * w);
        copy_columns(tape.gpu(), n, w, (&x.data, (total, start)), (&mut y, (w, 0)));
        start += w;
        parts.push(tape.output(y, n, w));
    }
    if let Some(gx) = x.grad.clone() {
        let grads: Vec<_> = parts.iter().map(|p| (p.grad.clone(), p.cols())).collect();
        tape.record(move |params| {
            let mut dx = Data::zeros(params.gpu(), n * total);
            let mut start = 0;
            for (g, w) in grads {
                if let Some(d) = g.and_then(|g| g.take()) {
                    copy_columns(params.gpu(), n, w, (&d, (w, 0)), (&mut dx, (total, start)));
                }
                start += w;
            }
            gx.give(dx);
        });
    }
    parts
}

/// `[a, b]` side by side: `[tokens, a.cols + b.cols]`.
pub fn concat_cols(tape: &Tape, a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.rows(), b.rows(), "concat_cols: rows differ");
    let (n, wa, wb) = (a.rows(), a.cols(), b.cols());
    let total = wa + wb;
    let mut y = Data::new(tape.gpu(), n * total);
    copy_columns(tape.gpu(), n, wa, (&a.data, (wa, 0)), (&mut y, (total, 0)));
    copy_columns(tape.gpu(), n, wb, (&b.data, (wb, 0)), (&mut y, (total, wa)));
    let y = tape.output(y, n, total);
    if let Some(gy) = y.grad.clone() {
        let grads = [(a.grad.clone(), 0, wa), (b.grad.clone(), wa, wb)];
        tape.record(move |params| {
            let Some(dy) = gy.take() else { return };
            for (g, start, w) in grads {
                let Some(g) = g else { continue };
                let mut d = Data::new(params.gpu(), n * w);
                copy_columns(params.gpu(), n, w, (&dy, (total, start)), (&mut d, (w, 0)));
                g.give(d);
            }
        });
    }
    y
}

/// The most rotary components that [`mla_heads`] handles.
const MAX_ROPE: usize = 256;

/// Head sizes of multi-head latent attention.
#[derive(Clone, Copy, Debug)]
pub struct MlaDims {
    /// Attention heads.
    pub heads: usize,
    /// Components of a query or key without position.
    pub nope: usize,
    /// Components with rotary position, one key shared by all heads.
    pub rope: usize,
    /// Components of a value.
    pub v: usize,
}

/// MLA's heads (DeepSeek-V2 report, equations 9 to 19): `q [tokens, heads * (nope + rope)]`,
/// `kv [tokens, heads * (nope + v)]`, `k_rope [tokens, rope]` → queries and keys
/// `[tokens, heads * (nope + rope)]`, values `[tokens, heads * v]`.
pub fn mla_heads<'p>(
    tape: &Tape<'p>,
    (q, kv, k_rope): (&Tensor, &Tensor, &Tensor),
    dims: MlaDims,
    positions: &Ints,
    table: &'p RopeTable,
) -> (Tensor, Tensor, Tensor) {
    let MlaDims { heads, nope, rope, v } = dims;
    let n = q.rows();
    let (dk, dkv) = (nope + rope, nope + v);
    assert!(rope <= MAX_ROPE, "mla_heads: rope dimension {rope} above {MAX_ROPE}");
    assert!(
        kv.rows() == n && k_rope.rows() == n && positions.len() == n,
        "mla_heads: numbers of rows differ"
    );
    assert!(
        q.cols() == heads * dk && kv.cols() == heads * dkv && k_rope.cols() == rope && table.dim() == rope,
        "mla_heads: q {} kv {} k_rope {} for {dims:?}",
        q.cols(),
        kv.cols(),
        k_rope.cols()
    );
    table.check(positions);
    let [mut qo, mut ko, mut vo] = [dk, dk, v].map(|w| Data::new(tape.gpu(), n * heads * w));
    match tape.gpu() {
        Some(gpu) => {
            let (cos, sin, at) = (table.cos.on(gpu), table.sin.on(gpu), positions.on(gpu));
            let (q, kv, k_rope) = (q.data.on(gpu), kv.data.on(gpu), k_rope.data.on(gpu));
            let (qo, ko, vo) = (qo.on_mut(gpu), ko.on_mut(gpu), vo.on_mut(gpu));
            let args =
                args![q, kv, k_rope, at, cos, sin, qo, ko, vo, heads, nope, rope / 2, v, table.interleaved()];
            gpu.launch(
                "heads_mla_forward",
                row_grid(n, heads * nope.max(v).max(rope / 2)),
                ROW_THREADS,
                args,
            );
        }
        None => {
            let inputs = (q.host(), kv.host(), k_rope.host());
            mla_forward(inputs, dims, positions, table, (qo.host_mut(), ko.host_mut(), vo.host_mut()));
        }
    }
    let (qo, ko, vo) =
        (tape.output(qo, n, heads * dk), tape.output(ko, n, heads * dk), tape.output(vo, n, heads * v));
    if tape.is_recording() {
        let (gq, gk, gv) = (qo.grad.clone(), ko.grad.clone(), vo.grad.clone());
        let (xq, xkv, xr) = (q.grad.clone(), kv.grad.clone(), k_rope.grad.clone());
        let positions = positions.clone();
        tape.record(move |params| {
            let outputs = [(gq, heads * dk), (gk, heads * dk), (gv, heads * v)];
            let Some(grads) = take_all(params.gpu(), outputs, n) else { return };
            let inputs = mla_backward(params.gpu(), &grads, dims, &positions, table);
            for (g, d) in [xq, xkv, xr].into_iter().zip(inputs) {
                if let Some(g) = g {
                    g.give(d);
                }
            }
        });
    }
    (qo, ko, vo)
}

fn mla_forward(
    (q, kv, k_rope): (&[f32], &[f32], &[f32]),
    MlaDims { heads, nope, rope, v }: MlaDims,
    positions: &Ints,
    table: &RopeTable,
    (qo, ko, vo): (&mut [f32], &mut [f32], &mut [f32]),
) {
    let (dk, dkv, at) = (nope + rope, nope + v, positions.host());
    let interleaved = table.interleaved();
    let (qs, ks, vs) = (SharedMut::new(qo), SharedMut::new(ko), SharedMut::new(vo));
    rows(at.len(), |t| {
        let (cos, sin) = table.at(at[t]);
        // SAFETY: rows are disjoint.
        let (qo, ko, vo) = unsafe {
            (
                qs.slice(t * heads * dk, heads * dk),
                ks.slice(t * heads * dk, heads * dk),
                vs.slice(t * heads * v, heads * v),
            )
        };
        let (q, kv) = (&q[t * heads * dk..], &kv[t * heads * dkv..]);
        for h in 0..heads {
            let (qi, qh) = (&q[h * dk..][..dk], &mut qo[h * dk..][..dk]);
            qh[..nope].copy_from_slice(&qi[..nope]);
            rotate(&qi[nope..], cos, sin, interleaved, &mut qh[nope..]);
            ko[h * dk..][..nope].copy_from_slice(&kv[h * dkv..][..nope]);
            vo[h * v..][..v].copy_from_slice(&kv[h * dkv + nope..][..v]);
        }
        let (first, rest) = ko.split_at_mut(dk);
        rotate(&k_rope[t * rope..][..rope], cos, sin, interleaved, &mut first[nope..]);
        rest.chunks_exact_mut(dk).for_each(|k| k[nope..].copy_from_slice(&first[nope..]));
    });
}

/// The gradients of `q`, `kv` and `k_rope`.
fn mla_backward(
    gpu: Option<&Gpu>,
    [dq, dk, dv]: &[Arc<Data>; 3],
    MlaDims { heads, nope, rope, v }: MlaDims,
    positions: &Ints,
    table: &RopeTable,
) -> [Data; 3] {
    let (n, w, wkv) = (positions.len(), nope + rope, nope + v);
    let mut dxq = Data::zeros(gpu, n * heads * w);
    let mut dxkv = Data::new(gpu, n * heads * wkv);
    let mut dxr = Data::zeros(gpu, n * rope);
    let interleaved = table.interleaved();
    if let Some(gpu) = gpu {
        let (cos, sin, at) = (table.cos.on(gpu), table.sin.on(gpu), positions.on(gpu));
        let (dq, dk, dv) = (dq.on(gpu), dk.on(gpu), dv.on(gpu));
        let (oq, okv, or) = (dxq.on_mut(gpu), dxkv.on_mut(gpu), dxr.on_mut(gpu));
        let args = args![dq, dk, dv, at, cos, sin, oq, okv, or, heads, nope, rope / 2, v, interleaved];
        gpu.launch("heads_mla_backward", row_grid(n, heads * nope.max(v).max(rope / 2)), ROW_THREADS, args);
        return [dxq, dxkv, dxr];
    }
    {
        let (dq, dk, dv, at) = (dq.host(), dk.host(), dv.host(), positions.host());
        let (sq, skv, sr) =
            (SharedMut::new(dxq.host_mut()), SharedMut::new(dxkv.host_mut()), SharedMut::new(dxr.host_mut()));
        rows(n, |t| {
            let (cos, sin) = table.at(at[t]);
            // SAFETY: rows are disjoint.
            let (dxq, dxkv, dxr) = unsafe {
                (
                    sq.slice(t * heads * w, heads * w),
                    skv.slice(t * heads * wkv, heads * wkv),
                    sr.slice(t * rope, rope),
                )
            };
            let mut shared = [0.0f32; MAX_ROPE];
            for h in 0..heads {
                let (d, x) = (&dq[(t * heads + h) * w..][..w], &mut dxq[h * w..][..w]);
                x[..nope].copy_from_slice(&d[..nope]);
                rotate_back(&d[nope..], cos, sin, interleaved, &mut x[nope..]);
                let d = &dk[(t * heads + h) * w..][..w];
                dxkv[h * wkv..][..nope].copy_from_slice(&d[..nope]);
                add_to(&mut shared[..rope], &d[nope..]);
                dxkv[h * wkv + nope..][..v].copy_from_slice(&dv[(t * heads + h) * v..][..v]);
            }
            rotate_back(&shared[..rope], cos, sin, interleaved, dxr);
        });
    }
    [dxq, dxkv, dxr]
}

/// The gradients of several outputs (given with their features), zero for those that nothing reached; `None` if
/// nothing reached any.
pub(super) fn take_all<const N: usize>(
    gpu: Option<&Gpu>,
    grads: [(Option<Grad>, usize); N],
    n: usize,
) -> Option<[Arc<Data>; N]> {
    let taken = grads.map(|(g, cols)| (g.and_then(|g| g.take()), cols));
    let any = taken.iter().any(|(g, _)| g.is_some());
    any.then(|| taken.map(|(g, cols)| g.unwrap_or_else(|| Arc::new(Data::zeros(gpu, n * cols)))))
}

fn rows(n: usize, f: impl Fn(usize) + Sync) {
    parallel(n.div_ceil(ROWS), |i| (i * ROWS..n.min((i + 1) * ROWS)).for_each(&f));
}
