//! Low-rank adapters on a projection (LoRA, Hu et al. 2021, equation 3): `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`.
//!
//! Several projections that are read as one weight each have a pair of their own, which adds to the columns of its projection; their
//! A lie one above the other and are read as one, too. The sum continues the chain of the base product, `x Aᵀ` is scaled before it
//! is multiplied again: one order for sampling and training, whatever the batch.
//!
//! Letters: `n` tokens, `r` rank.

use crate::buffer::Buf;
use crate::cpu::gemm::{Left, Product, Right, gemm};
use crate::cpu::math;
use crate::operations::{Part, add_product};
use crate::ops::linear;
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;
use std::sync::Arc;

/// The pairs of matrices beside what is read as one projection.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `[Σ r, in]`, the A of every part.
    pub a: Weight,
    /// The B, in the same order.
    pub parts: Vec<AdapterPart>,
    /// The factor `s`: alpha over the rank, or over its root.
    pub scale: f32,
}

/// One B, and what it adds to.
#[derive(Clone, Copy, Debug)]
pub struct AdapterPart {
    /// `[out, r]`.
    pub b: Weight,
    /// The first of its columns in the output.
    pub column: usize,
}

impl Adapter {
    fn check(&self, w: Weight) {
        let fits = |p: &AdapterPart| p.column + p.b.rows <= w.rows;
        let ranks: usize = self.parts.iter().map(|p| p.b.cols).sum();
        assert!(
            self.a.cols == w.cols && self.a.rows == ranks && self.parts.iter().all(fits),
            "{self:?} on a weight of {} x {}",
            w.rows,
            w.cols
        );
    }

    /// Each part with the first of its columns in `x Aᵀ`.
    fn parts(&self) -> impl Iterator<Item = (usize, AdapterPart)> {
        self.parts.iter().scan(0, |at, &part| {
            let first = *at;
            *at += part.b.cols;
            Some((first, part))
        })
    }
}

/// [`linear`](crate::ops::linear()) with adapters. On the processor alone: panics on a GPU.
pub fn adapted_linear(
    tape: &Tape,
    x: &Tensor,
    w: Weight,
    bias: Option<Weight>,
    adapter: &Arc<Adapter>,
) -> Tensor {
    assert!(tape.gpu().is_none(), "adapters on a GPU");
    adapter.check(w);
    add_product(Part::Linear, x.rows(), w.cols, w.rows);
    let n = x.rows();
    let mut y = Buf::new(n * w.rows);
    linear::forward_cpu(tape.params(), x, w, bias, &mut y);
    let low = forward(tape.params(), x, adapter, w.rows, &mut y);
    let y = tape.output(y, n, w.rows);
    if let Some(dy) = y.grad.clone() {
        let (x, adapter) = (x.clone(), adapter.clone());
        tape.record(move |params| {
            let Some(dy) = dy.take() else { return };
            linear::backward(None, params, &x, &dy, w, bias);
            backward(params, &x, &adapter, &low, dy.host(), w.rows);
        });
    }
    y
}

/// Adds to `y [n, width]`; gives `s x Aᵀ`, `[n, Σ r]`.
fn forward(params: &Params, x: &Tensor, adapter: &Adapter, width: usize, y: &mut [f32]) -> Buf {
    let (n, ranks) = (x.rows(), adapter.a.rows);
    add_product(Part::Linear, n, ranks, adapter.a.cols);
    let mut low = Buf::new(n * ranks);
    linear::product(params, x.host(), n, adapter.a, &mut low);
    scale(&mut low, adapter.scale);
    for (first, AdapterPart { b, column }) in adapter.parts().filter(|_| n > 0) {
        add_product(Part::Linear, n, b.cols, b.rows);
        let panels = params.packed(b);
        let (left, right) = (Left::rows(&low[first..], ranks), panels.right(b.cols));
        let p = Product { a: left, b: right, m: n, k: b.cols, n: b.rows, c: column };
        gemm(&[p], y, width, true);
    }
    low
}

fn backward(params: &Params, x: &Tensor, adapter: &Adapter, low: &[f32], dy: &[f32], width: usize) {
    let (n, ranks, inputs) = (x.rows(), adapter.a.rows, adapter.a.cols);
    if n == 0 {
        return;
    }
    let mut d_low = Buf::new(n * ranks);
    for (first, AdapterPart { b, column }) in adapter.parts() {
        add_product(Part::Linear, n, b.cols, b.rows);
        let values = params.values(b);
        let (left, right) = (Left::rows(&dy[column..], width), Right::rows(&values, b.cols));
        let p = Product { a: left, b: right, m: n, k: b.rows, n: b.cols, c: first };
        gemm(&[p], &mut d_low, ranks, false);
        if params.trains(b) {
            add_product(Part::Linear, n, b.cols, b.rows);
            outer_gradient(params, (&low[first..], ranks), (&dy[column..], width), n, b);
        }
    }
    scale(&mut d_low, adapter.scale);
    if params.trains(adapter.a) {
        add_product(Part::Linear, n, ranks, inputs);
        linear::weight_gradient(params, x.host(), &d_low, n, adapter.a);
    }
    if let Some(g) = &x.grad {
        add_product(Part::Linear, n, ranks, inputs);
        let a = params.values(adapter.a);
        g.write(None, n * inputs, |dx, add| {
            let (left, right) = (Left::rows(&d_low, ranks), Right::rows(&a, inputs));
            let p = Product { a: left, b: right, m: n, k: ranks, n: inputs, c: 0 };
            gemm(&[p], dx.host_mut(), inputs, add);
        });
    }
}

/// `dB [out, r] += dyᵀ [out, n] · low [n, r]`, turned round, so that the wide rows of `dy` are read as they lie. Rows of `low` and
/// `dy` lie the given distances apart.
fn outer_gradient(params: &Params, low: (&[f32], usize), dy: (&[f32], usize), n: usize, b: Weight) {
    let (outputs, rank) = (b.rows, b.cols);
    let mut grad = params.grad_mut(b);
    let mut turned = math::transposed(&grad, outputs, rank);
    let (left, right) = (Left::transposed(low.0, low.1), Right::rows(dy.0, dy.1));
    gemm(&[Product { a: left, b: right, m: rank, k: n, n: outputs, c: 0 }], &mut turned, outputs, true);
    grad.copy_from_slice(&math::transposed(&turned, rank, outputs));
}

/// `s B A`, `[out, in]`, of `b [out, r]` and `a [r, in]`: what an adapter adds to its weight when it is merged.
pub fn outer(b: &[f32], a: &[f32], rank: usize, s: f32) -> Buf {
    let (outputs, inputs) = (b.len() / rank, a.len() / rank);
    let mut product = Buf::new(outputs * inputs);
    let (left, right) = (Left::rows(b, rank), Right::rows(a, inputs));
    gemm(&[Product { a: left, b: right, m: outputs, k: rank, n: inputs, c: 0 }], &mut product, inputs, false);
    scale(&mut product, s);
    product
}

fn scale(x: &mut [f32], by: f32) {
    parallel_chunks(x, 1 << 14, |_, x| math::scale(x, by));
}
