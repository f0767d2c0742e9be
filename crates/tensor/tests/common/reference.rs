//! The mathematics of the ops in plain f64, written for reading.

use tensor::ops::Pairs;

/// `x [n, k]` by `w [m, k]` transposed, plus `bias [m]`.
pub fn linear(x: &[f64], w: &[f64], bias: Option<&[f64]>, k: usize) -> Vec<f64> {
    let m = w.len() / k;
    let mut y = Vec::new();
    for row in x.chunks(k) {
        for o in 0..m {
            y.push((0..k).map(|i| row[i] * w[o * k + i]).sum::<f64>() + bias.map_or(0.0, |b| b[o]));
        }
    }
    y
}

/// Rows of `w.len()` features, each divided by its root mean square.
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let h = w.len();
    x.chunks(h)
        .flat_map(|row| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / h as f64;
            row.iter().zip(w).map(move |(v, w)| v / (mean + eps).sqrt() * w)
        })
        .collect()
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `[n, 2 * inner]` to `[n, inner]`.
pub fn swiglu(x: &[f64], inner: usize) -> Vec<f64> {
    x.chunks(2 * inner)
        .flat_map(|row| (0..inner).map(move |i| row[i] * sigmoid(row[i]) * row[inner + i]))
        .collect()
}

/// One head rotated by its position; all first members of pairs come before all second members.
pub fn rotate(x: &[f64], inv_freq: &[f32], scaling: f32, position: u32, pairs: Pairs) -> Vec<f64> {
    let half = inv_freq.len();
    let mut y = vec![0.0; 2 * half];
    for (i, f) in inv_freq.iter().enumerate() {
        // The angle is an f32 product, as in the models' definition.
        let angle = f64::from(position as f32 * f);
        let (c, s) = (angle.cos() * f64::from(scaling), angle.sin() * f64::from(scaling));
        let (a, b) = if pairs == Pairs::Interleaved { (x[2 * i], x[2 * i + 1]) } else { (x[i], x[i + half]) };
        y[i] = a * c - b * s;
        y[i + half] = b * c + a * s;
    }
    y
}

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub qk: usize,
    pub v: usize,
    pub scale: f32,
    pub window: Option<usize>,
}

/// Causal attention within each of the sequences of lengths `lens`, which follow one another.
pub fn attention(q: &[f64], k: &[f64], v: &[f64], s: Heads, lens: &[usize]) -> Vec<f64> {
    let mut y = vec![0.0; q.len() / s.qk * s.v];
    let mut start = 0;
    for &len in lens {
        for t in start..start + len {
            let first = s.window.map_or(start, |window| start.max((t + 1).saturating_sub(window)));
            for h in 0..s.heads {
                let kv = h / (s.heads / s.kv_heads);
                let q = &q[(t * s.heads + h) * s.qk..][..s.qk];
                let scores: Vec<f64> = (first..=t)
                    .map(|j| {
                        let k = &k[(j * s.kv_heads + kv) * s.qk..][..s.qk];
                        q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * f64::from(s.scale)
                    })
                    .collect();
                let p = softmax(&scores);
                for (j, p) in (first..=t).zip(p) {
                    for d in 0..s.v {
                        y[(t * s.heads + h) * s.v + d] += p * v[(j * s.kv_heads + kv) * s.v + d];
                    }
                }
            }
        }
        start += len;
    }
    y
}

pub fn softmax(x: &[f64]) -> Vec<f64> {
    log_softmax(x).iter().map(|v| v.exp()).collect()
}

pub fn log_softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
    let lse = top + x.iter().map(|v| (v - top).exp()).sum::<f64>().ln();
    x.iter().map(|v| v - lse).collect()
}

/// The experts that a token chooses, ascending: the best `top_k` by score plus bias within the best groups, where
/// a group's strength is the sum of its two best.
pub fn choose(scores: &[f64], bias: &[f32], top_k: usize, groups: usize, top_groups: usize) -> Vec<u32> {
    let biased: Vec<f64> = scores.iter().zip(bias).map(|(s, b)| s + f64::from(*b)).collect();
    let per = biased.len() / groups;
    let strength = |g: usize| {
        let mut of = biased[g * per..][..per].to_vec();
        of.sort_by(|a, b| b.total_cmp(a));
        of.iter().take(2).sum::<f64>()
    };
    let mut order: Vec<usize> = (0..groups).collect();
    order.sort_by(|&a, &b| strength(b).total_cmp(&strength(a)));
    let kept = &order[..top_groups.min(groups)];
    let mut left: Vec<usize> = (0..biased.len()).filter(|i| kept.contains(&(i / per))).collect();
    left.sort_by(|&a, &b| biased[b].total_cmp(&biased[a]));
    let mut chosen: Vec<u32> = left[..top_k].iter().map(|&i| i as u32).collect();
    chosen.sort_unstable();
    chosen
}

/// The weights of the chosen experts.
pub fn route_weights(
    logits: &[f64],
    chosen: &[u32],
    top_k: usize,
    experts: usize,
    normalize: bool,
    scaling: f32,
) -> Vec<f64> {
    let mut out = Vec::new();
    for (row, chosen) in logits.chunks(experts).zip(chosen.chunks(top_k)) {
        let s: Vec<f64> = chosen.iter().map(|&e| sigmoid(row[e as usize])).collect();
        let total: f64 = if normalize { s.iter().sum() } else { 1.0 };
        out.extend(s.iter().map(|s| s / total * f64::from(scaling)));
    }
    out
}

/// DeepSeek-V3's sequence-wise balance loss, `α Σ_i f_i P_i` per sequence, averaged over tokens.
pub fn balance_loss(
    logits: &[f64],
    chosen: &[u32],
    top_k: usize,
    experts: usize,
    lens: &[usize],
    alpha: f32,
) -> f64 {
    let tokens: usize = lens.iter().sum();
    let (mut start, mut loss) = (0, 0.0);
    for &len in lens {
        let scores: Vec<Vec<f64>> = logits[start * experts..(start + len) * experts]
            .chunks(experts)
            .map(|r| r.iter().map(|&l| sigmoid(l)).collect())
            .collect();
        for i in 0..experts {
            let count =
                chosen[start * top_k..(start + len) * top_k].iter().filter(|&&e| e as usize == i).count();
            let f = (experts * count) as f64 / (top_k * len) as f64;
            let p = scores.iter().map(|s| s[i] / s.iter().sum::<f64>()).sum::<f64>() / len as f64;
            loss += f64::from(alpha) * f * p * len as f64 / tokens as f64;
        }
        start += len;
    }
    loss
}
