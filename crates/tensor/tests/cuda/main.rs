//! Every op on a GPU gives the processor's bits. Without a GPU the kernels run in the emulator, which does not have the card's own
//! arithmetic, and sees races only if told to check for them (`SHOESTRING_TEST_CHECKED`); `bench/gpu/check` does the same on a card.

mod checks;
#[path = "../common/mod.rs"]
mod common;
mod families;
mod fast_attention;

use common::{Matrix, emulator, model, params_of, same_bits};
use std::sync::Arc;
use tensor::ops::{
    self, AdamW, AttentionShape, Draw, Drawn, Expert, GqaHeads, KvLayer, Muon, PAGE, Pairs, RopeTable,
    RouterShape, Segment,
};
use tensor::{Buf, Data, Gpu, Math, Params, Rng, Tape, Tensor, Weight};

#[test]
fn a_whole_step_has_the_bits_of_the_processor() {
    let Some(gpu) = emulator::gpu() else { return };
    for recompute in [false, true] {
        let want = model::step(recompute, None);
        let got = model::step(recompute, Some(&gpu));
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            same_bits(&format!("{name}, recompute: {recompute}"), got, want);
        }
    }
}

/// Inputs and weights through one op.
type Op<'a> = dyn Fn(&Tape, &[Tensor], &[Weight]) -> Vec<Tensor> + 'a;

/// The op's outputs and all gradients, on the processor or on a GPU.
fn through(gpu: Option<&Gpu>, inputs: &[Matrix], weights: &[Matrix], op: &Op) -> Vec<Vec<f32>> {
    let (mut params, w) = params_of(weights);
    params.move_to(gpu);
    params.zero_grads();
    let tape = Tape::recording(&params);
    let x: Vec<Tensor> = inputs.iter().map(|m| m.leaf(&tape)).collect();
    let y = op(&tape, &x, &w);
    let mut rng = Rng::new(99);
    for y in &y {
        y.add_grad(Buf::copy_of(&Matrix::random(&mut rng, y.rows(), y.cols(), 1.0).data));
    }
    let mut out: Vec<Vec<f32>> = y.iter().map(|y| y.host().to_vec()).collect();
    tape.backward();
    out.extend(x.iter().map(|x| x.take_grad().map_or(Vec::new(), |g| g.host().to_vec())));
    out.push(params.grads().to_vec());
    out
}

fn compare(what: &str, gpu: &Gpu, inputs: &[Matrix], weights: &[Matrix], op: &Op) {
    let want = through(None, inputs, weights, op);
    let got = through(Some(gpu), inputs, weights, op);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        same_bits(&format!("{what}: {i}"), got, want);
    }
}

#[test]
fn products_and_norms_of_ragged_sizes() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(1);
    let mut sizes = vec![(1, 1, 1), (3, 17, 130), (130, 257, 5), (67, 300, 48), (200, 64, 136)];
    if emulator::large_sizes() {
        sizes.extend([
            (1, 1024, 3072),
            (8, 1024, 1024),
            (64, 2048, 512),
            (1000, 1024, 777),
            (4096, 256, 1376),
        ]);
        sizes.extend([(1025, 513, 1023), (3000, 1376, 256), (2048, 2048, 2048)]);
    }
    for (n, h, o) in sizes {
        let x = [Matrix::random(&mut rng, n, h, 1.0), Matrix::random(&mut rng, n, h, 1.0)];
        let w = [
            Matrix::random(&mut rng, o, h, 0.3),
            Matrix::random(&mut rng, 1, o, 0.3),
            Matrix::random(&mut rng, 1, h, 1.0),
        ];
        compare(&format!("linear and norms {n}x{h}x{o}"), &gpu, &x, &w, &|tape, x, w| {
            let (s, y) = ops::add_rms_norm(tape, &x[0], &x[1], w[2], 1e-6);
            let z = ops::linear(tape, &ops::rms_norm(tape, &y, w[2], 1e-6), w[0], Some(w[1]));
            vec![s, y, z]
        });
    }
}

