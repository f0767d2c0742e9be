//! Every op against its mathematics in plain f64: forward values, and gradients by central differences.

mod common;

use common::reference::{self as math, Heads};
use common::{Matrix, check, check_op, params_of};
use std::sync::Arc;
use tensor::ops::{self, AttentionShape, Expert, MlaDims, Pairs, RopeTable, RouterShape, Routes, Segment};
use tensor::{Buf, Rng, Tape, Tensor};

const EPS: f32 = 1e-5;

/// Rows (tokens) that cross the ops' pieces of work and the micro-kernels' heights, and that do not.
const ROWS: [usize; 4] = [1, 7, 33, 130];

fn values(t: &Tensor) -> Vec<f32> {
    t.host().to_vec()
}

#[test]
fn linear() {
    for (seed, (k, m)) in [(1, 1), (5, 17), (16, 32), (31, 33), (97, 3), (300, 70)].into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64);
        for n in ROWS {
            let x = [Matrix::random(&mut rng, n, k, 1.0)];
            let w = [Matrix::random(&mut rng, m, k, 0.3), Matrix::random(&mut rng, 1, m, 0.3)];
            check_op(
                &format!("linear {n}x{k}x{m}"),
                &mut rng,
                &x,
                &w[..1],
                &[],
                |tape, x, w| vec![ops::linear(tape, &x[0], w[0], None)],
                |at| vec![math::linear(&at[0], &at[1], None, k)],
            );
            check_op(
                &format!("linear with bias {n}x{k}x{m}"),
                &mut rng,
                &x,
                &w,
                &[],
                |tape, x, w| vec![ops::linear(tape, &x[0], w[0], Some(w[1]))],
                |at| vec![math::linear(&at[0], &at[1], Some(&at[2]), k)],
            );
        }
    }
}

/// Adapters on two of three projections that are read as one.
#[test]
fn adapted_linear() {
    for (seed, (k, rank, outputs)) in
        [(5, 1, [3, 17, 2]), (33, 4, [16, 8, 8]), (97, 16, [40, 33, 1])].into_iter().enumerate()
    {
        let mut rng = Rng::new(seed as u64);
        let m = outputs.iter().sum();
        let last = m - outputs[2];
        for n in ROWS {
            let x = [Matrix::random(&mut rng, n, k, 1.0)];
            let mut matrix = |rows, cols| Matrix::random(&mut rng, rows, cols, 0.3);
            let w = [matrix(m, k), matrix(2 * rank, k), matrix(outputs[0], rank), matrix(outputs[2], rank)];
            check_op(
                &format!("adapted_linear {n}x{k}x{m}, rank {rank}"),
                &mut rng,
                &x,
                &w,
                &[],
                |tape, x, w| {
                    let part = |b, column| ops::AdapterPart { b, column };
                    let parts = vec![part(w[2], 0), part(w[3], last)];
                    let adapter = ops::Adapter { a: w[1], parts, scale: 0.5 };
                    vec![ops::adapted_linear(tape, &x[0], w[0], None, &Arc::new(adapter))]
                },
                |at| {
                    let mut y = math::linear(&at[0], &at[1], None, k);
                    let (first, second) = at[2].split_at(rank * k);
                    for (a, b, column) in [(first, &at[3], 0), (second, &at[4], last)] {
                        let low = math::linear(&at[0], a, None, k);
                        let up = math::linear(&low, b, None, rank);
                        let width = b.len() / rank;
                        for (row, up) in y.chunks_exact_mut(m).zip(up.chunks_exact(width)) {
                            row[column..].iter_mut().zip(up).for_each(|(y, u)| *y += 0.5 * u);
                        }
                    }
                    vec![y]
                },
            );
        }
    }
}

