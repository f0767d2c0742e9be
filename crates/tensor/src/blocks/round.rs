//! Rounding values into ggml's blocks.
//!
//! The simple formats round as `quantize_row_*_ref` of `ggml-quants.c` does, bit for bit. The K formats search each run for the
//! scale (and minimum) of the least weighted square error, as the same file does, over the same candidates.

use half::f16;

use super::scale_and_min;

/// Runs whose largest value lies below this are taken for zeros.
const NOTHING: f32 = 1e-15;

fn put_half(out: &mut Vec<u8>, x: f32) {
    out.extend(f16::from_f32(x).to_le_bytes());
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn pairs(codes: impl Fn(usize) -> u8, out: &mut Vec<u8>) {
    out.extend((0..16).map(|i| codes(i) | codes(i + 16) << 4));
}

/// The value of the largest size, with its sign; the first of equals.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, &x| if x.abs() > most.abs() { x } else { most })
}

pub(super) fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = largest(x).abs() / 127.0;
    put_half(out, d);
    let id = inverse(d);
    out.extend(x.iter().map(|x| (x * id).round() as i8 as u8));
}

pub(super) fn q4_0(x: &[f32], out: &mut Vec<u8>) {
    let d = largest(x) / -8.0;
    put_half(out, d);
    let id = inverse(d);
    pairs(|i| ((x[i] * id + 8.5) as i8).min(15) as u8, out);
}

pub(super) fn q5_0(x: &[f32], out: &mut Vec<u8>) {
    let d = largest(x) / -16.0;
    put_half(out, d);
    let id = inverse(d);
    let code = |i: usize| ((x[i] * id + 16.5) as i8).min(31) as u8;
    let high = (0..32).fold(0u32, |bits, i| bits | u32::from(code(i) >> 4) << i);
    out.extend(high.to_le_bytes());
    pairs(|i| code(i) & 15, out);
}

pub(super) fn q4_1(x: &[f32], out: &mut Vec<u8>) {
    let min = x.iter().copied().fold(f32::MAX, f32::min);
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    let d = (max - min) / 15.0;
    put_half(out, d);
    put_half(out, min);
    let id = inverse(d);
    pairs(|i| (((x[i] - min) * id + 0.5) as i8).min(15) as u8, out);
}

/// The code nearest to `x`, at most `most`.
fn code(x: f32, most: u8) -> u8 {
    x.round_ties_even().clamp(0.0, f32::from(most)) as u8
}

/// Scale and (negated) minimum of a run, by weighted least squares over 21 ways to cut it into codes.
fn scale_above_min(x: &[f32], weights: &[f32], most: u8) -> (f32, f32) {
    let mut min = x.iter().copied().fold(f32::MAX, f32::min).min(0.0);
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    if max <= min {
        return (0.0, -min);
    }
    let (low, range) = (min, max - min);
    let sum_w: f32 = weights.iter().sum();
    let sum_x: f32 = weights.iter().zip(x).map(|(w, x)| w * x).sum();
    let error = |scale: f32, min: f32, cut: f32| -> f32 {
        let of = |(x, w): (&f32, &f32)| {
            let off = scale * f32::from(code(cut * (x - low), most)) + min - x;
            w * off * off
        };
        x.iter().zip(weights).map(of).sum()
    };
    let cut = f32::from(most) / range;
    let mut scale = 1.0 / cut;
    let mut best = error(scale, min, cut);
    for step in 0..=20 {
        let cut = (-1.0 + 0.1 * step as f32 + f32::from(most)) / range;
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0.0, 0.0, 0.0);
        for (x, w) in x.iter().zip(weights) {
            let l = f32::from(code(cut * (x - low), most));
            sum_l += w * l;
            sum_ll += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        if this_min > 0.0 {
            (this_min, this_scale) = (0.0, sum_xl / sum_ll);
        }
        let this = error(this_scale, this_min, cut);
        if this < best {
            (best, scale, min) = (this, this_scale, this_min);
        }
    }
    (scale, -min)
}

