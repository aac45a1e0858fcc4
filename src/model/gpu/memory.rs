//! Every buffer of the decoder on the device, by name, sized once; and how many bytes they take, known before they are
//! made.
//!
//! Activations are in the compute format `T`; the residual stream and its gradient, statistics, log-sum-exps and losses are
//! f32. What exists once per block lies in a `Vec` of its own: one for each block, or one for all where it is computed
//! again.

use anyhow::Result;
use half::bf16;

use crate::gpu::{Buffer, Element, Gpu, View, ViewMut, column_sums, cross_entropy, norm};
use crate::model::arch::{Arch, Residual};
use crate::recipe::Recompute;

/// Mean and rstd of each row.
pub(super) type Stats = Buffer<[f32; 2]>;

/// A training micro batch, or rows to score.
pub(super) struct Batch {
    pub(super) ids: Buffer<u32>,
    pub(super) targets: Buffer<u32>,
    /// See `SortedIds`; only where there is a backward pass.
    pub(super) sorted: Option<[Buffer<u32>; 3]>,
}

/// The batch that is computed, and room for the next one, which may arrive meanwhile; they take turns.
pub(super) struct Batches {
    pub(super) current: Batch,
    pub(super) other: Batch,
    /// What was sent ahead to `other`.
    pub(super) sent: Option<Sent>,
}

/// Tokens that were sent, and how many different ids and rows their sorted lists have.
pub(super) struct Sent {
    pub(super) tokens: Vec<u32>,
    pub(super) row_len: usize,
    pub(super) num_sorted: [usize; 2],
}

/// What backward passes need beside what forward passes keep.
pub(super) struct BackwardMemory<T> {
    /// The residual stream's gradient, and the same rounded.
    pub(super) dx: Buffer<f32>,
    pub(super) narrow: Buffer<bf16>,
    /// The gradient of a branch's input, or of attention's output.
    pub(super) dinput: Buffer<T>,
    /// The gradient of a second branch's input.
    pub(super) dside: Option<Buffer<T>>,
    /// Between post-norms, and before a norm of the embedding.
    pub(super) dwide: Option<Buffer<f32>>,
    pub(super) dqkv: Buffer<T>,
    pub(super) dhidden: Buffer<T>,
    pub(super) dactivated: Option<Buffer<T>>,
    /// Minus the row sums of attention's output times its gradient.
    pub(super) delta: Buffer<f32>,
    pub(super) partials: Buffer<f32>,
}

/// Every buffer of passes over up to `tokens` tokens in rows of up to `row_len`.
pub(super) struct Memory<T> {
    pub(super) tokens: usize,
    pub(super) batches: Batches,
    pub(super) losses: Buffer<f32>,
    pub(super) embedded: Option<(Buffer<f32>, Stats)>,
    /// Inputs of the blocks, then the last block's output; two that take turns where nothing is kept.
    pub(super) residual: Vec<Buffer<f32>>,
    /// The first norm's output; with post-norms the block's input in the compute format.
    pub(super) norm1: Vec<Buffer<T>>,
    pub(super) norm1_stats: Vec<Stats>,
    pub(super) qkv: Vec<Buffer<T>>,
    pub(super) attention: Vec<Buffer<T>>,
    pub(super) log_sum_exp: Vec<Buffer<f32>>,
    /// The residual stream between two branches that follow one another.
    pub(super) middle: Vec<Buffer<f32>>,
    /// What the MLP reads, where that is not the first norm's output.
    pub(super) norm2: Vec<Buffer<T>>,
    pub(super) norm2_stats: Vec<Stats>,
    /// What the second of two post-norms reads.
    pub(super) sum: Vec<Buffer<f32>>,
    pub(super) hidden: Vec<Buffer<T>>,
    pub(super) activated: Vec<Buffer<T>>,
    /// What the head reads, and the final norm's statistics.
    pub(super) last: (Buffer<T>, Stats),
    /// Outputs of the branches on their way to the residual stream.
    pub(super) branches: [Option<Buffer<T>>; 2],
    /// The first post-norm's output, on its way to the second.
    pub(super) wide: Option<Buffer<f32>>,
    /// A chunk of logits; as f32 where losses are all that is wanted.
    pub(super) logits: Buffer<f32>,
    pub(super) backward: Option<BackwardMemory<T>>,
}

/// Which buffers an architecture needs, and how often.
struct Plan {
    blocks: usize,
    mlps: usize,
    residuals: usize,
    has_middle: bool,
    has_second_norm: bool,
    is_post_norm: bool,
    is_parallel: bool,
    has_side: bool,
    has_wide_gradient: bool,
}

