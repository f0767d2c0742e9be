//! xoshiro256** seeded by splitmix64: every problem is a pure function of the words it is seeded with.

use ground::seeds::{FNV, GOLDEN, fnv, mix};

/// A small deterministic random number generator (Blackman and Vigna, xoshiro256**).
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

/// A stable 64-bit hash of text (FNV-1a, then mixed). Stable across versions: the train/held-out split rests on it.
pub(crate) fn hash_text(text: &str) -> u64 {
    mix(fnv(FNV, text.as_bytes()))
}

impl Rng {
    /// A generator whose stream is determined by all of `words`, in order.
    pub fn new(words: &[u64]) -> Rng {
        let mut h = GOLDEN;
        for &w in words {
            h = mix(h ^ mix(w.wrapping_add(GOLDEN)).wrapping_add(h.rotate_left(17)));
        }
        let mut next = || {
            h = h.wrapping_add(GOLDEN);
            mix(h)
        };
        Rng { state: [next(), next(), next(), next()] }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in `0..n`; `n` must be positive.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "Rng::below(0)");
        // The high word of a 64×64 product: its bias, n / 2^64, is out of sight here.
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform in `low..=high`.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high, "Rng::range({low}, {high})");
        low + self.below((high - low + 1) as usize) as i64
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// A uniformly chosen element; `items` must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The split and every recorded run rest on these streams: they must never change.
    #[test]
    fn streams_are_pinned() {
        let mut rng = Rng::new(&[1, 2, 3]);
        let mut again = Rng::new(&[1, 2, 3]);
        let mut other = Rng::new(&[3, 2, 1]);
        let first: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
        assert_eq!(first, (0..4).map(|_| again.next_u64()).collect::<Vec<_>>());
        assert_ne!(first, (0..4).map(|_| other.next_u64()).collect::<Vec<_>>());
        assert_eq!(hash_text(""), mix(FNV));
    }

    #[test]
    fn range_covers_its_ends_evenly() {
        let mut rng = Rng::new(&[7]);
        let mut seen = [0usize; 6];
        for _ in 0..6000 {
            seen[(rng.range(-2, 3) + 2) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }
}
