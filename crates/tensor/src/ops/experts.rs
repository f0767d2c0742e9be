//! Routed experts as grouped products: no padding, no dropped tokens, one pass over all experts.
//!
//! Slots are (token, choice) pairs sorted by expert. A token's result is the sum over its experts in ascending
//! order, so it does not depend on the batch it is in.
//!
//! Letters: `n` tokens, `h` hidden, `i` inner size of an expert, `k` choices per token, `s` slots.

use crate::buffer::Buf;
use crate::cpu::gemm::{Left, Product, Right, gemm};
use crate::cpu::math;
use crate::cpu::simd::{LANES, kernel};
use crate::operations::{Part, add_product};
use crate::ops::router::Routes;
use crate::ops::swiglu;
use crate::params::{Params, Weight};
use crate::tape::{Grad, Tape, Tensor};
use crate::threads::{SharedMut, parallel, parallel_chunks};
use std::sync::Arc;

/// Rows of one piece of work.
const ROWS: usize = 32;

/// One expert's projections.
#[derive(Clone, Copy, Debug)]
pub struct Expert {
    /// Gate above up: `[2i, h]`.
    pub gate_up: Weight,
    /// `[h, i]`.
    pub down: Weight,
}

/// Slots sorted by expert.
struct Slots {
    /// Per expert: its first slot; one more at the end.
    starts: Vec<usize>,
    /// Per slot: its token.
    token: Vec<u32>,
    /// Per (token, choice): its slot.
    slot: Vec<u32>,
}

fn sort_slots(experts: &[u32], top_k: usize, count: usize) -> Slots {
    let mut starts = vec![0usize; count + 1];
    experts.iter().for_each(|&e| starts[e as usize + 1] += 1);
    (0..count).for_each(|e| starts[e + 1] += starts[e]);
    let mut next = starts.clone();
    let (mut token, mut slot) = (vec![0; experts.len()], vec![0; experts.len()]);
    for (i, &e) in experts.iter().enumerate() {
        let s = &mut next[e as usize];
        token[*s] = (i / top_k) as u32;
        slot[i] = *s as u32;
        *s += 1;
    }
    Slots { starts, token, slot }
}

impl Slots {
    fn of(&self, e: usize) -> std::ops::Range<usize> {
        self.starts[e]..self.starts[e + 1]
    }
}

/// `base + Σ_choices weight · expert(x)`; `x [n, h]`, `base [n, h]` (a shared expert's output), → `[n, h]`.
pub fn experts(
    tape: &Tape,
    x: &Tensor,
    routes: &Routes,
    bank: Arc<Vec<Expert>>,
    base: Option<&Tensor>,
) -> Tensor {
    let (n, h, k) = (x.rows(), x.cols(), routes.weights.cols());
    let inner = bank[0].down.cols;
    for e in bank.iter() {
        let fits =
            e.gate_up.rows == 2 * inner && e.gate_up.cols == h && e.down.rows == h && e.down.cols == inner;
        assert!(fits, "experts: {e:?} for {h} features and inner size {inner}");
    }
    assert!(
        k > 0 && routes.weights.rows() == n && routes.experts.len() == n * k,
        "experts: routes of other tokens"
    );
    assert!(base.is_none_or(|b| b.rows() == n && b.cols() == h), "experts: base of another shape");
    let slots = sort_slots(&routes.experts, k, bank.len());
    let s = n * k;
    let params = tape.params();
    add_product(Part::Experts, s, h, 3 * inner);
    let weight = by_slot(&slots, routes.weights.data());
    let gate_up = {
        let panels: Vec<_> = bank
            .iter()
            .enumerate()
            .map(|(e, x)| (!slots.of(e).is_empty()).then(|| params.packed(x.gate_up)))
            .collect();
        let mut out = Buf::new(s * 2 * inner);
        let products: Vec<Product> = (0..bank.len())
            .filter_map(|e| {
                let range = slots.of(e);
                let a = Left { rows: Some(&slots.token[range.clone()]), ..Left::rows(x.data(), h) };
                Some(Product {
                    a,
                    b: Right::packed(panels[e].as_ref()?, h),
                    m: range.len(),
                    k: h,
                    n: 2 * inner,
                    c: range.start * 2 * inner,
                })
            })
            .collect();
        gemm(&products, &mut out, 2 * inner, false);
        out
    };
    let mut hidden = Buf::new(s * inner);
    parallel_chunks(&mut hidden, ROWS * inner, |at, y| {
        let rows = at / inner..(at + y.len()) / inner;
        swiglu::forward_rows(
            &gate_up[rows.start * 2 * inner..rows.end * 2 * inner],
            inner,
            Some(&weight[rows]),
            y,
        );
    });
    let mut parts = Buf::new(s * h);
    {
        let panels: Vec<_> = bank
            .iter()
            .enumerate()
            .map(|(e, x)| (!slots.of(e).is_empty()).then(|| params.packed(x.down)))
            .collect();
        let products: Vec<Product> = (0..bank.len())
            .filter_map(|e| {
                let range = slots.of(e);
                let a = Left::rows(&hidden[range.start * inner..], inner);
                Some(Product {
                    a,
                    b: Right::packed(panels[e].as_ref()?, inner),
                    m: range.len(),
                    k: inner,
                    n: h,
                    c: range.start * h,
                })
            })
            .collect();
        gemm(&products, &mut parts, h, false);
    }
    drop(hidden);
    let mut y = Buf::new(n * h);
    gather_sum(&parts, &slots.slot, k, h, base.map(|b| b.data()), &mut y, false);
    let y = tape.output(y, n, h);
    if let Some(gy) = y.grad.clone() {
        let (x, weights, base) = (x.clone(), routes.weights.grad.clone(), base.and_then(|b| b.grad.clone()));
        tape.record(move |params| {
            let Some(dy) = gy.take() else { return };
            if let Some(base) = base {
                base.add(dy.clone());
            }
            backward(params, &x, &dy, Saved { gate_up, weight, slots, bank }, weights);
        });
    }
    y
}

