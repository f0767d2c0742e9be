//! The same bits on every instruction set: children of this test run the same work, each on its own set. A build of this
//! test for another processor can be one more of them, by way of an emulator:
//! `SHOESTRING_TEST_ALSO="qemu-aarch64 -L /usr/aarch64-linux-gnu target/aarch64-unknown-linux-gnu/release/deps/isa-…"`.

mod common;

use common::{Matrix, hash, model};
use std::process::Command;
use tensor::cpu::gemm::{Left, Product, Right, gemm, pack_transposed, packed_len};
use tensor::cpu::update::{AdamW, adamw, squared_norm};
use tensor::cpu::{math, simd};
use tensor::{Buf, Params, Rng, Tape, Tensor, ops};

/// Set in the children.
const CHILD: &str = "SHOESTRING_TEST_PRINTS_HASHES";
/// A command, its words between blanks, that runs another build of this test.
const ALSO: &str = "SHOESTRING_TEST_ALSO";

/// Values that differ where an implementation is careless: zeros of both signs, subnormals, ends of the range.
fn awkward(rng: &mut Rng, n: usize) -> Vec<f32> {
    let special = [
        0.0,
        -0.0,
        1e-40,
        -1e-40,
        f32::MIN_POSITIVE,
        88.0,
        -87.0,
        -87.5,
        100.0,
        -1e30,
        1e30,
        f32::NEG_INFINITY,
    ];
    (0..n)
        .map(|_| if rng.below(4) == 0 { special[rng.below(special.len())] } else { rng.normal() * 30.0 })
        .collect()
}

fn elementary() -> Vec<f32> {
    let mut rng = Rng::new(1);
    let mut out: Vec<f32> = Vec::new();
    for n in [1, 5, 15, 16, 17, 31, 48, 100, 1000] {
        let x = awkward(&mut rng, n);
        let finite: Vec<f32> = x.iter().map(|v| v.max(-1e20)).collect();
        let mut e = x.clone();
        out.push(math::exp_sum(&mut e, 0.5));
        out.extend(e);
        out.extend([math::max(&x), math::sum(&finite), math::dot(&finite[..n / 2], &finite[n - n / 2..])]);
        let mut y = finite.clone();
        math::axpy(-0.3, &finite, &mut y);
        math::add_assign(&mut y, &finite);
        math::scale(&mut y, 0.7);
        math::blend(0.3, &finite, -0.7, &mut y);
        out.extend(y);
        out.extend(finite.iter().map(|v| math::ln(v.abs())));
        out.extend(
            x.iter().filter(|v| v.abs() < 1e6).flat_map(|&v| [math::sin_cos(v).0, math::sin_cos(v).1]),
        );
        let (lse, entropy) = ops::normalizer(&finite);
        out.extend([lse, entropy]);
    }
    let mut zeros = [[0.0f32, -0.0], [-0.0, 0.0]].concat().repeat(9);
    out.push(math::max(&zeros));
    zeros.iter_mut().for_each(|z| *z = -0.0);
    out.extend([math::sum(&zeros), math::max(&zeros), math::dot(&zeros, &zeros)]);
    // Maps every float of a coarse grid over all exponents.
    let mut grid: Vec<f32> =
        (0..1 << 16).map(|i| f32::from_bits(i << 16 | 0x1234)).filter(|v| !v.is_nan()).collect();
    math::exp_sum(&mut grid, 0.0);
    out.extend(grid);
    out
}

fn products() -> Vec<f32> {
    let mut rng = Rng::new(2);
    let mut out = Vec::new();
    for (m, k, n) in [
        (1, 1, 1),
        (1, 64, 300),
        (2, 300, 130),
        (3, 40, 64),
        (5, 17, 31),
        (13, 600, 33),
        (100, 31, 70),
        (97, 257, 161),
    ] {
        let (a, b) = (Matrix::random(&mut rng, m, k, 1.0).data, Matrix::random(&mut rng, n, k, 1.0).data);
        let mut panels = vec![0.0; packed_len(n, k)];
        pack_transposed(&b, n, k, k, &mut panels);
        let mut c = vec![0.0; m * n];
        gemm(
            &[Product { a: Left::rows(&a, k), b: Right::packed(&panels, k), m, k, n, c: 0 }],
            &mut c,
            n,
            false,
        );
        out.extend_from_slice(&c);
        // Aᵀ · C, added to C's own start.
        let mut d = vec![-0.0; k * n];
        gemm(
            &[Product { a: Left::transposed(&a, k), b: Right::rows(&c, n), m: k, k: m, n, c: 0 }],
            &mut d,
            n,
            true,
        );
        out.extend(d);
    }
    out
}

