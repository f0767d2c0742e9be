//! Helpers of the integration tests: random matrices, a gradient check against plain f64, hashes of bits.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod emulator;
pub mod model;
pub mod reference;

use tensor::{Buf, Params, Rng, Tape, Tensor, Weight};

/// A row-major matrix of test values.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    /// Standard normal values times `scale`.
    pub fn random(rng: &mut Rng, rows: usize, cols: usize, scale: f32) -> Matrix {
        Matrix { rows, cols, data: (0..rows * cols).map(|_| rng.normal() * scale).collect() }
    }
    /// The given rows, in the given order.
    pub fn pick(&self, rows: &[usize]) -> Matrix {
        let data =
            rows.iter().flat_map(|&r| self.data[r * self.cols..][..self.cols].iter().copied()).collect();
        Matrix { rows: rows.len(), cols: self.cols, data }
    }
    /// As an activation without gradient.
    pub fn constant(&self) -> Tensor {
        Tensor::constant(Buf::copy_of(&self.data), self.rows, self.cols)
    }
    /// As an activation that collects its gradient.
    pub fn leaf(&self, tape: &Tape) -> Tensor {
        tape.output(Buf::copy_of(&self.data), self.rows, self.cols)
    }
}

/// Parameters that hold the given matrices one after another, with gradients set to zero.
pub fn params_of(weights: &[Matrix]) -> (Params, Vec<Weight>) {
    let specs = weights.iter().enumerate().map(|(i, m)| (format!("w{i}"), vec![m.rows, m.cols], true));
    let mut params = Params::new(specs);
    let values: Vec<f32> = weights.iter().flat_map(|m| m.data.iter().copied()).collect();
    params.data_mut().copy_from_slice(&values);
    params.zero_grads();
    let handles = (0..weights.len()).map(|i| params.weight(&format!("w{i}"))).collect();
    (params, handles)
}

/// Relative tolerance of forward values and of gradients, in units of the largest value of the same tensor.
const FORWARD: f64 = 1e-5;
const BACKWARD: f64 = 5e-5;
/// Step of the central differences.
const STEP: f64 = 1e-4;
/// Coordinates of each tensor that are perturbed one by one: so many, or fewer where the reference is slow.
const SAMPLED: usize = 24;
const SAMPLED_VALUES: usize = 100_000;

/// Runs `engine` on a recording tape, walks back, and compares with `reference`, which gets the inputs and then
/// the weights in f64 and returns the forward values and the loss. `engine` returns its forward values and seeds
/// the gradients of that same loss.
///
/// Gradients are compared coordinate by coordinate at random places, and along a random direction that moves
/// every coordinate of a tensor at once.
pub fn check(
    name: &str,
    inputs: &[Matrix],
    weights: &[Matrix],
    engine: impl FnOnce(&Tape, &[Tensor], &[Weight]) -> Vec<Vec<f32>>,
    reference: impl Fn(&[Vec<f64>]) -> (Vec<Vec<f64>>, f64),
) {
    let (params, handles) = params_of(weights);
    let tape = Tape::recording(&params);
    let leaves: Vec<Tensor> = inputs.iter().map(|m| m.leaf(&tape)).collect();
    let values = engine(&tape, &leaves, &handles);
    tape.backward();
    let wide = |m: &Matrix| m.data.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let mut at: Vec<Vec<f64>> = inputs.iter().chain(weights).map(wide).collect();

    let (want, _) = reference(&at);
    assert_eq!(values.len(), want.len(), "{name}: number of outputs");
    for (o, (got, want)) in values.iter().zip(&want).enumerate() {
        assert_eq!(got.len(), want.len(), "{name}: length of output {o}");
        let top = want.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!(
                (f64::from(*g) - w).abs() <= FORWARD * top,
                "{name}: output {o}[{i}] is {g}, should be {w} (largest {top})"
            );
        }
    }

    let mut grads: Vec<Vec<f64>> = Vec::new();
    for l in &leaves {
        grads.push(
            l.take_grad()
                .map_or(vec![0.0; l.host().len()], |g| g.host().iter().map(|&v| f64::from(v)).collect()),
        );
    }
    for w in &handles {
        grads.push(params.grads()[w.offset..w.offset + w.len()].iter().map(|&v| f64::from(v)).collect());
    }
    let sampled = (SAMPLED_VALUES / at.iter().map(Vec::len).sum::<usize>()).clamp(2, SAMPLED);
    let mut rng = Rng::new(at.iter().map(|a| a.len() as u64).sum());
    for (t, got) in grads.iter().enumerate() {
        if got.is_empty() {
            continue;
        }
        let largest = got.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
        let places: Vec<usize> = if got.len() <= sampled {
            (0..got.len()).collect()
        } else {
            (0..sampled).map(|_| rng.below(got.len())).collect()
        };
        for i in places {
            let here = at[t][i];
            at[t][i] = here + STEP;
            let above = reference(&at).1;
            at[t][i] = here - STEP;
            let below = reference(&at).1;
            at[t][i] = here;
            let want = (above - below) / (2.0 * STEP);
            assert!(
                (got[i] - want).abs() <= BACKWARD * largest,
                "{name}: gradient of tensor {t} at {i} is {}, should be {want} (largest {largest})",
                got[i]
            );
        }
        let direction: Vec<f64> = got.iter().map(|_| f64::from(rng.normal())).collect();
        let step = STEP / (got.len() as f64).sqrt();
        let here = at[t].clone();
        let mut moved = |sign: f64| {
            at[t]
                .iter_mut()
                .zip(here.iter().zip(&direction))
                .for_each(|(a, (h, d))| *a = h + sign * step * d);
            reference(&at).1
        };
        let want = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        at[t] = here;
        let slope: f64 = got.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let size = got.iter().map(|g| g * g).sum::<f64>().sqrt().max(1e-3);
        assert!(
            (slope - want).abs() <= 2.0 * BACKWARD * size,
            "{name}: slope of tensor {t} is {slope}, should be {want} (norm {size})"
        );
    }
}

