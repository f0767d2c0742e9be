//! From logits to tokens where nothing is filtered, and the rows that are wanted out of a batch.

use crate::cpu::math;
use crate::cuda::{Gpu, Math, ROW_THREADS, args, row_grid};
use crate::memory::Data;
use crate::ops::normalizer;
use crate::params::Params;
use crate::tape::Tensor;
use crate::threads::parallel_chunks;

/// How a row's token is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Draw {
    /// 0 (or less) takes the most likely token, the one of the lowest id if there are several.
    pub temperature: f32,
    /// Where the draw falls, in [0, 1).
    pub uniform: f32,
    /// The token, where it is chosen already and only its log-probabilities are asked for.
    pub given: Option<u32>,
}

/// A token that was chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Its log-probability under the model, at temperature 1.
    pub logprob: f32,
    /// Its log-probability at the temperature that it was drawn at, the same where that is 0.
    pub tempered: f32,
}

/// The given rows of `x`, `[rows, cols]`.
pub fn pick_rows(params: &Params, x: &Tensor, rows: &[u32]) -> Tensor {
    let (n, cols) = (rows.len(), x.cols());
    assert!(rows.iter().all(|&r| (r as usize) < x.rows()), "pick_rows: rows beyond {}", x.rows());
    let mut out = Data::new(params.gpu(), n * cols);
    match params.gpu() {
        Some(gpu) => {
            let rows = gpu.upload_ints(rows);
            let args = args![x.data.on(gpu), &rows, out.on_mut(gpu), cols];
            gpu.launch("elementwise_gather_rows", row_grid(n, cols), ROW_THREADS, args);
        }
        None => {
            for (to, &row) in out.host_mut().chunks_exact_mut(cols).zip(rows) {
                to.copy_from_slice(x.row(row as usize));
            }
        }
    }
    Tensor::constant(out, n, cols)
}

/// A token for every row of `logits [rows, vocab]`.
pub fn sample(params: &Params, logits: &Tensor, draws: &[Draw]) -> Vec<Drawn> {
    let (n, vocab) = (logits.rows(), logits.cols());
    assert_eq!(draws.len(), n, "sample: {} draws for {n} rows", draws.len());
    if let Some(gpu) = params.gpu().filter(|gpu| gpu.math() == Math::Fast || vocab <= MAX_VOCAB) {
        return sample_cuda(gpu, logits, draws);
    }
    let logits = logits.host();
    let mut chosen = vec![Drawn::default(); n];
    parallel_chunks(&mut chosen, 4, |at, out| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = choose(&logits[(at + i) * vocab..][..vocab], draws[at + i]);
        }
    });
    chosen
}

fn sample_cuda(gpu: &Gpu, logits: &Tensor, draws: &[Draw]) -> Vec<Drawn> {
    let (n, vocab) = (logits.rows(), logits.cols());
    let [temperature, uniform] = [|d: &Draw| d.temperature, |d: &Draw| d.uniform]
        .map(|of| gpu.upload(&draws.iter().map(of).collect::<Vec<_>>()));
    let given: Vec<u32> = draws.iter().map(|d| d.given.unwrap_or(u32::MAX)).collect();
    let given = gpu.upload_ints(&given);
    // Tokens and log-probabilities in one slab, to be fetched at once.
    let all = gpu.alloc(3 * n);
    let [tokens, logprobs, tempered] = [0, n, 2 * n].map(|at| all.at(at));
    let args = args![logits.data.on(gpu), &temperature, &uniform, &given, tokens, logprobs, tempered, vocab];
    let kernel = match gpu.math() {
        Math::Exact => "sampling_choose",
        Math::Fast => "fast_head_choose",
    };
    gpu.launch(kernel, [n, 1, 1], 512, args);
    let mut bits = vec![0u32; 3 * n];
    gpu.download(&all, &mut bits);
    let drawn = |i: usize| {
        let [logprob, tempered] = [bits[n + i], bits[2 * n + i]].map(f32::from_bits);
        Drawn { token: bits[i], logprob, tempered }
    };
    (0..n).map(drawn).collect()
}

/// The largest vocabulary that the exact kernel takes.
const MAX_VOCAB: usize = 1 << 21;

fn choose(logits: &[f32], draw: Draw) -> Drawn {
    let lse = normalizer(logits).0;
    let greedy = draw.temperature <= 0.0;
    let scale = if greedy { 1.0 } else { 1.0 / draw.temperature };
    let mut p = logits.to_vec();
    let mut tempered = lse;
    if scale != 1.0 {
        math::scale(&mut p, scale);
        tempered = normalizer(&p).0;
    }
    let token = match draw.given {
        Some(token) => token as usize,
        None if greedy => argmax(logits),
        None => {
            let top = math::max(&p);
            math::exp_sum(&mut p, top);
            walk(&p, draw.uniform)
        }
    };
    Drawn { token: token as u32, logprob: logits[token] - lse, tempered: logits[token] * scale - tempered }
}

/// The first index at which the sum of `weights` exceeds `uniform` of their total; the last that is not zero if none.
pub fn walk(weights: &[f32], uniform: f32) -> usize {
    // Summed in the order of the walk, so that the walk always ends inside.
    let total: f64 = weights.iter().map(|&x| f64::from(x)).sum();
    let target = f64::from(uniform) * total;
    let mut sum = 0.0;
    let mut last = 0;
    for (i, &x) in weights.iter().enumerate() {
        if x > 0.0 {
            last = i;
            sum += f64::from(x);
            if sum > target {
                break;
            }
        }
    }
    last
}

/// The index of the greatest value, the first if there are several.
pub fn argmax(x: &[f32]) -> usize {
    let top = math::max(x);
    x.iter().position(|&v| v == top).unwrap_or(0)
}
