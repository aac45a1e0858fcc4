//! The global norm of the gradient, and the factor that limits it.
//!
//! The norm is summed in f64 over fixed chunks, whose sums are added in order: its bits depend neither on the number of
//! threads nor on the machine's vector width. Nothing here changes the gradient: the optimizer multiplies by the factor
//! while it walks the gradient anyway. A norm that is not finite stays so; `train/guard.rs` decides what happens then.

use rayon::prelude::*;

/// Elements per partial sum.
const CHUNK_LEN: usize = 1 << 16;
/// Sums side by side within a chunk.
const NUM_LANES: usize = 16;

/// The sum of squares; not finite exactly if an element is not.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let arch = pulp::Arch::new();
    let sums: Vec<f64> = values.par_chunks(CHUNK_LEN).map(|chunk| arch.dispatch(ChunkSum(chunk))).collect();
    sums.iter().sum()
}

/// The Euclidean norm.
pub fn global_norm(values: &[f32]) -> f64 {
    sum_of_squares(values).sqrt()
}

/// What to multiply a gradient of that norm with so that it does not exceed `max_norm`, as PyTorch's `clip_grad_norm_`:
/// `min(1, max_norm / (norm + 1e-6))`. A `max_norm` of 0 means no limit; a norm that is not finite gives NaN.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if !norm.is_finite() {
        f64::NAN
    } else if max_norm == 0.0 {
        1.0
    } else {
        (max_norm / (norm + 1e-6)).min(1.0)
    }
}

/// Not a closure: only a method can be forced inline, and what is not inlined into `dispatch` is compiled without wide
/// vectors.
struct ChunkSum<'a>(&'a [f32]);

impl pulp::NullaryFnOnce for ChunkSum<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut lanes = [0.0; NUM_LANES];
        let (groups, rest) = self.0.as_chunks::<NUM_LANES>();
        for group in groups {
            for (sum, &value) in lanes.iter_mut().zip(group) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        for (sum, &value) in lanes.iter_mut().zip(rest) {
            *sum += f64::from(value) * f64::from(value);
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::random;

    #[test]
    fn norm_is_the_plain_sum_at_every_length_and_thread_count() {
        for len in [0, 1, 15, 16, 17, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN - 5] {
            let mut values = vec![0.0; len];
            random::fill_normal(len as u64, 3.0, &mut values);
            let plain = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
            let on = |num_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
                pool.install(|| global_norm(&values))
            };
            assert!((on(1) - plain).abs() <= 1e-13 * plain, "{len}");
            assert_eq!(on(1).to_bits(), on(3).to_bits());
        }
    }

    #[test]
    fn extreme_gradients_have_a_norm_and_broken_ones_have_none() {
        assert_eq!(global_norm(&[f32::MAX; 4]), 2.0 * f64::from(f32::MAX));
        assert_eq!(global_norm(&[1e-45; 4]), 2.0 * f64::from(1e-45f32));
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; CHUNK_LEN + 3];
            values[CHUNK_LEN + 1] = broken;
            assert!(!global_norm(&values).is_finite());
            assert!(clip_factor(global_norm(&values), 1.0).is_nan());
        }
    }

    #[test]
    fn factor_limits_only_what_is_too_long() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 1.0 / 4.000001);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
    }
}
