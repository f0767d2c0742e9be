//! Low-rank adapters on a projection (LoRA, Hu et al. 2021, equation 3): `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`.
//!
//! Several projections that are read as one weight each have a pair of their own, which adds to the columns of its projection.
//! The sum continues the chain of the base product, `x Aᵀ` is scaled before it is multiplied again: one order for sampling and
//! training, whatever the batch.
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

/// One pair of matrices.
#[derive(Clone, Copy, Debug)]
pub struct Adapter {
    /// `[r, in]`.
    pub a: Weight,
    /// `[out, r]`.
    pub b: Weight,
    /// The first column of the output that it adds to.
    pub column: usize,
    /// The factor `s`: alpha over the rank, or over its root.
    pub scale: f32,
}

/// [`linear`](crate::ops::linear()) with adapters. On the processor alone: panics on a GPU.
pub fn adapted_linear(
    tape: &Tape,
    x: &Tensor,
    w: Weight,
    bias: Option<Weight>,
    adapters: &Arc<Vec<Adapter>>,
) -> Tensor {
    assert!(tape.gpu().is_none(), "adapters on a GPU");
    for a in adapters.iter() {
        assert!(
            a.a.cols == w.cols && a.b.cols == a.a.rows && a.column + a.b.rows <= w.rows,
            "{a:?} on a weight of {} x {}",
            w.rows,
            w.cols
        );
    }
    add_product(Part::Linear, x.rows(), w.cols, w.rows);
    let n = x.rows();
    let mut y = Buf::new(n * w.rows);
    linear::forward_cpu(tape.params(), x, w, bias, &mut y);
    let low: Vec<Buf> = adapters.iter().map(|a| forward(tape.params(), x, a, w.rows, &mut y)).collect();
    let y = tape.output(y, n, w.rows);
    if let Some(dy) = y.grad.clone() {
        let (x, adapters) = (x.clone(), adapters.clone());
        tape.record(move |params| {
            let Some(dy) = dy.take() else { return };
            linear::backward(None, params, &x, &dy, w, bias);
            for (a, low) in adapters.iter().zip(&low) {
                backward(params, &x, a, low, dy.host(), w.rows);
            }
        });
    }
    y
}

/// Adds to `y [n, width]`; gives `s x Aᵀ`, `[n, r]`.
fn forward(params: &Params, x: &Tensor, a: &Adapter, width: usize, y: &mut [f32]) -> Buf {
    let (n, rank) = (x.rows(), a.a.rows);
    add_product(Part::Linear, n, rank, a.a.cols + a.b.rows);
    let mut low = Buf::new(n * rank);
    linear::product(params, x.host(), n, a.a, &mut low);
    scale(&mut low, a.scale);
    let panels = params.packed(a.b);
    let (left, b) = (Left::rows(&low, rank), panels.right(rank));
    gemm(&[Product { a: left, b, m: n, k: rank, n: a.b.rows, c: a.column }], y, width, true);
    low
}

fn backward(params: &Params, x: &Tensor, a: &Adapter, low: &[f32], dy: &[f32], width: usize) {
    let (n, rank, inputs, outputs) = (x.rows(), a.a.rows, a.a.cols, a.b.rows);
    if n == 0 {
        return;
    }
    let dy = &dy[a.column..];
    let (va, vb) = (params.values(a.a), params.values(a.b));
    add_product(Part::Linear, n, rank, outputs);
    let mut d_low = Buf::new(n * rank);
    let (left, b) = (Left::rows(dy, width), Right::rows(&vb, rank));
    gemm(&[Product { a: left, b, m: n, k: outputs, n: rank, c: 0 }], &mut d_low, rank, false);
    scale(&mut d_low, a.scale);
    if params.trains(a.b) {
        add_product(Part::Linear, n, rank, outputs + inputs);
        let (left, b) = (Left::transposed(dy, width), Right::rows(low, rank));
        let p = Product { a: left, b, m: outputs, k: n, n: rank, c: 0 };
        gemm(&[p], &mut params.grad_mut(a.b), rank, true);
        linear::weight_gradient(params, x.host(), &d_low, n, a.a);
    }
    if let Some(g) = &x.grad {
        add_product(Part::Linear, n, rank, inputs);
        g.write(None, n * inputs, |dx, add| {
            let (left, b) = (Left::rows(&d_low, rank), Right::rows(&va, inputs));
            gemm(&[Product { a: left, b, m: n, k: rank, n: inputs, c: 0 }], dx.host_mut(), inputs, add);
        });
    }
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
