//! Self-attention: `y_i = Σ_j softmax_j(scale q_i · k_j + key_bias_j) v_j` for each query head, over the keys that
//! query `i` sees: `j ≤ i`, of these only the last `window` if there is one, or all if the shape is not causal.
//!
//! `qkv` is (b, t, (h + 2 kv_heads) d): queries, keys and values side by side, head `i` at channels `i d .. (i+1) d` of
//! each; query head `i` reads key and value head `i / (h / kv_heads)`. `y` is (b, t, h d). The optional `key_bias` is
//! (h, t') with `t' ≥ t`, one number for each head and key (ALiBi); it has no gradient.
//!
//! Scores exist for one tile of queries at a time, over the keys that the tile sees; saved are `qkv`, `y` and the
//! log-sum-exp of each row of scores (b, h, t), from which backward computes the probabilities again. Backward
//! overwrites `dqkv`.
//!
//! With dropout the probabilities are multiplied by a mask after the softmax; its index runs in (b, h, tq, tk) order.
//!
//! [`forward_cached`] is for generation: the newest token of each row against a cache of keys and values.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::matmul::gemm_strided;
use super::random::Mask;
use super::strided::Strided;
use super::{Buffer, Device, View, ViewMut, math};

/// Queries whose scores exist at a time: with 1,024 keys a tile of scores is 256 KiB and stays in the L2 cache.
pub const TILE: usize = 64;

/// Sizes of an attention, the factor on its scores, and which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Sequences.
    pub b: usize,
    /// Tokens per sequence.
    pub t: usize,
    /// Query heads.
    pub h: usize,
    /// Key and value heads; a divisor of `h`.
    pub kv_heads: usize,
    /// Head size.
    pub d: usize,
    /// Factor on the scores, usually `1 / sqrt(d)`.
    pub scale: f32,
    /// Whether a query sees its own and earlier keys only; otherwise every query sees every key.
    pub causal: bool,
    /// With `Some(w)` query `i` sees key `j` only if `i - j < w`; only for causal shapes.
    pub window: Option<usize>,
}

impl Shape {
    /// Elements of a token in `qkv`.
    pub fn qkv_width(&self) -> usize {
        (self.h + 2 * self.kv_heads) * self.d
    }

    /// Elements of a token in `y`.
    pub fn y_width(&self) -> usize {
        self.h * self.d
    }

    /// Query heads that share a key and value head.
    fn group(&self) -> usize {
        self.h / self.kv_heads
    }

    /// Where query head `head` of sequence `row` starts in `qkv`.
    fn q_start(&self, row: usize, head: usize) -> usize {
        row * self.t * self.qkv_width() + head * self.d
    }

    /// Where the keys of key head `kv_head` of sequence `row` start in `qkv`.
    fn k_start(&self, row: usize, kv_head: usize) -> usize {
        self.q_start(row, self.h + kv_head)
    }

    fn v_start(&self, row: usize, kv_head: usize) -> usize {
        self.q_start(row, self.h + self.kv_heads + kv_head)
    }

    fn y_start(&self, row: usize, head: usize) -> usize {
        row * self.t * self.y_width() + head * self.d
    }

    /// The keys that a query sees.
    fn seen_by(&self, query: usize) -> Range<usize> {
        if self.causal {
            let start = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
            start..query + 1
        } else {
            0..self.t
        }
    }

    /// The keys that any query of a tile sees.
    fn seen_by_tile(&self, queries: &Range<usize>) -> Range<usize> {
        self.seen_by(queries.start).start..self.seen_by(queries.end - 1).end
    }

    /// The queries of each tile, in order.
    fn tiles(self) -> impl DoubleEndedIterator<Item = Range<usize>> {
        (0..self.t).step_by(TILE).map(move |first| first..(first + TILE).min(self.t))
    }

