//! Causal self-attention: `y_i = Σ_{j ≤ i} softmax_j(scale q_i · k_j) v_j` for each head.
//!
//! `qkv` is (b, t, 3c): queries, keys and values side by side, head `h` at channels `h d .. (h+1) d` of each; `y` is
//! (b, t, c). Scores exist for one tile of queries at a time; saved are `qkv`, `y` and the log-sum-exp of each row of
//! scores (b, h, t), from which backward computes the probabilities again. Backward overwrites `dqkv`.
//!
//! With dropout the probabilities are multiplied by a mask after the softmax; its index runs in (b, h, tq, tk) order.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::matmul::gemm_strided;
use super::random::Mask;
use super::strided::Strided;
use super::{Buffer, Device, View, ViewMut, math};

/// Queries whose scores exist at a time: with 1,024 keys a tile of scores is 256 KiB and stays in the L2 cache.
pub const TILE: usize = 64;

/// Sizes of an attention, and the factor on its scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Sequences.
    pub b: usize,
    /// Tokens per sequence.
    pub t: usize,
    /// Heads.
    pub h: usize,
    /// Head size.
    pub d: usize,
    /// Factor on the scores, usually `1 / sqrt(d)`.
    pub scale: f32,
}

impl Shape {
    fn c(&self) -> usize {
        self.h * self.d
    }

    /// Offset of the head's first query in `qkv`.
    fn qkv_start(&self, task: usize) -> usize {
        (task / self.h) * self.t * 3 * self.c() + (task % self.h) * self.d
    }

    fn y_start(&self, task: usize) -> usize {
        (task / self.h) * self.t * self.c() + (task % self.h) * self.d
    }
}

/// Memory for one tile of scores and one of their gradients per thread.
pub struct Scratch {
    tiles: Buffer<f32>,
    per_thread: usize,
}

impl Scratch {
    /// Room for sequences of up to `max_t` tokens.
    pub fn new(device: &Device, max_t: usize) -> Self {
        let Device::Cpu { threads } = device;
        let per_thread = Self::len_per_thread(max_t);
        Self { tiles: Buffer::zeros(threads * per_thread), per_thread }
    }

    /// Elements that it holds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.tiles.len()
    }

    /// Elements that one thread needs.
    pub fn len_per_thread(max_t: usize) -> usize {
        2 * TILE.min(max_t) * max_t
    }

    /// Runs `work(task, scores, dscores)` for all tasks, each on whichever thread is free.
    fn for_each(&mut self, num_tasks: usize, work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
        let next = AtomicUsize::new(0);
        self.tiles.as_mut_slice().par_chunks_mut(self.per_thread.max(1)).for_each(|tiles| {
            let (scores, dscores) = tiles.split_at_mut(tiles.len() / 2);
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= num_tasks {
                    break;
                }
                work(task, scores, dscores);
            }
        });
    }
}

/// The start of a buffer that several threads write to, each its own elements.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: every use below writes to the elements of one (sequence, head) only, and each of these is one task.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Element `offset`; a method, so that closures capture the whole and not the bare pointer.
    fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: callers stay within the buffer whose sizes `check` compared with the shape.
        unsafe { self.0.add(offset) }
    }
}

fn rows(data: *const f32, row_stride: usize) -> Strided {
    Strided { data, row_stride, col_stride: 1 }
}

fn transposed(data: *const f32, row_stride: usize) -> Strided {
    Strided { data, row_stride: 1, col_stride: row_stride }
}

fn check(shape: Shape, qkv: usize, y: usize, lse: usize, scratch: &Scratch) {
    let n = shape.b * shape.t;
    assert_eq!((qkv, y, lse), (n * 3 * shape.c(), n * shape.c(), n * shape.h), "sizes of an attention {shape:?}");
    assert!(Scratch::len_per_thread(shape.t) <= scratch.per_thread, "scratch of an attention {shape:?}");
}

