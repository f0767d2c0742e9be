//! Panels of weights as they are stored: codes with scales, or halves of floats, unpacked where a product reads them.
//!
//! A panel is 32 columns of the right factor, as in `gemm.rs`, with the codes of one step of k side by side: columns are lanes,
//! and so a run's 32 scales are vectors too. What comes out are the values that [`Format::unpack`] gives, to the bit.

use super::gemm::PANEL;
use super::simd::{LANES, Simd};
use crate::blocks::{Format, SUPER};
use crate::threads::{SharedMut, parallel};

/// Rows few enough for [`Coded::few`].
pub(super) const FEW: usize = 8;

/// Panels that one row goes over at once.
pub(super) const GROUP: usize = 4;

/// How many bytes ahead codes are asked for: the processor's own prefetching starts anew with every page.
const AHEAD: usize = 1024;

/// The right factor of a product, panel by panel.
pub struct Coded {
    k: usize,
    n: usize,
    panels: Vec<Panel>,
}

/// 32 columns.
struct Panel {
    kind: Kind,
    scales: Scales,
    /// Run by run of k: the scales of the columns, what is added to each, and the codes, step by step.
    bytes: Vec<u8>,
    /// Steps of a run; of all k where there are no scales.
    run: usize,
    /// What is subtracted from nibbles.
    zero: f32,
}

/// As most formats store them, or products of two; none where codes are values.
#[derive(Clone, Copy, PartialEq)]
enum Scales {
    None,
    Halves,
    Singles,
}

impl Scales {
    /// Bytes before the codes of a run.
    #[inline(always)]
    fn bytes(self) -> usize {
        match self {
            Scales::None => 0,
            Scales::Halves => 4 * PANEL,
            Scales::Singles => 8 * PANEL,
        }
    }
}

/// How the codes of a step lie.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Nibbles,
    Bytes,
    F16,
    Bf16,
    F32,
}

/// A [`Kind`] as a type, for loops that are compiled for each.
trait Widen {
    /// Bytes of a step: 32 columns.
    const STEP: usize;
    /// Whether codes have scales.
    const SCALED: bool = false;
    /// Columns `16 * half..` of the step at `p`, as numbers, less what is subtracted from them.
    ///
    /// # Safety
    /// The machine has `S`, and `STEP` bytes can be read.
    unsafe fn lanes<S: Simd>(p: *const u8, half: usize, zero: S::V) -> S::V;
}

/// Columns 0 to 15 in the lower halves of 16 bytes, 16 to 31 in the upper ones.
struct Nibbles;
/// With a sign.
struct Bytes;
struct F16;
struct Bf16;
/// Where the columns of a panel are not stored alike, too.
struct F32;

/// 16 numbers, each of the `N` bytes that lie there.
#[inline(always)]
unsafe fn widened<S: Simd, const N: usize>(p: *const u8, number: impl Fn([u8; N]) -> f32) -> S::V {
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller lets 16 * N bytes be read, and has `S`.
    unsafe {
        let bytes = &*p.cast::<[[u8; N]; LANES]>();
        lanes.iter_mut().zip(bytes).for_each(|(x, b)| *x = number(*b));
        S::load(lanes.as_ptr())
    }
}

// SAFETY (all five): the caller's promise; a half of the step lies inside it.
impl Widen for Nibbles {
    const STEP: usize = 16;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8, half: usize, zero: S::V) -> S::V {
        unsafe { S::nibbles(p, half, zero) }
    }
}

impl Widen for Bytes {
    const STEP: usize = 32;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8, half: usize, _: S::V) -> S::V {
        unsafe { widened::<S, 1>(p.add(16 * half), |[q]| f32::from(q as i8)) }
    }
}

impl Widen for F16 {
    const STEP: usize = 64;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8, half: usize, _: S::V) -> S::V {
        unsafe { widened::<S, 2>(p.add(32 * half), |h| of_half(u16::from_le_bytes(h))) }
    }
}

impl Widen for Bf16 {
    const STEP: usize = 64;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8, half: usize, _: S::V) -> S::V {
        unsafe { widened::<S, 2>(p.add(32 * half), |[a, b]| f32::from_le_bytes([0, 0, a, b])) }
    }
}

impl Widen for F32 {
    const STEP: usize = 128;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8, half: usize, _: S::V) -> S::V {
        unsafe { widened::<S, 4>(p.add(64 * half), f32::from_le_bytes) }
    }
}

