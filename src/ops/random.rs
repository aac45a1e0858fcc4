//! Random numbers as pure functions of a key and an index: dropout masks and initial weights.
//!
//! Nothing here has a state, so a number depends neither on the order of calls nor on the number of threads, a mask
//! needs not be stored for the backward pass, and both backends draw the same one. A *key* (64 bits) names a stream,
//! made by [`derive()`] from the seed and whatever tells streams apart; the *index* names a number in it. Only 32-bit
//! integer arithmetic and plain f32 multiplications and additions (never fused) are used per element: loops vectorise,
//! and every machine computes the same bits.
//!
//! Dropout sites: [`EMBEDDING_SITE`], [`attention_site`] (index in (b, h, tq, tk) order), [`attention_branch_site`] and
//! [`mlp_branch_site`] (like the embedding: index in (b, t, c) order).

use rayon::prelude::*;

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

/// Elements that [`fill_normal`] computes side by side: half of them cosines, half of them sines of Box and Muller.
const NORMAL_BLOCK: usize = 128;
/// Elements per task; a multiple of [`NORMAL_BLOCK`].
const NORMAL_CHUNK: usize = 1 << 16;

/// Fills a buffer with the first numbers of a normally distributed stream of mean 0, over all threads.
pub fn fill_normal(key: u64, deviation: f32, out: &mut [f32]) {
    let arch = pulp::Arch::new();
    out.par_chunks_mut(NORMAL_CHUNK).enumerate().for_each(|(chunk, out)| {
        arch.dispatch(FillNormal { key, first: (chunk * NORMAL_CHUNK) as u64, deviation, out });
    });
}

/// The work on one chunk. Not a closure: only a method can be forced inline, and what is not inlined into `dispatch` is
/// compiled without wide vectors.
struct FillNormal<'a> {
    key: u64,
    first: u64,
    deviation: f32,
    out: &'a mut [f32],
}

impl pulp::NullaryFnOnce for FillNormal<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        fill_normal_chunk(self);
    }
}

#[inline(always)]
fn fill_normal_chunk(FillNormal { key, first, deviation, out }: FillNormal) {
    const HALF: usize = NORMAL_BLOCK / 2;
    for (block, out) in out.chunks_mut(NORMAL_BLOCK).enumerate() {
        let first = first + (block * NORMAL_BLOCK) as u64;
        let (mut cosines, mut sines) = ([0.0; HALF], [0.0; HALF]);
        for lane in 0..HALF {
            let radius_bits = bits(key, first, lane as u32);
            let angle_bits = bits(key, first, (lane + HALF) as u32);
            // In (0, 1]: never 0, whose logarithm is infinite. The largest radius is 6.8 deviations.
            let uniform = (radius_bits as f32 + 0.5) * (1.0 / 4_294_967_296.0);
            let radius = deviation * (-2.0 * ln(uniform)).sqrt();
            let (sin, cos) = sin_cos_of_turn(angle_bits);
            cosines[lane] = radius * cos;
            sines[lane] = radius * sin;
        }
        let num_cosines = out.len().min(HALF);
        out[..num_cosines].copy_from_slice(&cosines[..num_cosines]);
        let num_sines = out.len() - num_cosines;
        out[num_cosines..].copy_from_slice(&sines[..num_sines]);
    }
}

/// Natural logarithm of a normal positive number, to 2e-7 relative: `2 artanh((m - 1) / (m + 1)) + e ln 2`.
///
/// Our own, like the sine below, because the library's are neither vectorised nor the same on every machine.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // Splits off the exponent such that the mantissa lies in [2/3, 4/3).
    let exponent = (x.to_bits().wrapping_sub(0x3f2a_aaab) as i32) >> 23;
    let mantissa = f32::from_bits(x.to_bits().wrapping_sub((exponent << 23) as u32));
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    exponent as f32 * std::f32::consts::LN_2 + 2.0 * s * series
}

