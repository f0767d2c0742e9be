//! Arguments that do not fit are refused with a panic: no safe function reads or writes out of bounds, and no two
//! pieces of work write the same place.

mod common;

use common::{Matrix, params_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tensor::cpu::gemm::{Left, PANEL, Product, Right, gemm};
use tensor::ops::{self, AttentionShape, Expert, KvLayer, PAGE, RouterShape, Routes, Segment};
use tensor::{Buf, Params, Rng, Tape, Tensor, Weight};

#[track_caller]
fn refused(what: &str, f: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(f)).is_err(), "{what} was not refused");
}

#[test]
fn products() {
    let (a, b) = (vec![1.0; 64], vec![1.0; 64 * PANEL]);
    let fits = Product { a: Left::rows(&a, 8), b: Right::rows(&b, 8), m: 8, k: 8, n: 8, c: 0 };
    let run = |p: &[Product], ldc: usize| gemm(p, &mut [0.0; 64], ldc, false);
    run(&[fits], 8);
    refused("an output that is too short", || run(&[Product { c: 1, ..fits }], 8));
    refused("an output offset that overflows", || run(&[Product { c: usize::MAX - 60, ..fits }], 8));
    refused("an output stride that overflows", || run(&[Product { m: 3, ..fits }], usize::MAX / 2 + 1));
    refused("output rows that overlap", || run(&[fits], 7));
    refused("output rows in one place", || run(&[fits], 0));
    refused("a left factor that is too short", || run(&[Product { a: Left::rows(&a[..63], 8), ..fits }], 8));
    refused("a left stride that overflows", || {
        run(&[Product { a: Left::rows(&a, usize::MAX / 4 + 1), m: 5, ..fits }], 8)
    });
    refused("a picked row outside", || {
        run(&[Product { a: Left { rows: Some(&[0, 9, 0, 0, 0, 0, 0, 0]), ..fits.a }, ..fits }], 8)
    });
    refused("too few picked rows", || {
        run(&[Product { a: Left { rows: Some(&[0; 7]), ..fits.a }, ..fits }], 8)
    });
    refused("a right factor that is too short", || {
        run(&[Product { b: Right::rows(&b[..63], 8), ..fits }], 8)
    });
    let narrow = Right::strided(&b[..PANEL], 0, 1);
    run(&[Product { a: Left::rows(&a, 1), b: narrow, m: 1, k: 1, n: PANEL, c: 0 }], 64);
    refused("a whole panel behind the end", || {
        let short = Right { data: &b[..PANEL - 1], ..narrow };
        run(&[Product { a: Left::rows(&a, 1), b: short, m: 1, k: 1, n: PANEL + 1, c: 0 }], 64);
    });
    let upper = Product { m: 4, ..fits };
    run(&[Product { c: 32, ..upper }, upper], 8);
    refused("two outputs in one place", || run(&[Product { c: 24, ..upper }, upper], 8));
    gemm(&[Product { m: 0, k: 0, n: 0, ..fits }], &mut [], 0, false);
    let mut kept = [5.0; 64];
    gemm(&[Product { k: 0, ..fits }], &mut kept, 8, true);
    assert_eq!(kept, [5.0; 64]);
    gemm(&[Product { k: 0, ..fits }], &mut kept, 8, false);
    assert_eq!(kept, [0.0; 64], "a sum over nothing is zero");
}

#[test]
fn attention() {
    let shape = AttentionShape { heads: 2, kv_heads: 1, qk_dim: 4, v_dim: 3, scale: 0.5, window: None };
    let params = Params::new([]);
    let run = |shape: AttentionShape, rows: usize, segments: &[Segment], cache: Option<&mut KvLayer>| {
        let t = |cols: usize| Tensor::constant(Buf::zeros(rows * cols), rows, cols);
        let (q, k, v) = (
            t(shape.heads * shape.qk_dim),
            t(shape.kv_heads * shape.qk_dim),
            t(shape.kv_heads * shape.v_dim),
        );
        ops::attention(&Tape::inference(&params), (&q, &k, &v), shape, &segments.to_vec().into(), cache);
    };
    let on = |rows: usize, past: usize, pages: &[u32]| Segment { rows, past, pages: pages.to_vec() };
    let mut cache = KvLayer::default();
    cache.grow(None, 4, &shape);
    run(shape, 5, &[on(2, 0, &[0]), on(3, 2, &[0])], Some(&mut cache));
    refused("two tokens for one place", || {
        run(shape, 5, &[on(2, 0, &[0]), on(3, 1, &[0])], Some(&mut cache))
    });
    refused("one page twice in a sequence", || {
        run(shape, PAGE + 1, &[on(PAGE + 1, 0, &[1, 1])], Some(&mut cache))
    });
    refused("a page that is not there", || run(shape, 1, &[on(1, 0, &[4])], Some(&mut cache)));
    refused("too few pages", || run(shape, 1, &[on(1, PAGE, &[0])], Some(&mut cache)));
    refused("a past that overflows", || run(shape, 2, &[on(2, usize::MAX, &[0])], Some(&mut cache)));
    refused("rows that overflow", || {
        run(shape, 1, &[on(usize::MAX, 1, &[0]), on(2, 0, &[1])], Some(&mut cache))
    });
    refused("a past longer than what is before", || run(shape, 3, &[on(2, 0, &[]), on(1, 3, &[])], None));
    refused("rows that are not covered", || run(shape, 3, &[on(2, 0, &[0])], Some(&mut cache)));
    let wider = AttentionShape { qk_dim: 40, ..shape };
    refused("pages of another layer", || run(wider, 1, &[on(1, 0, &[0])], Some(&mut cache)));
    refused("old pages of another layer", || run(wider, 1, &[on(1, PAGE, &[0, 1])], Some(&mut cache)));
    refused("a past without a cache", || run(shape, 1, &[on(1, 1, &[])], None));
    refused("heads that do not divide", || {
        run(AttentionShape { heads: 3, kv_heads: 2, ..shape }, 1, &[on(1, 0, &[])], None)
    });
    refused("keys without components", || {
        run(AttentionShape { qk_dim: 0, ..shape }, 1, &[on(1, 0, &[])], None)
    });
    run(shape, 0, &[], None);
}