/// [`check`] for ops that return tensors: the loss is `Σ c · output` with random `c`. Outputs whose index is in
/// `unused` get no gradient at all.
pub fn check_op(
    name: &str,
    rng: &mut Rng,
    inputs: &[Matrix],
    weights: &[Matrix],
    unused: &[usize],
    engine: impl FnOnce(&Tape, &[Tensor], &[Weight]) -> Vec<Tensor>,
    reference: impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>>,
) {
    let wide: Vec<Vec<f64>> =
        inputs.iter().chain(weights).map(|m| m.data.iter().map(|&v| f64::from(v)).collect()).collect();
    let lengths: Vec<usize> = reference(&wide).iter().map(Vec::len).collect();
    let slopes: Vec<Vec<f32>> = lengths
        .iter()
        .enumerate()
        .map(|(o, &n)| (0..n).map(|_| if unused.contains(&o) { 0.0 } else { rng.normal() }).collect())
        .collect();
    check(
        name,
        inputs,
        weights,
        |tape, x, w| {
            let out = engine(tape, x, w);
            for (o, y) in out.iter().enumerate().filter(|(o, _)| !unused.contains(o)) {
                y.add_grad(Buf::copy_of(&slopes[o]));
            }
            out.iter().map(|y| y.host().to_vec()).collect()
        },
        |at| {
            let out = reference(at);
            let loss = dot_all(&out, &slopes);
            (out, loss)
        },
    );
}

/// `Σ c · output`.
pub fn dot_all(out: &[Vec<f64>], slopes: &[Vec<f32>]) -> f64 {
    out.iter().zip(slopes).flat_map(|(o, s)| o.iter().zip(s)).map(|(o, s)| o * f64::from(*s)).sum()
}

/// A hash of bits: equal for equal bits, `-0.0` and `0.0` apart. What is no number is one value: its sign is the processor's
/// choice, minus on x86 and plus on ARM.
pub fn hash(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |h, v| {
        let bits = if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
        let h = (h ^ u64::from(bits)).wrapping_mul(0x0000_0100_0000_01b3);
        h ^ (h >> 29)
    })
}

/// Asserts that two slices have the same bits.
pub fn same_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            g.to_bits() == w.to_bits(),
            "{what}: value {i} is {g:e} ({:08x}), should be {w:e} ({:08x})",
            g.to_bits(),
            w.to_bits()
        );
    }
}

/// A random order of `0..n`.
pub fn shuffled(rng: &mut Rng, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    (1..n).rev().for_each(|i| order.swap(i, rng.below(i + 1)));
    order
}
