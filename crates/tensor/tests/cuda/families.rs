//! What some families of models have and others do not: GELU, windows, experts chosen by softmax; and weights that are
//! held as stored, with adapters beside them.

use super::common::{Matrix, emulator, same_bits};
use super::{Op, cached_as_whole, compare, near};
use std::sync::Arc;
use tensor::blocks::Format;
use tensor::ops::{
    self, Adapter, AdapterPart, AttentionShape, Expert, KvLayer, RouterShape, Scoring, Segment,
};
use tensor::{Gpu, Hold, Math, Params, Rng, Tape, Tensor, Weight};

#[test]
fn gates_and_scales_of_ragged_sizes() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(11);
    let mut sizes = vec![(1, 1), (7, 5), (33, 64), (130, 35), (3, 1030)];
    if emulator::large_sizes() {
        sizes.extend([(4096, 1376), (777, 2048)]);
    }
    for (n, inner) in sizes {
        let x = [Matrix::random(&mut rng, n, 2 * inner, 3.0)];
        compare(&format!("gates {n}x{inner}"), &gpu, &x, &[], &|tape, x, _| {
            vec![ops::swiglu(tape, &x[0]), ops::geglu(tape, &x[0]), ops::scaled(tape, &x[0], 1.7)]
        });
        near(&format!("gates {n}x{inner}"), &gpu.with_math(Math::Fast), &x, &[], &|tape, x, _| {
            vec![ops::geglu(tape, &x[0])]
        });
    }
}

/// A window of one key, of less than a page, of a page, a little more, of pages, and of more than all.
const WINDOWS: [usize; 7] = [1, 17, 64, 65, 100, 129, 5000];

fn windowed(heads: usize, kv_heads: usize, qk_dim: usize, v_dim: usize, window: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        qk_dim,
        v_dim,
        scale: 1.3 / (qk_dim as f32).sqrt(),
        window: Some(window),
    }
}

#[test]
fn attention_through_windows() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(12);
    let mut cases = vec![
        (4, 2, 8, 8, vec![(70, 0), (1, 0), (233, 0)]),
        (2, 1, 64, 64, vec![(230, 0), (50, 230)]),
        (2, 1, 80, 80, vec![(65, 0), (50, 65), (130, 65)]),
        (1, 1, 192, 128, vec![(170, 0)]),
        (1, 1, 256, 200, vec![(167, 0), (3, 167)]),
    ];
    if emulator::large_sizes() {
        cases.extend([
            (8, 4, 32, 32, vec![(700, 0), (513, 0)]),
            (8, 2, 128, 128, vec![(700, 0), (90, 700), (64, 700), (1, 0), (2047, 0)]),
            (4, 1, 256, 256, vec![(600, 0), (300, 0)]),
        ]);
    }
    for (heads, kv_heads, qk_dim, v_dim, parts) in cases {
        let n = parts.iter().map(|p| p.0).sum();
        let widths = [heads * qk_dim, kv_heads * qk_dim, kv_heads * v_dim];
        let x = widths.map(|w| Matrix::random(&mut rng, n, w, 1.0));
        let segments: Vec<Segment> =
            parts.iter().map(|&(rows, past)| Segment { rows, past, pages: Vec::new() }).collect();
        for window in WINDOWS {
            let shape = windowed(heads, kv_heads, qk_dim, v_dim, window);
            let attend: &Op = &|tape, x, _| {
                vec![ops::attention(tape, (&x[0], &x[1], &x[2]), shape, &segments.clone().into(), None)]
            };
            compare(&format!("{shape:?} {parts:?}"), &gpu, &x, &[], attend);
            // One key has the weight 1 whatever its score: the gradients of queries and keys are rounding errors.
            if window > 1 {
                near(&format!("fast {shape:?} {parts:?}"), &gpu.with_math(Math::Fast), &x, &[], attend);
            }
        }
    }
}

/// What a segment's rows give that come in pieces, through pages in odd places.
fn in_pieces(gpu: Option<&Gpu>, shape: AttentionShape, pieces: &[usize]) -> Vec<f32> {
    let mut params = Params::new([]);
    params.move_to(gpu);
    let mut rng = Rng::new(13);
    let mut cache = KvLayer::default();
    cache.grow(gpu, 8, &shape);
    let (heads, kv_heads) = (shape.heads, shape.kv_heads);
    let (mut past, mut out) = (0, Vec::new());
    for &rows in pieces {
        let mut draw = |w: usize| Matrix::random(&mut rng, 2 * rows, w, 1.0).constant();
        let (q, k, v) =
            (draw(heads * shape.qk_dim), draw(kv_heads * shape.qk_dim), draw(kv_heads * shape.v_dim));
        let segments: Vec<Segment> =
            [vec![5, 2, 7, 0], vec![1, 6, 3, 4]].map(|pages| Segment { rows, past, pages }).to_vec();
        let tape = Tape::inference(&params);
        let y = ops::attention(&tape, (&q, &k, &v), shape, &segments.into(), Some(&mut cache));
        out.extend_from_slice(y.host());
        past += rows;
    }
    out
}