#[test]
fn attention_of_heads_of_all_kernels() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(2);
    let mut cases = vec![
        (4, 2, 8, 8, vec![(70, 0), (1, 0), (33, 0)]),
        (2, 2, 64, 64, vec![(130, 0)]),
        (3, 1, 80, 80, vec![(65, 0), (50, 65), (64, 65)]),
        (1, 1, 192, 128, vec![(70, 0)]),
        (1, 1, 256, 200, vec![(67, 0), (3, 67)]),
    ];
    if emulator::large_sizes() {
        cases.extend([
            (8, 8, 32, 32, vec![(256, 0); 16]),
            (16, 8, 64, 64, vec![(1000, 0), (513, 0)]),
            (16, 8, 128, 128, vec![(700, 0), (90, 700), (64, 700), (1, 0), (2047, 0)]),
            (4, 4, 192, 128, vec![(600, 0), (300, 0)]),
            (4, 1, 96, 80, vec![(333, 0)]),
        ]);
    }
    for (heads, kv_heads, qk_dim, v_dim, parts) in cases {
        let n = parts.iter().map(|p| p.0).sum();
        let widths = [heads * qk_dim, kv_heads * qk_dim, kv_heads * v_dim];
        let x = widths.map(|w| Matrix::random(&mut rng, n, w, 1.0));
        let shape = AttentionShape {
            heads,
            kv_heads,
            qk_dim,
            v_dim,
            scale: 1.3 / (qk_dim as f32).sqrt(),
            window: None,
        };
        let segments: Vec<Segment> =
            parts.iter().map(|&(rows, past)| Segment { rows, past, pages: Vec::new() }).collect();
        compare(&format!("attention {shape:?} {parts:?}"), &gpu, &x, &[], &|tape, x, _| {
            vec![ops::attention(tape, (&x[0], &x[1], &x[2]), shape, &segments.clone().into(), None)]
        });
    }
}

/// Prompts in chunks, then single tokens, through pages in odd places.
#[test]
fn attention_with_a_cache() {
    let Some(gpu) = emulator::gpu() else { return };
    for (heads, kv_heads, qk_dim, v_dim) in [(4, 2, 12, 9), (9, 1, 64, 64), (2, 2, 128, 100)] {
        let shape = AttentionShape { heads, kv_heads, qk_dim, v_dim, scale: 0.3, window: None };
        let run = |gpu: Option<&Gpu>| -> Vec<f32> {
            let mut params = Params::new([]);
            params.move_to(gpu);
            let mut rng = Rng::new(3);
            let mut cache = KvLayer::default();
            cache.grow(gpu, 3, &shape);
            cache.grow(gpu, 40, &shape);
            let pages = [vec![5, 2, 7], vec![0, 30]];
            let mut past = [0, 0];
            let mut out = Vec::new();
            for rows in [[70, 1], [3, 60], [1, 1], [1, 5], [1, 1]] {
                let segments: Vec<Segment> = (0..2)
                    .map(|s| Segment { rows: rows[s], past: past[s], pages: pages[s].clone() })
                    .collect();
                let n = rows[0] + rows[1];
                let mut draw = |w: usize| Matrix::random(&mut rng, n, w, 1.0).constant();
                let (q, k, v) = (draw(heads * qk_dim), draw(kv_heads * qk_dim), draw(kv_heads * v_dim));
                let tape = Tape::inference(&params);
                let y = ops::attention(&tape, (&q, &k, &v), shape, &segments.into(), Some(&mut cache));
                out.extend_from_slice(y.host());
                (0..2).for_each(|s| past[s] += rows[s]);
            }
            assert!(past[0] < 3 * PAGE);
            out
        };
        same_bits(&format!("{shape:?}"), &run(Some(&gpu)), &run(None));
    }
}

