use super::*;
use crate::rng::Rng;

/// Blocks of every format with what the `gguf` package of the ggml project makes of them (`tests/golden/make_blocks.py`):
/// for each format its number, the number of values, the blocks, the values as f32.
const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/blocks.bin");

#[test]
fn unpacked_blocks_are_those_of_ggml_to_the_bit() {
    let word = |at: usize| u32::from_le_bytes(GOLDEN[at..at + 4].try_into().unwrap());
    let mut at = 0;
    let mut seen = Vec::new();
    while at < GOLDEN.len() {
        let format = Format::of_ggml(word(at)).expect("a known format");
        let n = word(at + 4) as usize;
        let len = format.bytes_of(n).unwrap();
        let blocks = &GOLDEN[at + 8..][..len];
        let want = &GOLDEN[at + 8 + len..][..4 * n];
        let mut got = vec![0.0; n];
        format.unpack(blocks, &mut got);
        let got: Vec<u8> = got.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(got == want, "{}", format.name());
        at += 8 + len + 4 * n;
        seen.push(format);
    }
    assert_eq!(seen.len(), Format::ALL.len() - 1, "every format but F32");
}

/// Rounding errors relative to the values' root mean square: what a format of so many bits must reach.
#[test]
fn packed_values_come_back_nearly() {
    let mut rng = Rng::at(7, &[]);
    let values: Vec<f32> = (0..4096).map(|_| 0.02 * rng.normal()).collect();
    for (format, most) in [
        (Format::F32, 0.0),
        (Format::F16, 4e-4),
        (Format::Bf16, 3e-3),
        (Format::Q8_0, 7e-3),
        (Format::Q6_K, 2.2e-2),
        (Format::Q5_0, 5e-2),
        (Format::Q4_K, 8e-2),
        (Format::Q4_1, 8.5e-2),
        (Format::Q4_0, 1.0e-1),
    ] {
        let blocks = format.pack(&values).expect("a format that is written");
        let mut back = vec![0.0; values.len()];
        format.unpack(&blocks, &mut back);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off: f64 = values.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
        let error = (off / values.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
        assert!(error <= most, "{}: {error}", format.name());
        assert!(error > most / 3.0 || most == 0.0, "{}: {error} is far below its bound", format.name());
    }
    for format in Format::ALL {
        let zeros = vec![0.0; 512];
        let Some(blocks) = format.pack(&zeros) else { continue };
        let mut back = vec![1.0; 512];
        format.unpack(&blocks, &mut back);
        assert!(back.iter().all(|&x| x == 0.0), "{}: zeros", format.name());
    }
}