#[test]
fn windows_with_a_cache() {
    let Some(gpu) = emulator::gpu() else { return };
    for (heads, kv_heads, qk_dim, v_dim) in
        [(4, 2, 12, 9), (9, 1, 64, 64), (2, 2, 128, 100), (1, 1, 256, 256)]
    {
        for window in WINDOWS {
            let shape = windowed(heads, kv_heads, qk_dim, v_dim, window);
            let pieces = [130, 1, 3, 1, 1, 60, 1];
            let want = in_pieces(None, shape, &pieces);
            same_bits(&format!("{shape:?}"), &in_pieces(Some(&gpu), shape, &pieces), &want);
        }
    }
}

/// In fast mode too, a row that looks through a window has the bits that it has in training, cached or not.
#[test]
fn fast_windows_are_the_same_with_a_cache() {
    let Some(gpu) = emulator::gpu() else { return };
    let fast = gpu.with_math(Math::Fast);
    let mut rng = Rng::new(14);
    for (heads, kv_heads, dim) in [(4, 2, 24), (2, 1, 128), (1, 1, 256)] {
        for window in WINDOWS {
            let shape = windowed(heads, kv_heads, dim, dim, window);
            cached_as_whole(&fast, &mut rng, shape, &[71, 1, 62, 1, 74, 1], &[2, 0, 3, 1]);
        }
    }
}

#[test]
fn routers_by_softmax() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(15);
    let mut cases =
        vec![(1, 3, 1, 1), (90, 8, 3, 1), (150, 16, 2, 4), (70, 33, 4, 1), (33, 64, 8, 1), (9, 512, 7, 8)];
    if emulator::large_sizes() {
        cases.extend([(4096, 128, 8, 1), (777, 160, 6, 8)]);
    }
    for (n, experts, top_k, groups) in cases {
        for normalize in [false, true] {
            let shape = RouterShape {
                experts,
                top_k,
                groups,
                top_groups: groups.min(2),
                normalize,
                scaling: if groups > 1 { 2.5 } else { 1.0 },
                scoring: Scoring::Softmax,
            };
            let logits = [Matrix::random(&mut rng, n, experts, 2.0)];
            compare(&format!("{shape:?} of {n}"), &gpu, &logits, &[], &|tape, x, _| {
                let routes = ops::route(tape, &x[0], None, shape, &[n / 3, n - n / 3], 0.2);
                let numbers =
                    |of: &tensor::Ints| -> Vec<f32> { of.host().iter().map(|&i| i as f32).collect() };
                let chosen = Matrix { rows: n, cols: top_k, data: numbers(&routes.experts) };
                let load = Matrix { rows: 1, cols: experts, data: numbers(&routes.load) };
                vec![routes.weights.clone(), chosen.constant(), load.constant()]
            });
        }
    }
}

/// Random blocks whose values are finite.
fn blocks(rng: &mut Rng, format: Format, n: usize) -> Vec<u8> {
    let values: Vec<f32> = (0..n).map(|_| 0.3 * rng.normal()).collect();
    format.pack(&values).unwrap_or_else(|| {
        let mut bytes: Vec<u8> =
            (0..format.bytes_of(n).expect("whole blocks")).map(|_| rng.below(256) as u8).collect();
        for block in bytes.chunks_exact_mut(format.bytes()) {
            // A scale and a minimum, as halves of floats.
            block[..4].copy_from_slice(&[rng.below(256) as u8, 0x08, rng.below(256) as u8, 0x88]);
        }
        bytes
    })
}

