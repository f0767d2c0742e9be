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
use crate::cuda::Gpu;
use crate::cuda::gemm::{Layout, Matrices, product};
use crate::memory::Data;
use crate::operations::{Part, add_product};
use crate::ops::linear;
use crate::ops::scaled::scale;
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

/// [`linear`](crate::ops::linear()) with adapters.
pub fn adapted_linear(
    tape: &Tape,
    x: &Tensor,
    w: Weight,
    bias: Option<Weight>,
    adapter: &Arc<Adapter>,
) -> Tensor {
    adapter.check(w);
    add_product(Part::Linear, x.rows(), w.cols, w.rows);
    let (n, gpu) = (x.rows(), tape.gpu().cloned());
    let mut y = Data::new(tape.gpu(), n * w.rows);
    linear::forward(gpu.as_ref(), tape.params(), x, w, bias, &mut y);
    let low = forward(gpu.as_ref(), tape.params(), x, adapter, w.rows, &mut y);
    let y = tape.output(y, n, w.rows);
    if let Some(dy) = y.grad.clone() {
        let (x, adapter) = (x.clone(), adapter.clone());
        tape.record(move |params| {
            let Some(dy) = dy.take() else { return };
            linear::backward(gpu.as_ref(), params, &x, &dy, w, bias);
            backward(gpu.as_ref(), params, &x, &adapter, &low, &dy, w.rows);
        });
    }
    y
}

/// Adds to `y [n, width]`; gives `s x Aᵀ`, `[n, Σ r]`.
fn forward(
    gpu: Option<&Gpu>,
    params: &Params,
    x: &Tensor,
    adapter: &Adapter,
    width: usize,
    y: &mut Data,
) -> Data {
    let (n, ranks) = (x.rows(), adapter.a.rows);
    add_product(Part::Linear, n, ranks, adapter.a.cols);
    let mut low = Data::new(gpu, n * ranks);
    linear::forward(gpu, params, x, adapter.a, None, &mut low);
    scale(gpu, &mut low, adapter.scale);
    for (first, AdapterPart { b, column }) in adapter.parts().filter(|_| n > 0) {
        add_product(Part::Linear, n, b.cols, b.rows);
        match gpu {
            Some(gpu) => {
                let (left, right) = (low.operand(gpu), params.factor_on(gpu, b));
                let places = Matrices { a: left.at(first), b: right.at(0), c: y.on_mut(gpu).at(column) };
                product(gpu, Layout::Nt, places, [n, b.rows, b.cols], [ranks, b.cols, width], true);
            }
            None => {
                let panels = params.packed(b);
                let (left, right) = (Left::rows(&low.host()[first..], ranks), panels.right(b.cols));
                let p = Product { a: left, b: right, m: n, k: b.cols, n: b.rows, c: column };
                gemm(&[p], y.host_mut(), width, true);
            }
        }
    }
    low
}

fn backward(
    gpu: Option<&Gpu>,
    params: &Params,
    x: &Tensor,
    adapter: &Adapter,
    low: &Data,
    dy: &Data,
    width: usize,
) {
    let (n, ranks) = (x.rows(), adapter.a.rows);
    if n == 0 {
        return;
    }
    let mut d_low = Data::new(gpu, n * ranks);
    for (first, AdapterPart { b, column }) in adapter.parts() {
        add_product(Part::Linear, n, b.cols, b.rows);
        if params.trains(b) {
            add_product(Part::Linear, n, b.cols, b.rows);
        }
        match gpu {
            Some(gpu) => {
                let (dy, low, weight) = (dy.operand(gpu), low.operand(gpu), params.factor_on(gpu, b));
                let places = Matrices { a: dy.at(column), b: weight.at(0), c: d_low.on_mut(gpu).at(first) };
                product(gpu, Layout::Nn, places, [n, b.cols, b.rows], [width, b.cols, ranks], false);
                if params.trains(b) {
                    let places = Matrices { a: dy.at(column), b: low.at(first), c: params.grad_on(gpu, b) };
                    product(gpu, Layout::Tn, places, [b.rows, b.cols, n], [width, ranks, b.cols], true);
                }
            }
            None => {
                let (dy, values) = (&dy.host()[column..], params.values(b));
                let (left, right) = (Left::rows(dy, width), Right::rows(&values, b.cols));
                let p = Product { a: left, b: right, m: n, k: b.rows, n: b.cols, c: first };
                gemm(&[p], d_low.host_mut(), ranks, false);
                if params.trains(b) {
                    outer_gradient(params, (&low.host()[first..], ranks), (dy, width), n, b);
                }
            }
        }
    }
    scale(gpu, &mut d_low, adapter.scale);
    linear::backward(gpu, params, x, &d_low, adapter.a, None);
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
    parallel_chunks(&mut product, 1 << 14, |_, x| math::scale(x, s));
    product
}