/// `y` and the log-sum-exp of each row of scores.
pub fn forward(
    shape: Shape,
    y_btc: ViewMut<f32>,
    lse_bht: ViewMut<f32>,
    qkv: View<f32>,
    mask: Option<Mask>,
    scratch: &mut Scratch,
) {
    check(shape, qkv.len(), y_btc.len(), lse_bht.len(), scratch);
    let Shape { t, d, scale, .. } = shape;
    let (c, row) = (shape.c(), 3 * shape.c());
    let qkv = qkv.cpu();
    let (y, lse) = (Shared(y_btc.cpu().as_mut_ptr()), Shared(lse_bht.cpu().as_mut_ptr()));
    scratch.for_each(shape.b * shape.h, |task, scores, _| {
        let start = shape.qkv_start(task);
        let (q, k, v) = (&qkv[start..], &qkv[start + c..], &qkv[start + 2 * c..]);
        for first in (0..t).step_by(TILE) {
            let queries = TILE.min(t - first);
            let keys = first + queries;
            let scores = &mut scores[..queries * keys];
            let q = rows(q[first * row..].as_ptr(), row);
            // SAFETY: all operands lie within `qkv` and this thread's tile.
            unsafe {
                let k = transposed(k.as_ptr(), row);
                gemm_strided([queries, keys, d], scale, q, k, 0.0, scores.as_mut_ptr(), keys, 1);
            }
            math::vectorized(
                #[inline(always)]
                || {
                    for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
                        let (seen, unseen) = scores.split_at_mut(first + i + 1);
                        let max = math::max(seen);
                        for x in seen.iter_mut() {
                            *x = math::exp(*x - max);
                        }
                        let sum = math::sum(seen, |x| x);
                        for x in seen.iter_mut() {
                            *x /= sum;
                        }
                        unseen.fill(0.0);
                        if let Some(mask) = mask {
                            drop_probabilities(seen, mask, ((task * t + first + i) * t) as u64);
                        }
                        // SAFETY: the rows of this task's (sequence, head) belong to this task alone.
                        unsafe { *lse.at(task * t + first + i) = max + sum.ln() };
                    }
                },
            );
            // SAFETY: `y` rows of this task's head are written by this task alone.
            unsafe {
                let p = rows(scores.as_ptr(), keys);
                let v = rows(v.as_ptr(), row);
                gemm_strided([queries, d, keys], 1.0, p, v, 0.0, y.at(shape.y_start(task) + first * c), c, 1);
            }
        }
    });
}

#[inline(always)]
fn drop_probabilities(probabilities: &mut [f32], mask: Mask, first_index: u64) {
    for (j, x) in probabilities.iter_mut().enumerate() {
        *x *= mask.scale_at(first_index, j as u32);
    }
}

/// `dqkv` from `dy` and what forward saved.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    shape: Shape,
    dqkv: ViewMut<f32>,
    dy_btc: View<f32>,
    qkv: View<f32>,
    y_btc: View<f32>,
    lse_bht: View<f32>,
    mask: Option<Mask>,
    scratch: &mut Scratch,
) {
    check(shape, qkv.len(), y_btc.len(), lse_bht.len(), scratch);
    assert_eq!((dqkv.len(), dy_btc.len()), (qkv.len(), y_btc.len()), "gradient sizes of an attention {shape:?}");
    let Shape { t, d, scale, .. } = shape;
    let (c, row) = (shape.c(), 3 * shape.c());
    let (qkv, y, dy, lse) = (qkv.cpu(), y_btc.cpu(), dy_btc.cpu(), lse_bht.cpu());
    let dqkv = Shared(dqkv.cpu().as_mut_ptr());
    scratch.for_each(shape.b * shape.h, |task, probabilities, dscores| {
        let start = shape.qkv_start(task);
        let (q, k, v) = (&qkv[start..], &qkv[start + c..], &qkv[start + 2 * c..]);
        let (y, dy) = (&y[shape.y_start(task)..], &dy[shape.y_start(task)..]);
        // From the last tile, which sees all keys and so may overwrite dk and dv, to the first; the others add.
        for first in (0..t).step_by(TILE).rev() {
            let queries = TILE.min(t - first);
            let keys = first + queries;
            let beta = if keys == t { 0.0 } else { 1.0 };
            let probabilities = &mut probabilities[..queries * keys];
            let dscores = &mut dscores[..queries * keys];
            let q = &q[first * row..];
            let dy = &dy[first * c..];
            let y = &y[first * c..];
            // SAFETY: all operands lie within their buffers and this thread's tiles.
            unsafe {
                let k = transposed(k.as_ptr(), row);
                let v = transposed(v.as_ptr(), row);
                gemm_strided(
                    [queries, keys, d],
                    scale,
                    rows(q.as_ptr(), row),
                    k,
                    0.0,
                    probabilities.as_mut_ptr(),
                    keys,
                    1,
                );
                gemm_strided([queries, keys, d], 1.0, rows(dy.as_ptr(), c), v, 0.0, dscores.as_mut_ptr(), keys, 1);
            }
            math::vectorized(
                #[inline(always)]
                || {
                    let tiles = probabilities.chunks_exact_mut(keys).zip(dscores.chunks_exact_mut(keys));
                    for (i, (p, dp)) in tiles.enumerate() {
                        let dot = math::sum_pairs(&y[i * c..][..d], &dy[i * c..][..d], |y, dy| y * dy);
                        let lse = lse[task * t + first + i];
                        let (p, p_unseen) = p.split_at_mut(first + i + 1);
                        let (dp, dp_unseen) = dp.split_at_mut(first + i + 1);
                        for x in p.iter_mut() {
                            *x = math::exp(*x - lse);
                        }
                        if let Some(mask) = mask {
                            let index = ((task * t + first + i) * t) as u64;
                            drop_probabilities(dp, mask, index);
                            for (dp, &p) in dp.iter_mut().zip(&*p) {
                                *dp = p * (*dp - dot) * scale;
                            }
                            // The values were mixed by what was left after dropout.
                            drop_probabilities(p, mask, index);
                        } else {
                            for (dp, &p) in dp.iter_mut().zip(&*p) {
                                *dp = p * (*dp - dot) * scale;
                            }
                        }
                        p_unseen.fill(0.0);
                        dp_unseen.fill(0.0);
                    }
                },
            );
            // SAFETY: the elements of this task's (sequence, head) in `dqkv` are written by this task alone.
            unsafe {
                let ds = dscores.as_ptr();
                let k = rows(k.as_ptr(), row);
                gemm_strided([queries, d, keys], 1.0, rows(ds, keys), k, 0.0, dqkv.at(start + first * row), row, 1);
                let q = rows(q.as_ptr(), row);
                gemm_strided([keys, d, queries], 1.0, transposed(ds, keys), q, beta, dqkv.at(start + c), row, 1);
                let p = transposed(probabilities.as_ptr(), keys);
                let dy = rows(dy.as_ptr(), c);
                gemm_strided([keys, d, queries], 1.0, p, dy, beta, dqkv.at(start + 2 * c), row, 1);
            }
        }
    });
}

