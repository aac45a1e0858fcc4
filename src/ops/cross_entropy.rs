//! Head and loss in one: `logits (n, v) = x (n, c) weight (v, c)ᵀ`, loss per row = logsumexp(logits) - logits[target].
//!
//! The logits are never there as a whole: rows go through in chunks, and backward turns a chunk's logits in place into
//! their gradient `scale (softmax - onehot)`. Forward and backward are one call, because the gradient of a mean is known
//! before the loss is: `dx` is overwritten, `dweight` is added to. A row whose target is [`NO_TARGET`] has loss 0 and
//! no gradient. Nothing is saved.

use rayon::prelude::*;

use super::matmul::{Order, matmul};
use super::{Buffer, Device, View, ViewMut, linear, math};

/// The target of a row that predicts nothing: the last token of a sequence.
pub const NO_TARGET: u32 = u32::MAX;

/// Rows of logits that exist at a time.
pub const CHUNK_ROWS: usize = 512;

/// Memory for one chunk of logits.
pub struct LogitsChunk(Buffer<f32>);

impl LogitsChunk {
    /// Room for as many rows as a chunk has, or fewer if there are never more than `max_rows`.
    pub fn new(max_rows: usize, v: usize) -> Self {
        Self(Buffer::zeros(max_rows.min(CHUNK_ROWS) * v))
    }
}

/// The loss of each row; 0 where there is no target.
pub fn forward(
    device: &Device,
    losses_n: ViewMut<f32>,
    x_nc: View<f32>,
    weight_vc: View<f32>,
    targets_n: View<u32>,
    c: usize,
    chunk: &mut LogitsChunk,
) {
    let v = weight_vc.len() / c;
    let targets = targets_n.cpu();
    for (losses, first) in losses_n.cpu().chunks_mut(CHUNK_ROWS).zip((0..).step_by(CHUNK_ROWS)) {
        let n = losses.len();
        let x = x_nc.window(first * c..(first + n) * c);
        let mut logits = chunk.0.view_mut().window(0..n * v);
        linear::forward_without_bias(device, [n, v, c], logits.reborrow(), x, weight_vc);
        let rows = losses.par_iter_mut().zip(logits.cpu().par_chunks(v)).zip(&targets[first..first + n]);
        rows.for_each(|((loss, logits), &target)| {
            math::vectorized(
                #[inline(always)]
                || {
                    if target == NO_TARGET {
                        *loss = 0.0;
                        return;
                    }
                    let max = math::max(logits);
                    let sum = math::sum(logits, |x| math::exp(x - max));
                    *loss = sum.ln() + max - logits[target as usize];
                },
            );
        });
    }
}

/// The loss of each row; `dx = scale dloss/dx`, `dweight += scale dloss/dweight`, where `loss` is the sum over rows.
#[allow(clippy::too_many_arguments)]
pub fn forward_backward(
    device: &Device,
    losses_n: ViewMut<f32>,
    mut dx_nc: ViewMut<f32>,
    mut dweight_vc: ViewMut<f32>,
    x_nc: View<f32>,
    weight_vc: View<f32>,
    targets_n: View<u32>,
    c: usize,
    scale: f32,
    chunk: &mut LogitsChunk,
) {
    let v = weight_vc.len() / c;
    let targets = targets_n.cpu();
    for (losses, first) in losses_n.cpu().chunks_mut(CHUNK_ROWS).zip((0..).step_by(CHUNK_ROWS)) {
        let n = losses.len();
        let range = first * c..(first + n) * c;
        let x = x_nc.window(range.clone());
        let mut logits = chunk.0.view_mut().window(0..n * v);
        linear::forward_without_bias(device, [n, v, c], logits.reborrow(), x, weight_vc);
        let rows = losses.par_iter_mut().zip(logits.reborrow().cpu().par_chunks_mut(v));
        rows.zip(&targets[first..first + n]).for_each(|((loss, logits), &target)| {
            math::vectorized(
                #[inline(always)]
                || *loss = loss_to_gradient(logits, target, scale),
            );
        });
        let dlogits = logits.as_view();
        matmul(device, [n, c, v], 1.0, (dlogits, Order::N), (weight_vc, Order::N), 0.0, dx_nc.reborrow().window(range));
        matmul(device, [v, c, n], 1.0, (dlogits, Order::T), (x, Order::N), 1.0, dweight_vc.reborrow());
    }
}

/// Turns a row of logits into `scale (softmax - onehot(target))` and returns the loss.
#[inline(always)]
fn loss_to_gradient(logits: &mut [f32], target: u32, scale: f32) -> f32 {
    if target == NO_TARGET {
        logits.fill(0.0);
        return 0.0;
    }
    let max = math::max(logits);
    let target_logit = logits[target as usize];
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = logits.as_chunks_mut::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = math::exp(*x - max);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = math::exp(*x - max);
        *lane += *x;
    }
    let sum = math::sum(&lanes, |x| x);
    let factor = scale / sum;
    for x in logits.iter_mut() {
        *x *= factor;
    }
    logits[target as usize] -= scale;
    sum.ln() + max - target_logit
}

/// The definition, in plain loops.
pub mod reference {
    use super::NO_TARGET;
    use crate::ops::real::Real;

    /// Losses, `dx` and `dweight` of `scale` times the sum of the losses.
    pub fn forward_backward<T: Real>(
        x_nc: &[T],
        weight_vc: &[T],
        targets_n: &[u32],
        c: usize,
        scale: T,
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let mut losses = Vec::new();
        let mut dx = vec![T::ZERO; x_nc.len()];
        let mut dweight = vec![T::ZERO; weight_vc.len()];
        for (row, (x, &target)) in x_nc.chunks(c).zip(targets_n).enumerate() {
            if target == NO_TARGET {
                losses.push(T::ZERO);
                continue;
            }
            let logits: Vec<T> =
                weight_vc.chunks(c).map(|w| x.iter().zip(w).map(|(&x, &w)| x * w).sum::<T>()).collect();
            let max = logits.iter().copied().fold(T::NEG_INFINITY, T::max);
            let sum = logits.iter().map(|&x| (x - max).exp()).sum::<T>();
            losses.push(sum.ln() + max - logits[target as usize]);
            for (id, &logit) in logits.iter().enumerate() {
                let onehot = if id == target as usize { T::ONE } else { T::ZERO };
                let dlogit = scale * ((logit - max).exp() / sum - onehot);
                for j in 0..c {
                    dx[row * c + j] += dlogit * weight_vc[id * c + j];
                    dweight[id * c + j] += dlogit * x[j];
                }
            }
        }
        (losses, dx, dweight)
    }
}