/// A finite IEEE half as f32: exact, by moving its bits and correcting the exponent's offset.
#[inline(always)]
fn of_half(half: u16) -> f32 {
    let half = u32::from(half);
    let size = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(size.to_bits() | (half & 0x8000) << 16)
}

/// Calls a function for the type of a kind.
macro_rules! by_kind {
    ($kind:expr, $call:ident::<$s:ident, _ $(, $n:literal)*>($($arg:expr),*)) => {
        match $kind {
            Kind::Nibbles => $call::<$s, Nibbles $(, $n)*>($($arg),*),
            Kind::Bytes => $call::<$s, Bytes $(, $n)*>($($arg),*),
            Kind::F16 => $call::<$s, F16 $(, $n)*>($($arg),*),
            Kind::Bf16 => $call::<$s, Bf16 $(, $n)*>($($arg),*),
            Kind::F32 => $call::<$s, F32 $(, $n)*>($($arg),*),
        }
    };
}

/// A row of the stored matrix, which becomes a column.
pub(crate) type Row<'a> = (Format, &'a [u8]);

impl Coded {
    /// The panels of an `[n, k]` matrix whose rows are given.
    pub(crate) fn pack<'a>(n: usize, k: usize, row: impl Fn(usize) -> Row<'a> + Sync) -> Coded {
        let mut panels: Vec<Option<Panel>> = (0..n.div_ceil(PANEL)).map(|_| None).collect();
        let shared = SharedMut::new(&mut panels);
        parallel(n.div_ceil(PANEL), |p| {
            let rows: Vec<Row> = (p * PANEL..n.min((p + 1) * PANEL)).map(&row).collect();
            // SAFETY: each panel is made once.
            unsafe { shared.slice(p, 1)[0] = Some(Panel::pack(&rows, k)) };
        });
        Coded { k, n, panels: panels.into_iter().flatten().collect() }
    }

    /// Panics if a product of these sizes does not fit.
    pub(super) fn check(&self, k: usize, n: usize) {
        assert!(self.k == k && n <= self.n, "gemm: {k}x{n} of panels of {}x{}", self.k, self.n);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.panels.iter().map(|panel| panel.bytes.len()).sum()
    }

    /// Steps `k0..` of a panel into `to`, 32 values a step. `k0` is a multiple of every run's length.
    ///
    /// # Safety
    /// The machine has `S`.
    #[inline(always)]
    pub(super) unsafe fn unpack<S: Simd>(&self, panel: usize, k0: usize, to: &mut [f32]) {
        let panel = &self.panels[panel];
        assert!((k0 + to.len() / PANEL) <= self.k && to.len().is_multiple_of(PANEL), "steps of a panel");
        // SAFETY: the caller's promise; the steps lie in the panel.
        unsafe { by_kind!(panel.kind, unpack_steps::<S, _>(panel, k0, to)) }
    }

    /// At most [`FEW`] rows of a product, whose values are unpacked in registers and used there.
    ///
    /// # Safety
    /// The machine has `S`, and what the strip points to is valid.
    #[inline(always)]
    pub(super) unsafe fn few<S: Simd>(&self, strip: &Strip) {
        let mut n = 0;
        while n < strip.cols {
            let panels =
                &self.panels[(strip.column + n) / PANEL..(strip.column + strip.cols).div_ceil(PANEL)];
            let kind = panels[0].kind;
            let alike = panels.iter().take(GROUP).take_while(|p| p.is_like(&panels[0])).count();
            let at = (panels, self.k, strip, n);
            // As many chains as hide each other's latency, and scales that still fit the registers.
            // SAFETY: the caller's promise.
            let done = unsafe {
                match (strip.rows.len(), alike) {
                    (1, 4) if S::NV == 2 => by_kind!(kind, chains::<S, _, 1, 4>(at)),
                    (1, 2..) if S::NV == 2 => by_kind!(kind, chains::<S, _, 1, 2>(at)),
                    (2, 2..) if S::NV == 2 => by_kind!(kind, chains::<S, _, 2, 2>(at)),
                    (3, 2..) if S::NV == 2 => by_kind!(kind, chains::<S, _, 3, 2>(at)),
                    (1, _) => by_kind!(kind, chains::<S, _, 1, 1>(at)),
                    (2, _) => by_kind!(kind, chains::<S, _, 2, 1>(at)),
                    (3, _) => by_kind!(kind, chains::<S, _, 3, 1>(at)),
                    (4, _) => by_kind!(kind, chains::<S, _, 4, 1>(at)),
                    (5, _) => by_kind!(kind, chains::<S, _, 5, 1>(at)),
                    (6, _) => by_kind!(kind, chains::<S, _, 6, 1>(at)),
                    (7, _) => by_kind!(kind, chains::<S, _, 7, 1>(at)),
                    _ => by_kind!(kind, chains::<S, _, 8, 1>(at)),
                }
            };
            n += done * PANEL;
        }
    }
}