#[test]
fn routers_and_experts() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(4);
    let mut cases =
        vec![(1, 5, 3, 1, 1, 1), (90, 36, 20, 8, 3, 1), (150, 24, 33, 16, 2, 4), (70, 40, 16, 33, 4, 1)];
    if emulator::large_sizes() {
        cases.extend([(4096, 256, 172, 16, 3, 1), (777, 512, 130, 64, 6, 8), (64, 256, 172, 256, 8, 8)]);
    }
    for (n, h, inner, experts, top_k, groups) in cases {
        let shape = RouterShape {
            experts,
            top_k,
            groups,
            top_groups: groups.min(2),
            normalize: n > 80,
            scaling: 2.5,
            scoring: ops::Scoring::Sigmoid,
        };
        let x = [Matrix::random(&mut rng, n, h, 1.0), Matrix::random(&mut rng, n, h, 1.0)];
        let mut weights =
            vec![Matrix::random(&mut rng, experts, h, 0.5), Matrix::random(&mut rng, 1, experts, 0.1)];
        for _ in 0..experts {
            weights.push(Matrix::random(&mut rng, 2 * inner, h, 0.5));
            weights.push(Matrix::random(&mut rng, h, inner, 0.5));
        }
        compare(&format!("{shape:?}"), &gpu, &x, &weights, &|tape, x, w| {
            let bank: Vec<Expert> = w[2..].chunks(2).map(|w| Expert { gate_up: w[0], down: w[1] }).collect();
            let logits = ops::linear(tape, &x[0], w[0], None);
            let routes = ops::route(tape, &logits, Some(w[1]), shape, &[n / 3, n - n / 3], 0.2);
            let load = routes.load.host().iter().map(|&l| l as f32).collect::<Vec<_>>();
            let y = ops::experts(tape, &x[0], &routes, Arc::new(bank), Some(&x[1]));
            vec![y, Tensor::constant(Buf::copy_of(&load), 1, experts)]
        });
    }
}

#[test]
fn optimizers() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut shapes = [(40, 24), (24, 40), (40, 24), (1, 7), (33, 33), (70, 130)];
    if emulator::large_sizes() {
        shapes[4..].copy_from_slice(&[(512, 300), (1024, 1376)]);
    }
    let run = |gpu: Option<&Gpu>| -> Vec<f32> {
        let mut rng = Rng::new(5);
        let (mut params, w) =
            params_of(&shapes.iter().map(|&(r, c)| Matrix::random(&mut rng, r, c, 1.0)).collect::<Vec<_>>());
        params.move_to(gpu);
        params.zero_grads();
        let n = params.len();
        let (mut m, mut v) = (Data::zeros(gpu, n), Data::zeros(gpu, n));
        let mut out = Vec::new();
        for step in 0..3 {
            let mut g = Matrix::random(&mut rng, 1, n, 1.0);
            if step == 1 {
                // One matrix takes no part, of another only the last element does.
                let [idle, last] = [w[0], w[1]].map(|w| w.offset..w.offset + w.len());
                g.data[idle].fill(0.0);
                g.data[last.start..last.end - 1].fill(0.0);
            }
            let (p, grads) = params.data_and_grads_mut();
            grads.host_mut().copy_from_slice(&g.data);
            let norm = ops::squared_norm(grads);
            out.extend([norm as f32, (norm.to_bits() >> 32) as f32]);
            let (correction1, correction2) = (0.1 * (step + 1) as f32, 0.05 * (step + 1) as f32);
            let c = AdamW {
                lr: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                correction1,
                correction2,
                grad_scale: 0.7,
            };
            ops::adamw(p, grads, (&mut m, &mut v), 0, 1..n - 1, c);
            let rule = Muon { lr: 0.02, decay: 0.1, momentum: 0.95, grad_scale: 0.7 };
            ops::muon(p, grads, &mut m, 0, &[w[0], w[1], w[2], w[4], w[5]], rule);
            ops::balance_bias(&mut params, w[3], &[3, 0, 9, 2, 2, 2, 3], 0.001);
        }
        out.extend_from_slice(params.data());
        out.extend_from_slice(m.host());
        out.extend_from_slice(v.host());
        out
    };
    same_bits("three steps", &run(Some(&gpu)), &run(None));
}

