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
use crate::cuda::gemm::{Groups, Layout, Matrices, grouped};
use crate::cuda::{Gpu, Ptr, Slab, args};
use crate::memory::{Data, Ints};
use crate::operations::{Part, add_product};
use crate::ops::router::Routes;
use crate::ops::swiglu;
use crate::params::{Factor, Panels, Params, Values, Weight};
use crate::tape::{Grad, Tape, Tensor};
use crate::threads::{SharedMut, parallel, parallel_chunks};
use std::collections::HashMap;
use std::ops::Range;
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
    starts: Ints,
    /// Per slot: its token.
    token: Ints,
    /// Per (token, choice): its slot.
    slot: Ints,
}

fn sort_slots(experts: &[u32], top_k: usize, count: usize) -> Slots {
    let mut starts = vec![0; count + 1];
    experts.iter().for_each(|&e| starts[e as usize + 1] += 1);
    (0..count).for_each(|e| starts[e + 1] += starts[e]);
    let mut next = starts.clone();
    let (mut token, mut slot) = (vec![0; experts.len()], vec![0; experts.len()]);
    for (i, &e) in experts.iter().enumerate() {
        let s = &mut next[e as usize];
        token[*s as usize] = (i / top_k) as u32;
        slot[i] = *s;
        *s += 1;
    }
    Slots { starts: starts.into(), token: token.into(), slot: slot.into() }
}

/// [`sort_slots`] on a GPU.
fn sort_slots_cuda(gpu: &Gpu, experts: &Ints, top_k: usize, count: usize) -> Slots {
    let s = experts.len();
    let (starts, token, slot) = (gpu.alloc(count + 1), gpu.alloc(s), gpu.alloc(s));
    let args = args![experts.on(gpu), &starts, &token, &slot, s, top_k];
    gpu.launch("experts_sort", [count, 1, 1], 1024, args);
    Slots {
        starts: Ints::written(starts, count + 1),
        token: Ints::written(token, s),
        slot: Ints::written(slot, s),
    }
}

impl Slots {
    fn of(&self, e: usize) -> Range<usize> {
        let starts = self.starts.host();
        starts[e] as usize..starts[e + 1] as usize
    }
    /// One product for every expert that has slots.
    fn products<'a>(
        &self,
        bank: &[Expert],
        product: impl Fn(&Expert, Range<usize>) -> Product<'a>,
    ) -> Vec<Product<'a>> {
        let experts = bank.iter().enumerate().map(|(e, x)| (x, self.of(e)));
        experts.filter(|(_, slots)| !slots.is_empty()).map(|(x, slots)| product(x, slots)).collect()
    }
}

/// What the way back needs.
struct Saved {
    /// `[s, 2i]`
    gate_up: Data,
    /// `[s]`: each slot's routing weight.
    weight: Data,
    slots: Slots,
    bank: Arc<Vec<Expert>>,
}

/// `base + Σ_choices weight · expert(x)`; `x [n, h]`, `base [n, h]` (a shared expert's output), → `[n, h]`.
///
/// On a GPU the experts' weights must lie at even distances in the arena.
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
    add_product(Part::Experts, n * k, h, 3 * inner);
    let (y, saved) = match tape.gpu() {
        Some(gpu) => forward_cuda(gpu, tape.params(), x, routes, bank, base),
        None => forward_cpu(tape.params(), x, routes, bank, base),
    };
    let y = tape.output(y, n, h);
    if let Some(gy) = y.grad.clone() {
        let (x, weights, base) = (x.clone(), routes.weights.grad.clone(), base.and_then(|b| b.grad.clone()));
        tape.record(move |params| {
            let Some(dy) = gy.take() else { return };
            if let Some(base) = base {
                base.add(dy.clone());
            }
            let s = saved.weight.len();
            // Gradients of the hidden values, of the weights if they are trained, and of the input where it is wanted.
            let trains = params.trains(saved.bank[0].down);
            add_product(Part::Experts, s, h, if trains { 3 * inner + inner } else { inner });
            if x.grad.is_some() {
                add_product(Part::Experts, s, h, 2 * inner);
            }
            match params.gpu() {
                Some(gpu) => backward_cuda(gpu, params, &x, &dy, saved, weights),
                None => backward_cpu(params, &x, dy.host(), saved, weights),
            }
        });
    }
    y
}

