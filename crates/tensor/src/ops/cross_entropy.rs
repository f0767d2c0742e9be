//! The output head and the losses on it, without ever holding `[tokens, vocab]` logits.
//!
//! Tokens are walked in chunks whose logits fit the cache. A chunk's logits give target log-probabilities and
//! entropies; where the weight of each token's loss is known beforehand, the same walk gives the gradients.

use crate::buffer::Buf;
use crate::cpu::gemm::{Left, Product, Right, gemm};
use crate::cpu::math::{self, exp, ln};
use crate::cpu::simd::{LANES, kernel};
use crate::operations::{Part, add_product};
use crate::ops::linear::product;
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};
use crate::threads::{SharedMut, parallel, parallel_chunks};
use std::sync::Arc;

/// What one walk over the head gives, per token.
#[derive(Clone, Debug, Default)]
pub struct TokenStats {
    /// Natural log-probability of the target.
    pub logprobs: Vec<f32>,
    /// Entropy of the prediction, in nats.
    pub entropies: Vec<f32>,
}

/// `log Σ exp(x)`: the normaliser of a row of logits, and the entropy of its softmax.
pub fn normalizer(logits: &[f32]) -> (f32, f32) {
    let top = math::max(logits);
    let (sum, weighted) = exp_sums(logits, top);
    let lse = top + ln(sum);
    (lse, lse - weighted / sum)
}

kernel! {
    /// `Σ e^(x - top)` and `Σ e^(x - top) x`.
    fn exp_sums<S>(x: &[f32], top: f32) -> (f32, f32) {
        let shift = S::splat(top);
        let (mut sum, mut weighted) = (S::splat(0.0), S::splat(0.0));
        let mut chunks = x.chunks_exact(LANES);
        for c in &mut chunks {
            let v = S::load(c.as_ptr());
            let e = exp::<S>(S::sub(v, shift));
            sum = S::add(sum, e);
            weighted = S::fma(e, v, weighted);
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let v = S::load_partial(rest.as_ptr(), rest.len());
            let mut lanes = [0.0f32; LANES];
            S::store(lanes.as_mut_ptr(), exp::<S>(S::sub(v, shift)));
            let e = S::load_partial(lanes.as_ptr(), rest.len());
            sum = S::add(sum, e);
            weighted = S::fma(e, v, weighted);
        }
        (S::sum(sum), S::sum(weighted))
    }
}

kernel! {
    /// `x <- factor * exp(x - lse)`.
    fn scaled_softmax<S>(x: &mut [f32], lse: f32, factor: f32) {
        let (shift, factor) = (S::splat(lse), S::splat(factor));
        let p = x.as_mut_ptr();
        let mut i = 0;
        while i < x.len() {
            let n = LANES.min(x.len() - i);
            let v = if n == LANES { S::load(p.add(i)) } else { S::load_partial(p.add(i), n) };
            let e = S::mul(factor, exp::<S>(S::sub(v, shift)));
            if n == LANES { S::store(p.add(i), e) } else { S::store_partial(p.add(i), n, e) }
            i += LANES;
        }
    }
}

/// Logits of all rows, `[rows, vocab]`: for generation and for scoring to a file.
pub fn logits(params: &Params, hidden: &Tensor, head: Weight) -> Buf {
    assert_eq!(hidden.cols(), head.cols, "logits: features of rows and head differ");
    add_product(Part::Head, hidden.rows(), head.cols, head.rows);
    let mut out = Buf::new(hidden.rows() * head.rows);
    product(params, hidden.data(), hidden.rows(), head, &mut out);
    out
}

/// Rows of one chunk: a few MiB of logits.
fn chunk_rows(vocab: usize) -> usize {
    ((1 << 20) / vocab).clamp(32, 2048)
}

fn check(x: &Tensor, head: Weight, targets: &[u32]) {
    assert!(
        x.cols() == head.cols && targets.len() == x.rows(),
        "cross_entropy: {} rows, {} targets",
        x.rows(),
        targets.len()
    );
    let outside = targets.iter().find(|&&t| t as usize >= head.rows);
    assert!(outside.is_none(), "cross_entropy: target {outside:?} in a vocabulary of {}", head.rows);
}

/// The walk: `x [tokens, hidden]`, `head [vocab, hidden]`. `weights[t]`, if given, multiplies token t's negative
/// log-likelihood in the loss; its gradient is added to `x` and to the head in the same walk.
fn walk(params: &Params, x: &Tensor, head: Weight, targets: &[u32], weights: Option<&[f32]>) -> TokenStats {
    check(x, head, targets);
    let (n, h, vocab) = (x.rows(), head.cols, head.rows);
    add_product(Part::Head, if weights.is_some() { 3 * n } else { n }, h, vocab);
    let mut stats = TokenStats { logprobs: vec![0.0; n], entropies: vec![0.0; n] };
    let chunk = chunk_rows(vocab);
    let mut logits = Buf::new(chunk.min(n) * vocab);
    let mut dx = weights.map(|_| Buf::new(n * h));
    for r0 in (0..n).step_by(chunk) {
        let rows = chunk.min(n - r0);
        let logits = &mut logits[..rows * vocab];
        let xs = &x.data()[r0 * h..][..rows * h];
        product(params, xs, rows, head, logits);
        {
            let (lp, en) =
                (SharedMut::new(&mut stats.logprobs[r0..]), SharedMut::new(&mut stats.entropies[r0..]));
            parallel_chunks(logits, 8 * vocab, |at, piece| {
                for (i, row) in piece.chunks_exact_mut(vocab).enumerate() {
                    let r = at / vocab + i;
                    let target = targets[r0 + r] as usize;
                    let (lse, entropy) = normalizer(row);
                    // SAFETY: each row is visited once.
                    unsafe {
                        lp.slice(r, 1)[0] = row[target] - lse;
                        en.slice(r, 1)[0] = entropy;
                    }
                    if let Some(w) = weights.map(|w| w[r0 + r]) {
                        if w == 0.0 {
                            row.fill(0.0);
                        } else {
                            scaled_softmax(row, lse, w);
                            row[target] -= w;
                        }
                    }
                }
            });
        }
        if let Some(dx) = &mut dx {
            let dx = &mut dx[r0 * h..][..rows * h];
            head_backward(params, xs, logits, rows, head, dx);
        }
    }
    if let (Some(g), Some(dx)) = (&x.grad, dx) {
        g.add(Arc::new(dx));
    }
    stats
}