/// Values per (token, choice) in slot order.
fn by_slot(slots: &Slots, values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (v, &s) in values.iter().zip(&slots.slot) {
        out[s as usize] = *v;
    }
    out
}

/// Row `rows[i]` of `x [.., h]` for every i.
fn gather(x: &[f32], h: usize, rows: &[u32]) -> Buf {
    let mut out = Buf::new(rows.len() * h);
    parallel_chunks(&mut out, ROWS * h, |at, out| {
        for (to, &row) in out.chunks_exact_mut(h).zip(&rows[at / h..]) {
            to.copy_from_slice(&x[row as usize * h..][..h]);
        }
    });
    out
}

/// Per token: `(y or 0) + Σ_choices parts[slot] + base`, choices in order.
fn gather_sum(
    parts: &[f32],
    slot: &[u32],
    k: usize,
    h: usize,
    base: Option<&[f32]>,
    y: &mut [f32],
    accumulate: bool,
) {
    parallel_chunks(y, ROWS * h, |at, y| {
        for (r, y) in y.chunks_exact_mut(h).enumerate() {
            let t = at / h + r;
            let part = |j: usize| &parts[slot[t * k + j] as usize * h..][..h];
            if accumulate {
                math::add_assign(y, part(0));
            } else {
                y.copy_from_slice(part(0));
            }
            (1..k).for_each(|j| math::add_assign(y, part(j)));
            if let Some(b) = base {
                math::add_assign(y, &b[t * h..][..h]);
            }
        }
    });
}

struct Saved {
    /// `[s, 2i]`
    gate_up: Buf,
    /// Routing weight of each slot.
    weight: Vec<f32>,
    slots: Slots,
    bank: Arc<Vec<Expert>>,
}