/// Greedy, drawn, and drawn at a temperature; one in five tokens is given.
fn draw(i: usize, uniform: f32, vocab: usize) -> Draw {
    let given = (i % 5 == 4).then_some((i * 31 % vocab) as u32);
    Draw { temperature: [0.0, 1.0, 0.7][i % 3], uniform, given }
}

#[test]
fn drawn_tokens() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(6);
    let mut sizes = vec![(5, 1), (40, 37), (30, 4099), (4, 20_000)];
    if emulator::large_sizes() {
        sizes.extend([(512, 4096), (64, 151_936)]);
    }
    for (rows, vocab) in sizes {
        let logits = Matrix::random(&mut rng, rows, vocab, 3.0);
        let draws: Vec<Draw> = (0..rows).map(|i| draw(i, rng.uniform(), vocab)).collect();
        let run = |gpu: Option<&Gpu>| {
            let mut params = Params::new([]);
            params.move_to(gpu);
            let chosen = ops::sample(&params, &logits.constant(), &draws);
            let bits = |d: Drawn| (d.token, d.logprob.to_bits(), d.tempered.to_bits());
            chosen.into_iter().map(bits).collect::<Vec<_>>()
        };
        assert_eq!(run(Some(&gpu)), run(None), "{rows} rows of {vocab}");
    }
}

/// Root of the mean squared difference, in units of the reference's.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(g - w))).sum();
    let size: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    (error / size.max(1e-30)).sqrt()
}

/// An op's results and gradients in fast mode, beside the processor's.
fn near(what: &str, fast: &Gpu, inputs: &[Matrix], weights: &[Matrix], op: &Op) {
    let (want, got) = (through(None, inputs, weights, op), through(Some(fast), inputs, weights, op));
    for (i, (got, want)) in got.iter().zip(&want).enumerate().filter(|(_, (g, _))| !g.is_empty()) {
        let off = relative(got, want);
        assert!(off < 1e-2, "{what}: {i} is off by {off}");
    }
}

