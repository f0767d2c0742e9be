//! How weights are stored in fewer bits: bf16, f16 and ggml's blocks, each value of which is an exact f32 once unpacked.
//!
//! Layouts are those of `ggml-common.h` and `ggml-quants.c` of the ggml project. A row is a whole number of blocks.

use half::{bf16, f16};

/// A way to store a row of numbers. The names are ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum Format {
    /// Four bytes.
    F32,
    /// Two bytes, IEEE half.
    F16,
    /// Two bytes, the upper half of an f32.
    Bf16,
    /// 32 values of 4 bits times a scale, around zero.
    Q4_0,
    /// 32 values of 4 bits times a scale, above a minimum.
    Q4_1,
    /// 32 values of 5 bits times a scale, around zero.
    Q5_0,
    /// 32 values of 5 bits times a scale, above a minimum.
    Q5_1,
    /// 32 values of 8 bits times a scale.
    Q8_0,
    /// 256 values of 4 bits; eight scales and minima of 6 bits times two of their own.
    Q4_K,
    /// 256 values of 5 bits; scales and minima as in `Q4_K`.
    Q5_K,
    /// 256 values of 6 bits; sixteen scales of 8 bits times one.
    Q6_K,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 11] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
    ];

    /// ggml's number for it.
    pub fn ggml(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q5_0 => 6,
            Format::Q5_1 => 7,
            Format::Q8_0 => 8,
            Format::Q4_K => 12,
            Format::Q5_K => 13,
            Format::Q6_K => 14,
            Format::Bf16 => 30,
        }
    }

    /// The format of a ggml number, if it is one of these.
    pub fn of_ggml(number: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.ggml() == number)
    }

    /// ggml's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q8_0 => "Q8_0",
            Format::Q4_K => "Q4_K",
            Format::Q5_K => "Q5_K",
            Format::Q6_K => "Q6_K",
        }
    }

    /// Values of one block.
    pub fn values(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 32,
            Format::Q4_K | Format::Q5_K | Format::Q6_K => SUPER,
        }
    }

    /// Bytes of one block.
    pub fn bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
        }
    }

    /// Bytes of `n` values; `None` where they are no whole number of blocks, or too many to count.
    pub fn bytes_of(self, n: usize) -> Option<usize> {
        n.is_multiple_of(self.values()).then(|| (n / self.values()).checked_mul(self.bytes()))?
    }

    /// Values that share a scale, where values are codes times scales.
    pub(crate) fn run(self) -> usize {
        if self == Format::Q6_K { 16 } else { 32 }
    }

    /// What is subtracted from a code before it is multiplied; `None` where values are no codes.
    pub(crate) fn zero(self) -> Option<f32> {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => None,
            Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => Some(0.0),
            Format::Q4_0 => Some(8.0),
            Format::Q5_0 => Some(16.0),
            Format::Q6_K => Some(32.0),
            Format::Q8_0 => Some(128.0),
        }
    }

    /// Unpacks blocks into their values: `(code - zero) * scale + minimum`, of which the product is exact but for `Q6_K`, which has
    /// no minimum. Panics if there are not as many bytes as `out` needs.
    pub fn unpack(self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(Some(blocks.len()), self.bytes_of(out.len()), "{} values of {}", out.len(), self.name());
        let pairs = blocks.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.values()));
        match (self, self.zero()) {
            (_, Some(zero)) => {
                let (mut codes, mut runs) = ([0; SUPER], [(0.0, 0.0); SUPER / 16]);
                for (block, y) in pairs {
                    self.split(block, &mut codes, &mut runs);
                    let runs = codes.chunks_exact(self.run()).zip(y.chunks_exact_mut(self.run())).zip(&runs);
                    for ((codes, y), (scale, min)) in runs {
                        y.iter_mut().zip(codes).for_each(|(y, &q)| *y = (f32::from(q) - zero) * scale + min);
                    }
                }
            }
            (Format::F16, _) => pairs.for_each(|(b, y)| y[0] = half_at(b, 0)),
            (Format::Bf16, _) => pairs.for_each(|(b, y)| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            _ => pairs.for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        }
    }

    /// Takes a block apart: a code for each value, and for each run of values its scale and what is added. Nothing added is -0,
    /// to which any number can be added without a change. Panics for formats without codes.
    pub(crate) fn split(self, b: &[u8], codes: &mut [u8; SUPER], runs: &mut [(f32, f32); SUPER / 16]) {
        let plain = |b: &[u8]| (half_at(b, 0), -0.0);
        let with_min = |b: &[u8]| (half_at(b, 0), half_at(b, 2));
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        match self {
            Format::Q4_0 => {
                runs[0] = plain(b);
                nibbles(&b[2..], |i, q| codes[i] = q);
            }
            Format::Q4_1 => {
                runs[0] = with_min(b);
                nibbles(&b[4..], |i, q| codes[i] = q);
            }
            Format::Q5_0 => {
                runs[0] = plain(b);
                let high = word(2);
                nibbles(&b[6..], |i, q| codes[i] = fifth(q, high, i));
            }
            Format::Q5_1 => {
                runs[0] = with_min(b);
                let high = word(4);
                nibbles(&b[8..], |i, q| codes[i] = fifth(q, high, i));
            }
            Format::Q8_0 => {
                runs[0] = plain(b);
                codes.iter_mut().zip(&b[2..]).for_each(|(code, &q)| *code = q ^ 128);
            }
            Format::Q4_K | Format::Q5_K => {
                let (high, low) = b[16..].split_at(if self == Format::Q5_K { 32 } else { 0 });
                for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
                    let (scale, min) = scale_and_min(b, &b[4..16], j);
                    runs[j] = (scale, -min);
                    for (i, code) in codes.iter_mut().enumerate() {
                        let fifth = high.get(i).map_or(0, |h| ((h >> j) & 1) << 4);
                        *code = (low[j / 2 * 32 + i] >> (4 * (j % 2))) & 15 | fifth;
                    }
                }
            }
            Format::Q6_K => {
                let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
                for (g, codes) in codes.chunks_exact_mut(16).enumerate() {
                    runs[g] = (d * f32::from(scales[g] as i8), -0.0);
                    // Halves of 128; in each, four runs of 32 share their bytes of high bits.
                    let (part, run, at) = (g / 8, g % 8 / 2, g % 2 * 16);
                    let low = &low[part * 64 + run % 2 * 32 + at..];
                    let high = &high[part * 32 + at..];
                    for (i, code) in codes.iter_mut().enumerate() {
                        *code = (low[i] >> (4 * (run / 2))) & 15 | ((high[i] >> (2 * run)) & 3) << 4;
                    }
                }
            }
            Format::F32 | Format::F16 | Format::Bf16 => panic!("{} has no codes", self.name()),
        }
    }

    /// Rounds values into blocks. `None` for the formats that are read but not written: `Q5_1`, `Q5_K`. Panics where the values
    /// are no whole number of blocks.
    pub fn pack(self, values: &[f32]) -> Option<Vec<u8>> {
        let len = self.bytes_of(values.len()).expect("a whole number of blocks");
        let mut out = Vec::with_capacity(len);
        let blocks = values.chunks_exact(self.values());
        match self {
            Format::F32 => values.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Format::F16 => values.iter().for_each(|&x| out.extend(f16::from_f32(x).to_le_bytes())),
            Format::Bf16 => values.iter().for_each(|&x| out.extend(bf16::from_f32(x).to_le_bytes())),
            Format::Q8_0 => blocks.for_each(|x| round::q8_0(x, &mut out)),
            Format::Q4_0 => blocks.for_each(|x| round::q4_0(x, &mut out)),
            Format::Q4_1 => blocks.for_each(|x| round::q4_1(x, &mut out)),
            Format::Q4_K => blocks.for_each(|x| round::q4_k(x, &mut out)),
            Format::Q6_K => blocks.for_each(|x| round::q6_k(x, &mut out)),
            Format::Q5_0 => blocks.for_each(|x| round::q5_0(x, &mut out)),
            Format::Q5_1 | Format::Q5_K => return None,
        }
        Some(out)
    }
}

mod round;

/// Values of one block of the K formats.
pub(crate) const SUPER: usize = 256;

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// The 32 codes of 16 bytes: first all lower halves, then all upper ones.
fn nibbles(codes: &[u8], mut to: impl FnMut(usize, u8)) {
    for (i, &q) in codes[..16].iter().enumerate() {
        to(i, q & 15);
        to(i + 16, q >> 4);
    }
}

fn fifth(q: u8, high: u32, i: usize) -> u8 {
    q | (((high >> i) & 1) as u8) << 4
}

/// Scale and minimum of run `j` of a `Q4_K` or `Q5_K` block: 6 bits each, in 12 bytes.
fn scale_and_min(block: &[u8], s: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = match j {
        0..4 => (s[j] & 63, s[j + 4] & 63),
        _ => (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4),
    };
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(min))
}

#[cfg(test)]
mod tests;
