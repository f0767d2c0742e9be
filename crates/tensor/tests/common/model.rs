//! One pass through all ops: two small decoder layers, every loss, forward and backward.

use super::{Matrix, params_of};
use std::sync::Arc;
use tensor::ops::{self, AttentionShape, Expert, MlaDims, Pairs, RopeTable, RouterShape, Segment, Segments};
use tensor::{Buf, Data, Gpu, Ints, Rng, Tape, Tensor, Weight};

const HIDDEN: usize = 40;
const VOCAB: usize = 301;
const HEADS: (usize, usize, usize) = (4, 2, 10);
const MLA: MlaDims = MlaDims { heads: 3, nope: 8, rope: 6, v: 9 };
const KV_RANK: usize = 17;
const INNER: usize = 50;
const EXPERT_INNER: usize = 24;
const ROUTER: RouterShape = RouterShape {
    experts: 9,
    top_k: 2,
    groups: 3,
    top_groups: 2,
    normalize: true,
    scaling: 1.5,
    scoring: ops::Scoring::Sigmoid,
};
/// Lengths of the packed sequences.
const LENS: [usize; 5] = [70, 1, 130, 64, 9];
const EPS: f32 = 1e-6;

/// The weights' places, taken one after another.
struct Take<'a>(std::slice::Iter<'a, Weight>);

impl Take<'_> {
    fn next(&mut self) -> Weight {
        *self.0.next().expect("as many weights as the model takes")
    }
}

fn shapes() -> Vec<(usize, usize)> {
    let (heads, kv_heads, dim) = HEADS;
    let MlaDims { heads: mla_heads, nope, rope, v } = MLA;
    let mut list = vec![(VOCAB, HIDDEN), (1, HIDDEN), (VOCAB, HIDDEN)];
    let qkv = (heads + 2 * kv_heads) * dim;
    list.extend([
        (1, HIDDEN),
        (qkv, HIDDEN),
        (1, qkv),
        (1, dim),
        (HIDDEN, heads * dim),
        (1, HIDDEN),
        (2 * INNER, HIDDEN),
        (HIDDEN, INNER),
    ]);
    list.extend([
        (1, HIDDEN),
        (KV_RANK + rope, HIDDEN),
        (1, KV_RANK),
        (mla_heads * (nope + v), KV_RANK),
        (mla_heads * (nope + rope), HIDDEN),
    ]);
    list.extend([
        (HIDDEN, mla_heads * v + HIDDEN),
        (1, HIDDEN),
        (ROUTER.experts, HIDDEN),
        (1, ROUTER.experts),
        (2 * INNER, HIDDEN),
        (HIDDEN, INNER),
    ]);
    list.extend((0..ROUTER.experts).flat_map(|_| [(2 * EXPERT_INNER, HIDDEN), (HIDDEN, EXPERT_INNER)]));
    list
}

fn table(dim: usize, pairs: Pairs) -> &'static RopeTable {
    let inv_freq: Vec<f32> = (0..dim / 2).map(|i| 1.0 / (1.0 + 3.0 * i as f32)).collect();
    Box::leak(Box::new(RopeTable::new(&inv_freq, 1.0, 200, pairs)))
}

fn segments() -> Segments {
    LENS.iter().map(|&rows| Segment { rows, past: 0, pages: Vec::new() }).collect::<Vec<_>>().into()
}

fn positions() -> Ints {
    LENS.iter().flat_map(|&n| 0..n as u32).collect::<Vec<_>>().into()
}

/// Grouped-query attention and a dense feed-forward layer.
fn dense_layer<'p>(tape: &Tape<'p>, x: &Tensor, w: &[Weight], rope: &'p RopeTable) -> Tensor {
    let (heads, kv_heads, dim) = HEADS;
    let mut w = Take(w.iter());
    let y = ops::rms_norm(tape, x, w.next(), EPS);
    let (matrix, bias) = (w.next(), w.next());
    let qkv = ops::linear(tape, &y, matrix, Some(bias));
    let (q, k, v) = ops::split_qkv(tape, &qkv, HEADS, &positions(), rope);
    let q = ops::rope(tape, &ops::grouped_rms_norm(tape, &q, w.next(), EPS), &positions(), rope);
    let shape = AttentionShape { heads, kv_heads, qk_dim: dim, v_dim: dim, scale: 0.3, window: None };
    let y = ops::attention(tape, (&q, &k, &v), shape, &segments(), None);
    let (s, y) = ops::add_rms_norm(tape, x, &ops::linear(tape, &y, w.next(), None), w.next(), EPS);
    let y = ops::swiglu(tape, &ops::linear(tape, &y, w.next(), None));
    ops::add(tape, &s, &ops::linear(tape, &y, w.next(), None))
}