/// `dx = dlogits · head` (overwritten), `dhead += dlogitsᵀ · x`.
fn head_backward(params: &Params, x: &[f32], dlogits: &[f32], rows: usize, head: Weight, dx: &mut [f32]) {
    let (h, vocab) = (head.cols, head.rows);
    let b = Right::rows(params.get(head), h);
    gemm(&[Product { a: Left::rows(dlogits, vocab), b, m: rows, k: vocab, n: h, c: 0 }], dx, h, false);
    crate::ops::linear::weight_gradient(params, x, dlogits, rows, head);
}

/// Negative log-likelihood `Σ weights[t] * -log p(targets[t])`; seeds its gradient at once (on a recording tape).
pub fn cross_entropy(tape: &Tape, x: &Tensor, head: Weight, targets: &[u32], weights: &[f32]) -> TokenStats {
    assert_eq!(weights.len(), targets.len(), "cross_entropy: weights and targets differ in number");
    walk(tape.params(), x, head, targets, tape.is_recording().then_some(weights))
}

/// Log-probabilities and entropies alone, for losses that need them before they know their gradient.
pub fn log_probs(params: &Params, x: &Tensor, head: Weight, targets: &[u32]) -> TokenStats {
    walk(params, x, head, targets, None)
}

/// Seeds the gradient of a loss of which `slopes[t]` is the derivative by token t's log-probability; gives the
/// log-probabilities and entropies that [`log_probs`] would.
pub fn seed_log_probs(
    params: &Params,
    x: &Tensor,
    head: Weight,
    targets: &[u32],
    slopes: &[f32],
) -> TokenStats {
    assert_eq!(slopes.len(), targets.len(), "seed_log_probs: slopes and targets differ in number");
    let weights: Vec<f32> = slopes.iter().map(|s| -s).collect();
    walk(params, x, head, targets, Some(&weights))
}

/// Distillation on logits (Hinton et al. 2015, temperature 1): `Σ weights[t] * KL(teacher ‖ student)`, from both
/// models' last hidden states; seeds the student's gradient and returns each token's KL.
///
/// The vocabularies must be the same.
pub fn distill_kl(
    tape: &Tape,
    x: &Tensor,
    head: Weight,
    (teacher_params, teacher_x, teacher_head): (&Params, &Tensor, Weight),
    weights: &[f32],
) -> Vec<f32> {
    assert!(
        teacher_head.rows == head.rows && teacher_x.rows() == x.rows(),
        "distill_kl: vocabularies or rows differ"
    );
    assert!(
        x.cols() == head.cols && teacher_x.cols() == teacher_head.cols,
        "distill_kl: features of rows and heads differ"
    );
    assert_eq!(weights.len(), x.rows(), "distill_kl: weights and rows differ in number");
    let (n, h, vocab) = (x.rows(), head.cols, head.rows);
    add_product(Part::Head, if tape.is_recording() { 3 * n } else { n }, h, vocab);
    add_product(Part::Head, n, teacher_head.cols, vocab);
    let chunk = chunk_rows(vocab);
    let mut kl = vec![0.0; n];
    let (mut ls, mut lt) = (Buf::new(chunk.min(n) * vocab), Buf::new(chunk.min(n) * vocab));
    let mut dx = tape.is_recording().then(|| Buf::new(n * h));
    for r0 in (0..n).step_by(chunk) {
        let rows = chunk.min(n - r0);
        let (ls, lt) = (&mut ls[..rows * vocab], &mut lt[..rows * vocab]);
        product(tape.params(), &x.data()[r0 * h..][..rows * h], rows, head, ls);
        let th = teacher_head.cols;
        product(teacher_params, &teacher_x.data()[r0 * th..][..rows * th], rows, teacher_head, lt);
        let (kls, s, t) = (SharedMut::new(&mut kl[r0..]), SharedMut::new(ls), SharedMut::new(lt));
        parallel(rows, |r| {
            // SAFETY: each row is visited once.
            let (kl, s, t) =
                unsafe { (kls.slice(r, 1), s.slice(r * vocab, vocab), t.slice(r * vocab, vocab)) };
            let ((zs, _), (zt, entropy)) = (normalizer(s), normalizer(t));
            scaled_softmax(t, zt, 1.0);
            // KL = Σ p log p - Σ p (s - zs)
            kl[0] = -entropy - math::dot(t, s) + zs;
            let w = weights[r0 + r];
            scaled_softmax(s, zs, w);
            math::axpy(-w, t, s);
        });
        if let Some(dx) = &mut dx {
            head_backward(
                tape.params(),
                &x.data()[r0 * h..][..rows * h],
                ls,
                rows,
                head,
                &mut dx[r0 * h..][..rows * h],
            );
        }
    }
    if let (Some(g), Some(dx)) = (&x.grad, dx) {
        g.add(Arc::new(dx));
    }
    kl
}