/// Gradients add up where a tensor or a weight is used twice, also where one buffer carries two gradients.
#[test]
fn a_tensor_used_twice_sums_its_gradients() {
    let mut rng = Rng::new(3);
    let (n, k) = (9, 13);
    let x = [Matrix::random(&mut rng, n, k, 1.0)];
    let w = [Matrix::random(&mut rng, k, k, 0.3)];
    check_op(
        "x + linear(x) + linear(x), twice the same weight",
        &mut rng,
        &x,
        &w,
        &[],
        |tape, x, w| {
            let y = ops::add(tape, &x[0], &ops::linear(tape, &x[0], w[0], None));
            let z = ops::add(tape, &y, &y);
            vec![ops::add(tape, &z, &ops::linear(tape, &y, w[0], None)), y]
        },
        |at| {
            let y: Vec<f64> =
                at[0].iter().zip(math::linear(&at[0], &at[1], None, k)).map(|(a, b)| a + b).collect();
            let z = math::linear(&y, &at[1], None, k);
            vec![y.iter().zip(&z).map(|(y, z)| 2.0 * y + z).collect(), y]
        },
    );
}

#[test]
fn embedding() {
    for (vocab, h, n) in [(1, 1, 3), (7, 5, 20), (50, 33, 131)] {
        let mut rng = Rng::new(vocab as u64);
        let ids: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
        let table = [Matrix::random(&mut rng, vocab, h, 1.0)];
        check_op(
            &format!("embedding {vocab}x{h}"),
            &mut rng,
            &[],
            &table,
            &[],
            |tape, _, w| vec![ops::embedding(tape, &ids, w[0])],
            |at| vec![ids.iter().flat_map(|&id| at[0][id as usize * h..][..h].to_vec()).collect()],
        );
    }
}

#[test]
fn rms_norms() {
    for h in [1, 5, 16, 33, 96, 131] {
        let mut rng = Rng::new(h as u64);
        // One feature divided by its own size is nearly constant: a large eps leaves it a slope.
        let eps = if h == 1 { 0.5 } else { EPS };
        for n in ROWS {
            let w = [Matrix::random(&mut rng, 1, h, 1.0)];
            let x = [Matrix::random(&mut rng, n, h, 1.0)];
            check_op(
                &format!("rms_norm {n}x{h}"),
                &mut rng,
                &x,
                &w,
                &[],
                |tape, x, w| vec![ops::rms_norm(tape, &x[0], w[0], eps)],
                |at| vec![math::rms_norm(&at[0], &at[1], f64::from(eps))],
            );
            let x = [Matrix::random(&mut rng, n, 3 * h, 0.1)];
            check_op(
                &format!("grouped_rms_norm {n}x3x{h}"),
                &mut rng,
                &x,
                &w,
                &[],
                |tape, x, w| vec![ops::grouped_rms_norm(tape, &x[0], w[0], eps)],
                |at| vec![math::rms_norm(&at[0], &at[1], f64::from(eps))],
            );
            let ab = [Matrix::random(&mut rng, n, h, 1.0), Matrix::random(&mut rng, n, h, 2.0)];
            for unused in [&[][..], &[0], &[1]] {
                check_op(
                    &format!("add_rms_norm {n}x{h}, unused {unused:?}"),
                    &mut rng,
                    &ab,
                    &w,
                    unused,
                    |tape, x, w| {
                        let (s, y) = ops::add_rms_norm(tape, &x[0], &x[1], w[0], eps);
                        vec![s, y]
                    },
                    |at| {
                        let s: Vec<f64> = at[0].iter().zip(&at[1]).map(|(a, b)| a + b).collect();
                        let y = math::rms_norm(&s, &at[2], f64::from(eps));
                        vec![s, y]
                    },
                );
            }
        }
    }
}

