//! Attention in fast mode without windows: one shape at least for every kernel and every size of head that models have.

use super::common::{Matrix, emulator};
use super::{Op, cached_as_whole, near};
use tensor::ops::{self, AttentionShape, Segment};
use tensor::{Math, Rng};

/// Heads of queries, of keys, components. An even number of query heads for each key head goes through kernels of its own
/// (`fast_attention_forward_pairs_…`), up to heads of 192 and 128.
const SHAPES: [(usize, usize, usize, usize); 12] = [
    (1, 1, 64, 64),
    (2, 1, 64, 64),
    (3, 1, 80, 80),
    (2, 1, 80, 80),
    (1, 1, 96, 96),
    (4, 2, 96, 96),
    (1, 1, 128, 128),
    (4, 1, 128, 128),
    (3, 1, 192, 128),
    (2, 1, 192, 128),
    (1, 1, 256, 256),
    (2, 1, 256, 200),
];

fn shape((heads, kv_heads, qk_dim, v_dim): (usize, usize, usize, usize)) -> AttentionShape {
    AttentionShape { heads, kv_heads, qk_dim, v_dim, scale: 1.3 / (qk_dim as f32).sqrt(), window: None }
}

#[test]
fn results_and_gradients_are_near() {
    let Some(gpu) = emulator::gpu() else { return };
    let fast = gpu.with_math(Math::Fast);
    let mut rng = Rng::new(21);
    let mut parts = vec![(70, 0), (9, 70), (35, 70), (1, 0)];
    if emulator::large_sizes() {
        parts.extend([(513, 0), (64, 513), (1000, 0)]);
    }
    let n = parts.iter().map(|p| p.0).sum();
    let segments: Vec<Segment> =
        parts.iter().map(|&(rows, past)| Segment { rows, past, pages: Vec::new() }).collect();
    for shape in SHAPES.map(shape) {
        let widths =
            [shape.heads * shape.qk_dim, shape.kv_heads * shape.qk_dim, shape.kv_heads * shape.v_dim];
        let x = widths.map(|w| Matrix::random(&mut rng, n, w, 1.0));
        let attend: &Op = &|tape, x, _| {
            vec![ops::attention(tape, (&x[0], &x[1], &x[2]), shape, &segments.clone().into(), None)]
        };
        near(&format!("{shape:?}"), &fast, &x, &[], attend);
    }
}

#[test]
fn pieces_through_a_cache_have_the_bits_of_all_at_once() {
    let Some(gpu) = emulator::gpu() else { return };
    let mut rng = Rng::new(22);
    for shape in SHAPES.map(shape) {
        cached_as_whole(&gpu.with_math(Math::Fast), &mut rng, shape, &[67, 1, 1, 16], &[2, 0]);
    }
}
