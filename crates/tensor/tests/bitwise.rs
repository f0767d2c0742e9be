//! The bitwise contract: a token's result does not depend on the batch around it, on caching or chunking, or on
//! the number of threads; gradients do not depend on the number of threads.

mod common;

use common::{Matrix, model, params_of, same_bits, shuffled};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::sync::{Arc, Mutex, MutexGuard};
use tensor::cpu::gemm::{Left, Product, Right, gemm, pack_transposed, packed_len};
use tensor::ops::{
    self, AttentionShape, Expert, KvLayer, MlaDims, PAGE, Pairs, RopeTable, RouterShape, Segment,
};
use tensor::threads::set_threads;
use tensor::{Params, Rng, Tape, Tensor, Weight};

/// The number of threads is one setting of the process: tests that change it take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        cases: n,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A batch of tokens, given by their numbers, through one op: for each output, one row per token.
type RowOp<'a> = dyn Fn(&Tape, &[usize]) -> Vec<Matrix> + 'a;

fn matrix(t: &Tensor) -> Matrix {
    Matrix { rows: t.rows(), cols: t.cols(), data: t.host().to_vec() }
}

fn column(data: Vec<f32>) -> Matrix {
    Matrix { rows: data.len(), cols: 1, data }
}

/// Compares the op over `n` tokens on one thread with the same op over parts of them, reordered and repeated, on
/// other numbers of threads.
fn rows_are_independent(name: &str, rng: &mut Rng, params: &Params, n: usize, op: &RowOp) {
    let tape = Tape::inference(params);
    set_threads(1);
    let want = op(&tape, &(0..n).collect::<Vec<_>>());
    for round in 0..4 {
        let threads = 1 + rng.below(8);
        set_threads(threads);
        let mut batch = shuffled(rng, n);
        batch.truncate(match round {
            0 => 1,
            1 => n.min(2),
            _ => 1 + rng.below(n),
        });
        if round == 3 {
            let again: Vec<usize> = (0..rng.below(100)).map(|_| rng.below(n)).collect();
            batch.extend(again);
        }
        for (o, (got, want)) in op(&tape, &batch).iter().zip(&want).enumerate() {
            let what = format!("{name}: output {o} of {} of {n} tokens on {threads} threads", batch.len());
            same_bits(&what, &got.data, &want.pick(&batch).data);
        }
    }
}

