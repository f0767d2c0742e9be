//! The output head and the losses on it, without ever holding `[tokens, vocab]` logits.
//!
//! Tokens are walked in chunks whose logits fit the cache. A chunk's logits give target log-probabilities and
//! entropies; where the weight of each token's loss is known beforehand, the same walk gives the gradients.

use crate::buffer::Buf;
use crate::cpu::gemm::{Left, Product, Right, gemm};
use crate::cpu::math::{self, exp, ln};
use crate::cpu::simd::{LANES, kernel};
use crate::cuda::gemm::{self as cuda_gemm, Layout, Matrices};
use crate::cuda::{Gpu, Math, Ptr, args};
use crate::memory::Data;
use crate::operations::{Part, add_product};
use crate::ops::linear::{product, product_cuda, weight_gradient, weight_gradient_cuda};
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};
use crate::threads::{SharedMut, parallel, parallel_chunks};

/// What one walk over the head gives, per token. At a temperature, all of it is that of the logits divided by it.
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
pub fn logits(params: &Params, hidden: &Tensor, head: Weight) -> Tensor {
    assert_eq!(hidden.cols(), head.cols, "logits: features of rows and head differ");
    let (rows, vocab) = (hidden.rows(), head.rows);
    add_product(Part::Head, rows, head.cols, vocab);
    let mut out = Data::new(params.gpu(), rows * vocab);
    match params.gpu() {
        Some(gpu) => {
            product_cuda(gpu, params, hidden.data.operand(gpu).at(0), rows, head, out.on_mut(gpu).at(0))
        }
        None => product(params, hidden.host(), rows, head, out.host_mut()),
    }
    Tensor::constant(out, rows, vocab)
}

/// Rows of one chunk: a few MiB of logits, which fit the processor's cache, but not so few rows that reading the head takes longer than the products;
/// on a GPU, at most 1 GiB.
fn chunk_rows(gpu: Option<&Gpu>, vocab: usize) -> usize {
    match gpu {
        Some(gpu) => (gpu.info().memory.min(1 << 35) / (vocab << 7)).clamp(32, 1 << 14),
        None => ((1 << 20) / vocab).clamp(128, 2048),
    }
}

/// Threads of the block that has a row of logits on a GPU.
const THREADS: usize = 512;

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
/// log-likelihood at `temperature` in the loss; its gradient is added to `x` and to the head in the same walk.
fn walk(
    params: &Params,
    x: &Tensor,
    head: Weight,
    targets: &[u32],
    weights: Option<&[f32]>,
    temperature: f32,
) -> TokenStats {
    check(x, head, targets);
    assert!(temperature > 0.0, "cross_entropy: a temperature of {temperature}");
    let (n, h, vocab) = (x.rows(), head.cols, head.rows);
    let passes = 1 + weights.map_or(0, |_| 1 + usize::from(params.trains(head)));
    add_product(Part::Head, passes * n, h, vocab);
    let (stats, dx) = match params.gpu() {
        Some(gpu) => walk_cuda(gpu, params, x, head, targets, weights, 1.0 / temperature),
        None => walk_cpu(params, x, head, targets, weights, 1.0 / temperature),
    };
    if let (Some(g), Some(dx)) = (&x.grad, dx) {
        g.give(dx);
    }
    stats
}