#[test]
fn swiglu_and_add() {
    for inner in [1, 7, 16, 45, 64] {
        let mut rng = Rng::new(inner as u64);
        for n in ROWS {
            let x = [Matrix::random(&mut rng, n, 2 * inner, 2.0)];
            check_op(
                &format!("swiglu {n}x{inner}"),
                &mut rng,
                &x,
                &[],
                &[],
                |tape, x, _| vec![ops::swiglu(tape, &x[0])],
                |at| vec![math::swiglu(&at[0], inner)],
            );
            check_op(
                &format!("geglu {n}x{inner}"),
                &mut rng,
                &x,
                &[],
                &[],
                |tape, x, _| vec![ops::geglu(tape, &ops::scaled(tape, &x[0], 1.5))],
                |at| {
                    let gelu = |g: f64| {
                        0.5 * g * (1.0 + (0.797_884_560_802_865_4 * (g + 0.044715 * g.powi(3))).tanh())
                    };
                    let rows = at[0].chunks_exact(2 * inner);
                    vec![
                        rows.flat_map(|r| (0..inner).map(|i| gelu(1.5 * r[i]) * 1.5 * r[inner + i]))
                            .collect(),
                    ]
                },
            );
            let ab = [Matrix::random(&mut rng, n, inner, 1.0), Matrix::random(&mut rng, n, inner, 1.0)];
            check_op(
                &format!("add {n}x{inner}"),
                &mut rng,
                &ab,
                &[],
                &[],
                |tape, x, _| vec![ops::add(tape, &x[0], &x[1])],
                |at| vec![at[0].iter().zip(&at[1]).map(|(a, b)| a + b).collect()],
            );
        }
    }
}

/// A table that lives as long as any tape.
fn rope_table(half: usize, pairs: Pairs) -> (&'static RopeTable, Vec<f32>, f32) {
    let inv_freq: Vec<f32> = (0..half).map(|i| 1.0 / 100f32.powf(i as f32 / half as f32)).collect();
    let scaling = 1.25;
    (Box::leak(Box::new(RopeTable::new(&inv_freq, scaling, 300, pairs))), inv_freq, scaling)
}

#[test]
fn rotary_heads() {
    for pairs in [Pairs::Halves, Pairs::Interleaved] {
        for (heads, kv_heads, half) in [(1, 1, 1), (4, 2, 3), (3, 1, 8), (2, 2, 19)] {
            let mut rng = Rng::new(heads as u64);
            let (table, inv_freq, scaling) = rope_table(half, pairs);
            let dim = 2 * half;
            for n in [1, 5, 67] {
                let positions: Vec<u32> = (0..n).map(|_| rng.below(300) as u32).collect();
                let rotated = |x: &[f64], t: usize| -> Vec<f64> {
                    x.chunks(dim)
                        .flat_map(|h| math::rotate(h, &inv_freq, scaling, positions[t], pairs))
                        .collect()
                };
                let (wq, wk) = (heads * dim, kv_heads * dim);
                let x = [Matrix::random(&mut rng, n, wq + 2 * wk, 1.0)];
                for unused in [&[][..], &[1, 2], &[0], &[0, 1, 2]] {
                    check_op(
                        &format!("split_qkv {n}x({heads}+2*{kv_heads})x{dim} {pairs:?}, unused {unused:?}"),
                        &mut rng,
                        &x,
                        &[],
                        unused,
                        |tape, x, _| {
                            let (q, k, v) = ops::split_qkv(
                                tape,
                                &x[0],
                                (heads, kv_heads, dim),
                                &positions.clone().into(),
                                table,
                            );
                            vec![q, k, v]
                        },
                        |at| {
                            let mut out = vec![Vec::new(); 3];
                            for (t, row) in at[0].chunks(wq + 2 * wk).enumerate() {
                                out[0].extend(rotated(&row[..wq], t));
                                out[1].extend(rotated(&row[wq..wq + wk], t));
                                out[2].extend_from_slice(&row[wq + wk..]);
                            }
                            out
                        },
                    );
                }
                let x = [Matrix::random(&mut rng, n, wq, 1.0)];
                check_op(
                    &format!("rope {n}x{heads}x{dim} {pairs:?}"),
                    &mut rng,
                    &x,
                    &[],
                    &[],
                    |tape, x, _| vec![ops::rope(tape, &x[0], &positions.clone().into(), table)],
                    |at| vec![at[0].chunks(wq).enumerate().flat_map(|(t, row)| rotated(row, t)).collect()],
                );
                mla(&mut rng, heads, half, n, &positions, pairs);
            }
        }
    }
}