fn forward_cpu(
    params: &Params,
    x: &Tensor,
    routes: &Routes,
    bank: Arc<Vec<Expert>>,
    base: Option<&Tensor>,
) -> (Data, Saved) {
    let (n, h, k, inner) = (x.rows(), x.cols(), routes.weights.cols(), bank[0].down.cols);
    let s = n * k;
    let slots = sort_slots(routes.experts.host(), k, bank.len());
    let weight = by_slot(&slots, routes.weights.host());
    let token = slots.token.host();
    let mut gate_up = Buf::new(s * 2 * inner);
    let panels = panels(params, &bank, &slots, |x| x.gate_up);
    let products = slots.products(&bank, |e, range| {
        let a = Left { rows: Some(&token[range.clone()]), ..Left::rows(x.host(), h) };
        let b = panels[&e.gate_up.offset].right(h);
        Product { a, b, m: range.len(), k: h, n: 2 * inner, c: range.start * 2 * inner }
    });
    gemm(&products, &mut gate_up, 2 * inner, false);
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
    let panels = self::panels(params, &bank, &slots, |x| x.down);
    let products = slots.products(&bank, |e, range| {
        let a = Left::rows(&hidden[range.start * inner..], inner);
        let b = panels[&e.down.offset].right(inner);
        Product { a, b, m: range.len(), k: inner, n: h, c: range.start * h }
    });
    gemm(&products, &mut parts, h, false);
    drop(hidden);
    let mut y = Buf::new(n * h);
    gather_sum(&parts, slots.slot.host(), k, h, base.map(|b| b.host()), &mut y, false);
    (y.into(), Saved { gate_up: gate_up.into(), weight: weight.into(), slots, bank })
}

/// The packed panels of the experts that have slots, by the offset of the weight.
fn panels(
    params: &Params,
    bank: &[Expert],
    slots: &Slots,
    weight: impl Fn(&Expert) -> Weight,
) -> HashMap<usize, Arc<Panels>> {
    let used = bank.iter().enumerate().filter(|(e, _)| !slots.of(*e).is_empty());
    used.map(|(_, x)| (weight(x).offset, params.packed(weight(x)))).collect()
}

/// The values of the experts that have slots, by the address of the weight.
fn values<'p>(
    params: &'p Params,
    bank: &[Expert],
    slots: &Slots,
    weight: impl Fn(&Expert) -> Weight,
) -> HashMap<usize, Values<'p>> {
    let used = bank.iter().enumerate().filter(|(e, _)| !slots.of(*e).is_empty());
    used.map(|(_, x)| (weight(x).offset, params.values(weight(x)))).collect()
}

/// Rows and columns that a block of a kernel over rows works on.
fn row_grid(rows: usize, cols: usize) -> [usize; 3] {
    [rows.div_ceil(8), cols.div_ceil(512), 1]
}

/// The experts' groups of slots, and how far apart their weights lie.
fn groups<'a>(
    gpu: &Gpu,
    slots: &'a Slots,
    bank: &[Expert],
    weight: impl Fn(&Expert) -> Weight,
) -> Groups<'a> {
    let at = |e: usize| weight(&bank[e]).offset;
    let stride = if bank.len() > 1 { at(1).saturating_sub(at(0)) } else { 0 };
    assert!(bank.len() == 1 || stride >= weight(&bank[0]).len(), "experts: weights that overlap");
    assert!((0..bank.len()).all(|e| at(e) == at(0) + e * stride), "experts: weights at uneven distances");
    Groups { starts: slots.starts.on(gpu), count: bank.len(), stride: stride as i64 }
}

/// The weights of all experts as factors on a GPU: where those of the first one lie.
struct Factors {
    gate_up: Ptr,
    down: Ptr,
    _all: Factor,
}

impl Factors {
    fn of(gpu: &Gpu, params: &Params, bank: &[Expert]) -> Factors {
        let all = || bank.iter().flat_map(|e| [e.gate_up, e.down]);
        let start = all().map(|w| w.offset).min().expect("experts");
        let end = all().map(|w| w.offset + w.len()).max().expect("experts");
        let factor = params.factors_on(gpu, start..end);
        let at = |w: Weight| factor.at(w.offset - start);
        Factors { gate_up: at(bank[0].gate_up), down: at(bank[0].down), _all: factor }
    }
}

