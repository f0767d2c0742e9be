//! Sixteen virtual lanes of f32, the unit in which every reduction of this crate is defined.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set by `kernel!`. All
//! implementations perform the same IEEE operations per lane (fused multiply-add included) and reduce lanes by
//! the same tree, so a kernel gives the same bits on AVX-512, AVX2, NEON and the scalar fallback.

use std::sync::OnceLock;

/// The number of virtual lanes, on every machine.
pub const LANES: usize = 16;

/// The instruction set that kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust with `f32::mul_add`.
    Scalar,
    /// AVX2 with FMA: two registers per virtual vector.
    Avx2,
    /// AVX-512F: one register per virtual vector.
    Avx512,
    /// AArch64 NEON: four registers per virtual vector. Run by us in an emulator alone.
    Neon,
}

static ISA: OnceLock<Isa> = OnceLock::new();

/// The instruction set in use: the best that the machine has, or the one named by the environment variable
/// `SHOESTRING_ISA` (`scalar`, `avx2`, `avx512`, `neon`). Panics if that names none of the machine's; see [`wanted`].
pub fn isa() -> Isa {
    *ISA.get_or_init(|| wanted().unwrap_or_else(|refusal| panic!("{refusal}")))
}

/// What the environment asks for.
///
/// # Errors
/// A name that is no instruction set of this machine.
pub fn wanted() -> Result<Isa, String> {
    let available = available();
    match std::env::var("SHOESTRING_ISA") {
        Ok(name) if !name.is_empty() => {
            let named = available.iter().copied().find(|i| format!("{i:?}").eq_ignore_ascii_case(&name));
            named.ok_or_else(|| format!("SHOESTRING_ISA={name}: this machine has {available:?}"))
        }
        _ => Ok(available[0]),
    }
}

/// The instruction sets of this machine, best first; the scalar fallback is always the last.
pub fn available() -> Vec<Isa> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            found.push(Isa::Avx512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            found.push(Isa::Avx2);
        }
    }
    #[cfg(target_arch = "aarch64")]
    found.push(Isa::Neon);
    found.push(Isa::Scalar);
    found
}

/// Arithmetic on one virtual vector of [`LANES`] lanes.
///
/// # Safety
/// Every method requires that the machine has the instruction set; `kernel!` is the only caller that picks
/// one. Pointer methods require the lanes they touch to be valid.
#[allow(clippy::missing_safety_doc, reason = "stated once above for all methods")]
pub trait Simd: Copy {
    /// One virtual vector.
    type V: Copy;
    /// Rows of the matrix-product micro-kernel.
    const MR: usize;
    /// Virtual vectors per row of the micro-kernel.
    const NV: usize;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self::V;
    /// The [`LANES`] values at `p`, which need not be aligned.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes the [`LANES`] values to `p`, which need not be aligned.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Lane-wise `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c` with one rounding.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Lane-wise `if a > b { a } else { b }`.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise `if a < b { a } else { b }`.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise square root.
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// `2^n` per lane, where the lane holds `1.5 * 2^23 + n` (the float that rounding to an integer leaves).
    unsafe fn exp2_of_magic(t: Self::V) -> Self::V;
    /// Zero where `x < bound`, else `v` (also where `x` is NaN).
    unsafe fn zero_below(x: Self::V, bound: f32, v: Self::V) -> Self::V;

    /// Asks for what lies at `p`, which need not be there.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    /// The same, but no further than into the second-level cache.
    #[inline(always)]
    unsafe fn prefetch_second(_: *const u8) {}
    /// The lower (`half` 0) or the upper halves (1) of 16 bytes, less `zero`.
    #[inline(always)]
    unsafe fn nibbles(p: *const u8, half: usize, zero: Self::V) -> Self::V {
        // SAFETY: the caller's promises.
        unsafe {
            let codes = (*p.cast::<[u8; LANES]>()).map(|q| f32::from((q >> (4 * half)) & 15));
            Self::sub(Self::load(codes.as_ptr()), zero)
        }
    }
    /// Lanes `0..n` from `p`, the rest zero.
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: n <= LANES values are readable at p (caller) and writable in the local array.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }
    /// Lanes `0..n` to `p`.
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, n: usize, v: Self::V) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: as above, the other way round.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
    /// Sum of the lanes by halving: `i` with `i + 8`, then `+ 4`, `+ 2`, `+ 1`.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: the local array has LANES values.
        unsafe { halve(to_array::<Self>(v), |a, b| a + b) }
    }
    /// Maximum of the lanes by the same tree.
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        // SAFETY: as for `sum`.
        unsafe { halve(to_array::<Self>(v), |a, b| if a > b { a } else { b }) }
    }
}

