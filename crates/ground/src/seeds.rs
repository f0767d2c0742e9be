//! Words that look random and are a function of others. Splits, streams and recorded runs rest on these: they must never
//! change.

/// 2^64 by the golden ratio, odd: what SplitMix64 steps by.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection on 64 bits in which every input bit reaches every
/// output bit.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What FNV-1a begins with.
pub const FNV: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a over bytes, going on from `hash`.
pub fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_pinned() {
        assert_eq!(mix(GOLDEN), 0xe220_a839_7b1d_cdaf, "the first word of SplitMix64 from 0");
        assert_eq!(fnv(FNV, b""), FNV);
        assert_eq!(fnv(FNV, b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