/// bf16 has eight bits: a product of rounded factors is off by a few thousandths, a whole model by a few hundredths.
#[test]
fn fast_math_is_near() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(7);
    let (n, h, o) = (130, 72, 56);
    let x = [Matrix::random(&mut rng, n, h, 1.0)];
    let w = [Matrix::random(&mut rng, o, h, 0.3), Matrix::random(&mut rng, 1, o, 0.3)];
    let shape = AttentionShape { heads: 4, kv_heads: 2, qk_dim: 24, v_dim: 16, scale: 0.2, window: None };
    let qkv = [4 * 24, 2 * 24, 2 * 16].map(|w| Matrix::random(&mut rng, n, w, 1.0));
    let segments =
        [(70, 0), (20, 70), (40, 70)].map(|(rows, past)| Segment { rows, past, pages: Vec::new() });
    let fast = gpu.with_math(Math::Fast);
    let linear: &Op = &|tape, x, w| vec![ops::linear(tape, &x[0], w[0], Some(w[1]))];
    let attention: &Op = &|tape, x, _| {
        vec![ops::attention(tape, (&x[0], &x[1], &x[2]), shape, &segments.to_vec().into(), None)]
    };
    let rows = [Matrix::random(&mut rng, n, 2 * h, 1.0), Matrix::random(&mut rng, n, 2 * h, 1.0)];
    let norm = [Matrix::random(&mut rng, 1, 2 * h, 1.0)];
    let between: &Op = &|tape, x, w| {
        let (s, y) = ops::add_rms_norm(tape, &x[0], &x[1], w[0], 1e-6);
        vec![ops::swiglu(tape, &ops::rms_norm(tape, &s, w[0], 1e-6)), y]
    };
    near("linear", &fast, &x, &w, linear);
    near("attention", &fast, &qkv, &[], attention);
    near("norms and activation", &fast, &rows, &norm, between);
    let positions: Vec<u32> = (0..n as u32).map(|i| i * 7 % 90).collect();
    for (dim, pairs, normed) in [
        (8, Pairs::Halves, true),
        (64, Pairs::Interleaved, true),
        (136, Pairs::Halves, false),
        (6, Pairs::Halves, true),
    ] {
        let inv_freq: Vec<f32> = (0..dim / 2).map(|i| 0.9f32.powi(i)).collect();
        // Tapes of all lifetimes may use it.
        let table: &'static RopeTable = Box::leak(Box::new(RopeTable::new(&inv_freq, 1.0, 90, pairs)));
        let dim = dim as usize;
        let x = [Matrix::random(&mut rng, n, (3 + 2 * 2) * dim, 1.0)];
        let w = [Matrix::random(&mut rng, 1, dim, 1.0), Matrix::random(&mut rng, 1, dim, 1.0)];
        near(&format!("heads of {dim}"), &fast, &x, &w, &|tape, x, w| {
            let norms = normed.then_some((w[0], w[1]));
            let shape = GqaHeads { heads: 3, kv_heads: 2, dim, norms, eps: 1e-6 };
            let (q, k, v) = ops::gqa_heads(tape, &x[0], shape, &positions.clone().into(), table);
            vec![q, k, v]
        });
    }
    for ((name, got), (_, want)) in model::step(false, Some(&fast)).iter().zip(model::step(false, None)) {
        let off = relative(got, &want);
        assert!(off < 5e-2, "{name} is off by {off}");
    }
}

/// In fast mode a token's log-probability is the same whether it is drawn, given or scored, in whatever batch; and draws
/// follow the distribution.
#[test]
fn fast_log_probabilities_have_one_value() {
    let Some(gpu) = emulator::gpu() else { return };
    let fast = gpu.with_math(Math::Fast);
    let mut rng = Rng::new(9);
    for (rows, vocab) in [(7, 1), (6, 37), (9, 4099), (5, 20_000)] {
        let hidden = Matrix::random(&mut rng, rows, 24, 1.0);
        let (mut params, w) = params_of(&[Matrix::random(&mut rng, vocab, 24, 1.0)]);
        params.move_to(Some(&fast));
        let draws: Vec<Draw> = (0..rows).map(|i| draw(i, rng.uniform(), vocab)).collect();
        let logits = ops::logits(&params, &hidden.constant(), w[0]);
        let drawn = ops::sample(&params, &logits, &draws);
        for (i, (d, asked)) in drawn.iter().zip(&draws).enumerate() {
            assert!(asked.given.is_none_or(|given| given == d.token), "{i}: {asked:?} {d:?}");
            let row = hidden.pick(&[i]).constant();
            let temperature = if asked.temperature > 0.0 { asked.temperature } else { 1.0 };
            for (logprob, temperature) in [(d.logprob, 1.0), (d.tempered, temperature)] {
                let scored = ops::log_probs(&params, &row, w[0], &[d.token], temperature);
                assert_eq!(
                    scored.logprobs[0].to_bits(),
                    logprob.to_bits(),
                    "{i} of {vocab}: {asked:?} {d:?}"
                );
            }
            let z = ops::normalizer(&logits.host()[i * vocab..][..vocab]);
            let off = logits.host()[i * vocab + d.token as usize] - z.0 - d.logprob;
            assert!(off.abs() < 1e-4, "{i} of {vocab} is off by {off}");
            let entropy = ops::log_probs(&params, &row, w[0], &[d.token], 1.0).entropies[0];
            assert!((entropy - z.1).abs() < 1e-4, "{i} of {vocab}: entropy {entropy} for {}", z.1);
        }
    }
    let (mut params, n) = (Params::new([]), 400);
    params.move_to(Some(&fast));
    let logits = Matrix { rows: n, cols: 4, data: [0.5f32, 0.3, 0.15, 0.05].map(f32::ln).repeat(n) };
    let at = |i| Draw { temperature: 1.0, uniform: (i as f32 + 0.5) / n as f32, given: None };
    let drawn = ops::sample(&params, &logits.constant(), &(0..n).map(at).collect::<Vec<_>>());
    let count = |token| drawn.iter().filter(|d| d.token == token).count();
    assert_eq!([0, 1, 2, 3].map(count), [200, 120, 60, 20]);
}