fn mla(rng: &mut Rng, heads: usize, half: usize, n: usize, positions: &[u32], pairs: Pairs) {
    let (table, inv_freq, scaling) = rope_table(half, pairs);
    let dims = MlaDims { heads, nope: 5, rope: 2 * half, v: 7 };
    let (dk, dkv) = (dims.nope + dims.rope, dims.nope + dims.v);
    let x = [
        Matrix::random(rng, n, heads * dk, 1.0),
        Matrix::random(rng, n, heads * dkv, 1.0),
        Matrix::random(rng, n, dims.rope, 1.0),
    ];
    for unused in [&[][..], &[0, 2]] {
        check_op(
            &format!("mla_heads {n}x{heads} {dims:?} {pairs:?}, unused {unused:?}"),
            rng,
            &x,
            &[],
            unused,
            |tape, x, _| {
                let (q, k, v) =
                    ops::mla_heads(tape, (&x[0], &x[1], &x[2]), dims, &positions.to_vec().into(), table);
                vec![q, k, v]
            },
            |at| {
                let mut out = vec![Vec::new(); 3];
                for t in 0..n {
                    let rotated = |x: &[f64]| math::rotate(x, &inv_freq, scaling, positions[t], pairs);
                    for h in 0..heads {
                        let q = &at[0][(t * heads + h) * dk..][..dk];
                        let kv = &at[1][(t * heads + h) * dkv..][..dkv];
                        out[0].extend_from_slice(&q[..dims.nope]);
                        out[0].extend(rotated(&q[dims.nope..]));
                        out[1].extend_from_slice(&kv[..dims.nope]);
                        out[1].extend(rotated(&at[2][t * dims.rope..][..dims.rope]));
                        out[2].extend_from_slice(&kv[dims.nope..]);
                    }
                }
                out
            },
        );
    }
}

#[test]
fn split_and_concat_cols() {
    let mut rng = Rng::new(7);
    for (n, widths) in [(1, vec![1, 1]), (5, vec![3, 16, 1]), (67, vec![33, 2, 7, 11])] {
        let total: usize = widths.iter().sum();
        let x = [Matrix::random(&mut rng, n, total, 1.0)];
        for unused in [&[][..], &[1]] {
            check_op(
                &format!("split_cols {n}x{widths:?}, unused {unused:?}"),
                &mut rng,
                &x,
                &[],
                unused,
                |tape, x, _| ops::split_cols(tape, &x[0], &widths),
                |at| {
                    let mut out = vec![Vec::new(); widths.len()];
                    for row in at[0].chunks(total) {
                        let mut start = 0;
                        for (o, w) in widths.iter().enumerate() {
                            out[o].extend_from_slice(&row[start..start + w]);
                            start += w;
                        }
                    }
                    out
                },
            );
        }
        let (a, b) = (widths[0], widths[1]);
        let ab = [Matrix::random(&mut rng, n, a, 1.0), Matrix::random(&mut rng, n, b, 1.0)];
        check_op(
            &format!("concat_cols {n}x{a}+{b}"),
            &mut rng,
            &ab,
            &[],
            &[],
            |tape, x, _| vec![ops::concat_cols(tape, &x[0], &x[1])],
            |at| vec![at[0].chunks(a).zip(at[1].chunks(b)).flat_map(|(a, b)| [a, b].concat()).collect()],
        );
    }
}

