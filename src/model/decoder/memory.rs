//! Every buffer of the decoder, by name, sized once; and how many bytes they take, known before they are made.

use crate::model::arch::{Arch, Residual};
use crate::ops::cross_entropy::{self, LogitsChunk};
use crate::ops::norm::NormStats;
use crate::ops::{Buffer, Device, View, ViewMut, attention};
use crate::recipe::Recompute;

/// What one block keeps of its forward pass for its backward pass. With post-norms the buffers of the norms hold what
/// goes in (a sum that nothing else keeps) and not what comes out.
pub(super) struct BlockMemory {
    pub(super) norm1: Buffer<f32>,
    pub(super) norm1_stats: NormStats,
    pub(super) qkv: Buffer<f32>,
    pub(super) attention: Buffer<f32>,
    pub(super) log_sum_exp: Buffer<f32>,
    /// The residual stream between two branches that follow one another.
    pub(super) middle: Option<Buffer<f32>>,
    /// Where the MLP has a norm of its own.
    pub(super) norm2: Option<(Buffer<f32>, NormStats)>,
}

/// What one MLP keeps.
pub(super) struct MlpMemory {
    /// The hidden layer before its bias and function: gate and up, or up alone.
    pub(super) hidden: Buffer<f32>,
    pub(super) activated: Buffer<f32>,
}

/// Gradients that live through one block's backward pass, and the branch before dropout.
pub(super) struct TrainingMemory {
    pub(super) dx: Buffer<f32>,
    pub(super) dbranch: Buffer<f32>,
    /// The gradient of a branch's input, or of attention's output.
    pub(super) dinput: Buffer<f32>,
    /// A second gradient of the stream: where branches are parallel, or norms come after them.
    pub(super) dside: Option<Buffer<f32>>,
    pub(super) dqkv: Buffer<f32>,
    pub(super) dhidden: Buffer<f32>,
    /// The gradient of a gated MLP's product; without a gate it shares `dhidden`.
    pub(super) dactivated: Option<Buffer<f32>>,
}

/// Every buffer of a forward (and backward) pass over up to `tokens` tokens in rows of up to `row_len`.
pub(super) struct Memory {
    pub(super) tokens: usize,
    pub(super) row_len: usize,
    pub(super) ids: Buffer<u32>,
    pub(super) targets: Buffer<u32>,
    pub(super) losses: Buffer<f32>,
    /// The embedding before its norm, if it has one.
    pub(super) embedded: Option<(Buffer<f32>, NormStats)>,
    /// Inputs of the blocks, then the last block's output; inference has two that take turns.
    pub(super) residual: Vec<Buffer<f32>>,
    /// One per block, or one for all.
    pub(super) blocks: Vec<BlockMemory>,
    /// One per block, or one for all.
    pub(super) mlps: Vec<MlpMemory>,
    /// The last block's output behind the final norm, if there is one.
    pub(super) norm: Option<(Buffer<f32>, NormStats)>,
    pub(super) logits: LogitsChunk,
    pub(super) scratch: attention::Scratch,
    pub(super) training: Option<TrainingMemory>,
}

/// How many blocks' memories there are: of blocks and of MLPs.
fn num_kept(arch: &Arch, recompute: Recompute, training: bool) -> [usize; 2] {
    match (training, recompute) {
        (true, Recompute::None) => [arch.layers, arch.layers],
        (true, Recompute::Mlp) => [arch.layers, arch.layers.min(1)],
        _ => [arch.layers.min(1), arch.layers.min(1)],
    }
}

fn has_middle(arch: &Arch) -> bool {
    matches!(arch.residual, Residual::Serial | Residual::PostNorm)
}

fn has_second_norm(arch: &Arch) -> bool {
    arch.residual != Residual::ParallelOneNorm
}

/// Whether a second gradient of the stream is needed.
fn has_side(arch: &Arch) -> bool {
    matches!(arch.residual, Residual::Parallel | Residual::PostNorm) || arch.embedding_norm
}