fn pick<T: Copy>(from: &[T], batch: &[usize]) -> Vec<T> {
    batch.iter().map(|&i| from[i]).collect()
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn rows(seed: u64, n in 1usize..150, h in 1usize..90, inner in 1usize..70, vocab in 1usize..400) {
        let _turn = turn();
        let rng = &mut Rng::new(seed);
        let x = Matrix::random(rng, n, h, 1.0);
        let wide = Matrix::random(rng, n, 2 * inner, 1.0);
        let x2 = Matrix::random(rng, n, h, 1.0);
        let (params, w) = params_of(&[
            Matrix::random(rng, inner, h, 0.5),
            Matrix::random(rng, 1, inner, 0.5),
            Matrix::random(rng, 1, h, 1.0),
            Matrix::random(rng, vocab, h, 0.5),
        ]);
        let targets: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
        let zeros = vec![0.0; n];
        rows_are_independent("linear", rng, &params, n, &|tape, b| {
            vec![matrix(&ops::linear(tape, &x.pick(b).constant(), w[0], Some(w[1])))]
        });
        rows_are_independent("rms_norm", rng, &params, n, &|tape, b| {
            let (s, y) = ops::add_rms_norm(tape, &x.pick(b).constant(), &x2.pick(b).constant(), w[2], 1e-6);
            vec![matrix(&s), matrix(&y), matrix(&ops::rms_norm(tape, &s, w[2], 1e-6))]
        });
        rows_are_independent("swiglu", rng, &params, n, &|tape, b| vec![matrix(&ops::swiglu(tape, &wide.pick(b).constant()))]);
        rows_are_independent("embedding", rng, &params, n, &|tape, b| vec![matrix(&ops::embedding(tape, &pick(&targets, b), w[3]))]);
        rows_are_independent("head", rng, &params, n, &|tape, b| {
            let y = x.pick(b).constant();
            let stats = ops::log_probs(tape.params(), &y, w[3], &pick(&targets, b), 1.0);
            let trained = ops::cross_entropy(tape, &y, w[3], &pick(&targets, b), &pick(&zeros, b));
            // What a sampler computes from the logits of one row.
            let logits = ops::logits(tape.params(), &y, w[3]);
            let sampled: Vec<f32> =
                logits.host().chunks(vocab).zip(b).map(|(row, &i)| row[targets[i] as usize] - ops::normalizer(row).0).collect();
            same_bits("log-probs from logits", &sampled, &stats.logprobs);
            same_bits("log-probs of the loss", &trained.logprobs, &stats.logprobs);
            vec![column(stats.logprobs), column(stats.entropies)]
        });
    }

    #[test]
    fn routed_rows(seed: u64, n in 1usize..150, h in 1usize..70, inner in 1usize..50, per in 1usize..5, groups in 1usize..5) {
        let _turn = turn();
        let rng = &mut Rng::new(seed);
        let experts = per * groups;
        let top_groups = 1 + rng.below(groups);
        let top_k = 1 + rng.below((per * top_groups).min(4));
        let shape = RouterShape { experts, top_k, groups, top_groups, normalize: seed.is_multiple_of(2), scaling: 2.5, scoring: ops::Scoring::Sigmoid };
        let (x, base) = (Matrix::random(rng, n, h, 1.0), Matrix::random(rng, n, h, 1.0));
        let bias = Matrix::random(rng, 1, experts, 0.1);
        let mut list = vec![Matrix::random(rng, experts, h, 0.5), bias];
        for _ in 0..experts {
            list.extend([Matrix::random(rng, 2 * inner, h, 0.5), Matrix::random(rng, h, inner, 0.5)]);
        }
        let (params, w) = params_of(&list);
        let bank: Arc<Vec<Expert>> = Arc::new(w[2..].chunks(2).map(|w| Expert { gate_up: w[0], down: w[1] }).collect());
        rows_are_independent("router and experts", rng, &params, n, &|tape, b| {
            let y = x.pick(b).constant();
            let routes = ops::route(tape, &ops::linear(tape, &y, w[0], None), Some(w[1]), shape, &[b.len()], 0.1);
            let out = ops::experts(tape, &y, &routes, bank.clone(), Some(&base.pick(b).constant()));
            let alone = ops::experts(tape, &y, &routes, bank.clone(), None);
            let chosen = Matrix { rows: b.len(), cols: top_k, data: routes.experts.host().iter().map(|&e| e as f32).collect() };
            vec![chosen, matrix(&routes.weights), matrix(&out), matrix(&alone)]
        });
    }

    #[test]
    fn rotated_rows(seed: u64, n in 1usize..100, heads in 1usize..5, half in 1usize..20, nope in 0usize..20, v in 1usize..20) {
        let _turn = turn();
        let rng = &mut Rng::new(seed);
        let inv_freq: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i as i32)).collect();
        let tables = [Pairs::Halves, Pairs::Interleaved].map(|p| RopeTable::new(&inv_freq, 1.1, 500, p));
        let dims = MlaDims { heads, nope, rope: 2 * half, v };
        let qkv = Matrix::random(rng, n, (heads + 2) * 2 * half, 1.0);
        let q = Matrix::random(rng, n, heads * (nope + 2 * half), 1.0);
        let kv = Matrix::random(rng, n, heads * (nope + v), 1.0);
        let k_rope = Matrix::random(rng, n, 2 * half, 1.0);
        let positions: Vec<u32> = (0..n).map(|_| rng.below(500) as u32).collect();
        let params = Params::new([]);
        for table in &tables {
            rows_are_independent("rotary heads", rng, &params, n, &|tape, b| {
                let at = pick(&positions, b).into();
                let tape = Tape::inference(tape.params());
                let (a, c, d) = ops::split_qkv(&tape, &qkv.pick(b).constant(), (heads, 1, 2 * half), &at, table);
                let mla = (&q.pick(b).constant(), &kv.pick(b).constant(), &k_rope.pick(b).constant());
                let (e, f, g) = ops::mla_heads(&tape, mla, dims, &at, table);
                [a, c, d, e, f, g].iter().map(matrix).collect()
            });
        }
    }

    #[test]
    fn products(seed: u64, m in 1usize..120, k in 0usize..600, n in 1usize..140, extra in 0usize..40) {
        let _turn = turn();
        let rng = &mut Rng::new(seed);
        // Rows picked from a larger matrix; columns of matrices narrow and wide; outputs in the middle of a wider one.
        let (from_rows, from_cols, wide) = (m + extra, k + extra + 1, m + extra + 640);
        let a = Matrix::random(rng, from_rows.max(k), wide.max(from_cols), 1.0).data;
        let b = Matrix::random(rng, n, k.max(1), 1.0).data;
        let rows: Vec<u32> = (0..m).map(|_| rng.below(from_rows) as u32).collect();
        let start = Matrix::random(rng, m, n + extra, 1.0).data;
        let by_row = |i: usize, x: usize| a[rows[i] as usize * from_cols + x];
        let (by_col, by_far_col) = (|i, x| a[x * from_rows + i], |i: usize, x: usize| a[x * wide + i]);
        type Values<'a> = &'a dyn Fn(usize, usize) -> f32;
        let lefts: [(Left, Values); 3] = [
            (Left { rows: Some(&rows), ..Left::rows(&a, from_cols) }, &by_row),
            (Left::transposed(&a, from_rows), &by_col),
            (Left::transposed(&a, wide), &by_far_col),
        ];
        let mut panels = vec![0.0; packed_len(n, k)];
        pack_transposed(&b, n, k, k.max(1), &mut panels);
        let direct: Vec<f32> = (0..k * n).map(|i| b[(i % n) * k + i / n]).collect();
        for ((left, value), accumulate) in lefts.iter().flat_map(|l| [(l, false), (l, true)]) {
            let mut want = start.clone();
            for i in 0..m {
                for j in 0..n {
                    let c = &mut want[i * (n + extra) + j];
                    let first = if accumulate { *c } else { 0.0 };
                    *c = (0..k).fold(first, |s, x| value(i, x).mul_add(b[j * k + x], s));
                }
            }
            for right in [Right::packed(&panels, k), Right::rows(&direct, n)] {
                set_threads(1 + rng.below(8));
                let mut c = start.clone();
                gemm(&[Product { a: *left, b: right, m, k, n, c: 0 }], &mut c, n + extra, accumulate);
                same_bits("product", &c, &want);
            }
        }
    }
}