/// The definition, in plain loops.
pub mod reference {
    use super::Shape;
    use crate::ops::real::Real;

    /// Probabilities of one query of one head over keys `0..=i`.
    fn probabilities<T: Real>(shape: Shape, qkv: &[T], task: usize, i: usize) -> Vec<T> {
        let (c, d) = (shape.c(), shape.d);
        let start = shape.qkv_start(task);
        let scale = T::from_f32(shape.scale);
        let scores: Vec<T> = (0..=i)
            .map(|j| scale * (0..d).map(|l| qkv[start + i * 3 * c + l] * qkv[start + c + j * 3 * c + l]).sum::<T>())
            .collect();
        let max = scores.iter().copied().fold(T::NEG_INFINITY, T::max);
        let sum = scores.iter().map(|&x| (x - max).exp()).sum::<T>();
        scores.iter().map(|&x| (x - max).exp() / sum).collect()
    }

    /// `y`; `keep(index)` is the dropout mask's factor at index (b, h, tq, tk), 1 without dropout.
    pub fn forward<T: Real>(shape: Shape, qkv: &[T], keep: impl Fn(usize) -> T) -> Vec<T> {
        let (c, t, d) = (shape.c(), shape.t, shape.d);
        let mut y = vec![T::ZERO; shape.b * t * c];
        for task in 0..shape.b * shape.h {
            for i in 0..t {
                for (j, p) in probabilities(shape, qkv, task, i).into_iter().enumerate() {
                    let p = p * keep((task * t + i) * t + j);
                    for l in 0..d {
                        y[shape.y_start(task) + i * c + l] += p * qkv[shape.qkv_start(task) + 2 * c + j * 3 * c + l];
                    }
                }
            }
        }
        y
    }

    /// `dqkv`.
    pub fn backward<T: Real>(shape: Shape, dy: &[T], qkv: &[T], keep: impl Fn(usize) -> T) -> Vec<T> {
        let (c, t, d) = (shape.c(), shape.t, shape.d);
        let scale = T::from_f32(shape.scale);
        let mut dqkv = vec![T::ZERO; qkv.len()];
        for task in 0..shape.b * shape.h {
            let start = shape.qkv_start(task);
            for i in 0..t {
                let p = probabilities(shape, qkv, task, i);
                let dy = &dy[shape.y_start(task) + i * c..][..d];
                let dp: Vec<T> = (0..=i)
                    .map(|j| {
                        let value = &qkv[start + 2 * c + j * 3 * c..][..d];
                        keep((task * t + i) * t + j) * dy.iter().zip(value).map(|(&dy, &v)| dy * v).sum::<T>()
                    })
                    .collect();
                let dot = p.iter().zip(&dp).map(|(&p, &dp)| p * dp).sum::<T>();
                for j in 0..=i {
                    let ds = p[j] * (dp[j] - dot) * scale;
                    let kept = p[j] * keep((task * t + i) * t + j);
                    for l in 0..d {
                        let (query, key) = (start + i * 3 * c + l, start + c + j * 3 * c + l);
                        dqkv[query] += ds * qkv[key];
                        dqkv[key] += ds * qkv[query];
                        dqkv[start + 2 * c + j * 3 * c + l] += kept * dy[l];
                    }
                }
            }
        }
        dqkv
    }
}

#[cfg(test)]
mod tests;