/// What few rows of a product are: the rows of the left factor, its distance between steps of k, and where the outputs go.
pub(super) struct Strip<'a> {
    pub rows: &'a [*const f32],
    pub step: usize,
    /// The first column, of a whole panel, and how many there are.
    pub column: usize,
    pub cols: usize,
    /// Where the first output lies, and the distance between rows of them.
    pub c: *mut f32,
    pub ldc: usize,
    /// Whether the sums start from what is in `c`.
    pub load: bool,
}

/// The scales of a run that begins at `p`, and what is added: 32 columns each.
#[inline(always)]
unsafe fn scales<S: Simd>(kind: Scales, p: *const u8) -> [[S::V; 2]; 2] {
    // SAFETY: the caller has `S`, and a run's scales lie at `p`.
    unsafe {
        let mut parts = [[S::splat(0.0); 2]; 2];
        for i in 0..4 {
            parts[i / 2][i % 2] = match kind {
                Scales::None => parts[0][0],
                Scales::Halves => F16::lanes::<S>(p, i, parts[0][0]),
                Scales::Singles => F32::lanes::<S>(p, i, parts[0][0]),
            };
        }
        parts
    }
}

/// Columns `16 * half..` of the step at `p`: `(code - zero) * scale + added`.
#[inline(always)]
unsafe fn value<S: Simd, W: Widen>(p: *const u8, half: usize, zero: S::V, scales: &[[S::V; 2]; 2]) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let code = W::lanes::<S>(p, half, zero);
        if W::SCALED { S::fma(code, scales[0][half], scales[1][half]) } else { code }
    }
}

#[inline(always)]
unsafe fn unpack_steps<S: Simd, W: Widen>(panel: &Panel, k0: usize, to: &mut [f32]) {
    let (run, head) = (panel.run, panel.scales.bytes());
    // Where there are no scales, a run is all of k, and begun in its midst.
    let mut from = panel.bytes[k0 * W::STEP + k0 / run * head..].as_ptr();
    // SAFETY: the caller's promise: a machine that has `S`, steps that lie in the panel.
    unsafe {
        let zero = S::splat(panel.zero);
        for to in to.chunks_mut(run * PANEL) {
            let scales = scales::<S>(panel.scales, from);
            from = from.wrapping_add(head);
            for to in to.as_chunks_mut::<PANEL>().0 {
                for half in 0..2 {
                    let x = value::<S, W>(from, half, zero, &scales);
                    S::store(to.as_mut_ptr().add(half * LANES), x);
                }
                from = from.wrapping_add(W::STEP);
            }
        }
    }
}

