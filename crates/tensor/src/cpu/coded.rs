//! Panels of weights as they are stored: codes with scales, or halves of floats, unpacked where a product reads them.
//!
//! A panel is 32 columns of the right factor, as in `gemm.rs`, with the codes of one step of k side by side: columns are lanes,
//! and so a run's 32 scales are vectors too. What comes out are the values that [`Format::unpack`] gives, to the bit.

use super::gemm::PANEL;
use super::simd::{LANES, Simd};
use crate::blocks::{Format, SUPER};
use crate::threads::{SharedMut, parallel};

/// The right factor of a product, panel by panel.
pub struct Coded {
    k: usize,
    n: usize,
    panels: Vec<Panel>,
}

/// 32 columns.
struct Panel {
    codes: Codes,
    /// Steps of k that share scales.
    run: usize,
    /// What is subtracted from codes.
    zero: f32,
    /// Per run: 32 scales, then what is added to each column.
    scales: Vec<f32>,
}

/// The codes of a panel, step by step of k.
enum Codes {
    /// 16 bytes a step: columns 0 to 15 in the lower halves, 16 to 31 in the upper ones.
    Nibbles(Vec<u8>),
    /// 32 bytes a step.
    Bytes(Vec<u8>),
    /// 32 halves of IEEE floats a step.
    F16(Vec<u16>),
    /// 32 upper halves of f32 a step.
    Bf16(Vec<u16>),
    /// 32 values a step, where the columns are not stored alike.
    Values(Vec<f32>),
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
        let of = |panel: &Panel| {
            let codes = match &panel.codes {
                Codes::Nibbles(c) | Codes::Bytes(c) => c.len(),
                Codes::F16(c) | Codes::Bf16(c) => 2 * c.len(),
                Codes::Values(v) => 4 * v.len(),
            };
            codes + 4 * panel.scales.len()
        };
        self.panels.iter().map(of).sum()
    }

    /// Steps `k0..` of a panel into `to`, 32 values a step. `k0` is a multiple of every run's length.
    ///
    /// # Safety
    /// The machine has `S`.
    #[inline(always)]
    pub(super) unsafe fn unpack<S: Simd>(&self, panel: usize, k0: usize, to: &mut [f32]) {
        let panel = &self.panels[panel];
        let steps = k0 * PANEL..k0 * PANEL + to.len();
        // SAFETY: the caller's promise.
        unsafe {
            match &panel.codes {
                Codes::Nibbles(codes) => {
                    let codes = &codes[steps.start / 2..steps.end / 2];
                    panel.scaled::<S, 16>(k0, codes, to, |codes, lanes, half| {
                        lanes
                            .iter_mut()
                            .zip(codes)
                            .for_each(|(x, &q)| *x = f32::from((q >> (4 * half)) & 15));
                    })
                }
                Codes::Bytes(codes) => panel.scaled::<S, 32>(k0, &codes[steps], to, |codes, lanes, half| {
                    lanes.iter_mut().zip(&codes[half * LANES..]).for_each(|(x, &q)| *x = f32::from(q));
                }),
                Codes::F16(halves) => to.iter_mut().zip(&halves[steps]).for_each(|(x, &h)| *x = widened(h)),
                Codes::Bf16(halves) => to
                    .iter_mut()
                    .zip(&halves[steps])
                    .for_each(|(x, &h)| *x = f32::from_bits(u32::from(h) << 16)),
                Codes::Values(values) => to.copy_from_slice(&values[steps]),
            }
        }
    }
}

/// A finite IEEE half as f32: exact, by moving its bits and correcting the exponent's offset.
#[inline(always)]
fn widened(half: u16) -> f32 {
    let half = u32::from(half);
    let size = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(size.to_bits() | (half & 0x8000) << 16)
}

impl Panel {
    /// `(code - zero) * scale + added`; `lanes(codes of a step, 16 lanes, which of both)` widens codes. `B` bytes are a step.
    #[inline(always)]
    unsafe fn scaled<S: Simd, const B: usize>(
        &self,
        k0: usize,
        codes: &[u8],
        to: &mut [f32],
        lanes: impl Fn(&[u8; B], &mut [f32; LANES], usize),
    ) {
        // SAFETY: the caller has `S`; a run's scales are 2 * PANEL values, a step's outputs PANEL.
        unsafe {
            let zero = S::splat(self.zero);
            let runs = self.scales.chunks_exact(2 * PANEL).skip(k0 / self.run);
            let steps = codes.chunks(self.run * B).zip(to.chunks_mut(self.run * PANEL));
            for (scales, (codes, to)) in runs.zip(steps) {
                let at = |i: usize| S::load(scales.as_ptr().add(i * LANES));
                let (scale, added) = ([at(0), at(1)], [at(2), at(3)]);
                for (codes, to) in codes.as_chunks::<B>().0.iter().zip(to.as_chunks_mut::<PANEL>().0) {
                    for half in 0..2 {
                        let mut wide = [0.0; LANES];
                        lanes(codes, &mut wide, half);
                        let code = S::sub(S::load(wide.as_ptr()), zero);
                        S::store(to.as_mut_ptr().add(half * LANES), S::fma(code, scale[half], added[half]));
                    }
                }
            }
        }
    }

    fn pack(rows: &[Row], k: usize) -> Panel {
        let format = rows[0].0;
        let alike = rows.iter().all(|row| row.0 == format);
        match (format, format.zero()) {
            (_, Some(zero)) if alike => Panel::of_codes(format, zero, rows, k),
            (Format::F16, _) if alike => Panel::plain(Codes::F16(by_step(rows, k, u16::from_le_bytes))),
            (Format::Bf16, _) if alike => Panel::plain(Codes::Bf16(by_step(rows, k, u16::from_le_bytes))),
            (Format::F32, _) if alike => Panel::plain(Codes::Values(by_step(rows, k, f32::from_le_bytes))),
            _ => {
                let mut values = vec![0.0; k * PANEL];
                let mut row = vec![0.0; k];
                for (column, (format, blocks)) in rows.iter().enumerate() {
                    format.unpack(blocks, &mut row);
                    values[column..].iter_mut().step_by(PANEL).zip(&row).for_each(|(to, x)| *to = *x);
                }
                Panel::plain(Codes::Values(values))
            }
        }
    }

    fn plain(codes: Codes) -> Panel {
        Panel { codes, run: 1, zero: 0.0, scales: Vec::new() }
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
        let codes = if narrow {
            let pair =
                |step: &[u8; PANEL]| -> [u8; 16] { std::array::from_fn(|i| step[i] | step[i + 16] << 4) };
            Codes::Nibbles(wide.as_chunks::<PANEL>().0.iter().flat_map(pair).collect())
        } else {
            Codes::Bytes(wide)
        };
        Panel { codes, run, zero, scales }
    }
}

/// Values of `N` bytes, column by column, as steps of k; missing columns are zero.
fn by_step<T: Copy + Default, const N: usize>(rows: &[Row], k: usize, read: fn([u8; N]) -> T) -> Vec<T> {
    let mut steps = vec![T::default(); k * PANEL];
    for (column, (_, row)) in rows.iter().enumerate() {
        let to = steps[column..].iter_mut().step_by(PANEL);
        to.zip(row.as_chunks::<N>().0).for_each(|(to, &bytes)| *to = read(bytes));
    }
    steps
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
            for m in [1, 2, 5, 40] {
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

    #[test]
    fn halves_widen_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00) {
            assert_eq!(widened(bits).to_bits(), half::f16::from_bits(bits).to_f32().to_bits());
        }
    }
}