fn walk_cpu(
    params: &Params,
    x: &Tensor,
    head: Weight,
    targets: &[u32],
    weights: Option<&[f32]>,
    scale: f32,
) -> (TokenStats, Option<Data>) {
    let (n, h, vocab) = (x.rows(), head.cols, head.rows);
    let mut stats = TokenStats { logprobs: vec![0.0; n], entropies: vec![0.0; n] };
    let chunk = chunk_rows(None, vocab);
    let mut logits = Buf::new(chunk.min(n) * vocab);
    let mut back = weights.map(|_| (Buf::new(n * h), params.values(head)));
    for r0 in (0..n).step_by(chunk) {
        let rows = chunk.min(n - r0);
        let logits = &mut logits[..rows * vocab];
        let xs = &x.host()[r0 * h..][..rows * h];
        product(params, xs, rows, head, logits);
        {
            let (lp, en) =
                (SharedMut::new(&mut stats.logprobs[r0..]), SharedMut::new(&mut stats.entropies[r0..]));
            parallel_chunks(logits, 8 * vocab, |at, piece| {
                for (i, row) in piece.chunks_exact_mut(vocab).enumerate() {
                    let r = at / vocab + i;
                    let target = targets[r0 + r] as usize;
                    if scale != 1.0 {
                        math::scale(row, scale);
                    }
                    let (lse, entropy) = normalizer(row);
                    // SAFETY: each row is visited once.
                    unsafe {
                        lp.slice(r, 1)[0] = row[target] - lse;
                        en.slice(r, 1)[0] = entropy;
                    }
                    if let Some(w) = weights.map(|w| w[r0 + r] * scale) {
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
        if let Some((dx, values)) = &mut back {
            let dx = &mut dx[r0 * h..][..rows * h];
            head_backward(params, xs, logits, rows, (head, values), dx);
        }
    }
    (stats, back.map(|(dx, _)| Data::from(dx)))
}

fn walk_cuda(
    gpu: &Gpu,
    params: &Params,
    x: &Tensor,
    head: Weight,
    targets: &[u32],
    weights: Option<&[f32]>,
    scale: f32,
) -> (TokenStats, Option<Data>) {
    let (n, h, vocab) = (x.rows(), head.cols, head.rows);
    let chunk = chunk_rows(Some(gpu), vocab);
    let x = x.data.operand(gpu);
    let (targets, w) = (gpu.upload_ints(targets), weights.map(|w| gpu.upload(w)));
    let (logits, stats) = (gpu.alloc(chunk.min(n) * vocab), gpu.alloc(2 * n));
    // Where the gradients of logits are not to be f32, they do not take the logits' place.
    let halves = (gpu.math() == Math::Fast).then(|| gpu.alloc((chunk.min(n) * vocab).div_ceil(2)));
    let mut dx = weights.map(|_| Data::new(Some(gpu), n * h));
    for r0 in (0..n).step_by(chunk) {
        let rows = chunk.min(n - r0);
        product_cuda(gpu, params, x.at(r0 * h), rows, head, logits.at(0));
        let w = w.as_ref().map_or(Ptr::NULL, |w| w.at(r0));
        let (targets, lp, en) = (targets.at(r0), stats.at(r0), stats.at(n + r0));
        let dlogits = match &halves {
            Some(dlogits) => {
                let args = args![&logits, targets, w, lp, en, dlogits, vocab, scale];
                gpu.launch("fast_head_rows", [rows, 1, 1], THREADS, args);
                dlogits
            }
            None => {
                let args = args![&logits, targets, w, lp, en, vocab, scale];
                gpu.launch("cross_entropy_rows", [rows, 1, 1], THREADS, args);
                &logits
            }
        };
        if let Some(dx) = &mut dx {
            let (xs, dx) = (x.at(r0 * h), dx.on_mut(gpu).at(r0 * h));
            head_backward_cuda(gpu, params, xs, dlogits.at(0), rows, head, dx);
        }
    }
    let mut both = vec![0.0; 2 * n];
    gpu.download(&stats, &mut both);
    let entropies = both.split_off(n);
    (TokenStats { logprobs: both, entropies }, dx)
}

/// `dx = dlogits · head` (overwritten), `dhead += dlogitsᵀ · x`, of a head and its values.
fn head_backward(
    params: &Params,
    x: &[f32],
    dlogits: &[f32],
    rows: usize,
    (head, values): (Weight, &[f32]),
    dx: &mut [f32],
) {
    let (h, vocab) = (head.cols, head.rows);
    let b = Right::rows(values, h);
    gemm(&[Product { a: Left::rows(dlogits, vocab), b, m: rows, k: vocab, n: h, c: 0 }], dx, h, false);
    weight_gradient(params, x, dlogits, rows, head);
}

/// [`head_backward`] on a GPU; `dlogits` as its mode's products read them.
fn head_backward_cuda(gpu: &Gpu, params: &Params, x: Ptr, dlogits: Ptr, rows: usize, head: Weight, dx: Ptr) {
    let (h, vocab) = (head.cols, head.rows);
    let weight = params.factor_on(gpu, head);
    let places = Matrices { a: dlogits, b: weight.at(0), c: dx };
    cuda_gemm::product(gpu, Layout::Nn, places, [rows, h, vocab], [vocab, h, h], false);
    weight_gradient_cuda(gpu, params, x, dlogits, rows, head);
}

/// Negative log-likelihood `Σ weights[t] * -log p(targets[t])`; seeds its gradient at once (on a recording tape).
pub fn cross_entropy(tape: &Tape, x: &Tensor, head: Weight, targets: &[u32], weights: &[f32]) -> TokenStats {
    assert_eq!(weights.len(), targets.len(), "cross_entropy: weights and targets differ in number");
    walk(tape.params(), x, head, targets, tape.is_recording().then_some(weights), 1.0)
}

/// Log-probabilities and entropies alone, for losses that need them before they know their gradient.
pub fn log_probs(params: &Params, x: &Tensor, head: Weight, targets: &[u32], temperature: f32) -> TokenStats {
    walk(params, x, head, targets, None, temperature)
}

/// Seeds the gradient of a loss of which `derivatives[t]` is the derivative by token t's log-probability at `temperature`;
/// gives the log-probabilities and entropies that [`log_probs`] would.
pub fn seed_log_probs(
    params: &Params,
    x: &Tensor,
    head: Weight,
    targets: &[u32],
    derivatives: &[f32],
    temperature: f32,
) -> TokenStats {
    assert_eq!(derivatives.len(), targets.len(), "seed_log_probs: derivatives and targets differ in number");
    let weights: Vec<f32> = derivatives.iter().map(|s| -s).collect();
    walk(params, x, head, targets, Some(&weights), temperature)
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
    let back = if tape.is_recording() { 1 + usize::from(tape.params().trains(head)) } else { 0 };
    add_product(Part::Head, (1 + back) * n, h, vocab);
    add_product(Part::Head, n, teacher_head.cols, vocab);
    let teacher = (teacher_params, teacher_x, teacher_head);
    let (kl, dx) = match tape.gpu() {
        Some(gpu) => distill_cuda(gpu, tape, x, head, teacher, weights),
        None => distill_cpu(tape, x, head, teacher, weights),
    };
    if let (Some(g), Some(dx)) = (&x.grad, dx) {
        g.give(dx);
    }
    kl
}

fn distill_cpu(
    tape: &Tape,
    x: &Tensor,
    head: Weight,
    (teacher_params, teacher_x, teacher_head): (&Params, &Tensor, Weight),
    weights: &[f32],
) -> (Vec<f32>, Option<Data>) {
    let (n, h, th, vocab) = (x.rows(), head.cols, teacher_head.cols, head.rows);
    let chunk = chunk_rows(None, vocab);
    let mut kl = vec![0.0; n];
    let (mut ls, mut lt) = (Buf::new(chunk.min(n) * vocab), Buf::new(chunk.min(n) * vocab));
    let mut back = tape.is_recording().then(|| (Buf::new(n * h), tape.params().values(head)));
    for r0 in (0..n).step_by(chunk) {
        let rows = chunk.min(n - r0);
        let (ls, lt) = (&mut ls[..rows * vocab], &mut lt[..rows * vocab]);
        product(tape.params(), &x.host()[r0 * h..][..rows * h], rows, head, ls);
        product(teacher_params, &teacher_x.host()[r0 * th..][..rows * th], rows, teacher_head, lt);
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
        if let Some((dx, values)) = &mut back {
            let (xs, dx) = (&x.host()[r0 * h..][..rows * h], &mut dx[r0 * h..][..rows * h]);
            head_backward(tape.params(), xs, ls, rows, (head, values), dx);
        }
    }
    (kl, back.map(|(dx, _)| Data::from(dx)))
}

fn distill_cuda(
    gpu: &Gpu,
    tape: &Tape,
    x: &Tensor,
    head: Weight,
    (teacher_params, teacher_x, teacher_head): (&Params, &Tensor, Weight),
    weights: &[f32],
) -> (Vec<f32>, Option<Data>) {
    let (n, h, th, vocab) = (x.rows(), head.cols, teacher_head.cols, head.rows);
    let chunk = chunk_rows(Some(gpu), vocab);
    let (x, teacher_x) = (x.data.operand(gpu), teacher_x.data.operand(gpu));
    let weights = gpu.upload(weights);
    let (student, teacher) = (gpu.alloc(chunk.min(n) * vocab), gpu.alloc(chunk.min(n) * vocab));
    let kl = gpu.alloc(n);
    let mut dx = tape.is_recording().then(|| Data::new(Some(gpu), n * h));
    for r0 in (0..n).step_by(chunk) {
        let rows = chunk.min(n - r0);
        product_cuda(gpu, tape.params(), x.at(r0 * h), rows, head, student.at(0));
        product_cuda(gpu, teacher_params, teacher_x.at(r0 * th), rows, teacher_head, teacher.at(0));
        let args = args![&student, &teacher, weights.at(r0), kl.at(r0), vocab];
        gpu.launch("cross_entropy_distill", [rows, 1, 1], THREADS, args);
        if let Some(dx) = &mut dx {
            let (xs, dx) = (x.at(r0 * h), dx.on_mut(gpu).at(r0 * h));
            let dlogits = student.operand(rows * vocab);
            head_backward_cuda(gpu, tape.params(), xs, dlogits.at(0), rows, head, dx);
        }
    }
    let mut host = vec![0.0; n];
    gpu.download(&kl, &mut host);
    (host, dx)
}