/// Latent attention and routed experts beside a shared one; also returns the balance loss.
fn expert_layer<'p>(tape: &Tape<'p>, x: &Tensor, w: &[Weight], rope: &'p RopeTable) -> (Tensor, Data) {
    let mut w = Take(w.iter());
    let y = ops::rms_norm(tape, x, w.next(), EPS);
    let parts = ops::split_cols(tape, &ops::linear(tape, &y, w.next(), None), &[KV_RANK, MLA.rope]);
    let latent = ops::rms_norm(tape, &parts[0], w.next(), EPS);
    let kv = ops::linear(tape, &latent, w.next(), None);
    let q = ops::linear(tape, &y, w.next(), None);
    let (q, k, v) = ops::mla_heads(tape, (&q, &kv, &parts[1]), MLA, &positions(), rope);
    let shape = AttentionShape {
        heads: MLA.heads,
        kv_heads: MLA.heads,
        qk_dim: MLA.nope + MLA.rope,
        v_dim: MLA.v,
        scale: 0.27,
        window: None,
    };
    let y = ops::concat_cols(tape, &ops::attention(tape, (&q, &k, &v), shape, &segments(), None), &y);
    let (s, y) = ops::add_rms_norm(tape, x, &ops::linear(tape, &y, w.next(), None), w.next(), EPS);
    let logits = ops::linear(tape, &y, w.next(), None);
    let routes = ops::route(tape, &logits, Some(w.next()), ROUTER, &LENS, 0.1);
    let shared = ops::swiglu(tape, &ops::linear(tape, &y, w.next(), None));
    let shared = ops::linear(tape, &shared, w.next(), None);
    let bank = w.0.as_slice().chunks(2).map(|w| Expert { gate_up: w[0], down: w[1] }).collect();
    let y = ops::experts(tape, &y, &routes, Arc::new(bank), Some(&shared));
    (ops::add(tape, &s, &y), routes.balance_loss)
}

/// Runs the model forward and backward, on a GPU if one is given; returns all that comes out, by name. With `recompute`
/// the layers keep only their inputs.
pub fn step(recompute: bool, gpu: Option<&Gpu>) -> Vec<(&'static str, Vec<f32>)> {
    let mut rng = Rng::new(17);
    let weights: Vec<Matrix> = shapes()
        .into_iter()
        .map(|(rows, cols)| {
            Matrix::random(&mut rng, rows, cols, if rows == 1 { 0.7 } else { 1.0 / (cols as f32).sqrt() })
        })
        .collect();
    let (mut params, w) = params_of(&weights);
    params.move_to(gpu);
    params.zero_grads();
    let n: usize = LENS.iter().sum();
    let draw = |rng: &mut Rng| (0..n).map(|_| rng.below(VOCAB) as u32).collect::<Vec<u32>>();
    let (ids, targets) = (draw(&mut rng), draw(&mut rng));
    let weights: Vec<f32> = (0..n).map(|i| if i % 5 == 0 { 0.0 } else { rng.normal() }).collect();
    let (halves, interleaved) = (table(HEADS.2, Pairs::Halves), table(MLA.rope, Pairs::Interleaved));

    let tape = Tape::recording(&params);
    let (dense, sparse) = (w[3..11].to_vec(), w[11..].to_vec());
    let x = ops::embedding(&tape, &ids, w[0]);
    let (x1, x2, balance) = if recompute {
        let x1 = tape.recomputed(&x, move |tape, x| dense_layer(tape, x, &dense, halves));
        let x2 = tape.recomputed(&x1, move |tape, x| expert_layer(tape, x, &sparse, interleaved).0);
        (x1, x2, None)
    } else {
        let x1 = dense_layer(&tape, &x, &dense, halves);
        let (x2, balance) = expert_layer(&tape, &x1, &sparse, interleaved);
        (x1, x2, Some(balance))
    };
    let y = ops::rms_norm(&tape, &x2, w[1], EPS);
    let stats = ops::cross_entropy(&tape, &y, w[2], &targets, &weights);
    ops::seed_log_probs(&params, &y, w[2], &ids, &weights, 0.7);
    let teacher = Tensor::constant(Buf::copy_of(x1.host()), n, HIDDEN);
    let kl = ops::distill_kl(&tape, &y, w[2], (&params, &teacher, w[0]), &weights);
    let logits = ops::logits(&params, &y, w[2]);
    let mut out = vec![
        ("dense layer", x1.host().to_vec()),
        ("expert layer", x2.host().to_vec()),
        ("log-probs", stats.logprobs),
        ("entropies", stats.entropies),
        ("divergences", kl),
        ("logits", logits.host().to_vec()),
    ];
    out.extend(balance.map(|b| ("balance loss", b.host().to_vec())));
    tape.backward();
    out.push(("gradients", params.grads().to_vec()));
    out
}