/// Packed sequences, and several behind the rows of one, as if each had them for itself: `(rows, past)` of each.
#[test]
fn attention() {
    let whole = |lens: &[usize]| -> Vec<(usize, usize)> { lens.iter().map(|&rows| (rows, 0)).collect() };
    let cases = [
        (1, 1, 1, 1, whole(&[1])),
        (4, 4, 8, 8, whole(&[3, 1, 17])),
        (4, 2, 16, 16, whole(&[63, 64, 65])),
        (3, 1, 5, 7, whole(&[130, 1, 2])),
        (6, 3, 24, 16, whole(&[49, 0, 97])),
        (14, 1, 12, 20, whole(&[1, 70])),
        (2, 1, 33, 50, whole(&[200])),
        (4, 2, 6, 5, vec![(20, 0), (1, 20), (70, 20), (9, 0), (66, 0), (5, 66)]),
        (3, 1, 4, 7, vec![(65, 0), (64, 65), (2, 65), (0, 65)]),
    ];
    for (seed, (heads, kv_heads, qk, v, parts)) in cases.into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64);
        let n = parts.iter().map(|p| p.0).sum();
        let scale = 1.3 / (qk as f32).sqrt();
        // Not 1, with which the gradient of queries is nothing but rounding.
        let window = [None, Some(2), Some(5), Some(70)][seed % 4];
        let x = [heads * qk, kv_heads * qk, kv_heads * v].map(|cols| Matrix::random(&mut rng, n, cols, 1.0));
        let segments: Vec<Segment> =
            parts.iter().map(|&(rows, past)| Segment { rows, past, pages: Vec::new() }).collect();
        // The rows of every sequence in full, and which of all these rows the op computes.
        let (mut rows, mut lens, mut own, mut trunk, mut at) = (vec![], vec![], vec![], 0, 0);
        for &(new, past) in &parts {
            trunk = if past == 0 { at } else { trunk };
            rows.extend((trunk..trunk + past).chain(at..at + new));
            own.extend(rows.len() - new..rows.len());
            lens.push(past + new);
            at += new;
        }
        let pick = |from: &[f64], cols: usize, rows: &[usize]| -> Vec<f64> {
            rows.iter().flat_map(|r| from[r * cols..][..cols].to_vec()).collect()
        };
        check_op(
            &format!("attention {heads}/{kv_heads} heads of {qk} and {v} over {parts:?}"),
            &mut rng,
            &x,
            &[],
            &[],
            |tape, x, _| {
                let shape = AttentionShape { heads, kv_heads, qk_dim: qk, v_dim: v, scale, window };
                vec![ops::attention(tape, (&x[0], &x[1], &x[2]), shape, &segments.clone().into(), None)]
            },
            |at| {
                let whole: Vec<Vec<f64>> = at.iter().zip(&x).map(|(m, x)| pick(m, x.cols, &rows)).collect();
                let heads_of = Heads { heads, kv_heads, qk, v, scale, window };
                let all = math::attention(&whole[0], &whole[1], &whole[2], heads_of, &lens);
                vec![pick(&all, heads * v, &own)]
            },
        );
    }
}

