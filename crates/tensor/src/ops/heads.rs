//! From projections to attention heads: splitting columns, rotary position embedding, MLA's assembly.
//!
//! Rotated slices are written with the first members of all pairs before the second members, for both layouts of
//! the input; scores do not depend on that order as long as queries and keys agree.

use crate::buffer::Buf;
use crate::cpu::math::sin_cos;
use crate::cpu::simd::kernel;
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
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: Pairs,
}

impl RopeTable {
    /// Angles `position * inv_freq[i]`, cosines and sines times `scaling`.
    pub fn new(inv_freq: &[f32], scaling: f32, positions: usize, pairs: Pairs) -> RopeTable {
        let half = inv_freq.len();
        let (mut cos, mut sin) = (Vec::with_capacity(positions * half), Vec::with_capacity(positions * half));
        for p in 0..positions {
            for &f in inv_freq {
                let (s, c) = sin_cos(p as f32 * f);
                cos.push(c * scaling);
                sin.push(s * scaling);
            }
        }
        RopeTable { half, cos, sin, pairs }
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
        (&self.cos[at..at + self.half], &self.sin[at..at + self.half])
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
    positions: &[u32],
    table: &'p RopeTable,
) -> (Tensor, Tensor, Tensor) {
    let n = qkv.rows();
    let width = (heads + 2 * kv_heads) * dim;
    assert!(qkv.cols() == width && positions.len() == n && table.dim() == dim, "split_qkv: shapes");
    let (wq, wk) = (heads * dim, kv_heads * dim);
    let (mut q, mut k, mut v) = (Buf::new(n * wq), Buf::new(n * wk), Buf::new(n * wk));
    let interleaved = table.pairs == Pairs::Interleaved;
    {
        let (q, k, v) = (SharedMut::new(&mut q), SharedMut::new(&mut k), SharedMut::new(&mut v));
        rows(n, |t| {
            let row = qkv.row(t);
            let (cos, sin) = table.at(positions[t]);
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
    let (q, k, v) = (tape.output(q, n, wq), tape.output(k, n, wk), tape.output(v, n, wk));
    if let Some(gx) = qkv.grad.clone() {
        let (gq, gk, gv) = (q.grad.clone(), k.grad.clone(), v.grad.clone());
        let positions = positions.to_vec();
        tape.record(move |_| {
            let Some([dq, dk, dv]) = take_all([(gq, wq), (gk, wk), (gv, wk)], n) else { return };
            let mut dx = Buf::zeros(n * width);
            let out = SharedMut::new(&mut dx);
            rows(n, |t| {
                let (cos, sin) = table.at(positions[t]);
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
            gx.add(Arc::new(dx));
        });
    }
    (q, k, v)
}

/// Rotates every head of `x [tokens, heads * dim]` (for models that normalise heads before rotating).
pub fn rope<'p>(tape: &Tape<'p>, x: &Tensor, positions: &[u32], table: &'p RopeTable) -> Tensor {
    let (n, w, dim) = (x.rows(), x.cols(), table.dim());
    assert!(w.is_multiple_of(dim) && positions.len() == n, "rope: {w} features in heads of {dim}");
    let interleaved = table.pairs == Pairs::Interleaved;
    let mut y = Buf::new(n * w);
    {
        let out = SharedMut::new(&mut y);
        rows(n, |t| {
            let (cos, sin) = table.at(positions[t]);
            // SAFETY: rows are disjoint.
            let out = unsafe { out.slice(t * w, w) };
            for (x, y) in x.row(t).chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                rotate(x, cos, sin, interleaved, y);
            }
        });
    }
    let y = tape.output(y, n, w);
    if let (Some(gx), Some(gy)) = (x.grad.clone(), y.grad.clone()) {
        let positions = positions.to_vec();
        tape.record(move |_| {
            let Some(dy) = gy.take() else { return };
            let mut dx = Buf::zeros(n * w);
            let out = SharedMut::new(&mut dx);
            rows(n, |t| {
                let (cos, sin) = table.at(positions[t]);
                // SAFETY: rows are disjoint.
                let dx = unsafe { out.slice(t * w, w) };
                for (d, x) in dy[t * w..][..w].chunks_exact(dim).zip(dx.chunks_exact_mut(dim)) {
                    rotate_back(d, cos, sin, interleaved, x);
                }
            });
            gx.add(Arc::new(dx));
        });
    }
    y
}

/// Copies the columns into tensors of the given widths, which must add up.
pub fn split_cols(tape: &Tape, x: &Tensor, widths: &[usize]) -> Vec<Tensor> {
    assert_eq!(widths.iter().sum::<usize>(), x.cols(), "split_cols: {widths:?}");
    let (n, total) = (x.rows(), x.cols());
    let mut start = 0;
    let mut parts = Vec::new();
    for &w in widths {
        let mut y = Buf::new(n * w);
        for (t, row) in y.chunks_exact_mut(w).enumerate() {
            row.copy_from_slice(&x.row(t)[start..start + w]);
        }
        start += w;
        parts.push(tape.output(y, n, w));
    }
    if let Some(gx) = x.grad.clone() {
        let grads: Vec<_> = parts.iter().map(|p| (p.grad.clone(), p.cols())).collect();
        tape.record(move |_| {
            let mut dx = Buf::zeros(n * total);
            let mut start = 0;
            for (g, w) in grads {
                if let Some(d) = g.and_then(|g| g.take()) {
                    for (t, d) in d.chunks_exact(w).enumerate() {
                        dx[t * total + start..][..w].copy_from_slice(d);
                    }
                }
                start += w;
            }
            gx.add(Arc::new(dx));
        });
    }
    parts
}

/// `[a, b]` side by side: `[tokens, a.cols + b.cols]`.
pub fn concat_cols(tape: &Tape, a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.rows(), b.rows(), "concat_cols: rows differ");
    let (n, wa, wb) = (a.rows(), a.cols(), b.cols());
    let mut y = Buf::new(n * (wa + wb));
    for (t, row) in y.chunks_exact_mut(wa + wb).enumerate() {
        row[..wa].copy_from_slice(a.row(t));
        row[wa..].copy_from_slice(b.row(t));
    }
    let y = tape.output(y, n, wa + wb);
    if let Some(gy) = y.grad.clone() {
        let grads = [(a.grad.clone(), 0, wa), (b.grad.clone(), wa, wb)];
        tape.record(move |_| {
            let Some(dy) = gy.take() else { return };
            for (g, start, w) in grads {
                let Some(g) = g else { continue };
                let mut d = Buf::new(n * w);
                for (t, row) in d.chunks_exact_mut(w).enumerate() {
                    row.copy_from_slice(&dy[t * (wa + wb) + start..][..w]);
                }
                g.add(Arc::new(d));
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
    positions: &[u32],
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
    let interleaved = table.pairs == Pairs::Interleaved;
    let (mut qo, mut ko, mut vo) =
        (Buf::new(n * heads * dk), Buf::new(n * heads * dk), Buf::new(n * heads * v));
    {
        let (qs, ks, vs) = (SharedMut::new(&mut qo), SharedMut::new(&mut ko), SharedMut::new(&mut vo));
        rows(n, |t| {
            let (cos, sin) = table.at(positions[t]);
            // SAFETY: rows are disjoint.
            let (qo, ko, vo) = unsafe {
                (
                    qs.slice(t * heads * dk, heads * dk),
                    ks.slice(t * heads * dk, heads * dk),
                    vs.slice(t * heads * v, heads * v),
                )
            };
            let (q, kv, kr) = (q.row(t), kv.row(t), k_rope.row(t));
            for h in 0..heads {
                let (qi, qh) = (&q[h * dk..][..dk], &mut qo[h * dk..][..dk]);
                qh[..nope].copy_from_slice(&qi[..nope]);
                rotate(&qi[nope..], cos, sin, interleaved, &mut qh[nope..]);
                ko[h * dk..][..nope].copy_from_slice(&kv[h * dkv..][..nope]);
                vo[h * v..][..v].copy_from_slice(&kv[h * dkv + nope..][..v]);
            }
            let (first, rest) = ko.split_at_mut(dk);
            rotate(kr, cos, sin, interleaved, &mut first[nope..]);
            rest.chunks_exact_mut(dk).for_each(|k| k[nope..].copy_from_slice(&first[nope..]));
        });
    }
    let (qo, ko, vo) =
        (tape.output(qo, n, heads * dk), tape.output(ko, n, heads * dk), tape.output(vo, n, heads * v));
    if tape.is_recording() {
        let (gq, gk, gv) = (qo.grad.clone(), ko.grad.clone(), vo.grad.clone());
        let (xq, xkv, xr) = (q.grad.clone(), kv.grad.clone(), k_rope.grad.clone());
        let positions = positions.to_vec();
        tape.record(move |_| {
            let Some([dq, dk_, dv]) = take_all([(gq, heads * dk), (gk, heads * dk), (gv, heads * v)], n)
            else {
                return;
            };
            let (mut dxq, mut dxkv, mut dxr) =
                (Buf::zeros(n * heads * dk), Buf::new(n * heads * dkv), Buf::zeros(n * rope));
            let (sq, skv, sr) =
                (SharedMut::new(&mut dxq), SharedMut::new(&mut dxkv), SharedMut::new(&mut dxr));
            rows(n, |t| {
                let (cos, sin) = table.at(positions[t]);
                // SAFETY: rows are disjoint.
                let (dxq, dxkv, dxr) = unsafe {
                    (
                        sq.slice(t * heads * dk, heads * dk),
                        skv.slice(t * heads * dkv, heads * dkv),
                        sr.slice(t * rope, rope),
                    )
                };
                let mut shared = [0.0f32; MAX_ROPE];
                for h in 0..heads {
                    let (d, x) = (&dq[(t * heads + h) * dk..][..dk], &mut dxq[h * dk..][..dk]);
                    x[..nope].copy_from_slice(&d[..nope]);
                    rotate_back(&d[nope..], cos, sin, interleaved, &mut x[nope..]);
                    let d = &dk_[(t * heads + h) * dk..][..dk];
                    dxkv[h * dkv..][..nope].copy_from_slice(&d[..nope]);
                    add_to(&mut shared[..rope], &d[nope..]);
                    dxkv[h * dkv + nope..][..v].copy_from_slice(&dv[(t * heads + h) * v..][..v]);
                }
                rotate_back(&shared[..rope], cos, sin, interleaved, dxr);
            });
            for (g, d) in [(xq, dxq), (xkv, dxkv), (xr, dxr)] {
                if let Some(g) = g {
                    g.add(Arc::new(d));
                }
            }
        });
    }
    (qo, ko, vo)
}

/// The gradients of several outputs (given with their features), zero for those that nothing reached; `None` if
/// nothing reached any.
fn take_all<const N: usize>(grads: [(Option<Grad>, usize); N], n: usize) -> Option<[Arc<Buf>; N]> {
    let taken = grads.map(|(g, cols)| (g.and_then(|g| g.take()), cols));
    let any = taken.iter().any(|(g, _)| g.is_some());
    any.then(|| taken.map(|(g, cols)| g.unwrap_or_else(|| Arc::new(Buf::zeros(n * cols)))))
}

fn rows(n: usize, f: impl Fn(usize) + Sync) {
    parallel(n.div_ceil(ROWS), |i| (i * ROWS..n.min((i + 1) * ROWS)).for_each(&f));
}