impl Plan {
    fn of(arch: &Arch, recompute: Recompute, training: bool) -> Self {
        let one = arch.layers.min(1);
        let (blocks, mlps) = match (training, recompute) {
            (true, Recompute::None) => (arch.layers, arch.layers),
            (true, Recompute::Mlp) => (arch.layers, one),
            _ => (one, one),
        };
        let is_post_norm = arch.residual == Residual::PostNorm;
        Self {
            blocks,
            mlps,
            residuals: if training { (arch.layers + 1).max(2) } else { 2 },
            has_middle: is_post_norm || arch.residual == Residual::Serial,
            has_second_norm: arch.residual != Residual::ParallelOneNorm,
            is_post_norm,
            is_parallel: matches!(arch.residual, Residual::Parallel | Residual::ParallelOneNorm),
            has_side: arch.residual == Residual::Parallel,
            has_wide_gradient: is_post_norm || arch.embedding_norm,
        }
    }
}

/// Elements of the scratch for sums that blocks leave in parts.
fn partials_len(arch: &Arch, tokens: usize) -> usize {
    let widest = [arch.qkv_width(), arch.width, arch.up_width()].into_iter().max().unwrap_or(0);
    let head = if arch.head_bias { cross_entropy::partials_len(tokens, arch.vocab_size) } else { 0 };
    column_sums::partials_len(tokens, widest).max(norm::partials_len(tokens, arch.width)).max(head)
}

impl<T: Element> Memory<T> {
    pub(super) fn new(gpu: &Gpu, arch: &Arch, tokens: usize, recompute: Recompute, training: bool) -> Result<Self> {
        let plan = Plan::of(arch, recompute, training);
        let (c, m, a, qkv, up) =
            (arch.width, arch.mlp_width, arch.attention_width(), arch.qkv_width(), arch.up_width());
        let narrow = |width: usize| gpu.zeros::<T>(tokens * width);
        let wide = |width: usize| gpu.zeros::<f32>(tokens * width);
        let stats = || gpu.zeros::<[f32; 2]>(tokens);
        let words = |len: usize| gpu.zeros::<u32>(len);
        let batch = || -> Result<Batch> {
            let sorted = || Ok::<_, anyhow::Error>([words(tokens)?, words(tokens + 1)?, words(tokens)?]);
            Ok(Batch { ids: words(tokens)?, targets: words(tokens)?, sorted: training.then(sorted).transpose()? })
        };
        let if_present = |present: bool, count: usize| if present { count } else { 0 };
        let num_middles = if_present(plan.has_middle, plan.blocks);
        let num_norms = if_present(plan.has_second_norm, plan.blocks);
        let num_sums = if_present(plan.is_post_norm, plan.blocks);
        let num_logits = cross_entropy::logits_len(tokens, arch.vocab_size);
        let logits_bytes = num_logits * if training { size_of::<T>() } else { size_of::<f32>() };
        // Scoring with the memory of training takes one row at least.
        let logits_len = (logits_bytes / size_of::<f32>()).max(cross_entropy::logits_len(1, arch.vocab_size));
        let backward = |()| -> Result<BackwardMemory<T>> {
            Ok(BackwardMemory {
                dx: wide(c)?,
                narrow: gpu.zeros(tokens * c)?,
                dinput: narrow(c.max(a))?,
                dside: plan.has_side.then(|| narrow(c)).transpose()?,
                dwide: plan.has_wide_gradient.then(|| wide(c)).transpose()?,
                dqkv: narrow(qkv)?,
                dhidden: narrow(up)?,
                dactivated: arch.gated.then(|| narrow(m)).transpose()?,
                delta: wide(arch.heads)?,
                partials: gpu.zeros(partials_len(arch, tokens))?,
            })
        };
        Ok(Self {
            tokens,
            batches: Batches { current: batch()?, other: batch()?, sent: None },
            losses: wide(1)?,
            embedded: arch.embedding_norm.then(|| Ok::<_, anyhow::Error>((wide(c)?, stats()?))).transpose()?,
            residual: many(plan.residuals, || wide(c))?,
            norm1: many(plan.blocks, || narrow(c))?,
            norm1_stats: many(plan.blocks, stats)?,
            qkv: many(plan.blocks, || narrow(qkv))?,
            attention: many(plan.blocks, || narrow(a))?,
            log_sum_exp: many(plan.blocks, || wide(arch.heads))?,
            middle: many(num_middles, || wide(c))?,
            norm2: many(num_norms, || narrow(c))?,
            norm2_stats: many(num_norms, stats)?,
            sum: many(num_sums, || wide(c))?,
            hidden: many(plan.mlps, || narrow(up))?,
            activated: many(plan.mlps, || narrow(m))?,
            last: (narrow(c)?, stats()?),
            branches: [Some(narrow(c)?), plan.is_parallel.then(|| narrow(c)).transpose()?],
            wide: plan.is_post_norm.then(|| wide(c)).transpose()?,
            logits: gpu.zeros(logits_len)?,
            backward: training.then_some(()).map(backward).transpose()?,
        })
    }
}