/// `R` rows by `P` panels that are alike, from column `n` of the strip on: loops all through, since closures do not inherit the
/// instruction set. Returns `P`.
#[inline(always)]
unsafe fn chains<S: Simd, W: Widen, const R: usize, const P: usize>(
    (panels, k, strip, n): (&[Panel], usize, &Strip, usize),
) -> usize {
    let panels: &[Panel; P] = panels.first_chunk().expect("as many panels");
    let rows: &[*const f32; R] = strip.rows.first_chunk().expect("as many rows");
    // SAFETY: the caller's promise; lanes beyond the strip's columns are not touched.
    unsafe {
        let zero = S::splat(panels[0].zero);
        let lanes =
            |p: usize, half: usize| (strip.cols - n).saturating_sub(p * PANEL + half * LANES).min(LANES);
        let at = |r: usize, p: usize, half: usize| {
            strip.c.wrapping_add(r * strip.ldc + n + p * PANEL + half * LANES)
        };
        let mut acc = [[[S::splat(0.0); 2]; P]; R];
        if strip.load {
            for r in 0..R {
                for p in 0..P {
                    for half in 0..2 {
                        acc[r][p][half] = S::load_partial(at(r, p, half), lanes(p, half));
                    }
                }
            }
        }
        let run = panels[0].run;
        let mut from = [std::ptr::null::<u8>(); P];
        for p in 0..P {
            from[p] = panels[p].bytes.as_ptr();
        }
        let mut a = *rows;
        for first in (0..k).step_by(run) {
            let mut by = [[[zero; 2]; 2]; P];
            for p in 0..P {
                by[p] = scales::<S>(panels[p].scales, from[p]);
                from[p] = from[p].wrapping_add(panels[p].scales.bytes());
            }
            for _ in first..k.min(first + run) {
                let mut x = [zero; R];
                for r in 0..R {
                    x[r] = S::splat(*a[r]);
                    a[r] = a[r].wrapping_add(strip.step);
                }
                for p in 0..P {
                    S::prefetch(from[p].wrapping_add(AHEAD));
                    for half in 0..2 {
                        let b = value::<S, W>(from[p], half, zero, &by[p]);
                        for r in 0..R {
                            acc[r][p][half] = S::fma(x[r], b, acc[r][p][half]);
                        }
                    }
                    from[p] = from[p].wrapping_add(W::STEP);
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for half in 0..2 {
                    S::store_partial(at(r, p, half), lanes(p, half), acc[r][p][half]);
                }
            }
        }
    }
    P
}

impl Panel {
    /// Whether one loop can go over both.
    fn is_like(&self, other: &Panel) -> bool {
        (self.kind, self.run, self.zero, self.scales) == (other.kind, other.run, other.zero, other.scales)
    }

    fn pack(rows: &[Row], k: usize) -> Panel {
        let format = rows[0].0;
        let alike = rows.iter().all(|row| row.0 == format);
        match (format, format.zero()) {
            (_, Some(zero)) if alike => Panel::of_codes(format, zero, rows, k),
            (Format::F16, _) if alike && rows.iter().all(|row| finite(row.1)) => {
                Panel::plain(Kind::F16, by_step::<2>(rows, k))
            }
            (Format::Bf16, _) if alike => Panel::plain(Kind::Bf16, by_step::<2>(rows, k)),
            (Format::F32, _) if alike => Panel::plain(Kind::F32, by_step::<4>(rows, k)),
            _ => {
                let values = |(format, blocks): &Row| {
                    let mut row = vec![0.0; k];
                    format.unpack(blocks, &mut row);
                    row.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
                };
                let values: Vec<Vec<u8>> = rows.iter().map(values).collect();
                let rows: Vec<Row> = values.iter().map(|row| (Format::F32, &row[..])).collect();
                Panel::plain(Kind::F32, by_step::<4>(&rows, k))
            }
        }
    }

    fn plain(kind: Kind, bytes: Vec<u8>) -> Panel {
        Panel { kind, scales: Scales::None, run: (bytes.len() / PANEL).max(1), bytes, zero: 0.0 }
    }

    fn of_codes(format: Format, zero: f32, rows: &[Row], k: usize) -> Panel {
        let run = format.run();
        let mut scales = vec![0.0; k / run * 2 * PANEL];
        let mut wide = vec![0u8; k * PANEL];
        let (mut codes, mut runs) = ([0; SUPER], [(0.0, 0.0); SUPER / 16]);
        for (column, (_, blocks)) in rows.iter().enumerate() {
            for (i, block) in blocks.chunks_exact(format.bytes()).enumerate() {
                format.split(block, &mut codes, &mut runs);
                let first = i * format.values();
                for (j, code) in codes[..format.values()].iter().enumerate() {
                    wide[(first + j) * PANEL + column] = *code;
                }
                for (j, (scale, added)) in runs[..format.values() / run].iter().enumerate() {
                    let at = (first / run + j) * 2 * PANEL + column;
                    (scales[at], scales[at + PANEL]) = (*scale, *added);
                }
            }
        }
        let narrow = matches!(format, Format::Q4_0 | Format::Q4_1 | Format::Q4_K);
        let (kind, codes): (_, Vec<u8>) = if narrow {
            let pair =
                |step: &[u8; PANEL]| -> [u8; 16] { std::array::from_fn(|i| step[i] | step[i + 16] << 4) };
            (Kind::Nibbles, wide.as_chunks::<PANEL>().0.iter().flat_map(pair).collect())
        } else {
            wide.iter_mut().for_each(|code| *code = code.wrapping_sub(zero as u8));
            (Kind::Bytes, wide)
        };
        let kept = match format {
            Format::Q4_K | Format::Q5_K | Format::Q6_K => Scales::Singles,
            _ if scales.iter().all(|x| x.is_finite()) => Scales::Halves,
            _ => Scales::Singles,
        };
        let mut bytes = Vec::with_capacity(codes.len() + k / run * kept.bytes());
        for (scales, codes) in scales.chunks(2 * PANEL).zip(codes.chunks(codes.len() / (k / run))) {
            for &scale in scales {
                match kept {
                    Scales::Halves => bytes.extend(half::f16::from_f32(scale).to_le_bytes()),
                    _ => bytes.extend(scale.to_le_bytes()),
                }
            }
            bytes.extend(codes);
        }
        Panel { kind, scales: kept, bytes, run, zero }
    }
}

/// Whether all IEEE halves are numbers, which [`of_half`] needs.
fn finite(halves: &[u8]) -> bool {
    halves.as_chunks::<2>().0.iter().all(|&half| u16::from_le_bytes(half) & 0x7c00 != 0x7c00)
}

/// Values of `N` bytes, column by column, as steps of k; missing columns are zero.
fn by_step<const N: usize>(rows: &[Row], k: usize) -> Vec<u8> {
    let mut steps = vec![[0; N]; k * PANEL];
    for (column, (_, row)) in rows.iter().enumerate() {
        let to = steps[column..].iter_mut().step_by(PANEL);
        to.zip(row.as_chunks::<N>().0).for_each(|(to, bytes)| *to = *bytes);
    }
    steps.into_flattened()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::{Left, Product, Right, gemm, pack_transposed, packed_len};
    use crate::rng::Rng;

    /// Stored weights multiply with the bits of their unpacked values, in every format, also where columns are stored differently.
    #[test]
    fn products_with_codes_have_the_bits_of_the_unpacked() {
        let mut rng = Rng::new(3);
        let (k, n) = (768, 77);
        let mut blocks: Vec<(Format, Vec<u8>)> = Vec::new();
        let formats =
            Format::ALL.map(|f| vec![f]).into_iter().chain([vec![Format::Q4_K, Format::Q6_K, Format::F32]]);
        for mix in formats {
            blocks.clear();
            for i in 0..n {
                let format = mix[i / 13 % mix.len()];
                let values: Vec<f32> = (0..k).map(|_| 0.1 * rng.normal()).collect();
                // What is not written is tried with random bits, and scales that are numbers.
                let row = format.pack(&values).unwrap_or_else(|| {
                    let mut bytes: Vec<u8> =
                        (0..format.bytes_of(k).unwrap()).map(|_| rng.below(256) as u8).collect();
                    for block in bytes.chunks_exact_mut(format.bytes()) {
                        block[..4].copy_from_slice(&[3, 36, 7, 164]);
                    }
                    bytes
                });
                blocks.push((format, row));
            }
            let mut w = vec![0.0; n * k];
            w.chunks_exact_mut(k).zip(&blocks).for_each(|(to, (format, row))| format.unpack(row, to));
            let mut panels = vec![0.0; packed_len(n, k)];
            pack_transposed(&w, n, k, k, &mut panels);
            let coded = Coded::pack(n, k, |i| (blocks[i].0, &blocks[i].1));
            for m in [1, 2, 3, 4, 5, 8, 9, 40] {
                let a: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
                let run = |b: Right| {
                    let mut c = vec![f32::NAN; m * n];
                    gemm(&[Product { a: Left::rows(&a, k), b, m, k, n, c: 0 }], &mut c, n, false);
                    c
                };
                assert_eq!(run(Right::coded(&coded)), run(Right::packed(&panels, k)), "{mix:?}, {m} rows");
            }
        }
    }

    /// What is no number stays none, though numbers alone are widened in the loop.
    #[test]
    fn infinite_scales_stay_infinite() {
        for format in [Format::F16, Format::Q8_0, Format::Q4_1] {
            let mut row = format.pack(&[1.0; 32]).expect("a format that is written");
            row[..2].copy_from_slice(&[0, 0x7c]);
            let coded = Coded::pack(1, 32, |_| (format, &row));
            let mut c = [0.0; 1];
            gemm(
                &[Product {
                    a: Left::rows(&[1.0; 32], 32),
                    b: Right::coded(&coded),
                    m: 1,
                    k: 32,
                    n: 1,
                    c: 0,
                }],
                &mut c,
                1,
                false,
            );
            assert!(!c[0].is_finite(), "{format:?}: {}", c[0]);
        }
    }

    #[test]
    fn halves_widen_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00) {
            assert_eq!(of_half(bits).to_bits(), half::f16::from_bits(bits).to_f32().to_bits());
        }
    }
}