fn backward(params: &Params, x: &Tensor, dy: &[f32], saved: Saved, weights: Option<Grad>) {
    let Saved { mut gate_up, weight, slots, bank } = saved;
    let (n, h) = (x.rows(), x.cols());
    let inner = bank[0].down.cols;
    let s = weight.len();
    let k = s / n.max(1);
    // Gradients of the weights, of the hidden values, and of the input where it is wanted.
    add_product(Part::Experts, s, h, 3 * inner + inner);
    // d(weight · hidden) [s, i] = dy[token] · down
    let mut d_hidden = Buf::new(s * inner);
    let dy = gather(dy, h, &slots.token);
    let products: Vec<Product> = bank
        .iter()
        .enumerate()
        .map(|(e, x)| {
            let range = slots.of(e);
            let a = Left::rows(&dy[range.start * h..], h);
            Product {
                a,
                b: Right::rows(params.get(x.down), inner),
                m: range.len(),
                k: h,
                n: inner,
                c: range.start * inner,
            }
        })
        .collect();
    gemm(&products, &mut d_hidden, inner, false);
    // Through SwiGLU: gate_up becomes its gradient, d_hidden becomes the forward's weighted hidden value.
    let mut d_weight = vec![0.0; s];
    {
        let (gu, dh, dw) =
            (SharedMut::new(&mut gate_up), SharedMut::new(&mut d_hidden), SharedMut::new(&mut d_weight));
        parallel(s.div_ceil(ROWS), |i| {
            let (r0, rows) = (i * ROWS, ROWS.min(s - i * ROWS));
            // SAFETY: pieces own disjoint rows.
            let (gu, dh, dw) = unsafe {
                (
                    gu.slice(r0 * 2 * inner, rows * 2 * inner),
                    dh.slice(r0 * inner, rows * inner),
                    dw.slice(r0, rows),
                )
            };
            through_swiglu(gu, dh, dw, &weight[r0..r0 + rows]);
        });
    }
    let (d_gate_up, hidden) = (gate_up, d_hidden);
    {
        let mut grads = params.grads();
        let down: Vec<Product> = bank
            .iter()
            .enumerate()
            .filter(|(e, _)| !slots.of(*e).is_empty())
            .map(|(e, x)| {
                let range = slots.of(e);
                let a = Left::transposed(&dy[range.start * h..], h);
                let b = Right::rows(&hidden[range.start * inner..], inner);
                Product { a, b, m: h, k: range.len(), n: inner, c: x.down.offset }
            })
            .collect();
        gemm(&down, &mut grads, inner, true);
        drop(dy);
        let inputs = gather(x.data(), h, &slots.token);
        let gate_up: Vec<Product> = bank
            .iter()
            .enumerate()
            .filter(|(e, _)| !slots.of(*e).is_empty())
            .map(|(e, x)| {
                let range = slots.of(e);
                let a = Left::transposed(&d_gate_up[range.start * 2 * inner..], 2 * inner);
                let b = Right::rows(&inputs[range.start * h..], h);
                Product { a, b, m: 2 * inner, k: range.len(), n: h, c: x.gate_up.offset }
            })
            .collect();
        gemm(&gate_up, &mut grads, h, true);
    }
    drop(hidden);
    if let Some(g) = weights {
        let d: Vec<f32> = slots.slot.iter().map(|&i| d_weight[i as usize]).collect();
        g.add(Arc::new(Buf::copy_of(&d)));
    }
    if let Some(g) = &x.grad {
        add_product(Part::Experts, s, h, 2 * inner);
        let mut dx = Buf::new(s * h);
        let products: Vec<Product> = bank
            .iter()
            .enumerate()
            .map(|(e, x)| {
                let range = slots.of(e);
                let a = Left::rows(&d_gate_up[range.start * 2 * inner..], 2 * inner);
                Product {
                    a,
                    b: Right::rows(params.get(x.gate_up), h),
                    m: range.len(),
                    k: 2 * inner,
                    n: h,
                    c: range.start * h,
                }
            })
            .collect();
        gemm(&products, &mut dx, h, false);
        g.write(n * h, |out, add| gather_sum(&dx, &slots.slot, k, h, None, out, add));
    }
}

kernel! {
    /// Rows of `gate_up [.., 2i]` → their gradient; `d [.., i]`, the gradient of weight · hidden → weight · hidden;
    /// `dw` ← gradient of the weight.
    fn through_swiglu<S>(gate_up: &mut [f32], d: &mut [f32], dw: &mut [f32], weight: &[f32]) {
        let inner = d.len() / weight.len();
        for (r, &w) in weight.iter().enumerate() {
            let g = gate_up[r * 2 * inner..][..2 * inner].as_mut_ptr();
            let u = g.add(inner);
            let d = d[r * inner..][..inner].as_mut_ptr();
            let wv = S::splat(w);
            let mut acc = S::splat(0.0);
            let mut i = 0;
            while i < inner {
                let n = LANES.min(inner - i);
                let full = n == LANES;
                let dv = if full { S::load(d.add(i)) } else { S::load_partial(d.add(i), n) };
                let (dg, du, hidden) = swiglu::grad_lanes::<S>(g.add(i), u.add(i), d.add(i), n);
                acc = S::fma(dv, hidden, acc);
                let (dg, du, hw) = (S::mul(dg, wv), S::mul(du, wv), S::mul(hidden, wv));
                for (p, v) in [(g.add(i), dg), (u.add(i), du), (d.add(i), hw)] {
                    if full { S::store(p, v) } else { S::store_partial(p, n, v) }
                }
                i += LANES;
            }
            dw[r] = S::sum(acc);
        }
    }
}