pub(super) fn q4_k(x: &[f32], out: &mut Vec<u8>) {
    let mut runs = [(0.0f32, 0.0f32); 8];
    for (run, x) in runs.iter_mut().zip(x.chunks_exact(32)) {
        let mean = (x.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
        let weights: Vec<f32> = x.iter().map(|x| mean + x.abs()).collect();
        *run = scale_above_min(x, &weights, 15);
    }
    let top = |part: fn(&(f32, f32)) -> f32| runs.iter().map(part).fold(0.0f32, f32::max);
    let (top_scale, top_min) = (top(|r| r.0), top(|r| r.1));
    let (by_scale, by_min) = (63.0 * inverse(top_scale), 63.0 * inverse(top_min));
    let mut head = Vec::with_capacity(4);
    put_half(&mut head, top_scale / 63.0);
    put_half(&mut head, top_min / 63.0);
    let mut packed = [0u8; 12];
    for (j, (scale, min)) in runs.iter().enumerate() {
        let (s, m) = (code(by_scale * scale, 63), code(by_min * min, 63));
        if j < 4 {
            packed[j] = s;
            packed[j + 4] = m;
        } else {
            packed[j + 4] = s & 15 | (m & 15) << 4;
            packed[j - 4] |= s >> 4 << 6;
            packed[j] |= m >> 4 << 6;
        }
    }
    let mut codes = [0u8; 256];
    for (j, (codes, x)) in codes.chunks_exact_mut(32).zip(x.chunks_exact(32)).enumerate() {
        let (d, m) = scale_and_min(&head, &packed, j);
        if d != 0.0 {
            codes.iter_mut().zip(x).for_each(|(l, x)| *l = code((x + m) / d, 15));
        }
    }
    out.extend(head);
    out.extend(packed);
    for pair in codes.chunks_exact(64) {
        out.extend((0..32).map(|i| pair[i] | pair[i + 32] << 4));
    }
}

/// The scale of a run around zero, codes from -32 to 31, by least squares weighted with the squares of the values, over 19
/// ways to cut it.
fn scale_around_zero(x: &[f32]) -> f32 {
    let max = largest(x);
    if max.abs() < NOTHING {
        return 0.0;
    }
    let (mut scale, mut best) = (0.0, 0.0f32);
    // The plain cut first: another must be better than it.
    for step in [0].into_iter().chain(-9..0).chain(1..=9) {
        let cut = -(32.0 + 0.1 * step as f32) / max;
        let (mut sum_lx, mut sum_ll) = (0.0f32, 0.0f32);
        for &x in x {
            let l = (cut * x).round_ties_even().clamp(-32.0, 31.0);
            sum_lx += x * x * x * l;
            sum_ll += x * x * l * l;
        }
        if sum_ll > 0.0 && (step == 0 || sum_lx * sum_lx > best * sum_ll) {
            scale = sum_lx / sum_ll;
            best = scale * sum_lx;
        }
    }
    scale
}

pub(super) fn q6_k(x: &[f32], out: &mut Vec<u8>) {
    let scales: Vec<f32> = x.chunks_exact(16).map(scale_around_zero).collect();
    let top = largest(&scales);
    if top.abs() < NOTHING {
        return out.resize(out.len() + 210, 0);
    }
    let by = -128.0 / top;
    let d = f16::from_f32(1.0 / by);
    let scales: Vec<i8> = scales.iter().map(|s| (by * s).round_ties_even().min(127.0) as i8).collect();
    let mut codes = [32u8; 256];
    for ((codes, x), &scale) in codes.chunks_exact_mut(16).zip(x.chunks_exact(16)).zip(&scales) {
        let d = d.to_f32() * f32::from(scale);
        if d != 0.0 {
            let of = |x: &f32| (x / d).round_ties_even().clamp(-32.0, 31.0) as i8;
            codes.iter_mut().zip(x).for_each(|(l, x)| *l = (of(x) + 32) as u8);
        }
    }
    for part in codes.chunks_exact(128) {
        for run in [0, 32] {
            out.extend((0..32).map(|i| part[run + i] & 15 | (part[run + i + 64] & 15) << 4));
        }
    }
    for part in codes.chunks_exact(128) {
        let high = |i: usize| (0..4).fold(0, |bits, run| bits | (part[32 * run + i] >> 4) << (2 * run));
        out.extend((0..32).map(high));
    }
    out.extend(scales.iter().map(|&s| s as u8));
    out.extend(d.to_le_bytes());
}