#[test]
fn rows_and_experts() {
    let mut rng = Rng::new(1);
    let sizes = [(8, 6), (6, 4), (1, 6)];
    let (params, w) = params_of(&sizes.map(|(rows, cols)| Matrix::random(&mut rng, rows, cols, 1.0)));
    let tape = Tape::recording(&params);
    let x = Matrix::random(&mut rng, 3, 6, 1.0).leaf(&tape);
    refused("a tensor whose size overflows", || {
        Tensor::constant(Buf::zeros(0), 1 << 32, 1 << 32);
    });
    refused("a parameter whose size overflows", || {
        Params::new([("w".to_owned(), vec![1 << 32, 1 << 32], true)]);
    });
    refused("a weight beyond the arena", || {
        ops::linear(&tape, &x, Weight { offset: 70, ..w[0] }, None);
    });
    refused("an id outside the table", || {
        ops::embedding(&tape, &[8], w[0]);
    });
    refused("a target outside the vocabulary", || {
        ops::cross_entropy(&tape, &x, w[0], &[0, 1, 8], &[1.0; 3]);
    });
    refused("logits of another width", || {
        ops::logits(&params, &x, w[1]);
    });
    let bank = |e: Expert| Arc::new(vec![e; 2]);
    let expert = Expert { gate_up: w[0], down: w[1] };
    let routes = |tape: &Tape, experts: Vec<u32>| Routes {
        experts: experts.into(),
        weights: tape.output(Buf::zeros(3), 3, 1),
        load: vec![0; 2].into(),
        balance_loss: Buf::zeros(1).into(),
    };
    let free = Tape::inference(&params);
    ops::experts(&free, &x, &routes(&free, vec![0, 1, 0]), bank(expert), None);
    refused("an expert that is not there", || {
        ops::experts(&free, &x, &routes(&free, vec![0, 2, 0]), bank(expert), None);
    });
    refused("routes of fewer tokens", || {
        ops::experts(&free, &x, &routes(&free, vec![0, 1]), bank(expert), None);
    });
    refused("an expert of another shape", || {
        let wrong = Expert { gate_up: w[0].row_range(0, 6), down: w[1] };
        ops::experts(&free, &x, &routes(&free, vec![0, 1, 0]), bank(wrong), None);
    });
    refused("the gradient of one weight as two experts", || {
        let y = ops::experts(&tape, &x, &routes(&tape, vec![0, 1, 0]), bank(expert), None);
        y.add_grad(Buf::zeros(18));
        tape.backward();
    });
    let shape = RouterShape {
        experts: 6,
        top_k: 3,
        groups: 3,
        top_groups: 1,
        normalize: true,
        scaling: 1.0,
        scoring: ops::Scoring::Sigmoid,
    };
    refused("more choices than the groups hold", || {
        ops::route(&tape, &x, Some(w[2]), shape, &[3], 0.0);
    });
}

/// A value that is not a number comes out as one, so that a broken run is seen and not masked.
#[test]
fn not_a_number_is_not_hidden() {
    let mut e = [0.0, f32::NAN, 1.0];
    assert!(tensor::cpu::math::exp_sum(&mut e, 0.0).is_nan() && e[1].is_nan() && e[0] == 1.0);
    let mut wide = vec![f32::NAN; 40];
    tensor::cpu::math::exp_sum(&mut wide, 0.0);
    assert!(wide.iter().all(|v| v.is_nan()));
    let params = Params::new([]);
    let tape = Tape::inference(&params);
    let shape = AttentionShape { heads: 1, kv_heads: 1, qk_dim: 1, v_dim: 1, scale: 1.0, window: None };
    let column = |v: &[f32]| Tensor::constant(Buf::copy_of(v), v.len(), 1);
    let (q, k) = (column(&[1.0; 4]), column(&[1.0, f32::NAN, 1.0, 1.0]));
    let segment = Segment { rows: 4, past: 0, pages: Vec::new() };
    let y = ops::attention(&tape, (&q, &k, &column(&[1.0; 4])), shape, &vec![segment].into(), None);
    assert_eq!(y.host().iter().map(|v| v.is_nan()).collect::<Vec<_>>(), [false, true, true, true]);
}
