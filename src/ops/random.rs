//! Random numbers as pure functions of a key and an index: dropout masks and initial weights.
//!
//! Nothing here has a state, so a number depends neither on the order of calls nor on the number of threads, a mask
//! needs not be stored for the backward pass, and both backends draw the same one. A *key* (64 bits) names a stream,
//! made by [`derive`] from the seed and whatever tells streams apart; the *index* names a number in it. Only 32-bit
//! integer arithmetic and plain f32 multiplications and additions (never fused) are used per element: loops vectorise,
//! and every machine computes the same bits.
//!
//! Dropout sites: [`EMBEDDING_SITE`], [`attention_site`] (index in (b, h, tq, tk) order), [`attention_branch_site`] and
//! [`mlp_branch_site`] (like the embedding: index in (b, t, c) order).

/// The site of dropout on the sum of token and position embedding.
pub const EMBEDDING_SITE: u64 = 0;

/// The site of dropout on a block's attention probabilities.
pub const fn attention_site(block: usize) -> u64 {
    1 + 3 * block as u64
}

/// The site of dropout on the output of a block's attention branch.
pub const fn attention_branch_site(block: usize) -> u64 {
    2 + 3 * block as u64
}

/// The site of dropout on the output of a block's MLP branch.
pub const fn mlp_branch_site(block: usize) -> u64 {
    3 + 3 * block as u64
}

/// A key that belongs to `key` and `value` and looks independent of those of other values (SplitMix64's finaliser).
pub const fn derive(key: u64, value: u64) -> u64 {
    mix64(mix64(key).wrapping_add(value.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The key of a named stream, such as a parameter's.
pub fn derive_named(key: u64, name: &str) -> u64 {
    name.bytes().fold(derive(key, name.len() as u64), |key, byte| derive(key, u64::from(byte)))
}

const fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A bijection of 32-bit words with nearly ideal avalanche (Wellons' and TheIronBorn's `lowbias32` family).
#[inline(always)]
const fn mix32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad);
    x = (x ^ (x >> 15)).wrapping_mul(0x735a_2d97);
    x ^ (x >> 15)
}

/// The uniformly distributed 32 bits of element `first + offset` of a stream.
///
/// Split into a 64-bit start and a 32-bit offset so that a loop over the offset needs no 64-bit lanes.
#[inline(always)]
pub const fn bits(key: u64, first: u64, offset: u32) -> u32 {
    let low = (first as u32).wrapping_add(offset);
    let carry = (low < offset) as u32;
    let high = ((first >> 32) as u32).wrapping_add(carry);
    let inner = mix32(low ^ key as u32);
    mix32(inner ^ (key >> 32) as u32 ^ high.wrapping_mul(0x9e37_79b1))
}

/// A number in `[0, 1)`, a multiple of `2^-24`, of element `index` of a site.
#[inline(always)]
pub const fn uniform(seed: u64, site: u64, index: u64) -> f32 {
    (bits(derive(seed, site), index, 0) >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// What element `index` of a site is multiplied with: 0 with probability `rate`, else `1 / (1 - rate)`.
#[inline]
pub fn keep_scale(seed: u64, site: u64, index: u64, rate: f32) -> f32 {
    Mask::new(seed, site, rate).scale_at(index, 0)
}

/// The dropout mask of one site in one forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    key: u64,
    threshold: u32,
    scale: f32,
}

impl Mask {
    /// The mask of a site: elements are dropped with probability `rate`, in `[0, 1)`.
    pub fn new(seed: u64, site: u64, rate: f32) -> Self {
        let threshold = (f64::from(rate) * 4_294_967_296.0) as u32;
        Self { key: derive(seed, site), threshold, scale: 1.0 / (1.0 - rate) }
    }

    /// What element `first + offset` is multiplied with: 0 or `1 / (1 - rate)`.
    #[inline(always)]
    pub fn scale_at(&self, first: u64, offset: u32) -> f32 {
        if bits(self.key, first, offset) >= self.threshold { self.scale } else { 0.0 }
    }
}
