//! Seeded order without state: which shard comes at which position of which epoch.
//!
//! A permutation that can be asked at any position needs no table, so a cursor is a position and nothing else, and a
//! source may have a billion shards. It is a Feistel network over the next power of four, walked until it falls inside
//! the range. Runs must repeat for years, so the mixing function is written out here and belongs to no crate.

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): spreads every input bit over all output bits.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// An even round count well above the four that suffice for large ranges: small ones mix more slowly.
const ROUNDS: usize = 12;

/// A permutation of `0..len`.
#[derive(Clone, Debug)]
pub(super) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of a seed and an epoch.
    pub(super) fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let half_bits = len.next_power_of_two().trailing_zeros().div_ceil(2).max(1);
        let start = mix(mix(seed.wrapping_add(GOLDEN_RATIO)) ^ epoch.wrapping_mul(GOLDEN_RATIO));
        let mut random = SplitMix64::new(start);
        Self { len, half_bits, keys: std::array::from_fn(|_| random.next()) }
    }

    /// What stands at a position below `len`.
    pub(super) fn at(&self, position: u64) -> u64 {
        debug_assert!(position < self.len);
        let mut value = position;
        loop {
            value = self.round_trip(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn round_trip(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The seed of the order inside a shard that is opened at a position of the order of a seed.
pub(super) fn inside(seed: u64, position: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN_RATIO)).wrapping_add(position.wrapping_mul(GOLDEN_RATIO)))
}

/// SplitMix64: a counter and [`mix`].
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_RATIO);
        mix(self.0)
    }

    /// A number below `end`, for tests (the bias is far below what they could notice).
    #[cfg(test)]
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_comes_once_whatever_their_number() {
        for len in (1..70).chain([255, 256, 257, 1000, 4097]) {
            for epoch in 0..3 {
                let order = Permutation::new(len, 5, epoch);
                let mut seen: Vec<u64> = (0..len).map(|position| order.at(position)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn all_orders_of_three_shards_occur_about_equally_often() {
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..6000 {
            let order = Permutation::new(3, 1, epoch);
            *counts.entry([order.at(0), order.at(1), order.at(2)]).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    /// A change here changes what every resumed run reads next.
    #[test]
    fn the_order_of_a_seed_is_fixed_for_good() {
        let order = |len, seed, epoch| {
            let order = Permutation::new(len, seed, epoch);
            (0..len.min(8)).map(|position| order.at(position)).collect::<Vec<_>>()
        };
        assert_eq!(order(8, 0, 0), [6, 5, 7, 4, 2, 1, 0, 3]);
        assert_eq!(order(8, 0, 1), [5, 2, 0, 6, 7, 3, 1, 4]);
        assert_eq!(order(968_000_015, 42, 3)[..4], [269_505_337, 855_951_506, 723_404_841, 270_215_158]);
    }
}
