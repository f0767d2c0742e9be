//! From the projection of queries, keys and values to the heads of grouped-query attention.

use crate::cuda::{Gpu, Ptr, args, fast};
use crate::memory::{Data, Ints};
use crate::ops::heads::take_all;
use crate::ops::{RopeTable, grouped_rms_norm, rope, split_cols, split_qkv};
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};

/// The heads of grouped-query attention.
#[derive(Clone, Copy, Debug)]
pub struct GqaHeads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Components of a head.
    pub dim: usize,
    /// RMSNorm of every head of the queries, and of the keys, before they are rotated (Qwen3): weights `[dim]`.
    pub norms: Option<(Weight, Weight)>,
    /// What the norms add to the mean of squares.
    pub eps: f32,
}

impl GqaHeads {
    /// Features of queries, and of keys or values.
    fn widths(&self) -> (usize, usize) {
        (self.heads * self.dim, self.kv_heads * self.dim)
    }
}

/// `qkv [tokens, (heads + 2 * kv_heads) * dim]` → queries and keys, normalised and rotated by position, and values.
pub fn gqa_heads<'p>(
    tape: &Tape<'p>,
    qkv: &Tensor,
    shape: GqaHeads,
    positions: &Ints,
    table: &'p RopeTable,
) -> (Tensor, Tensor, Tensor) {
    let GqaHeads { heads, kv_heads, dim, norms, eps } = shape;
    let (wq, wk) = shape.widths();
    let even = norms.is_none_or(|(q, k)| [q, k].into_iter().all(|w| tape.params().is_in_pairs(w)));
    let suits = |_: &&Gpu| dim.is_multiple_of(4) && dim <= 256 && even;
    if let Some(gpu) = fast(tape.gpu()).filter(suits) {
        return fused(tape, gpu, qkv, shape, positions, table);
    }
    let Some((q_norm, k_norm)) = norms else {
        return split_qkv(tape, qkv, (heads, kv_heads, dim), positions, table);
    };
    let parts = split_cols(tape, qkv, &[wq, wk, wk]);
    let q = grouped_rms_norm(tape, &parts[0], q_norm, eps);
    let k = grouped_rms_norm(tape, &parts[1], k_norm, eps);
    (rope(tape, &q, positions, table), rope(tape, &k, positions, table), parts[2].clone())
}

/// Tokens of a block of the backward kernel.
const TOKENS: usize = 8;

/// The fast mode's: one kernel, whose results are bf16.
fn fused<'p>(
    tape: &Tape<'p>,
    gpu: &Gpu,
    qkv: &Tensor,
    shape: GqaHeads,
    positions: &Ints,
    table: &'p RopeTable,
) -> (Tensor, Tensor, Tensor) {
    let GqaHeads { heads, kv_heads, dim, norms, eps } = shape;
    let (n, (wq, wk)) = (qkv.rows(), shape.widths());
    assert!(qkv.cols() == wq + 2 * wk && positions.len() == n && table.dim() == dim, "gqa_heads: {shape:?}");
    table.check(positions);
    let [q, k, v] = [wq, wk, wk].map(|w| Data::halves(gpu, n * w));
    let rstd = norms.map(|_| Data::new(Some(gpu), n * (heads + kv_heads)));
    {
        let [q, k, v] = [&q, &k, &v].map(|x| x.operand(gpu).at(0));
        let rstd = rstd.as_ref().map_or(Ptr::NULL, |r| r.on(gpu).at(0));
        let (cos, sin) = table.on(gpu);
        let [q_norm, k_norm] = norm_weights(tape.params(), gpu, norms);
        let (half, turned) = (dim / 2, table.interleaved());
        let at = positions.on(gpu);
        let x = qkv.data.on(gpu);
        let args =
            args![x, q, k, v, rstd, eps, at, cos, sin, q_norm, k_norm, n, heads, kv_heads, half, turned];
        let blocks = (n * (heads + 2 * kv_heads)).div_ceil(4);
        gpu.launch("fast_elementwise_heads", [blocks, 1, 1], 128, args);
    }
    let (q, k, v) = (tape.output(q, n, wq), tape.output(k, n, wk), tape.output(v, n, wk));
    if let Some(gx) = qkv.grad.clone() {
        let grads = [(q.grad.clone(), wq), (k.grad.clone(), wk), (v.grad.clone(), wk)];
        let (qkv, positions) = (qkv.clone(), positions.clone());
        tape.record(move |params| {
            let gpu = params.gpu().expect("recorded on a GPU");
            if let Some(grads) = take_all(Some(gpu), grads, n) {
                let grads = grads.each_ref().map(|g| &**g);
                gx.give(backward(gpu, params, &qkv, grads, rstd.as_ref(), shape, (&positions, table)));
            }
        });
    }
    (q, k, v)
}

fn norm_weights(params: &Params, gpu: &Gpu, norms: Option<(Weight, Weight)>) -> [Ptr; 2] {
    norms.map_or([Ptr::NULL; 2], |(q, k)| [q, k].map(|w| params.on(gpu, w)))
}

/// The projection's gradient; adds to those of the norms, if they are trained.
fn backward(
    gpu: &Gpu,
    params: &Params,
    qkv: &Tensor,
    grads: [&Data; 3],
    rstd: Option<&Data>,
    shape: GqaHeads,
    (positions, table): (&Ints, &RopeTable),
) -> Data {
    let GqaHeads { heads, kv_heads, dim, norms, .. } = shape;
    let n = qkv.rows();
    let blocks = n.div_ceil(TOKENS);
    let dx = Data::halves(gpu, qkv.data.len());
    let partial = norms.map(|_| gpu.alloc(2 * blocks * dim));
    let at_or_null = |slab: Option<&crate::cuda::Slab>| slab.map_or(Ptr::NULL, |s| s.at(0));
    let [dq, dk, dv] = grads.map(|g| g.on(gpu));
    let rstd = at_or_null(rstd.map(|r| r.on(gpu)));
    let (cos, sin) = table.on(gpu);
    let [q_norm, k_norm] = norm_weights(params, gpu, norms);
    let (x, to, sums, at) =
        (qkv.data.on(gpu), dx.operand(gpu).at(0), at_or_null(partial.as_ref()), positions.on(gpu));
    let (half, turned) = (dim / 2, table.interleaved());
    let args =
        args![x, dq, dk, dv, rstd, to, sums, at, cos, sin, q_norm, k_norm, n, heads, kv_heads, half, turned];
    gpu.launch_shared("fast_elementwise_heads_backward", [blocks, 1, 1], 256, 32 * dim, args);
    if let (Some(partial), Some((q_norm, k_norm))) = (&partial, norms) {
        let norms = [q_norm, k_norm].into_iter().enumerate();
        for (i, w) in norms.filter(|&(_, w)| params.trains(w)) {
            let args = args![partial.at(i * blocks * dim), params.grad_on(gpu, w), blocks, dim];
            gpu.launch("elementwise_bias_gradient", [dim.div_ceil(32), 1, 1], 256, args);
        }
    }
    dx
}