    /// Asserts that heads and window are possible and that there are as many key biases as it takes.
    pub(crate) fn check(&self, num_key_biases: Option<usize>) {
        assert!(self.kv_heads > 0 && self.h.is_multiple_of(self.kv_heads), "heads of an attention {self:?}");
        assert!(self.window.is_none_or(|window| window > 0 && self.causal), "window of an attention {self:?}");
        if let Some(len) = num_key_biases {
            let fits = len.is_multiple_of(self.h) && len / self.h >= self.t;
            assert!(fits, "{len} key biases of an attention {self:?}");
        }
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

// SAFETY: each task below writes only to the elements of its own heads of its own sequence.
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

fn check(shape: Shape, qkv: usize, y: usize, lse: usize, key_bias_ht: Option<View<f32>>, scratch: &Scratch) {
    shape.check(key_bias_ht.map(|bias| bias.len()));
    let n = shape.b * shape.t;
    let expected = (n * shape.qkv_width(), n * shape.y_width(), n * shape.h);
    assert_eq!((qkv, y, lse), expected, "sizes of an attention {shape:?}");
    assert!(Scratch::len_per_thread(shape.t) <= scratch.per_thread, "scratch of an attention {shape:?}");
}

/// The biases of a head's keys.
fn of_head(key_bias_ht: Option<&[f32]>, h: usize, head: usize) -> Option<&[f32]> {
    key_bias_ht.map(|bias| &bias[head * (bias.len() / h)..][..bias.len() / h])
}

/// The scores of the keys `seen` out of one row for `keys`; the others become 0.
#[inline(always)]
fn seen_scores<'a>(row: &'a mut [f32], keys: &Range<usize>, seen: &Range<usize>) -> &'a mut [f32] {
    let (row, after) = row.split_at_mut(seen.end - keys.start);
    let (before, scores) = row.split_at_mut(seen.start - keys.start);
    before.fill(0.0);
    after.fill(0.0);
    scores
}

#[inline(always)]
fn add_bias(scores: &mut [f32], key_bias: Option<&[f32]>, seen: &Range<usize>) {
    if let Some(bias) = key_bias {
        for (score, bias) in scores.iter_mut().zip(&bias[seen.clone()]) {
            *score += bias;
        }
    }
}

/// Probabilities in the place of scores; returns the log-sum-exp.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> f32 {
    let max = math::max(scores);
    for x in scores.iter_mut() {
        *x = math::exp(*x - max);
    }
    let sum = math::sum(scores, |x| x);
    for x in scores.iter_mut() {
        *x /= sum;
    }
    max + sum.ln()
}