#[test]
fn route() {
    let shapes = [
        (
            RouterShape {
                experts: 1,
                top_k: 1,
                groups: 1,
                top_groups: 1,
                normalize: true,
                scaling: 1.0,
                scoring: ops::Scoring::Sigmoid,
            },
            vec![5],
        ),
        (
            RouterShape {
                experts: 7,
                top_k: 3,
                groups: 1,
                top_groups: 1,
                normalize: true,
                scaling: 2.5,
                scoring: ops::Scoring::Sigmoid,
            },
            vec![1, 40, 2],
        ),
        (
            RouterShape {
                experts: 16,
                top_k: 4,
                groups: 4,
                top_groups: 2,
                normalize: true,
                scaling: 1.0,
                scoring: ops::Scoring::Sigmoid,
            },
            vec![70, 9],
        ),
        (
            RouterShape {
                experts: 33,
                top_k: 2,
                groups: 11,
                top_groups: 3,
                normalize: false,
                scaling: 0.5,
                scoring: ops::Scoring::Sigmoid,
            },
            vec![67],
        ),
        (
            RouterShape {
                experts: 6,
                top_k: 2,
                groups: 6,
                top_groups: 4,
                normalize: true,
                scaling: 1.0,
                scoring: ops::Scoring::Sigmoid,
            },
            vec![3, 3],
        ),
    ];
    for (seed, (shape, lens)) in shapes.into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64);
        let n: usize = lens.iter().sum();
        let (e, k) = (shape.experts, shape.top_k);
        let logits = [Matrix::random(&mut rng, n, e, 1.0)];
        let bias = Matrix::random(&mut rng, 1, e, 0.2);
        let chosen: Vec<u32> = logits[0]
            .data
            .chunks(e)
            .flat_map(|row| {
                let scores: Vec<f64> = row.iter().map(|&l| math::sigmoid(f64::from(l))).collect();
                math::choose(&scores, &bias.data, k, shape.groups, shape.top_groups)
            })
            .collect();
        // The balance loss counts the greatest affinities themselves.
        let greatest: Vec<u32> = logits[0]
            .data
            .chunks(e)
            .flat_map(|row| {
                let scores: Vec<f64> = row.iter().map(|&l| math::sigmoid(f64::from(l))).collect();
                math::choose(&scores, &vec![0.0; e], k, 1, 1)
            })
            .collect();
        assert!(e == 1 || greatest != chosen, "bias and groups change a choice");
        for alpha in [0.0, 0.7] {
            let slopes = Matrix::random(&mut rng, n, k, 1.0).data;
            for used in [true, false] {
                check(
                    &format!("route {shape:?} over {lens:?}, alpha {alpha}, weights used: {used}"),
                    &logits,
                    std::slice::from_ref(&bias),
                    |tape, x, w| {
                        let routes = ops::route(tape, &x[0], Some(w[0]), shape, &lens, alpha);
                        assert_eq!(routes.experts.host(), chosen, "choice of {shape:?}");
                        let load: Vec<u32> = (0..e)
                            .map(|i| chosen.iter().filter(|&&c| c as usize == i).count() as u32)
                            .collect();
                        assert_eq!(routes.load.host(), load);
                        if used {
                            routes.weights.add_grad(Buf::copy_of(&slopes));
                        }
                        vec![values(&routes.weights), routes.balance_loss.host().to_vec()]
                    },
                    |at| {
                        let weights =
                            math::route_weights(&at[0], &chosen, k, e, shape.normalize, shape.scaling);
                        let balance = math::balance_loss(&at[0], &greatest, k, e, &lens, alpha);
                        let through: f64 = weights.iter().zip(&slopes).map(|(w, s)| w * f64::from(*s)).sum();
                        (vec![weights, vec![balance]], balance + if used { through } else { 0.0 })
                    },
                );
            }
        }
    }
}

