//! exp, logistic function and erf for loops that the compiler turns into vector code, and sums in a fixed order.
//!
//! The functions are branch-free and `inline(always)`: called inside [`vectorized`], they compile to AVX2 or AVX-512
//! instructions where the processor has them, found out at run time. Sums use sixteen running partial sums, so that the
//! order of additions is part of the program and not of the compiler's mood.

/// Runs `work` compiled for the widest vector instructions of this processor.
#[inline(always)]
pub fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// `e^x`, relative error below 2e-7; 0 below -87.3, infinite above 88.7, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.72;
    // 1.5 * 2^23: adding it rounds to the nearest integer and leaves that integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let bounded = if x < LOWEST { LOWEST } else { x };
    let bounded = if bounded > HIGHEST { HIGHEST } else { bounded };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (bounded - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // Minimax polynomial of e^r on [-ln2/2, ln2/2] (Cephes' expf).
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // Halves of 2^n, because n may be 128, which no exponent can hold.
    let half = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let first = half >> 1;
    let second = half - first;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let y = p * power(first) * power(second);
    let y = if x < LOWEST { 0.0 } else { y };
    let y = if x > HIGHEST { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, absolute error below 5e-7 (the rational minimax approximation on [-4, 4] that Eigen uses).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    // From here on the nearest f32 is 1, which the approximation misses by a few units in the last place.
    const ONE_FROM: f32 = 3.832;
    let bounded = if x > ONE_FROM { ONE_FROM } else { x };
    let bounded = if bounded < -ONE_FROM { -ONE_FROM } else { bounded };
    let s = bounded * bounded;
    let mut p = -2.726_142_3e-10;
    p = p * s + 2.770_681_4e-8;
    p = p * s - 2.101_024e-6;
    p = p * s - 5.692_506_4e-5;
    p = p * s - 7.349_906e-4;
    p = p * s - 2.954_6e-3;
    p = p * s - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * s - 2.133_740_6e-4;
    q = q * s - 1.682_827e-3;
    q = q * s - 7.373_329e-3;
    q = q * s - 1.426_474e-2;
    let y = bounded * p / q;
    let y = if x >= ONE_FROM { 1.0 } else { y };
    if x <= -ONE_FROM { -1.0 } else { y }
}

const LANES: usize = 16;

/// Folds sixteen partial results pairwise.
#[inline(always)]
fn fold_lanes(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// Chunks that are summed before their sum is added to that of the others: thousands of equal small numbers added one
/// by one to a large sum are all rounded the same way, which in a softmax over a vocabulary costs two digits.
pub const BLOCK_CHUNKS: usize = 64;

/// The sum of `f` over the elements of `a`.
#[inline(always)]
pub fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for block in chunks.chunks(BLOCK_CHUNKS) {
        let mut block_lanes = [0.0; LANES];
        for chunk in block {
            for i in 0..LANES {
                block_lanes[i] += f(chunk[i]);
            }
        }
        for i in 0..LANES {
            lanes[i] += block_lanes[i];
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    fold_lanes(lanes, |a, b| a + b)
}

/// The sum of `f` over pairs of elements of `a` and `b`, which have the same length.
#[inline(always)]
pub fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += f(a, b);
    }
    fold_lanes(lanes, |a, b| a + b)
}

/// The largest element; NaN if any is NaN, -inf without any.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    // A comparison that is false for NaN keeps the left side, so the right side's NaN must be looked for.
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    fold_lanes(lanes, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units_in_ten_million() {
        let mut x = -87.3f32;
        while x < 88.72 {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "exp({x}): relative error {error:e}");
            x += 0.001_37;
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::from_bits(0x7fff_ffff)).is_nan());
    }

    #[test]
    fn erf_is_exact_to_five_units_in_ten_million() {
        let mut x = -6.0f32;
        while x < 6.0 {
            let error = (f64::from(erf(x)) - libm::erf(f64::from(x))).abs();
            assert!(error < 5e-7, "erf({x}): error {error:e}");
            x += 0.000_77;
        }
    }

    #[test]
    fn logistic_saturates_without_nan() {
        assert_eq!(logistic(200.0), 1.0);
        assert_eq!(logistic(-200.0), 0.0);
        assert_eq!(logistic(0.0), 0.5);
    }

    #[test]
    fn sums_and_maxima_see_every_element_and_every_nan() {
        for len in 0..70usize {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(sum(&a, |x| x), (len * len.saturating_sub(1) / 2) as f32);
            assert_eq!(sum_pairs(&a, &a, |a, b| a - b + 1.0), len as f32);
            for poisoned in 0..len {
                let mut a = a.clone();
                a[poisoned] = 1e9;
                assert_eq!(max(&a), 1e9);
                a[poisoned] = f32::NAN;
                assert!(max(&a).is_nan());
                assert!(sum(&a, |x| x).is_nan());
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