fn many<B>(count: usize, make: impl Fn() -> Result<B>) -> Result<Vec<B>> {
    (0..count).map(|_| make()).collect()
}

/// The bytes of training on `rows` rows of `row_len` tokens in bfloat16, as [`Memory::new`] takes them; saturating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ActivationBytes {
    /// Kept by the forward pass of all blocks.
    pub(super) saved: u128,
    /// The backward pass's gradients of activations, those of one block at a time, and scratch.
    pub(super) backward: u128,
    /// One chunk of logits.
    pub(super) logits: u128,
}

impl ActivationBytes {
    /// See [`ActivationBytes`].
    pub(super) fn of(arch: &Arch, rows: usize, row_len: usize, recompute: Recompute) -> Self {
        const NARROW: u128 = size_of::<bf16>() as u128;
        const WIDE: u128 = size_of::<f32>() as u128;
        let of = |value: usize| value as u128;
        let sum = |parts: &[u128]| parts.iter().fold(0_u128, |sum, &part| sum.saturating_add(part));
        let plan = Plan::of(arch, recompute, true);
        let [c, m, h, kv, d, v] =
            [arch.width, arch.mlp_width, arch.heads, arch.kv_heads, arch.head_size, arch.vocab_size].map(of);
        let a = h.saturating_mul(d);
        let qkv = h.saturating_add(kv.saturating_mul(2)).saturating_mul(d);
        let up = if arch.gated { m.saturating_mul(2) } else { m };
        let given = |present: bool, size: u128| if present { size } else { 0 };
        let stats = 2 * WIDE;
        let (narrow, wide) = (|width: u128| width.saturating_mul(NARROW), |width: u128| width.saturating_mul(WIDE));
        let block = sum(&[
            narrow(c),
            stats,
            narrow(qkv),
            narrow(a),
            wide(h),
            given(plan.has_middle, wide(c)),
            given(plan.has_second_norm, narrow(c).saturating_add(stats)),
            given(plan.is_post_norm, wide(c)),
        ]);
        let saved = sum(&[
            // Twice ids and targets and ids sorted in three lists; losses.
            11 * WIDE,
            given(arch.embedding_norm, wide(c).saturating_add(stats)),
            of(plan.residuals).saturating_mul(wide(c)),
            of(plan.blocks).saturating_mul(block),
            of(plan.mlps).saturating_mul(narrow(up.saturating_add(m))),
            narrow(c),
            stats,
            narrow(c),
            given(plan.is_parallel, narrow(c)),
            given(plan.is_post_norm, wide(c)),
        ]);
        let backward = sum(&[
            wide(c),
            narrow(c),
            narrow(c.max(a)),
            given(plan.has_side, narrow(c)),
            given(plan.has_wide_gradient, wide(c)),
            narrow(qkv),
            narrow(up),
            given(arch.gated, narrow(m)),
            wide(h),
        ]);
        let tokens = of(rows).saturating_mul(of(row_len));
        // The scratch is small, and sizes that overflow were refused long before.
        let sane =
            usize::try_from(tokens).is_ok_and(|tokens| tokens < 1 << 32) && [c, m, qkv, v].iter().all(|&x| x < 1 << 32);
        let partials = if sane { of(partials_len(arch, rows * row_len)) } else { u128::from(u64::MAX) };
        Self {
            // The sorted ids' starts are one more than there are tokens, twice.
            saved: saved.saturating_mul(tokens).saturating_add(2 * WIDE),
            backward: backward.saturating_mul(tokens).saturating_add(wide(partials)),
            logits: narrow(tokens.min(of(cross_entropy::CHUNK_ROWS)).max(2))
                .saturating_mul(v.saturating_add(127) / 128 * 128),
        }
    }
}

/// The window of the first `tokens` tokens of a buffer with `per_token` elements each.
pub(super) fn part<T>(buffer: &Buffer<T>, tokens: usize, per_token: usize) -> View<'_, T> {
    buffer.view().window(0..tokens * per_token)
}

/// The same to write to.
pub(super) fn part_mut<T>(buffer: &mut Buffer<T>, tokens: usize, per_token: usize) -> ViewMut<'_, T> {
    buffer.view_mut().window(0..tokens * per_token)
}