#[inline(always)]
unsafe fn to_array<S: Simd>(v: S::V) -> [f32; LANES] {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: the array has LANES values; the instruction set is the caller's promise.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    lanes
}

#[inline(always)]
fn halve(mut l: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut w = LANES / 2;
    while w > 0 {
        for i in 0..w {
            l[i] = f(l[i], l[i + w]);
        }
        w /= 2;
    }
    l[0]
}

/// The fallback: an array of lanes.
#[derive(Clone, Copy)]
pub struct Scalar;

macro_rules! lanewise {
    ($a:ident, $b:ident, $e:expr) => {{
        let mut out = [0.0f32; LANES];
        for i in 0..LANES {
            let ($a, $b) = ($a[i], $b[i]);
            out[i] = $e;
        }
        out
    }};
}

impl Simd for Scalar {
    type V = [f32; LANES];
    const MR: usize = 4;
    const NV: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller promises LANES readable values.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut out = c;
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn exp2_of_magic(t: Self::V) -> Self::V {
        t.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::V, bound: f32, v: Self::V) -> Self::V {
        lanewise!(x, v, if x < bound { 0.0 } else { v })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Simd};
    use std::arch::x86_64::*;

    /// AVX-512F.
    #[derive(Clone, Copy)]
    pub struct Avx512;

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    // SAFETY (both implementations): intrinsics are reached only through `kernel!`, which has checked that the
    // machine has the instruction set; pointers are the caller's promise.
    impl Simd for Avx512 {
        type V = __m512;
        const MR: usize = 12;
        const NV: usize = 2;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: __m512) -> __m512 {
            unsafe { _mm512_sqrt_ps(a) }
        }
        #[inline(always)]
        unsafe fn exp2_of_magic(t: __m512) -> __m512 {
            unsafe {
                let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
                _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3f80_0000)))
            }
        }
        #[inline(always)]
        unsafe fn zero_below(x: __m512, bound: f32, v: __m512) -> __m512 {
            unsafe {
                let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(bound));
                _mm512_maskz_mov_ps(keep, v)
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_second(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn nibbles(p: *const u8, half: usize, zero: __m512) -> __m512 {
            unsafe {
                // A table of all differences, of whose index four bits count.
                let codes = _mm512_setr_ps(
                    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
                );
                let mut at = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
                if half == 1 {
                    at = _mm512_srli_epi32::<4>(at);
                }
                _mm512_permutexvar_ps(at, _mm512_sub_ps(codes, zero))
            }
        }
        #[inline(always)]
        unsafe fn load_partial(p: *const f32, n: usize) -> __m512 {
            debug_assert!(n <= LANES);
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
        }
        #[inline(always)]
        unsafe fn store_partial(p: *mut f32, n: usize, v: __m512) {
            debug_assert!(n <= LANES);
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v) }
        }
    }

    impl Simd for Avx2 {
        type V = [__m256; 2];
        const MR: usize = 6;
        const NV: usize = 1;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe {
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(8), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn sqrt(a: Self::V) -> Self::V {
            unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
        }
        #[inline(always)]
        unsafe fn exp2_of_magic(t: Self::V) -> Self::V {
            unsafe {
                let one = _mm256_set1_epi32(0x3f80_0000);
                t.map(|t| {
                    let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
                    _mm256_castsi256_ps(_mm256_add_epi32(shifted, one))
                })
            }
        }
        #[inline(always)]
        unsafe fn zero_below(x: Self::V, bound: f32, v: Self::V) -> Self::V {
            unsafe {
                let b = _mm256_set1_ps(bound);
                [
                    _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], b), v[0]),
                    _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], b), v[1]),
                ]
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_second(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn load_partial(p: *const f32, n: usize) -> Self::V {
            debug_assert!(n <= LANES);
            unsafe {
                let [low, high] = first(n);
                // Wrapping, because with few lanes the second half lies outside; masked lanes are not touched.
                [_mm256_maskload_ps(p, low), _mm256_maskload_ps(p.wrapping_add(8), high)]
            }
        }
        #[inline(always)]
        unsafe fn store_partial(p: *mut f32, n: usize, v: Self::V) {
            debug_assert!(n <= LANES);
            unsafe {
                let [low, high] = first(n);
                _mm256_maskstore_ps(p, low, v[0]);
                _mm256_maskstore_ps(p.wrapping_add(8), high, v[1]);
            }
        }
    }

    /// The mask of lanes `0..n`.
    #[inline(always)]
    unsafe fn first(n: usize) -> [__m256i; 2] {
        unsafe {
            let n = _mm256_set1_epi32(n as i32);
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            [lanes, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))].map(|l| _mm256_cmpgt_epi32(n, l))
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Simd;
    use std::arch::aarch64::*;

    /// AArch64 NEON.
    #[derive(Clone, Copy)]
    pub struct Neon;

    macro_rules! four {
        ($i:ident, $e:expr) => {{
            [
                {
                    let $i = 0;
                    $e
                },
                {
                    let $i = 1;
                    $e
                },
                {
                    let $i = 2;
                    $e
                },
                {
                    let $i = 3;
                    $e
                },
            ]
        }};
    }

    // SAFETY: NEON is part of the AArch64 baseline; pointers are the caller's promise.
    impl Simd for Neon {
        type V = [float32x4_t; 4];
        const MR: usize = 4;
        const NV: usize = 1;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { [vdupq_n_f32(x); 4] }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { four!(i, vld1q_f32(p.add(4 * i))) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            for i in 0..4 {
                unsafe { vst1q_f32(p.add(4 * i), v[i]) }
            }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { four!(i, vaddq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { four!(i, vsubq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { four!(i, vmulq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            unsafe { four!(i, vdivq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { four!(i, vfmaq_f32(c[i], a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { four!(i, vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { four!(i, vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: Self::V) -> Self::V {
            unsafe { four!(i, vsqrtq_f32(a[i])) }
        }
        #[inline(always)]
        unsafe fn exp2_of_magic(t: Self::V) -> Self::V {
            unsafe {
                let one = vdupq_n_u32(0x3f80_0000);
                four!(
                    i,
                    vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(t[i])), one))
                )
            }
        }
        #[inline(always)]
        unsafe fn zero_below(x: Self::V, bound: f32, v: Self::V) -> Self::V {
            unsafe {
                let (b, z) = (vdupq_n_f32(bound), vdupq_n_f32(0.0));
                four!(i, vbslq_f32(vcltq_f32(x[i], b), z, v[i]))
            }
        }
    }
}
#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

/// Defines a function whose body is generic over `S: Simd` and which runs on the machine's instruction set.
///
/// `kernel! { pub fn name<S>(x: &[f32]) -> f32 { … S::load(…) … } }` makes `fn name(x: &[f32]) -> f32`. The body
/// is compiled once per instruction set with that set enabled.
macro_rules! kernel {
    ($(#[$m:meta])* $vis:vis fn $name:ident<$s:ident>($($a:ident : $t:ty),* $(,)?) $(-> $r:ty)? $body:block) => {
        $(#[$m])*
        $vis fn $name($($a: $t),*) $(-> $r)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters, reason = "plain loops, compiled per instruction set too")]
            unsafe fn generic<$s: $crate::cpu::simd::Simd>($($a: $t),*) $(-> $r)? {
                // SAFETY: the instruction set was checked below; bounds are argued in the body.
                #[allow(unused_unsafe, reason = "some bodies mark their unsafe parts, with the argument for each")]
                unsafe { $body }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512($($a: $t),*) $(-> $r)? {
                // SAFETY: this function is entered only where AVX-512F was detected.
                unsafe { generic::<$crate::cpu::simd::Avx512>($($a),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($a: $t),*) $(-> $r)? {
                // SAFETY: this function is entered only where AVX2 and FMA were detected.
                unsafe { generic::<$crate::cpu::simd::Avx2>($($a),*) }
            }
            // SAFETY: `isa` names only instruction sets that the machine has.
            unsafe {
                match $crate::cpu::simd::isa() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::simd::Isa::Avx512 => avx512($($a),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::simd::Isa::Avx2 => avx2($($a),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::cpu::simd::Isa::Neon => generic::<$crate::cpu::simd::Neon>($($a),*),
                    _ => generic::<$crate::cpu::simd::Scalar>($($a),*),
                }
            }
        }
    };
}
pub(crate) use kernel;