/// `y` and the log-sum-exp of each row of scores.
pub fn forward(
    shape: Shape,
    y_btc: ViewMut<f32>,
    lse_bht: ViewMut<f32>,
    qkv: View<f32>,
    key_bias_ht: Option<View<f32>>,
    mask: Option<Mask>,
    scratch: &mut Scratch,
) {
    check(shape, qkv.len(), y_btc.len(), lse_bht.len(), key_bias_ht, scratch);
    let Shape { t, h, d, scale, .. } = shape;
    let (y_width, width) = (shape.y_width(), shape.qkv_width());
    let (qkv, key_bias) = (qkv.cpu(), key_bias_ht.map(View::cpu));
    let (y, lse) = (Shared(y_btc.cpu().as_mut_ptr()), Shared(lse_bht.cpu().as_mut_ptr()));
    scratch.for_each(shape.b * h, |task, scores, _| {
        let (row, head) = (task / h, task % h);
        let kv_head = head / shape.group();
        let q = &qkv[shape.q_start(row, head)..];
        let (k, v) = (&qkv[shape.k_start(row, kv_head)..], &qkv[shape.v_start(row, kv_head)..]);
        let key_bias = of_head(key_bias, h, head);
        for queries in shape.tiles() {
            let keys = shape.seen_by_tile(&queries);
            let (num_queries, num_keys) = (queries.len(), keys.len());
            let scores = &mut scores[..num_queries * num_keys];
            let q = rows(q[queries.start * width..].as_ptr(), width);
            // SAFETY: all operands lie within `qkv` and this thread's tile.
            unsafe {
                let k = transposed(k[keys.start * width..].as_ptr(), width);
                gemm_strided([num_queries, num_keys, d], scale, q, k, 0.0, scores.as_mut_ptr(), num_keys, 1);
            }
            math::vectorized(
                #[inline(always)]
                || {
                    for (query, scores) in queries.clone().zip(scores.chunks_exact_mut(num_keys)) {
                        let seen = shape.seen_by(query);
                        let scores = seen_scores(scores, &keys, &seen);
                        add_bias(scores, key_bias, &seen);
                        let log_sum_exp = softmax(scores);
                        if let Some(mask) = mask {
                            drop_probabilities(scores, mask, ((task * t + query) * t + seen.start) as u64);
                        }
                        // SAFETY: the rows of this task's (sequence, head) belong to this task alone.
                        unsafe { *lse.at(task * t + query) = log_sum_exp };
                    }
                },
            );
            // SAFETY: `y` rows of this task's head are written by this task alone.
            unsafe {
                let p = rows(scores.as_ptr(), num_keys);
                let v = rows(v[keys.start * width..].as_ptr(), width);
                let y = y.at(shape.y_start(row, head) + queries.start * y_width);
                gemm_strided([num_queries, d, num_keys], 1.0, p, v, 0.0, y, y_width, 1);
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
    key_bias_ht: Option<View<f32>>,
    mask: Option<Mask>,
    scratch: &mut Scratch,
) {
    check(shape, qkv.len(), y_btc.len(), lse_bht.len(), key_bias_ht, scratch);
    assert_eq!((dqkv.len(), dy_btc.len()), (qkv.len(), y_btc.len()), "gradient sizes of an attention {shape:?}");
    let Shape { t, h, kv_heads, d, scale, .. } = shape;
    let (y_width, width) = (shape.y_width(), shape.qkv_width());
    let (qkv, key_bias) = (qkv.cpu(), key_bias_ht.map(View::cpu));
    let (y, dy, lse) = (y_btc.cpu(), dy_btc.cpu(), lse_bht.cpu());
    let dqkv = Shared(dqkv.cpu().as_mut_ptr());
    // A task owns a key head and the query heads that read it, one after the other: they add to the same dk and dv.
    scratch.for_each(shape.b * kv_heads, |task, probabilities, dscores| {
        let (row, kv_head) = (task / kv_heads, task % kv_heads);
        let (k_start, v_start) = (shape.k_start(row, kv_head), shape.v_start(row, kv_head));
        // From the last tile to the first: unless there is a window, the last sees all keys and so may overwrite dk and
        // dv, to which all others add.
        let last_sees_all = shape.tiles().next_back().is_some_and(|last| shape.seen_by_tile(&last) == (0..t));
        let mut beta = 0.0;
        if !last_sees_all {
            for (token, start) in (0..t).flat_map(|token| [(token, k_start), (token, v_start)]) {
                // SAFETY: the keys and values of this task's head are written by this task alone.
                unsafe { dqkv.at(start + token * width).write_bytes(0, d) };
            }
            beta = 1.0;
        }
        for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
            let (q_start, y_start) = (shape.q_start(row, head), shape.y_start(row, head));
            let key_bias = of_head(key_bias, h, head);
            let first_row = (row * h + head) * t;
            for queries in shape.tiles().rev() {
                let keys = shape.seen_by_tile(&queries);
                let (num_queries, num_keys) = (queries.len(), keys.len());
                let probabilities = &mut probabilities[..num_queries * num_keys];
                let dscores = &mut dscores[..num_queries * num_keys];
                let (first_query, first_key) = (queries.start * width, keys.start * width);
                let q = rows(qkv[q_start + first_query..].as_ptr(), width);
                let (k, v) = (qkv[k_start + first_key..].as_ptr(), qkv[v_start + first_key..].as_ptr());
                let (y, dy) = (&y[y_start + queries.start * y_width..], &dy[y_start + queries.start * y_width..]);
                let dy_rows = rows(dy.as_ptr(), y_width);
                let sizes = [num_queries, num_keys, d];
                // SAFETY: all operands lie within their buffers and this thread's tiles.
                unsafe {
                    let (k, v) = (transposed(k, width), transposed(v, width));
                    gemm_strided(sizes, scale, q, k, 0.0, probabilities.as_mut_ptr(), num_keys, 1);
                    gemm_strided(sizes, 1.0, dy_rows, v, 0.0, dscores.as_mut_ptr(), num_keys, 1);
                }
                math::vectorized(
                    #[inline(always)]
                    || {
                        let tiles = probabilities.chunks_exact_mut(num_keys).zip(dscores.chunks_exact_mut(num_keys));
                        for (i, (p, dp)) in tiles.enumerate() {
                            let query = queries.start + i;
                            let seen = shape.seen_by(query);
                            let dot = math::sum_pairs(&y[i * y_width..][..d], &dy[i * y_width..][..d], |y, dy| y * dy);
                            let lse = lse[first_row + query];
                            let p = seen_scores(p, &keys, &seen);
                            let dp = seen_scores(dp, &keys, &seen);
                            add_bias(p, key_bias, &seen);
                            for x in p.iter_mut() {
                                *x = math::exp(*x - lse);
                            }
                            if let Some(mask) = mask {
                                let index = ((first_row + query) * t + seen.start) as u64;
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
                        }
                    },
                );
                let (p, ds) = (probabilities.as_ptr(), dscores.as_ptr());
                // SAFETY: the elements of this task's heads in `dqkv` are written by this task alone.
                unsafe {
                    let (dq, k) = (dqkv.at(q_start + first_query), rows(k, width));
                    let sizes = [num_queries, d, num_keys];
                    gemm_strided(sizes, 1.0, rows(ds, num_keys), k, 0.0, dq, width, 1);
                    let (dk, dv) = (dqkv.at(k_start + first_key), dqkv.at(v_start + first_key));
                    let sizes = [num_keys, d, num_queries];
                    gemm_strided(sizes, 1.0, transposed(ds, num_keys), q, beta, dk, width, 1);
                    gemm_strided(sizes, 1.0, transposed(p, num_keys), dy_rows, beta, dv, width, 1);
                }
                beta = 1.0;
            }
        }
    });
}

/// `y` of the newest token of each sequence against the `shape.t` keys and values of a cache, its own among them.
///
/// `qkv_b` is (b, (h + 2 kv_heads) d), of which the queries are read; `kv_cache` is (b, capacity, 2 kv_heads d), each
/// token's keys, then its values; `y_bc` is (b, h d).
pub fn forward_cached(
    shape: Shape,
    capacity: usize,
    y_bc: ViewMut<f32>,
    qkv_b: View<f32>,
    kv_cache: View<f32>,
    key_bias_ht: Option<View<f32>>,
) {
    shape.check(key_bias_ht.map(|bias| bias.len()));
    let Shape { b, t, h, kv_heads, d, scale, .. } = shape;
    let (width, cache_width, group) = (shape.qkv_width(), 2 * kv_heads * d, shape.group());
    let expected = (b * width, b * capacity * cache_width, b * shape.y_width());
    let sizes = (qkv_b.len(), kv_cache.len(), y_bc.len());
    assert_eq!(sizes, expected, "sizes of an attention {shape:?} over a cache of {capacity} tokens");
    assert!((1..=capacity).contains(&t), "an attention {shape:?} over a cache of {capacity} tokens");
    let (qkv, cache, key_bias) = (qkv_b.cpu(), kv_cache.cpu(), key_bias_ht.map(View::cpu));
    let seen = shape.seen_by(t - 1);
    let num_keys = seen.len();
    // A task takes key heads of one sequence with the query heads that read them, few enough for all threads to have
    // some: it reads keys and values once and in the order of memory. No head depends on which others its task has.
    let tasks_per_row = rayon::current_num_threads().div_ceil(b.max(1));
    let task_kv_heads = kv_heads.div_ceil(tasks_per_row);
    let tasks = y_bc.cpu().par_chunks_mut(h * d).enumerate().flat_map(|(row, y)| {
        y.par_chunks_mut(task_kv_heads * group * d).enumerate().map(move |(i, y)| (row, i * task_kv_heads, y))
    });
    tasks.for_each_init(Vec::new, |scores, (row, first_kv_head, y)| {
        let q = &qkv[row * width + first_kv_head * group * d..][..y.len()];
        let tokens = &cache[(row * capacity + seen.start) * cache_width..][..num_keys * cache_width];
        scores.resize(y.len() / d * num_keys, 0.0f32);
        math::vectorized(
            #[inline(always)]
            || {
                for (j, token) in tokens.chunks_exact(cache_width).enumerate() {
                    let keys = token[first_kv_head * d..].chunks_exact(d);
                    for (g, (q, k)) in q.chunks_exact(group * d).zip(keys).enumerate() {
                        for (i, q) in q.chunks_exact(d).enumerate() {
                            scores[(g * group + i) * num_keys + j] = scale * math::sum_pairs(q, k, |q, k| q * k);
                        }
                    }
                }
                for (i, scores) in scores.chunks_exact_mut(num_keys).enumerate() {
                    add_bias(scores, of_head(key_bias, h, first_kv_head * group + i), &seen);
                    softmax(scores);
                }
                y.fill(0.0);
                for (j, token) in tokens.chunks_exact(cache_width).enumerate() {
                    let values = token[(kv_heads + first_kv_head) * d..].chunks_exact(d);
                    for (g, (y, v)) in y.chunks_exact_mut(group * d).zip(values).enumerate() {
                        for (i, y) in y.chunks_exact_mut(d).enumerate() {
                            let p = scores[(g * group + i) * num_keys + j];
                            for (y, v) in y.iter_mut().zip(v) {
                                *y += p * v;
                            }
                        }
                    }
                }
            },
        );
    });
}

/// The definition, in plain loops.
pub mod reference {
    use super::Shape;
    use crate::ops::real::Real;

    /// Probabilities of one query of one head over the keys `shape.seen_by(i)`.
    fn probabilities<T: Real>(
        shape: Shape,
        qkv: &[T],
        key_bias_ht: Option<&[T]>,
        (row, head): (usize, usize),
        i: usize,
    ) -> Vec<T> {
        let width = shape.qkv_width();
        let (q, k) = (shape.q_start(row, head) + i * width, shape.k_start(row, head / shape.group()));
        let scale = T::from_f32(shape.scale);
        let scores: Vec<T> = shape
            .seen_by(i)
            .map(|j| {
                let bias = key_bias_ht.map_or(T::ZERO, |bias| bias[head * (bias.len() / shape.h) + j]);
                scale * (0..shape.d).map(|l| qkv[q + l] * qkv[k + j * width + l]).sum::<T>() + bias
            })
            .collect();
        let max = scores.iter().copied().fold(T::NEG_INFINITY, T::max);
        let sum = scores.iter().map(|&x| (x - max).exp()).sum::<T>();
        scores.iter().map(|&x| (x - max).exp() / sum).collect()
    }

    /// Every (sequence, query head), in the order of the mask.
    fn heads(shape: Shape) -> impl Iterator<Item = (usize, usize)> {
        (0..shape.b).flat_map(move |row| (0..shape.h).map(move |head| (row, head)))
    }

    /// `y`; `keep(index)` is the dropout mask's factor at index (b, h, tq, tk), 1 without dropout.
    pub fn forward<T: Real>(shape: Shape, qkv: &[T], key_bias_ht: Option<&[T]>, keep: impl Fn(usize) -> T) -> Vec<T> {
        let (t, width, y_width) = (shape.t, shape.qkv_width(), shape.y_width());
        let mut y = vec![T::ZERO; shape.b * t * y_width];
        for (row, head) in heads(shape) {
            let v = shape.v_start(row, head / shape.group());
            for i in 0..t {
                let p = probabilities(shape, qkv, key_bias_ht, (row, head), i);
                for (j, p) in shape.seen_by(i).zip(p) {
                    let p = p * keep(((row * shape.h + head) * t + i) * t + j);
                    for l in 0..shape.d {
                        y[shape.y_start(row, head) + i * y_width + l] += p * qkv[v + j * width + l];
                    }
                }
            }
        }
        y
    }

    /// `dqkv`.
    pub fn backward<T: Real>(
        shape: Shape,
        dy: &[T],
        qkv: &[T],
        key_bias_ht: Option<&[T]>,
        keep: impl Fn(usize) -> T,
    ) -> Vec<T> {
        let (t, d, width, y_width) = (shape.t, shape.d, shape.qkv_width(), shape.y_width());
        let scale = T::from_f32(shape.scale);
        let mut dqkv = vec![T::ZERO; qkv.len()];
        for (row, head) in heads(shape) {
            let kv_head = head / shape.group();
            for i in 0..t {
                let keep = |j| keep(((row * shape.h + head) * t + i) * t + j);
                let query = shape.q_start(row, head) + i * width;
                let key = |j| shape.k_start(row, kv_head) + j * width;
                let value = |j| shape.v_start(row, kv_head) + j * width;
                let p = probabilities(shape, qkv, key_bias_ht, (row, head), i);
                let dy = &dy[shape.y_start(row, head) + i * y_width..][..d];
                let dp: Vec<T> = shape
                    .seen_by(i)
                    .map(|j| keep(j) * dy.iter().zip(&qkv[value(j)..]).map(|(&dy, &v)| dy * v).sum::<T>())
                    .collect();
                let dot = p.iter().zip(&dp).map(|(&p, &dp)| p * dp).sum::<T>();
                for (j, (&p, &dp)) in shape.seen_by(i).zip(p.iter().zip(&dp)) {
                    let ds = p * (dp - dot) * scale;
                    for l in 0..d {
                        dqkv[query + l] += ds * qkv[key(j) + l];
                        dqkv[key(j) + l] += ds * qkv[query + l];
                        dqkv[value(j) + l] += p * keep(j) * dy[l];
                    }
                }
            }
        }
        dqkv
    }
}

#[cfg(test)]
mod tests;