impl Memory {
    pub(super) fn new(
        device: &Device,
        arch: &Arch,
        tokens: usize,
        row_len: usize,
        recompute: Recompute,
        training: bool,
    ) -> Self {
        let (c, m, a) = (arch.width, arch.mlp_width, arch.attention_width());
        let f32s = |per_token: usize| Buffer::<f32>::zeros(tokens * per_token);
        let stats = || NormStats::zeros(tokens);
        let [num_blocks, num_mlps] = num_kept(arch, recompute, training);
        let block = |_| BlockMemory {
            norm1: f32s(c),
            norm1_stats: stats(),
            qkv: f32s(arch.qkv_width()),
            attention: f32s(a),
            log_sum_exp: f32s(arch.heads),
            middle: has_middle(arch).then(|| f32s(c)),
            norm2: has_second_norm(arch).then(|| (f32s(c), stats())),
        };
        Self {
            tokens,
            row_len,
            ids: Buffer::zeros(tokens),
            targets: Buffer::zeros(tokens),
            losses: f32s(1),
            embedded: arch.embedding_norm.then(|| (f32s(c), stats())),
            residual: (0..if training { arch.layers + 1 } else { 2 }).map(|_| f32s(c)).collect(),
            blocks: (0..num_blocks).map(block).collect(),
            mlps: (0..num_mlps).map(|_| MlpMemory { hidden: f32s(arch.up_width()), activated: f32s(m) }).collect(),
            norm: arch.final_norm().then(|| (f32s(c), stats())),
            logits: LogitsChunk::new(tokens, arch.vocab_size),
            scratch: attention::Scratch::new(device, row_len),
            training: training.then(|| TrainingMemory {
                dx: f32s(c),
                dbranch: f32s(c),
                dinput: f32s(c.max(a)),
                dside: has_side(arch).then(|| f32s(c)),
                dqkv: f32s(arch.qkv_width()),
                dhidden: f32s(arch.up_width()),
                dactivated: arch.gated.then(|| f32s(m)),
            }),
        }
    }
}

/// Bytes of the buffers of training, beside parameters, gradients and moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingBytes {
    /// Saved by the forward pass of all blocks.
    pub saved: u128,
    /// The backward pass's gradients of activations, those of one block at a time, and tiles of attention scores.
    pub backward: u128,
    /// One chunk of logits.
    pub logits: u128,
}

/// The bytes of training on `rows` rows of `row_len` tokens, as `Memory::new` takes them; saturating.
pub fn training_bytes(arch: &Arch, rows: usize, row_len: usize, threads: usize, recompute: Recompute) -> TrainingBytes {
    bytes(arch, [rows, row_len, threads], recompute, true)
}

/// The bytes of scoring a row of `row_len` tokens, beside parameters, as `Memory::new` takes them; saturating.
pub fn scoring_bytes(arch: &Arch, row_len: usize, threads: usize) -> u128 {
    let TrainingBytes { saved, backward, logits } = bytes(arch, [1, row_len, threads], Recompute::None, false);
    saved.saturating_add(backward).saturating_add(logits)
}

fn bytes(arch: &Arch, [rows, row_len, threads]: [usize; 3], recompute: Recompute, training: bool) -> TrainingBytes {
    let of = |value: usize| value as u128;
    let sum = |parts: &[u128]| parts.iter().fold(0_u128, |sum, &part| sum.saturating_add(part));
    let [c, m, h, kv, d] = [arch.width, arch.mlp_width, arch.heads, arch.kv_heads, arch.head_size].map(of);
    let (a, qkv) = (h.saturating_mul(d), h.saturating_add(kv.saturating_mul(2)).saturating_mul(d));
    let up = if arch.gated { m.saturating_mul(2) } else { m };
    let given = |present: bool, size: u128| if present { size } else { 0 };
    // A norm's statistics are two numbers.
    let block = sum(&[c, 2, qkv, a, h, given(has_middle(arch), c), given(has_second_norm(arch), c.saturating_add(2))]);
    let [num_blocks, num_mlps] = num_kept(arch, recompute, training).map(of);
    let num_residuals = if training { of(arch.layers).saturating_add(1) } else { 2 };
    let saved = sum(&[
        // Ids, targets, losses.
        3,
        given(arch.embedding_norm, c.saturating_add(2)),
        num_residuals.saturating_mul(c),
        num_blocks.saturating_mul(block),
        num_mlps.saturating_mul(up.saturating_add(m)),
        given(arch.final_norm(), c.saturating_add(2)),
    ]);
    let gradients = sum(&[c, c, c.max(a), given(has_side(arch), c), qkv, up, given(arch.gated, m)]);
    let backward = given(training, gradients);
    let tokens = of(rows).saturating_mul(of(row_len));
    let bytes = |numbers: u128| numbers.saturating_mul(4);
    // The tiles of `attention::Scratch`, without overflow.
    let tile = 2 * of(attention::TILE.min(row_len)).saturating_mul(of(row_len));
    TrainingBytes {
        saved: bytes(saved.saturating_mul(tokens)),
        backward: bytes(backward.saturating_mul(tokens).saturating_add(of(threads).saturating_mul(tile))),
        logits: bytes(tokens.min(of(cross_entropy::CHUNK_ROWS)).saturating_mul(of(arch.vocab_size))),
    }
}

/// The window of the first `tokens` tokens of a buffer with `per_token` elements each.
pub(super) fn part<T: bytemuck::Pod>(buffer: &Buffer<T>, tokens: usize, per_token: usize) -> View<'_, T> {
    buffer.view().window(0..tokens * per_token)
}

/// The same to write to.
pub(super) fn part_mut<T: bytemuck::Pod>(buffer: &mut Buffer<T>, tokens: usize, per_token: usize) -> ViewMut<'_, T> {
    buffer.view_mut().window(0..tokens * per_token)
}
