//! DeepSeek-V3's router: sigmoid affinities, selection with a balance bias, group limit, normalised weights.

use crate::buffer::Buf;
use crate::tape::{Tape, Tensor};
use crate::threads::{SharedMut, parallel};
use std::sync::Arc;

/// Rows of one piece of work.
const ROWS: usize = 64;
/// The most experts a router handles.
pub const MAX_EXPERTS: usize = 512;

/// How experts are chosen (DeepSeek-V3 report, equations 12 to 16).
#[derive(Clone, Copy, Debug)]
pub struct RouterShape {
    /// Routed experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Groups of experts.
    pub groups: usize,
    /// Groups that a token may use.
    pub top_groups: usize,
    /// Whether the weights are normalised to one.
    pub normalize: bool,
    /// Factor of the weights.
    pub scaling: f32,
}

/// The choice for a batch of tokens.
pub struct Routes {
    /// `[tokens * top_k]`: each token's experts in ascending order.
    pub experts: Arc<Vec<u32>>,
    /// `[tokens, top_k]`: their weights.
    pub weights: Tensor,
    /// Tokens that each expert got.
    pub load: Vec<u32>,
    /// The sequence-wise balance loss (report, equations 17 to 20), already in the gradient; 0 if `alpha` is.
    pub balance_loss: f32,
}

/// `logits [tokens, experts]`, `bias [experts]` (added for the selection only) → routes. `alpha` weighs the
/// balance loss over `lens`, the lengths of the batch's sequences.
pub fn route(
    tape: &Tape,
    logits: &Tensor,
    bias: &[f32],
    shape: RouterShape,
    lens: &[usize],
    alpha: f32,
) -> Routes {
    let (n, e, k) = (logits.rows(), shape.experts, shape.top_k);
    assert!(
        logits.cols() == e && bias.len() == e && e <= MAX_EXPERTS && k <= e,
        "route: {} logits for {shape:?}",
        logits.cols()
    );
    let open = if shape.groups > 1 { e / shape.groups * shape.top_groups.min(shape.groups) } else { e };
    assert!(
        e.is_multiple_of(shape.groups.max(1)) && k <= open,
        "route: {shape:?} leaves fewer than {k} experts to choose from"
    );
    assert!(
        alpha <= 0.0 || lens.iter().sum::<usize>() == n,
        "route: sequences do not cover the batch of {n}"
    );
    let mut scores = Buf::new(n * e);
    let mut weights = Buf::new(n * k);
    let mut experts = vec![0u32; n * k];
    {
        let (s, w, x) =
            (SharedMut::new(&mut scores), SharedMut::new(&mut weights), SharedMut::new(&mut experts));
        parallel(n.div_ceil(ROWS), |i| {
            for t in i * ROWS..n.min((i + 1) * ROWS) {
                // SAFETY: each row is visited once.
                let (s, w, x) = unsafe { (s.slice(t * e, e), w.slice(t * k, k), x.slice(t * k, k)) };
                sigmoid_row(logits.row(t), s);
                select(s, bias, &shape, x);
                for (w, &x) in w.iter_mut().zip(x.iter()) {
                    *w = s[x as usize];
                }
                let total: f32 = if shape.normalize { w.iter().sum::<f32>() + 1e-20 } else { 1.0 };
                w.iter_mut().for_each(|w| *w = *w / total * shape.scaling);
            }
        });
    }
    let mut load = vec![0u32; e];
    experts.iter().for_each(|&x| load[x as usize] += 1);
    let experts = Arc::new(experts);
    let weights = tape.output(weights, n, k);
    let balance = (alpha > 0.0).then(|| balance_slopes(&scores, &experts, &shape, lens, alpha));
    let balance_loss = balance.as_ref().map_or(0.0, |b| b.0);
    if let (Some(gl), Some(gw)) = (logits.grad.clone(), weights.grad.clone()) {
        let experts = experts.clone();
        tape.record(move |_| {
            let dw = gw.take();
            let mut dlogits = Buf::zeros(n * e);
            let out = SharedMut::new(&mut dlogits);
            parallel(n.div_ceil(ROWS), |i| {
                for t in i * ROWS..n.min((i + 1) * ROWS) {
                    // SAFETY: each row is visited once.
                    let d = unsafe { out.slice(t * e, e) };
                    let s = &scores[t * e..][..e];
                    if let Some(dw) = &dw {
                        weight_slopes(s, &experts[t * k..][..k], &dw[t * k..][..k], &shape, d);
                    }
                    if let Some((_, slopes)) = &balance {
                        d.iter_mut().zip(&slopes[t * e..]).for_each(|(d, b)| *d += b);
                    }
                    d.iter_mut().zip(s).for_each(|(d, s)| *d *= s * (1.0 - s));
                }
            });
            gl.add(Arc::new(dlogits));
        });
    }
    Routes { experts, weights, load, balance_loss }
}

