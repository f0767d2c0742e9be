//! Elementary functions as fixed polynomials, so that they give the same bits everywhere.

use super::simd::{LANES, Simd, kernel};
use crate::buffer::Buf;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// `1.5 * 2^23`: adding it rounds a small float to an integer held in the low mantissa bits.
const MAGIC: f32 = 12_582_912.0;
const EXP_MIN: f32 = -87.0;
const EXP_MAX: f32 = 88.0;

/// `e^x` per lane, within 2 units in the last place; exactly 0 below -87, saturated above 88, NaN for NaN.
///
/// # Safety
/// The machine has the instruction set `S`.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        // With the bound as the first operand, a NaN passes through and comes out.
        let clamped = S::min(S::splat(EXP_MAX), S::max(S::splat(EXP_MIN), x));
        let t = S::fma(clamped, S::splat(LOG2_E), S::splat(MAGIC));
        let n = S::sub(t, S::splat(MAGIC));
        let r = S::fma(n, S::splat(-LN2_HI), clamped);
        let r = S::fma(n, S::splat(-LN2_LO), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_5e-2, 1.666_666_5e-1, 5.000_000_3e-1] {
            p = S::fma(p, r, S::splat(c));
        }
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        S::zero_below(x, EXP_MIN, S::mul(p, S::exp2_of_magic(t)))
    }
}

/// `1 / (1 + e^-x)` per lane.
///
/// # Safety
/// The machine has the instruction set `S`.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(S::splat(1.0), S::add(S::splat(1.0), e))
    }
}

/// Natural logarithm of a positive, finite number, correctly rounded in all but rare cases: the same bits on
/// every platform, unlike the system's `logf`.
pub fn ln(x: f32) -> f32 {
    if !(x > 0.0 && x.is_finite()) {
        return if x == 0.0 {
            f32::NEG_INFINITY
        } else if x == f32::INFINITY {
            x
        } else {
            f32::NAN
        };
    }
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh((m - 1) / (m + 1)).
    let bits = f64::from(x).to_bits();
    let mut e = ((bits >> 52) as i64) - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut series = 0.0;
    for k in (0..11).rev() {
        series = series * s2 + 1.0 / f64::from(2 * k + 1);
    }
    (2.0 * s * series + e as f64 * std::f64::consts::LN_2) as f32
}

/// Sine and cosine of an angle in radians (|angle| up to about a million), the same bits on every platform.
pub fn sin_cos(angle: f32) -> (f32, f32) {
    let x = f64::from(angle);
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    // Pi/2 in two parts: the first has 33 significant bits, so that n * HI is exact.
    const HI: f64 = 1.570_796_326_734_125_6;
    const LO: f64 = 6.077_100_506_506_192e-11;
    let r = (x - n * HI) - n * LO;
    let r2 = r * r;
    let (mut s, mut c) = (0.0, 0.0);
    for k in (1..10).rev() {
        let k2 = 2.0 * f64::from(k);
        s = -r2 / (k2 * (k2 + 1.0)) * (1.0 + s);
        c = -r2 / (k2 * (k2 - 1.0)) * (1.0 + c);
    }
    let (s, c) = (r * (1.0 + s), 1.0 + c);
    let (s, c) = match (n as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    };
    (s as f32, c as f32)
}

kernel! {
    /// Sum of a slice: lane `i` sums elements `i, i + 16, …` in order, then the lanes are halved.
    pub fn sum<S>(x: &[f32]) -> f32 {
        let mut acc = S::splat(0.0);
        let mut chunks = x.chunks_exact(LANES);
        for c in &mut chunks {
            acc = S::add(acc, S::load(c.as_ptr()));
        }
        let rest = chunks.remainder();
        S::sum(S::add(acc, S::load_partial(rest.as_ptr(), rest.len())))
    }
}

kernel! {
    /// Dot product with the same order of summation as [`sum`]. Panics if the lengths differ.
    pub fn dot<S>(x: &[f32], y: &[f32]) -> f32 {
        assert_eq!(x.len(), y.len(), "dot: lengths differ");
        let mut acc = S::splat(0.0);
        let whole = x.len() / LANES * LANES;
        let mut i = 0;
        while i < whole {
            acc = S::fma(S::load(x.as_ptr().add(i)), S::load(y.as_ptr().add(i)), acc);
            i += LANES;
        }
        let n = x.len() - whole;
        let (a, b) = (S::load_partial(x.as_ptr().add(i), n), S::load_partial(y.as_ptr().add(i), n));
        S::sum(S::fma(a, b, acc))
    }
}

kernel! {
    /// Largest element of a slice (negative infinity for an empty one).
    pub fn max<S>(x: &[f32]) -> f32 {
        let mut acc = S::splat(f32::NEG_INFINITY);
        let mut chunks = x.chunks_exact(LANES);
        for c in &mut chunks {
            acc = S::max(acc, S::load(c.as_ptr()));
        }
        let mut m = S::max_lane(acc);
        for &v in chunks.remainder() {
            m = if m > v { m } else { v };
        }
        m
    }
}