/// Queries, keys and values of several sequences, packed.
struct Sequences {
    lens: Vec<usize>,
    qkv: [Matrix; 3],
    shape: AttentionShape,
}

impl Sequences {
    fn random(rng: &mut Rng, lens: Vec<usize>, shape: AttentionShape) -> Sequences {
        let n = lens.iter().sum();
        let widths =
            [shape.heads * shape.qk_dim, shape.kv_heads * shape.qk_dim, shape.kv_heads * shape.v_dim];
        // Some heads are sharp, so that weights underflow and the running maximum moves; values include tiny ones.
        let sharp = 1.0 + rng.below(8) as f32;
        let small = if rng.below(3) == 0 { 1e-37 } else { 1.0 };
        let qkv = [(0, sharp), (1, sharp), (2, small)].map(|(i, s)| Matrix::random(rng, n, widths[i], s));
        Sequences { lens, qkv, shape }
    }
    fn start(&self, s: usize) -> usize {
        self.lens[..s].iter().sum()
    }
    /// Attention over the given rows.
    fn run(&self, rows: &[usize], segments: &[Segment], cache: Option<&mut KvLayer>) -> Matrix {
        let params = Params::new([]);
        let [q, k, v] = self.qkv.each_ref().map(|m| m.pick(rows).constant());
        matrix(&ops::attention(
            &Tape::inference(&params),
            (&q, &k, &v),
            self.shape,
            &segments.to_vec().into(),
            cache,
        ))
    }
    /// All sequences packed, in the given order.
    fn packed(&self, order: &[usize]) -> Matrix {
        let rows: Vec<usize> =
            order.iter().flat_map(|&s| self.start(s)..self.start(s) + self.lens[s]).collect();
        let segments: Vec<Segment> =
            order.iter().map(|&s| Segment { rows: self.lens[s], past: 0, pages: Vec::new() }).collect();
        let mut out = self.run(&rows, &segments, None);
        // Back to the order of the sequences.
        let mut back = vec![0; rows.len()];
        rows.iter().enumerate().for_each(|(i, &r)| back[r] = i);
        out = out.pick(&back);
        out
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn attention(seed: u64, count in 1usize..6, kv_heads in 1usize..4, group in 1usize..15, qk_dim in 1usize..40, v_dim in 1usize..40) {
        let _turn = turn();
        let rng = &mut Rng::new(seed);
        let longest = [5, PAGE + 3, 3 * PAGE][rng.below(3)];
        let window = [None, Some(1 + rng.below(longest))][rng.below(2)];
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, qk_dim, v_dim, scale: 1.0 / (qk_dim as f32).sqrt(), window };
        let lens: Vec<usize> = (0..count).map(|_| 1 + rng.below(longest)).collect();
        let all = Sequences::random(rng, lens.clone(), shape);
        set_threads(1);
        let want = all.packed(&(0..count).collect::<Vec<_>>());

        set_threads(1 + rng.below(8));
        same_bits("packed in another order", &all.packed(&shuffled(rng, count)).data, &want.data);
        for s in 0..count {
            let rows: Vec<usize> = (all.start(s)..all.start(s) + lens[s]).collect();
            let alone = all.run(&rows, &[Segment { rows: lens[s], past: 0, pages: Vec::new() }], None);
            same_bits("alone", &alone.data, &want.pick(&rows).data);
        }

        // Through pages in random places, in random chunks, each time with some of the other sequences.
        let pages: Vec<usize> = lens.iter().map(|n| n.div_ceil(PAGE)).collect();
        let total = pages.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = shuffled(rng, total).iter().map(|&p| p as u32).collect();
        let pages: Vec<Vec<u32>> = pages.iter().map(|&n| free.split_off(free.len() - n)).collect();
        let one_by_one = rng.below(3) == 0;
        let mut cache = KvLayer::default();
        cache.grow(None, total, &shape);
        let mut past = vec![0; count];
        while past != lens {
            set_threads(1 + rng.below(8));
            let mut batch = shuffled(rng, count);
            batch.retain(|&s| past[s] < lens[s]);
            batch.truncate(1 + rng.below(batch.len()));
            let (mut rows, mut segments) = (Vec::new(), Vec::new());
            for &s in &batch {
                let left = lens[s] - past[s];
                let n = if one_by_one { 1 } else { [1, 1 + rng.below(left.min(7)), 1 + rng.below(left)][rng.below(3)] };
                rows.extend(all.start(s) + past[s]..all.start(s) + past[s] + n);
                segments.push(Segment { rows: n, past: past[s], pages: pages[s].clone() });
                past[s] += n;
            }
            let got = all.run(&rows, &segments, Some(&mut cache));
            same_bits(&format!("cached, {segments:?}"), &got.data, &want.pick(&rows).data);
        }
    }
}