crate::cpu::simd::kernel! {
    fn sigmoid_row<S>(x: &[f32], y: &mut [f32]) {
        use crate::cpu::simd::LANES;
        let mut i = 0;
        while i < x.len() {
            let n = LANES.min(x.len() - i);
            let v = crate::cpu::math::sigmoid::<S>(S::load_partial(x.as_ptr().add(i), n));
            S::store_partial(y.as_mut_ptr().add(i), n, v);
            i += LANES;
        }
    }
}

/// The chosen experts, ascending. Ties go to the lower index.
fn select(scores: &[f32], bias: &[f32], shape: &RouterShape, chosen: &mut [u32]) {
    let mut biased = [f32::NEG_INFINITY; MAX_EXPERTS];
    for (i, (s, b)) in scores.iter().zip(bias).enumerate() {
        biased[i] = s + b;
    }
    if shape.groups > 1 && shape.top_groups < shape.groups {
        let per = shape.experts / shape.groups;
        let mut strength = [f32::NEG_INFINITY; MAX_EXPERTS];
        for g in 0..shape.groups {
            let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for &b in &biased[g * per..(g + 1) * per] {
                if b > first {
                    (first, second) = (b, first);
                } else if b > second {
                    second = b;
                }
            }
            strength[g] = if per > 1 { first + second } else { first };
        }
        let mut keep = [false; MAX_EXPERTS];
        for _ in 0..shape.top_groups {
            let g = best(&strength[..shape.groups]);
            keep[g] = true;
            strength[g] = f32::NEG_INFINITY;
        }
        for i in 0..shape.experts {
            if !keep[i / per] {
                biased[i] = f32::NEG_INFINITY;
            }
        }
    }
    for c in chosen.iter_mut() {
        let i = best(&biased[..shape.experts]);
        *c = i as u32;
        biased[i] = f32::NEG_INFINITY;
    }
    chosen.sort_unstable();
}

fn best(x: &[f32]) -> usize {
    let mut at = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[at] {
            at = i;
        }
    }
    at
}

/// Adds d loss / d score through the (normalised) weights of one token.
fn weight_slopes(s: &[f32], experts: &[u32], dw: &[f32], shape: &RouterShape, d: &mut [f32]) {
    if !shape.normalize {
        for (&x, &g) in experts.iter().zip(dw) {
            d[x as usize] += g * shape.scaling;
        }
        return;
    }
    let total: f32 = experts.iter().map(|&x| s[x as usize]).sum::<f32>() + 1e-20;
    let inner: f32 = experts.iter().zip(dw).map(|(&x, g)| g * s[x as usize]).sum::<f32>() / total;
    for (&x, &g) in experts.iter().zip(dw) {
        d[x as usize] += shape.scaling * (g - inner) / total;
    }
}

/// The balance loss `α Σ_i f_i P_i`, averaged over tokens, and its slope by each score.
fn balance_slopes(
    scores: &[f32],
    experts: &[u32],
    shape: &RouterShape,
    lens: &[usize],
    alpha: f32,
) -> (f32, Vec<f32>) {
    let (e, k) = (shape.experts, shape.top_k);
    let tokens: usize = lens.iter().sum();
    let mut slopes = vec![0.0; scores.len()];
    let mut loss = 0.0;
    let mut start = 0;
    for &len in lens {
        let rows = &scores[start * e..(start + len) * e];
        let mut f = vec![0.0f32; e];
        experts[start * k..(start + len) * k].iter().for_each(|&x| f[x as usize] += 1.0);
        f.iter_mut().for_each(|f| *f *= e as f32 / (k * len) as f32);
        let share = alpha / tokens as f32;
        for (t, row) in rows.chunks_exact(e).enumerate() {
            let total: f32 = row.iter().sum();
            let weighted: f32 = row.iter().zip(&f).map(|(s, f)| s * f).sum::<f32>() / total;
            loss += share * weighted;
            for i in 0..e {
                slopes[(start + t) * e + i] = share * (f[i] - weighted) / total;
            }
        }
        start += len;
    }
    (loss, slopes)
}