/// In fast mode too a row's result does not depend on the rows around it, on caching, or on how its prompt was cut.
#[test]
fn fast_rows_are_independent() {
    let Some(gpu) = emulator::gpu() else { return };
    let fast = gpu.with_math(Math::Fast);
    let mut rng = Rng::new(8);
    // On a card a single row is a product for our kernels, and more rows are one for NVIDIA's library.
    let (n, h, o) = if emulator::large_sizes() { (150, 1000, 1024) } else { (150, 72, 200) };
    let (mut params, w) = params_of(&[Matrix::random(&mut rng, o, h, 0.3)]);
    params.move_to(Some(&fast));
    let tape = Tape::inference(&params);
    let x = Matrix::random(&mut rng, n, h, 1.0);
    let all = ops::linear(&tape, &x.constant(), w[0], None);
    for rows in [vec![17], (40..56).collect(), (60..127).collect()] {
        let some = ops::linear(&tape, &x.pick(&rows).constant(), w[0], None);
        let want: Vec<f32> = rows.iter().flat_map(|&r| all.row(r).to_vec()).collect();
        same_bits("rows of a product", some.host(), &want);
    }

    for (heads, kv_heads, qk_dim, v_dim) in [(4, 2, 24, 16), (2, 2, 128, 128), (3, 1, 80, 80)] {
        let shape = AttentionShape { heads, kv_heads, qk_dim, v_dim, scale: 0.2, window: None };
        cached_as_whole(&fast, &mut rng, shape, &[71, 1, 1, 60, 1, 16], &[2, 0, 3]);
    }
}

/// Attention in fast mode over rows that come piece by piece into a cache of these pages has the bits of all rows at once.
fn cached_as_whole(fast: &Gpu, rng: &mut Rng, shape: AttentionShape, pieces: &[usize], pages: &[u32]) {
    let n: usize = pieces.iter().sum();
    let mut params = Params::new([]);
    params.move_to(Some(fast));
    let tape = Tape::inference(&params);
    let widths = [shape.heads * shape.qk_dim, shape.kv_heads * shape.qk_dim, shape.kv_heads * shape.v_dim];
    let qkv = widths.map(|width| Matrix::random(rng, n, width, 1.0));
    let attend = |rows: std::ops::Range<usize>, segment: Segment, cache: Option<&mut KvLayer>| {
        let [q, k, v] = qkv.each_ref().map(|m| m.pick(&rows.clone().collect::<Vec<_>>()).constant());
        let y = ops::attention(&tape, (&q, &k, &v), shape, &vec![segment].into(), cache);
        y.host().to_vec()
    };
    let want = attend(0..n, Segment { rows: n, past: 0, pages: Vec::new() }, None);
    let mut cache = KvLayer::default();
    cache.grow(Some(fast), 4, &shape);
    let mut got = Vec::new();
    for &rows in pieces {
        let past = got.len() / (shape.heads * shape.v_dim);
        let segment = Segment { rows, past, pages: pages.to_vec() };
        got.extend(attend(past..past + rows, segment, Some(&mut cache)));
    }
    same_bits(&format!("cached, {shape:?}"), &got, &want);
}