fn forward_cuda(
    gpu: &Gpu,
    params: &Params,
    x: &Tensor,
    routes: &Routes,
    bank: Arc<Vec<Expert>>,
    base: Option<&Tensor>,
) -> (Data, Saved) {
    let (n, h, k, inner) = (x.rows(), x.cols(), routes.weights.cols(), bank[0].down.cols);
    let s = n * k;
    let slots = sort_slots_cuda(gpu, &routes.experts, k, bank.len());
    let mut weight = Data::new(Some(gpu), s);
    let (of_choice, slot) = (routes.weights.data.on(gpu), slots.slot.on(gpu));
    let grid = [s.div_ceil(256), 1, 1];
    gpu.launch("experts_by_slot", grid, 256, args![of_choice, slot, weight.on_mut(gpu), s]);
    let inputs = gather_cuda(gpu, x.data.on(gpu), &slots, h);
    let factor = inputs.operand(s * h);
    let mut gate_up = Data::new(Some(gpu), s * 2 * inner);
    let weights = Factors::of(gpu, params, &bank);
    let places = Matrices { a: factor.at(0), b: weights.gate_up, c: gate_up.on_mut(gpu).at(0) };
    let by_gate_up = groups(gpu, &slots, &bank, |e| e.gate_up);
    grouped(gpu, Layout::Nt, places, [s, 2 * inner, h], [h, h, 2 * inner], false, by_gate_up);
    let (hidden, parts) = (gpu.alloc(s * inner), gpu.alloc(s * h));
    let args = args![gate_up.on(gpu), weight.on(gpu), &hidden, s, inner];
    gpu.launch("experts_hidden", row_grid(s, inner), 256, args);
    let factor = hidden.operand(s * inner);
    let places = Matrices { a: factor.at(0), b: weights.down, c: parts.at(0) };
    let by_down = groups(gpu, &slots, &bank, |e| e.down);
    grouped(gpu, Layout::Nt, places, [s, h, inner], [inner, inner, h], false, by_down);
    let mut y = Data::new(Some(gpu), n * h);
    let base = base.map_or(Ptr::NULL, |b| b.data.on(gpu).at(0));
    let args = args![&parts, slot, base, y.on_mut(gpu), n, h, k, false];
    gpu.launch("experts_gather_sum", row_grid(n, h), 256, args);
    (y, Saved { gate_up, weight, slots, bank })
}

/// The rows of the slots' tokens, `[s, h]`.
fn gather_cuda(gpu: &Gpu, x: &Slab, slots: &Slots, h: usize) -> Slab {
    let s = slots.token.len();
    let out = gpu.alloc(s * h);
    gpu.launch("experts_gather", row_grid(s, h), 256, args![x, slots.token.on(gpu), &out, s, h]);
    out
}