kernel! {
    /// `x[i] <- exp(x[i] - shift)`; returns the sum in the order of [`sum`].
    pub fn exp_sum<S>(x: &mut [f32], shift: f32) -> f32 {
        let shift = S::splat(shift);
        let mut acc = S::splat(0.0);
        let whole = x.len() / LANES * LANES;
        let p = x.as_mut_ptr();
        let mut i = 0;
        while i < whole {
            let e = exp::<S>(S::sub(S::load(p.add(i)), shift));
            S::store(p.add(i), e);
            acc = S::add(acc, e);
            i += LANES;
        }
        let n = x.len() - whole;
        let e = exp::<S>(S::sub(S::load_partial(p.add(i), n), shift));
        S::store_partial(p.add(i), n, e);
        S::sum(S::add(acc, S::load_partial(p.add(i), n)))
    }
}

kernel! {
    /// `y += a * x`. Panics if the lengths differ.
    pub fn axpy<S>(a: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "axpy: lengths differ");
        let va = S::splat(a);
        let whole = x.len() / LANES * LANES;
        let (px, py) = (x.as_ptr(), y.as_mut_ptr());
        let mut i = 0;
        while i < whole {
            S::store(py.add(i), S::fma(va, S::load(px.add(i)), S::load(py.add(i))));
            i += LANES;
        }
        for j in whole..x.len() {
            y[j] = a.mul_add(x[j], y[j]);
        }
    }
}

kernel! {
    /// `y = a * x + b * y`, rounded after `b * y` and at the end. Panics if the lengths differ.
    pub fn blend<S>(a: f32, x: &[f32], b: f32, y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "blend: lengths differ");
        let (va, vb) = (S::splat(a), S::splat(b));
        let whole = x.len() / LANES * LANES;
        let (px, py) = (x.as_ptr(), y.as_mut_ptr());
        let mut i = 0;
        while i < whole {
            S::store(py.add(i), S::fma(va, S::load(px.add(i)), S::mul(vb, S::load(py.add(i)))));
            i += LANES;
        }
        for j in whole..x.len() {
            y[j] = a.mul_add(x[j], b * y[j]);
        }
    }
}

kernel! {
    /// `y += x`. Panics if the lengths differ.
    pub fn add_assign<S>(y: &mut [f32], x: &[f32]) {
        assert_eq!(x.len(), y.len(), "add_assign: lengths differ");
        let whole = x.len() / LANES * LANES;
        let (px, py) = (x.as_ptr(), y.as_mut_ptr());
        let mut i = 0;
        while i < whole {
            S::store(py.add(i), S::add(S::load(py.add(i)), S::load(px.add(i))));
            i += LANES;
        }
        for j in whole..x.len() {
            y[j] += x[j];
        }
    }
}

kernel! {
    /// `y *= a`.
    pub fn scale<S>(y: &mut [f32], a: f32) {
        let va = S::splat(a);
        let whole = y.len() / LANES * LANES;
        let p = y.as_mut_ptr();
        let mut i = 0;
        while i < whole {
            S::store(p.add(i), S::mul(S::load(p.add(i)), va));
            i += LANES;
        }
        for j in whole..y.len() {
            y[j] *= a;
        }
    }
}

/// The transpose of `x [rows, cols]`.
pub(crate) fn transposed(x: &[f32], rows: usize, cols: usize) -> Buf {
    let mut t = Buf::new(rows * cols);
    for r in 0..rows {
        for c in 0..cols {
            t[c * rows + r] = x[r * cols + c];
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_ln_are_close_to_the_real_functions() {
        let mut x: Vec<f32> = (-8600..8700).map(|i| i as f32 * 0.01).collect();
        let want: Vec<f64> = x.iter().map(|&v| f64::from(v).exp()).collect();
        exp_sum(&mut x, 0.0);
        for (got, want) in x.iter().zip(&want) {
            assert!((f64::from(*got) / want - 1.0).abs() < 3e-7, "exp: {got} for {want}");
        }
        for i in 1..10_000 {
            let v = i as f32 * 0.37;
            assert!((f64::from(ln(v)) - f64::from(v).ln()).abs() < 1e-6, "ln {v}");
        }
        let mut ends = [f32::NEG_INFINITY, -88.0, -1e30];
        exp_sum(&mut ends, 0.0);
        assert_eq!(ends, [0.0; 3], "masked scores must weigh exactly nothing");
    }

    #[test]
    fn sin_cos_is_close_to_the_real_function() {
        for i in -20_000..20_000 {
            let a = i as f32 * 1.7;
            let (s, c) = sin_cos(a);
            assert!((f64::from(s) - f64::from(a).sin()).abs() < 1e-7, "sin {a}");
            assert!((f64::from(c) - f64::from(a).cos()).abs() < 1e-7, "cos {a}");
        }
    }
}
