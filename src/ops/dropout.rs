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