/// Values per (token, choice) in slot order.
fn by_slot(slots: &Slots, values: &[f32]) -> Buf {
    let mut out = Buf::new(values.len());
    for (v, &s) in values.iter().zip(slots.slot.host()) {
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

fn backward_cpu(params: &Params, x: &Tensor, dy: &[f32], saved: Saved, weights: Option<Grad>) {
    let Saved { mut gate_up, weight, slots, bank } = saved;
    let (n, h) = (x.rows(), x.cols());
    let inner = bank[0].down.cols;
    let s = weight.len();
    let k = s / n.max(1);
    // d(weight · hidden) [s, i] = dy[token] · down
    let mut d_hidden = Buf::new(s * inner);
    let dy = gather(dy, h, slots.token.host());
    let values = self::values(params, &bank, &slots, |e| e.down);
    let products = slots.products(&bank, |e, range| {
        let (a, b) = (Left::rows(&dy[range.start * h..], h), Right::rows(&values[&e.down.offset], inner));
        Product { a, b, m: range.len(), k: h, n: inner, c: range.start * inner }
    });
    gemm(&products, &mut d_hidden, inner, false);
    // Through SwiGLU: gate_up becomes its gradient, d_hidden becomes the forward's weighted hidden value.
    let mut d_weight = vec![0.0; s];
    {
        let (gu, dh, dw) = (
            SharedMut::new(gate_up.host_mut()),
            SharedMut::new(&mut d_hidden),
            SharedMut::new(&mut d_weight),
        );
        let weight = weight.host();
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
    let (d_gate_up, hidden) = (gate_up.host(), d_hidden);
    if params.trains(bank[0].down) {
        let mut grads = params.grads();
        let products = slots.products(&bank, |e, range| {
            let a = Left::transposed(&dy[range.start * h..], h);
            let b = Right::rows(&hidden[range.start * inner..], inner);
            Product { a, b, m: h, k: range.len(), n: inner, c: e.down.offset }
        });
        gemm(&products, &mut grads, inner, true);
        drop(dy);
        let inputs = gather(x.host(), h, slots.token.host());
        let products = slots.products(&bank, |e, range| {
            let a = Left::transposed(&d_gate_up[range.start * 2 * inner..], 2 * inner);
            let b = Right::rows(&inputs[range.start * h..], h);
            Product { a, b, m: 2 * inner, k: range.len(), n: h, c: e.gate_up.offset }
        });
        gemm(&products, &mut grads, h, true);
    }
    drop(hidden);
    if let Some(g) = weights {
        let mut d = Buf::new(s);
        d.iter_mut().zip(slots.slot.host()).for_each(|(d, &i)| *d = d_weight[i as usize]);
        g.give(d);
    }
    if let Some(g) = &x.grad {
        let mut dx = Buf::new(s * h);
        let values = self::values(params, &bank, &slots, |e| e.gate_up);
        let products = slots.products(&bank, |e, range| {
            let a = Left::rows(&d_gate_up[range.start * 2 * inner..], 2 * inner);
            let b = Right::rows(&values[&e.gate_up.offset], h);
            Product { a, b, m: range.len(), k: 2 * inner, n: h, c: range.start * h }
        });
        gemm(&products, &mut dx, h, false);
        g.write(None, n * h, |out, add| gather_sum(&dx, slots.slot.host(), k, h, None, out.host_mut(), add));
    }
}

/// [`backward_cpu`] on a GPU.
fn backward_cuda(gpu: &Gpu, params: &Params, x: &Tensor, dy: &Data, saved: Saved, weights: Option<Grad>) {
    let Saved { mut gate_up, weight, slots, bank } = saved;
    let (n, h) = (x.rows(), x.cols());
    let (first, inner) = (bank[0], bank[0].down.cols);
    let s = weight.len();
    let k = s / n.max(1);
    let by_down = groups(gpu, &slots, &bank, |e| e.down);
    let by_gate_up = groups(gpu, &slots, &bank, |e| e.gate_up);
    let (hidden, d_weight) = (gpu.alloc(s * inner), gpu.alloc(s));
    let dy = gather_cuda(gpu, dy.on(gpu), &slots, h);
    let dy = dy.operand(s * h);
    let factors = Factors::of(gpu, params, &bank);
    let places = Matrices { a: dy.at(0), b: factors.down, c: hidden.at(0) };
    grouped(gpu, Layout::Nn, places, [s, inner, h], [h, inner, inner], false, by_down);
    let d_gate_up = gate_up.on_mut(gpu);
    let args = args![d_gate_up, &hidden, &d_weight, weight.on(gpu), s, inner];
    gpu.launch("experts_through_swiglu", [s.div_ceil(16), 1, 1], 256, args);
    let d_gate_up = d_gate_up.operand(s * 2 * inner);
    if params.trains(first.down) {
        let factor = hidden.operand(s * inner);
        let places = Matrices { a: dy.at(0), b: factor.at(0), c: params.grad_on(gpu, first.down) };
        grouped(gpu, Layout::Tn, places, [h, inner, s], [h, inner, inner], true, by_down);
        let inputs = gather_cuda(gpu, x.data.on(gpu), &slots, h);
        let factor = inputs.operand(s * h);
        let places = Matrices { a: d_gate_up.at(0), b: factor.at(0), c: params.grad_on(gpu, first.gate_up) };
        grouped(gpu, Layout::Tn, places, [2 * inner, h, s], [2 * inner, h, h], true, by_gate_up);
    }
    let slot = slots.slot.on(gpu);
    if let Some(g) = weights {
        let mut d = Data::new(Some(gpu), s);
        let args = args![&d_weight, slot, d.on_mut(gpu), s];
        gpu.launch("experts_from_slot", [s.div_ceil(256), 1, 1], 256, args);
        g.give(d);
    }
    if let Some(g) = &x.grad {
        let parts = gpu.alloc(s * h);
        let places = Matrices { a: d_gate_up.at(0), b: factors.gate_up, c: parts.at(0) };
        grouped(gpu, Layout::Nn, places, [s, h, 2 * inner], [2 * inner, h, h], false, by_gate_up);
        g.write(Some(gpu), n * h, |out, add| {
            let args = args![&parts, slot, Ptr::NULL, out.on_mut(gpu), n, h, k, add];
            gpu.launch("experts_gather_sum", row_grid(n, h), 256, args);
        });
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