/// Sine and cosine of `turn / 2^32` of a full turn, shifted by an eighth.
#[inline(always)]
fn sin_cos_of_turn(turn: u32) -> (f32, f32) {
    let fraction = (turn & 0x3fff_ffff) as i32 as f32 * (1.0 / 1_073_741_824.0);
    let x = (fraction - 0.5) * std::f32::consts::FRAC_PI_2;
    let x2 = x * x;
    let sin = x * (1.0 + x2 * (-1.0 / 6.0 + x2 * (1.0 / 120.0 + x2 * (-1.0 / 5040.0))));
    let cos = 1.0 + x2 * (-0.5 + x2 * (1.0 / 24.0 + x2 * (-1.0 / 720.0 + x2 * (1.0 / 40_320.0))));
    // Quadrants by bits, not branches: odd ones swap the two, the upper half changes signs.
    let swap = ((turn >> 30) & 1).wrapping_neg();
    let (sin, cos) = (sin.to_bits(), cos.to_bits());
    let swapped = (sin ^ cos) & swap;
    let half = turn & 0x8000_0000;
    (f32::from_bits(sin ^ swapped ^ half), f32::from_bits(cos ^ swapped ^ half ^ (swap & 0x8000_0000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every output bit of [`bits`] flips in half of the cases when one bit of index or key flips.
    #[test]
    fn every_input_bit_changes_every_output_bit() {
        let num_samples = 4096;
        for input_bit in 0..128 {
            let mut num_flips = [0u32; 32];
            for sample in 0..num_samples {
                let (key, index) = (derive(1, sample), derive(2, sample) >> 8);
                let (other_key, other_index) = if input_bit < 64 {
                    (key ^ (1 << input_bit), index)
                } else {
                    (key, index ^ (1 << (input_bit - 64)))
                };
                let difference = bits(key, index, 0) ^ bits(other_key, other_index, 0);
                num_flips.iter_mut().enumerate().for_each(|(bit, flips)| *flips += (difference >> bit) & 1);
            }
            for flips in num_flips {
                let part = f64::from(flips) / num_samples as f64;
                // Eight standard deviations of a fair coin.
                assert!((part - 0.5).abs() < 0.0625, "input bit {input_bit}: {part}");
            }
        }
    }

    #[test]
    fn start_and_offset_add_up_across_the_border_of_32_bits() {
        let border = u64::from(u32::MAX) - 2;
        for offset in 0..6 {
            assert_eq!(bits(9, border, offset), bits(9, border + u64::from(offset), 0));
        }
        assert_ne!(bits(9, 3, 0), bits(9, 3 + (1 << 32), 0));
    }

    #[test]
    fn dropout_drops_the_asked_part_and_keeps_the_mean() {
        for (rate, site) in [(0.1, EMBEDDING_SITE), (0.5, attention_site(0)), (0.25, mlp_branch_site(3))] {
            let num = 1_000_000u64;
            let scales: Vec<f32> = (0..num).map(|i| keep_scale(7, site, i, rate)).collect();
            let dropped = scales.iter().filter(|&&scale| scale == 0.0).count() as f64 / num as f64;
            assert!((dropped - f64::from(rate)).abs() < 0.002, "{dropped}");
            assert!(scales.iter().all(|&scale| scale == 0.0 || scale == 1.0 / (1.0 - rate)));
            // Neighbours are independent: both dropped as often as the square says.
            let both = scales.windows(2).filter(|pair| pair[0] == 0.0 && pair[1] == 0.0).count() as f64 / num as f64;
            assert!((both - f64::from(rate).powi(2)).abs() < 0.002, "{both}");
        }
    }

    #[test]
    fn masks_of_different_sites_and_seeds_are_independent() {
        let num = 100_000u64;
        let draw = |seed, site| -> Vec<bool> { (0..num).map(|i| keep_scale(seed, site, i, 0.5) == 0.0).collect() };
        let masks = [draw(1, 0), draw(1, 1), draw(2, 0), draw(2, 1)];
        for (i, a) in masks.iter().enumerate() {
            for b in &masks[..i] {
                let equal = a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / num as f64;
                assert!((equal - 0.5).abs() < 0.01, "{equal}");
            }
        }
    }

    #[test]
    fn logarithm_and_sines_are_those_of_the_library() {
        for i in 0..200_000u32 {
            let bits = bits(11, 0, i);
            let x = (bits as f32 + 0.5) / 4_294_967_296.0;
            let (exact, own) = (f64::from(x).ln(), f64::from(ln(x)));
            assert!((own - exact).abs() <= 4e-7 * exact.abs().max(0.25), "ln {x}: {own} {exact}");
            let angle = f64::from(bits) / 4_294_967_296.0 * std::f64::consts::TAU - std::f64::consts::FRAC_PI_4;
            let (sin, cos) = sin_cos_of_turn(bits);
            assert!((f64::from(sin) - angle.sin()).abs() < 5e-7, "sin {angle}: {sin}");
            assert!((f64::from(cos) - angle.cos()).abs() < 5e-7, "cos {angle}: {cos}");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    /// The bits are part of what a recipe determines: they must not change from one version or machine to another. (An
    /// independent implementation in Python gives the same integers, and the same normal numbers up to rounding.)
    #[test]
    fn numbers_are_these_for_ever() {
        assert_eq!(
            [bits(derive(0, 0), 0, 0), bits(1, 2, 3), bits(u64::MAX, u64::MAX, 0)],
            [497_291_565, 1_238_491_242, 163_019_789]
        );
        let mut normal = [0.0; 65];
        fill_normal(derive_named(1, "init"), 1.0, &mut normal);
        assert_eq!([normal[0], normal[1], normal[64]].map(f32::to_bits), [3_204_923_555, 1_068_164_744, 3_220_867_951]);
    }
}