/// Products that underflow, so that zeros of both signs arise.
fn vanishing() -> Vec<f32> {
    let mut rng = Rng::new(3);
    let (heads, dim, n) = (3, 11, 90);
    let mut draw = |scale: f32| Matrix::random(&mut rng, n, heads * dim, scale).constant();
    let (q, k, v) = (draw(9.0), draw(9.0), draw(1e-38));
    let params = Params::new([]);
    let shape =
        ops::AttentionShape { heads, kv_heads: heads, qk_dim: dim, v_dim: dim, scale: 0.5, window: None };
    let segment = ops::Segment { rows: n, past: 0, pages: Vec::new() };
    let tape = Tape::inference(&params);
    let y: Tensor = ops::attention(&tape, (&q, &k, &v), shape, &vec![segment].into(), None);
    let z = ops::swiglu(&tape, &Tensor::constant(Buf::copy_of(&awkward(&mut rng, 20 * 46)[..]), 20, 46));
    [y.host(), z.host()].concat()
}

fn optimizer() -> Vec<f32> {
    let mut rng = Rng::new(4);
    let n = 40_001;
    let mut draw = |s: f32| Matrix::random(&mut rng, 1, n, s).data;
    let (mut p, g, mut m, mut v) = (draw(1.0), draw(0.1), draw(0.1), draw(0.1));
    v.iter_mut().for_each(|v| *v *= *v);
    let c = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        correction1: 0.3,
        correction2: 0.2,
        grad_scale: 0.7,
    };
    adamw(&mut p, &g, &mut m, &mut v, c);
    let norm = squared_norm(&g).to_bits();
    [p, m, v, vec![f32::from_bits(norm as u32), f32::from_bits((norm >> 32) as u32)]].concat()
}

fn print_hashes() {
    println!("hash isa {:?}", simd::isa());
    let parts = [
        ("elementary", elementary()),
        ("products", products()),
        ("vanishing", vanishing()),
        ("optimizer", optimizer()),
    ];
    for (name, values) in parts.into_iter().chain(model::step(false, None)) {
        println!("hash {name}: {:016x}", hash(&values));
    }
}

/// The hashes that a child prints, the name of its instruction set first.
fn hashes(mut command: Command, isa: Option<String>) -> Vec<String> {
    command.args(["--exact", "every_instruction_set_gives_the_same_bits", "--nocapture"]);
    command.env(CHILD, "1").envs(isa.map(|isa| ("SHOESTRING_ISA", isa)));
    let out = command.output().expect("a test can run itself");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text.lines().filter_map(|l| l.find("hash ").map(|at| l[at..].to_owned())).collect()
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    if std::env::var_os(CHILD).is_some() {
        return print_hashes();
    }
    let itself = || Command::new(std::env::current_exe().expect("a test has a path"));
    let mut children = Vec::new();
    for isa in simd::available() {
        let lines = hashes(itself(), Some(format!("{isa:?}")));
        assert_eq!(lines[0], format!("hash isa {isa:?}"), "the variable names the instruction set");
        children.push(lines);
    }
    let fallback = children.last().expect("the fallback is always there").clone();
    assert!(fallback.len() > 9, "{fallback:?}");
    if let Ok(also) = std::env::var(ALSO) {
        let mut words = also.split_whitespace();
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        children.push(hashes(command, None));
        println!("{also}: {}", children[children.len() - 1][0]);
    }
    for lines in &children {
        assert_eq!(lines[1..], fallback[1..], "{} against the fallback", lines[0]);
    }
}