/// A model's worth of ops on weights held as given, through an adapter: hidden states, log-probabilities, the gradients of
/// what comes in and of the adapter. The second of two projections that are read as one is held in `beside`.
fn on_held(gpu: Option<&Gpu>, format: Format, beside: Format, unpacked: bool) -> Vec<Vec<f32>> {
    let h = if format.values().max(beside.values()) == 1 { 37 } else { format.values().max(beside.values()) };
    let (n, vocab, rank) = (21, 45, 3);
    let mut rng = Rng::new(16);
    let stored = [
        ("embed", vocab, format),
        ("q", 40, format),
        ("k", h, beside),
        ("gate_up.0", 2 * h, format),
        ("down.0", h, format),
        ("gate_up.1", 2 * h, format),
        ("down.1", h, format),
    ];
    let mut specs: Vec<(String, Vec<usize>, Hold)> = Vec::new();
    for (name, rows, format) in stored {
        let hold = if unpacked { Hold::Frozen } else { Hold::Stored(format) };
        specs.push((name.into(), vec![rows, h], hold));
    }
    for (name, shape) in [("a.q", [rank, h]), ("a.k", [rank, h]), ("b.q", [40, rank]), ("b.k", [h, rank])] {
        specs.push((name.into(), shape.to_vec(), Hold::Trained));
    }
    let mut params = Params::held(specs);
    for (name, rows, format) in stored {
        let (w, blocks) = (params.weight(name), blocks(&mut rng, format, rows * h));
        if unpacked {
            format.unpack(&blocks, params.values_mut(w));
        } else {
            params.set_blocks(w, blocks);
        }
    }
    params.data_mut().iter_mut().for_each(|x| *x = 0.4 * rng.normal());
    params.move_to(gpu);
    params.zero_grads();
    let w = |name: &str| params.weight(name);
    let part = |name: &str, column| AdapterPart { b: w(name), column };
    let adapter =
        Adapter { a: w("a.q").stacked(w("a.k")), parts: vec![part("b.q", 0), part("b.k", 40)], scale: 0.7 };
    let expert = |e: usize| Expert { gate_up: w(&format!("gate_up.{e}")), down: w(&format!("down.{e}")) };
    let tape = Tape::recording(&params);
    let x = Matrix::random(&mut rng, n, h, 1.0).leaf(&tape);
    let logits = Matrix::random(&mut rng, n, 2, 1.0).leaf(&tape);
    let ids: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
    let stream = ops::add(&tape, &x, &ops::embedding(&tape, &ids, w("embed")));
    let qk = ops::adapted_linear(&tape, &stream, w("q").stacked(w("k")), None, &Arc::new(adapter));
    let k = ops::split_cols(&tape, &qk, &[40, h])[1].clone();
    let shape = RouterShape {
        experts: 2,
        top_k: 1,
        groups: 1,
        top_groups: 1,
        normalize: false,
        scaling: 1.0,
        scoring: Scoring::Softmax,
    };
    let routes = ops::route(&tape, &logits, None, shape, &[n], 0.0);
    let y = ops::experts(&tape, &k, &routes, Arc::new(vec![expert(0), expert(1)]), None);
    let weights: Vec<f32> = (0..n).map(|_| rng.uniform()).collect();
    let stats = ops::cross_entropy(&tape, &y, w("embed"), &ids, &weights);
    let mut out = vec![y.host().to_vec(), stats.logprobs];
    tape.backward();
    out.extend([&x, &logits].map(|x| x.take_grad().expect("a gradient").host().to_vec()));
    out.push(params.grads().to_vec());
    for (i, values) in out.iter().enumerate() {
        assert!(
            values.iter().all(|x| x.is_finite()),
            "{format:?} on {}: {i}",
            gpu.map_or("the processor", |_| "a GPU")
        );
    }
    out
}

#[test]
fn weights_held_as_stored_beside_an_adapter() {
    let Some(gpu) = emulator::gpu() else { return };
    let fast = gpu.with_math(Math::Fast);
    let alike = Format::ALL.map(|format| (format, format));
    for (format, beside) in
        alike.into_iter().chain([(Format::Bf16, Format::F16), (Format::Q4_K, Format::Q6_K)])
    {
        let same = |what: &str, got: Vec<Vec<f32>>, want: Vec<Vec<f32>>| {
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                same_bits(&format!("{what}, {format:?} and {beside:?}: {i}"), got, want);
            }
        };
        let on = |gpu: Option<&Gpu>, unpacked| on_held(gpu, format, beside, unpacked);
        same("exact", on(Some(&gpu), false), on(None, false));
        same("exact, unpacked", on(Some(&gpu), true), on(None, false));
        // Fast mode has bits of its own, but whether a factor was unpacked before it was rounded is not among them.
        same("fast", on(Some(&fast), false), on(Some(&fast), true));
    }
}

#[test]
fn adapters_of_ragged_sizes() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(17);
    let mut sizes =
        vec![(1, 5, 1, [3, 0]), (70, 33, 2, [20, 9]), (130, 64, 8, [64, 32]), (33, 96, 16, [130, 7])];
    if emulator::large_sizes() {
        sizes.extend([(4096, 1024, 16, [2048, 1024]), (64, 1024, 8, [1024, 512])]);
    }
    for (n, h, rank, [first, second]) in sizes {
        let x = [Matrix::random(&mut rng, n, h, 1.0)];
        let rows = first + second;
        let mut weights = vec![
            Matrix::random(&mut rng, rows, h, 0.3),
            Matrix::random(&mut rng, 1, rows, 0.3),
            Matrix::random(&mut rng, if second > 0 { 2 * rank } else { rank }, h, 0.3),
        ];
        for part in [first, second].into_iter().filter(|&rows| rows > 0) {
            weights.push(Matrix::random(&mut rng, part, rank, 0.3));
        }
        let adapted: &Op = &|tape: &Tape, x: &[Tensor], w: &[Weight]| {
            let parts = w[3..].iter().zip([0, first]).map(|(&b, column)| AdapterPart { b, column }).collect();
            let adapter = Arc::new(Adapter { a: w[2], parts, scale: 0.6 });
            vec![ops::adapted_linear(tape, &x[0], w[0], Some(w[1]), &adapter)]
        };
        let what = format!("an adapter of rank {rank}, {n}x{h}x{rows}");
        compare(&what, &gpu, &x, &weights, adapted);
        near(&what, &gpu.with_math(Math::Fast), &x, &weights, adapted);
    }
}