#[test]
fn experts() {
    let cases =
        [(1, 1, 1, 1, 1), (5, 3, 7, 4, 2), (40, 16, 33, 9, 3), (131, 17, 12, 4, 4), (70, 32, 16, 24, 1)];
    for (seed, (n, h, inner, count, k)) in cases.into_iter().enumerate() {
        let mut rng = Rng::new(seed as u64);
        // Distinct experts per token, ascending, from the lower half where there is room: the others stay empty.
        let used = if count >= 2 * k { count / 2 } else { count };
        let chosen: Vec<u32> = (0..n)
            .flat_map(|_| {
                let mut row: Vec<u32> =
                    common::shuffled(&mut rng, used)[..k].iter().map(|&e| e as u32).collect();
                row.sort_unstable();
                row
            })
            .collect();
        let inputs = [
            Matrix::random(&mut rng, n, h, 1.0),
            Matrix::random(&mut rng, n, k, 1.0),
            Matrix::random(&mut rng, n, h, 1.0),
        ];
        let weights: Vec<Matrix> = (0..count)
            .flat_map(|_| {
                [Matrix::random(&mut rng, 2 * inner, h, 0.5), Matrix::random(&mut rng, h, inner, 0.5)]
            })
            .collect();
        for base in [false, true] {
            check_op(
                &format!("experts {n}x{h}x{inner}, {k} of {count}, base: {base}"),
                &mut rng,
                &inputs,
                &weights,
                &[],
                |tape, x, w| {
                    let bank = w.chunks(2).map(|w| Expert { gate_up: w[0], down: w[1] }).collect();
                    let mut load = vec![0; count];
                    chosen.iter().for_each(|&e| load[e as usize] += 1);
                    let routes = Routes {
                        experts: chosen.clone().into(),
                        weights: x[1].clone(),
                        load: load.into(),
                        balance_loss: Buf::zeros(1).into(),
                    };
                    vec![ops::experts(tape, &x[0], &routes, Arc::new(bank), base.then_some(&x[2]))]
                },
                |at| {
                    let mut y = if base { at[2].clone() } else { vec![0.0; n * h] };
                    for (slot, &e) in chosen.iter().enumerate() {
                        let t = slot / k;
                        let (gate_up, down) = (&at[3 + 2 * e as usize], &at[4 + 2 * e as usize]);
                        let hidden =
                            math::swiglu(&math::linear(&at[0][t * h..][..h], gate_up, None, h), inner);
                        for (y, o) in y[t * h..][..h].iter_mut().zip(math::linear(&hidden, down, None, inner))
                        {
                            *y += at[1][slot] * o;
                        }
                    }
                    vec![y]
                },
            );
        }
    }
}

/// Log-probabilities of the targets, and entropies.
fn head_reference(
    x: &[f64],
    head: &[f64],
    h: usize,
    vocab: usize,
    targets: &[u32],
    temperature: f64,
) -> (Vec<f64>, Vec<f64>) {
    let logits: Vec<f64> = math::linear(x, head, None, h).iter().map(|l| l / temperature).collect();
    let rows = logits.chunks(vocab).map(math::log_softmax);
    let both =
        rows.zip(targets).map(|(lp, &t)| (lp[t as usize], -lp.iter().map(|v| v.exp() * v).sum::<f64>()));
    both.unzip()
}

#[test]
fn losses_on_the_head() {
    // The largest vocabulary's chunks are shorter than the batch.
    for (seed, (n, h, vocab)) in
        [(1, 1, 1), (3, 5, 2), (33, 16, 31), (70, 19, 130), (35, 3, 33_000)].into_iter().enumerate()
    {
        let mut rng = Rng::new(seed as u64);
        let x = [Matrix::random(&mut rng, n, h, 1.0)];
        let head = [Matrix::random(&mut rng, vocab, h, 0.7)];
        let targets: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
        // Some tokens carry no loss, as prompts do.
        let weights: Vec<f32> = (0..n).map(|i| if i % 3 == 1 { 0.0 } else { rng.normal() }).collect();
        let reference = |at: &[Vec<f64>], sign: f64, temperature: f64| {
            let (lp, entropy) = head_reference(&at[0], &at[1], h, vocab, &targets, temperature);
            let loss = lp.iter().zip(&weights).map(|(lp, w)| sign * lp * f64::from(*w)).sum();
            (vec![lp, entropy], loss)
        };
        check(
            &format!("cross_entropy {n}x{h}x{vocab}"),
            &x,
            &head,
            |tape, x, w| {
                let stats = ops::cross_entropy(tape, &x[0], w[0], &targets, &weights);
                vec![stats.logprobs, stats.entropies]
            },
            |at| reference(at, -1.0, 1.0),
        );
        for temperature in [1.0f32, 0.5, 1.5] {
            check(
                &format!("log_probs {n}x{h}x{vocab} at {temperature}"),
                &x,
                &head,
                |tape, x, w| {
                    let stats = ops::log_probs(tape.params(), &x[0], w[0], &targets, temperature);
                    let seeded =
                        ops::seed_log_probs(tape.params(), &x[0], w[0], &targets, &weights, temperature);
                    assert_eq!((&seeded.logprobs, &seeded.entropies), (&stats.logprobs, &stats.entropies));
                    vec![stats.logprobs, stats.entropies]
                },
                |at| reference(at, 1.0, f64::from(temperature)),
            );
        }
        let teacher_hidden = h + 3;
        let teacher = [Matrix::random(&mut rng, vocab, teacher_hidden, 0.5)];
        let teacher_x = Matrix::random(&mut rng, n, teacher_hidden, 1.0);
        let wide = |m: &Matrix| m.data.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let target: Vec<Vec<f64>> = math::linear(&wide(&teacher_x), &wide(&teacher[0]), None, teacher_hidden)
            .chunks(vocab)
            .map(math::log_softmax)
            .collect();
        check(
            &format!("distill_kl {n}x{h}x{vocab}"),
            &x,
            &head,
            |tape, x, w| {
                let (params, handles) = params_of(&teacher);
                vec![ops::distill_kl(
                    tape,
                    &x[0],
                    w[0],
                    (&params, &teacher_x.constant(), handles[0]),
                    &weights,
                )]
            },
            |at| {
                let logits = math::linear(&at[0], &at[1], None, h);
                let kl: Vec<f64> = logits
                    .chunks(vocab)
                    .zip(&target)
                    .map(|(row, p)| {
                        p.iter().zip(math::log_softmax(row)).map(|(p, q)| p.exp() * (p - q)).sum()
                    })
                    .collect();
                let loss = kl.iter().zip(&weights).map(|(kl, w)| kl * f64::from(*w)).sum();
                (vec![kl], loss)
            },
        );
    }
}

