//! Inputs from seeds: a few random changes of one of them.

use tensor::Rng;

/// Numbers at which sizes and offsets go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    u64::MAX >> 1,
    u64::MAX - 7,
    u64::MAX,
];
/// Texts at which parsers of text go wrong.
const TEXTS: [&str; 28] = [
    "\"",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    "null",
    "true",
    "-1",
    "0.5",
    "1e999",
    "-0",
    "18446744073709551615",
    "9223372036854775808",
    "4294967295",
    "1000000",
    "\n",
    "\r\n",
    "\t",
    "\u{feff}",
    "\u{0}",
    "é",
    "😀",
    "{}",
    "[]",
    ",",
    ":",
];

fn below(rng: &mut Rng, n: usize) -> usize {
    if n == 0 { 0 } else { rng.below(n) }
}

/// One input; `words` are texts that mean something to the parser.
pub fn mutated(seeds: &[Vec<u8>], words: &[&str], max_len: usize, rng: &mut Rng) -> Vec<u8> {
    let mut out = seeds[below(rng, seeds.len())].clone();
    for _ in 0..1 + below(rng, 6) {
        change(&mut out, seeds, words, rng);
        out.truncate(max_len);
    }
    out
}

fn change(out: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str], rng: &mut Rng) {
    let at = below(rng, out.len() + 1);
    let piece = |bytes: &[u8], rng: &mut Rng| -> Vec<u8> {
        let start = below(rng, bytes.len() + 1);
        let longest = if rng.below(3) == 0 { bytes.len() } else { 24 };
        bytes[start..][..below(rng, (bytes.len() - start).min(longest) + 1)].to_vec()
    };
    match rng.below(9) {
        0 if at < out.len() => out[at] ^= 1 << rng.below(8),
        1 if at < out.len() => out[at] = rng.below(256) as u8,
        2 => {
            let end = at + below(rng, (out.len() - at).min(40) + 1);
            out.drain(at..end);
        }
        3 => {
            let text = TEXTS[rng.below(TEXTS.len())];
            out.splice(at..at, text.bytes());
        }
        4 if !words.is_empty() => {
            let word = words[rng.below(words.len())];
            out.splice(at..at, word.bytes());
        }
        5 => {
            let other = piece(&seeds[below(rng, seeds.len())], rng);
            out.splice(at..at, other);
        }
        6 => {
            // The same again and again.
            let own = piece(out, rng);
            let times = 1 + below(rng, 30);
            out.splice(at..at, own.repeat(times));
        }
        7 => replace_number(out, at, rng),
        _ => {
            let number = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][rng.below(4)].min(out.len() - at);
            out[at..at + width].copy_from_slice(&number[..width]);
        }
    }
}

/// Another number in place of the digits that come next.
fn replace_number(out: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    let Some(start) = out[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let end = out[start..].iter().position(|b| !b.is_ascii_digit()).map_or(out.len(), |i| start + i);
    let number = if rng.below(2) == 0 { NUMBERS[rng.below(NUMBERS.len())] } else { rng.below(70) as u64 };
    out.splice(start..end, number.to_string().bytes());
}
