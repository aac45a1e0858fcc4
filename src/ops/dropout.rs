//! Dropout by masks that are pure functions of seed, site and index (`ops/random.rs`): nothing is saved for backward.
//!
//! Forward and backward are the same multiplication, in place: an element is kept and divided by `1 - rate`, or zeroed.

use rayon::prelude::*;

use super::random::Mask;
use super::{View, ViewMut, math};

const TASK: usize = 16_384;

/// `x *= mask`: forward on activations, backward on their gradients.
pub fn apply(x: ViewMut<f32>, mask: Mask) {
    x.cpu().par_chunks_mut(TASK).enumerate().for_each(|(task, x)| {
        let first = (task * TASK) as u64;
        math::vectorized(
            #[inline(always)]
            || {
                for (i, x) in x.iter_mut().enumerate() {
                    *x *= mask.scale_at(first, i as u32);
                }
            },
        );
    });
}

/// `y = x * mask`, out of place: the gradient of a branch from that of the residual stream.
pub fn apply_to(y: ViewMut<f32>, x: View<f32>, mask: Mask) {
    y.cpu().par_chunks_mut(TASK).zip(x.cpu().par_chunks(TASK)).enumerate().for_each(|(task, (y, x))| {
        let first = (task * TASK) as u64;
        math::vectorized(
            #[inline(always)]
            || {
                for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                    *y = x * mask.scale_at(first, i as u32);
                }
            },
        );
    });
}

/// `sum += x * mask`: a branch joins the residual stream.
pub fn add(sum: ViewMut<f32>, x: View<f32>, mask: Mask) {
    sum.cpu().par_chunks_mut(TASK).zip(x.cpu().par_chunks(TASK)).enumerate().for_each(|(task, (sum, x))| {
        let first = (task * TASK) as u64;
        math::vectorized(
            #[inline(always)]
            || {
                for (i, (sum, &x)) in sum.iter_mut().zip(x).enumerate() {
                    *sum += x * mask.scale_at(first, i as u32);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::{attention_branch_site, keep_scale};
    use crate::ops::testing::{assert_bits_do_not_depend_on_threads, on_threads, values};

    const SEED: u64 = 11;
    const RATE: f32 = 0.3;

    /// Around the edges of a task.
    const SIZES: [usize; 7] = [1, 17, 1000, TASK - 1, TASK, TASK + 1, 3 * TASK + 5];

    fn mask() -> Mask {
        Mask::new(SEED, attention_branch_site(2), RATE)
    }

    /// The definition: element by element, from seed, site and index.
    fn factors(len: usize) -> Vec<f32> {
        (0..len as u64).map(|i| keep_scale(SEED, attention_branch_site(2), i, RATE)).collect()
    }

    #[test]
    fn every_form_multiplies_by_the_mask_of_its_index() {
        on_threads(3, |_| {
            for len in SIZES {
                let (x, old) = (values(1, len), values(2, len));
                let product: Vec<f32> = x.iter().zip(factors(len)).map(|(x, factor)| x * factor).collect();
                let mut in_place = x.clone();
                apply(in_place.as_mut_slice().into(), mask());
                assert_eq!(in_place, product);
                let mut out_of_place = vec![f32::NAN; len];
                apply_to(out_of_place.as_mut_slice().into(), x.as_slice().into(), mask());
                assert_eq!(out_of_place, product);
                let mut sum = old.clone();
                add(sum.as_mut_slice().into(), x.as_slice().into(), mask());
                assert_eq!(sum, old.iter().zip(&product).map(|(old, x)| old + x).collect::<Vec<_>>());
            }
        });
    }

    /// The operation is linear, so its derivative is what it makes of ones.
    #[test]
    fn the_mean_is_kept_and_the_asked_share_is_dropped() {
        let len = 1_000_000;
        let mut x = vec![1.0; len];
        apply(x.as_mut_slice().into(), mask());
        let kept = x.iter().filter(|&&x| x != 0.0).count() as f64 / len as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / len as f64;
        // Four standard deviations: sqrt(0.3 * 0.7 / 1e6) is 4.6e-4.
        assert!((kept - 0.7).abs() < 1.8e-3, "{kept}");
        assert!((mean - 1.0).abs() < 2.6e-3, "{mean}");
    }

    #[test]
    fn a_rate_of_zero_keeps_everything() {
        let x = values(1, 1000);
        let mut y = x.clone();
        apply(y.as_mut_slice().into(), Mask::new(SEED, 0, 0.0));
        assert_eq!(x, y);
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        let x = values(1, 3 * TASK + 5);
        assert_bits_do_not_depend_on_threads(|_| {
            let mut sum = x.clone();
            add(sum.as_mut_slice().into(), x.as_slice().into(), mask());
            apply(sum.as_mut_slice().into(), mask());
            sum
        });
    }
}