/// Scoring and distillation without recording leave gradients alone.
#[test]
fn inference_seeds_no_gradient() {
    let mut rng = Rng::new(5);
    let (x, head) = (Matrix::random(&mut rng, 4, 6, 1.0), [Matrix::random(&mut rng, 9, 6, 1.0)]);
    let (params, w) = params_of(&head);
    let leaf = x.leaf(&Tape::recording(&params));
    let tape = Tape::inference(&params);
    ops::cross_entropy(&tape, &leaf, w[0], &[1, 2, 3, 4], &[1.0; 4]);
    ops::distill_kl(&tape, &leaf, w[0], (&params, &x.constant(), w[0]), &[1.0; 4]);
    assert!(leaf.take_grad().is_none());
    assert!(params.grads().iter().all(|&g| g == 0.0));
}

#[test]
fn recomputed() {
    let mut rng = Rng::new(11);
    let (n, h, inner) = (21, 10, 13);
    let x = [Matrix::random(&mut rng, n, h, 1.0)];
    let w = [
        Matrix::random(&mut rng, 1, h, 1.0),
        Matrix::random(&mut rng, 2 * inner, h, 0.5),
        Matrix::random(&mut rng, h, inner, 0.5),
    ];
    check_op(
        "a recomputed block, twice, beside its own residual",
        &mut rng,
        &x,
        &w,
        &[],
        |tape, x, w| {
            let w = w.to_vec();
            let block = move |tape: &Tape, x: &Tensor| {
                let y = ops::rms_norm(tape, x, w[0], EPS);
                let y = ops::linear(tape, &ops::swiglu(tape, &ops::linear(tape, &y, w[1], None)), w[2], None);
                ops::add(tape, x, &y)
            };
            let y = tape.recomputed(&x[0], block.clone());
            let z = tape.recomputed(&y, block);
            vec![ops::add(tape, &z, &x[0]), y]
        },
        |at| {
            let block = |x: &[f64]| -> Vec<f64> {
                let y = math::rms_norm(x, &at[1], f64::from(EPS));
                let y = math::linear(
                    &math::swiglu(&math::linear(&y, &at[2], None, h), inner),
                    &at[3],
                    None,
                    inner,
                );
                x.iter().zip(y).map(|(a, b)| a + b).collect()
            };
            let y = block(&at[0]);
            vec![block(&y).iter().zip(&at[0]).map(|(a, b)| a + b).collect(), y]
        },
    );
}