/// Two sequences with the same beginning: whole pages of it are shared, the page that they part in is copied.
#[test]
fn a_shared_prefix_gives_the_bits_of_its_own() {
    let _turn = turn();
    let mut rng = Rng::new(1);
    let shape = AttentionShape { heads: 4, kv_heads: 2, qk_dim: 12, v_dim: 9, scale: 0.3, window: None };
    let (prefix, lens) = (2 * PAGE + 20, vec![2 * PAGE + 50, 3 * PAGE + 5]);
    let mut all = Sequences::random(&mut rng, lens.clone(), shape);
    for m in &mut all.qkv {
        m.data.copy_within(..prefix * m.cols, lens[0] * m.cols);
    }
    let want = all.packed(&[0, 1]);
    let mut cache = KvLayer::default();
    cache.grow(None, 8, &shape);
    let first = [5, 2, 7];
    let rows: Vec<usize> = (0..prefix).collect();
    all.run(&rows, &[Segment { rows: prefix, past: 0, pages: first.to_vec() }], Some(&mut cache));
    cache.copy_page(7, 0);
    let second = [5, 2, 0, 3];
    let rows: Vec<usize> = (prefix..lens[0]).chain(lens[0] + prefix..lens[0] + lens[1]).collect();
    let segments = [
        Segment { rows: lens[0] - prefix, past: prefix, pages: first.to_vec() },
        Segment { rows: lens[1] - prefix, past: prefix, pages: second.to_vec() },
    ];
    let got = all.run(&rows, &segments, Some(&mut cache));
    same_bits("behind a shared prefix", &got.data, &want.pick(&rows).data);

    let rows: Vec<usize> = (0..lens[0]).chain(lens[0] + prefix..lens[0] + lens[1]).collect();
    let branches = [(prefix, 0), (lens[0] - prefix, prefix), (lens[1] - prefix, prefix)];
    let segments = branches.map(|(rows, past)| Segment { rows, past, pages: Vec::new() });
    let got = all.run(&rows, &segments, None);
    same_bits("branches without a cache", &got.data, &want.pick(&rows).data);
}

#[test]
fn the_whole_step_has_the_same_bits_on_any_number_of_threads() {
    let _turn = turn();
    set_threads(1);
    let want = model::step(false, None);
    for threads in [2, 3, 8] {
        set_threads(threads);
        for ((name, got), (_, want)) in model::step(false, None).iter().zip(&want) {
            same_bits(&format!("{name} on {threads} threads"), got, want);
        }
    }
    let find = |list: &[(&str, Vec<f32>)], name: &str| {
        list.iter().find(|(n, _)| *n == name).expect("by name").1.clone()
    };
    same_bits(
        "gradients with recomputation",
        &find(&model::step(true, None), "gradients"),
        &find(&want, "gradients"),
    );
}

/// Packed panels follow the weights: nothing of the old values is left after a change.
#[test]
fn changed_weights_are_packed_anew() {
    let _turn = turn();
    let mut rng = Rng::new(9);
    let (x, w) = (Matrix::random(&mut rng, 5, 20, 1.0), Matrix::random(&mut rng, 40, 20, 1.0));
    let (mut params, handles) = params_of(&[Matrix::random(&mut rng, 40, 20, 1.0)]);
    let run = |params: &Params, w: Weight| {
        matrix(&ops::linear(&Tape::inference(params), &x.constant(), w, None)).data
    };
    let old = run(&params, handles[0]);
    params.data_mut().copy_from_slice(&w.data);
    let (fresh, same) = params_of(&[w]);
    let new = run(&params, handles[0]);
    same_bits("after a change", &new, &run(&fresh, same[0]));
    assert_ne!(old, new);
}

/// A sum that underflows to -0 stays the same whether or not a later token shares its tile.
#[test]
fn zeros_keep_their_sign_in_any_tile() {
    let _turn = turn();
    let one = |data: &[f32]| Matrix { rows: 3, cols: 1, data: data.to_vec() };
    let qkv = [one(&[1.0; 3]), one(&[-80.0, 0.0, 0.0]), one(&[-1e-20, -0.0, 5.0])];
    let shape = AttentionShape { heads: 1, kv_heads: 1, qk_dim: 1, v_dim: 1, scale: 1.0, window: None };
    let all = Sequences { lens: vec![3], qkv, shape };
    let want = all.packed(&[0]);
    let part =
        |rows: &[usize]| all.run(rows, &[Segment { rows: rows.len(), past: 0, pages: Vec::new() }], None);
    same_bits("the first two tokens", &part(&[0, 1]).data, &want.data[..2]);
    same_bits("the first token", &part(&[0]).data, &want.data[..1]);
}
