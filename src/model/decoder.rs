//! The native backend: the decoder on our own operations, with the backward pass written out.
//!
//! Blocks run forward in order and backward in reverse over named buffers that are sized once. Training keeps, per block
//! and token, 8 c + 2 m numbers and the statistics; inference keeps one block's. The loss is a mean, so its gradient is
//! known before the loss: head, softmax and loss run forward and backward together, chunk by chunk (`ops/cross_entropy.rs`).
//!
//! With dropout the branch goes through a scratch buffer before it joins the residual stream; without, it is added by
//! the matrix product itself.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::arch::Arch;
use super::layout::Layout;
use super::parts::{BlockParts, Parts};
use super::{DropoutSeed, LossAndGradients, Rows, check_tokens};
use crate::ops::cross_entropy::{self, LogitsChunk, NO_TARGET};
use crate::ops::matmul::{Order, matmul};
use crate::ops::norm::NormStats;
use crate::ops::random::{EMBEDDING_SITE, Mask, attention_branch_site, attention_site, mlp_branch_site};
use crate::ops::{Buffer, Device, View, ViewMut, activation, attention, dropout, embedding, linear, norm};

/// The decoder on our own operations.
pub struct Decoder {
    device: Device,
    arch: Arch,
    layout: Arc<Layout>,
    memory: Option<Memory>,
}

/// What one block keeps of its forward pass for its backward pass.
struct BlockMemory {
    norm1: Buffer<f32>,
    norm1_stats: NormStats,
    qkv: Buffer<f32>,
    attention: Buffer<f32>,
    log_sum_exp: Buffer<f32>,
    /// The residual stream between the two branches.
    middle: Buffer<f32>,
    norm2: Buffer<f32>,
    norm2_stats: NormStats,
    /// The MLP's hidden layer before its bias.
    hidden: Buffer<f32>,
    activated: Buffer<f32>,
}

/// Gradients that live through one block's backward pass, and the branch before dropout.
struct TrainingMemory {
    dx: Buffer<f32>,
    dbranch: Buffer<f32>,
    dinput: Buffer<f32>,
    dqkv: Buffer<f32>,
    dhidden: Buffer<f32>,
}

/// Every buffer of a forward (and backward) pass over up to `tokens` tokens in rows of up to `row_len`.
struct Memory {
    tokens: usize,
    row_len: usize,
    ids: Buffer<u32>,
    targets: Buffer<u32>,
    losses: Buffer<f32>,
    /// Inputs of the blocks, then the last block's output; inference has one for all.
    residual: Vec<Buffer<f32>>,
    /// One per block, or one for all in inference.
    blocks: Vec<BlockMemory>,
    norm: Buffer<f32>,
    norm_stats: NormStats,
    logits: LogitsChunk,
    scratch: attention::Scratch,
    training: Option<TrainingMemory>,
}

impl Memory {
    fn new(device: &Device, arch: &Arch, tokens: usize, row_len: usize, training: bool) -> Self {
        let (c, m) = (arch.width, arch.mlp_width);
        let f32s = |per_token: usize| Buffer::<f32>::zeros(tokens * per_token);
        let num_blocks = if training { arch.layers } else { 1 };
        Self {
            tokens,
            row_len,
            ids: Buffer::zeros(tokens),
            targets: Buffer::zeros(tokens),
            losses: f32s(1),
            residual: (0..if training { arch.layers + 1 } else { 1 }).map(|_| f32s(c)).collect(),
            blocks: (0..num_blocks)
                .map(|_| BlockMemory {
                    norm1: f32s(c),
                    norm1_stats: Buffer::zeros(tokens),
                    qkv: f32s(3 * c),
                    attention: f32s(c),
                    log_sum_exp: f32s(arch.heads),
                    middle: f32s(c),
                    norm2: f32s(c),
                    norm2_stats: Buffer::zeros(tokens),
                    hidden: f32s(m),
                    activated: f32s(m),
                })
                .collect(),
            norm: f32s(c),
            norm_stats: Buffer::zeros(tokens),
            logits: LogitsChunk::new(tokens, arch.vocab_size),
            scratch: attention::Scratch::new(device, row_len),
            training: training.then(|| TrainingMemory {
                dx: f32s(c),
                dbranch: f32s(c),
                dinput: f32s(c),
                dqkv: f32s(3 * c),
                dhidden: f32s(m),
            }),
        }
    }
}

/// Bytes of all buffers that training on `rows` rows of `row_len` tokens needs beside parameters, gradients and moments.
pub fn training_memory_bytes(arch: &Arch, rows: usize, row_len: usize, threads: usize) -> u64 {
    let [c, m, h, v] = [arch.width, arch.mlp_width, arch.heads, arch.vocab_size].map(|x| x as u64);
    let (layers, tokens) = (arch.layers as u64, (rows * row_len) as u64);
    let per_block = 7 * c + 2 * m + h + 4;
    let per_token = layers * per_block + (layers + 1) * c + c + 2 + 3 + (6 * c + m);
    let logits = tokens.min(cross_entropy::CHUNK_ROWS as u64) * v;
    let tiles = threads as u64 * attention::Scratch::len_per_thread(row_len) as u64;
    4 * (tokens * per_token + logits + tiles)
}

/// The window of the first `tokens` tokens of a buffer with `per_token` elements each.
fn part<T: bytemuck::Pod>(buffer: &Buffer<T>, tokens: usize, per_token: usize) -> View<'_, T> {
    buffer.view().window(0..tokens * per_token)
}

fn part_mut<T: bytemuck::Pod>(buffer: &mut Buffer<T>, tokens: usize, per_token: usize) -> ViewMut<'_, T> {
    buffer.view_mut().window(0..tokens * per_token)
}

/// Sizes of one pass.
#[derive(Clone, Copy)]
struct Pass {
    rows: usize,
    row_len: usize,
    /// `rows * row_len`.
    n: usize,
    dropout: Option<DropoutSeed>,
}

impl Pass {
    fn mask(&self, site: u64) -> Option<Mask> {
        self.dropout.map(|dropout| Mask::new(dropout.seed, site, dropout.rate))
    }
}

impl Decoder {
    /// A decoder of that architecture; memory is taken when the first pass tells how much.
    pub fn new(device: Device, arch: &Arch) -> Self {
        Self { device, arch: arch.clone(), layout: Arc::new(Layout::of(arch)), memory: None }
    }

    /// Checks the tokens, makes sure that the memory suffices, and writes ids and targets.
    fn prepare(&mut self, num_params: usize, rows: Rows, training: bool) -> Result<Pass> {
        check_tokens(&self.arch, rows)?;
        let Rows { tokens, num_rows, row_len } = rows;
        let expected = self.layout.len();
        ensure!(num_params == expected, "{num_params} parameters were given for a model of {expected}");
        let n = tokens.len();
        let suffices = self.memory.as_ref().is_some_and(|memory| {
            memory.tokens >= n && memory.row_len >= row_len && (memory.training.is_some() || !training)
        });
        if !suffices {
            // The old memory goes before the new one comes, which serves for both, lest two kinds of passes take turns in
            // making memory.
            let old = self.memory.take().map(|old| (old.tokens, old.row_len, old.training.is_some()));
            let (old_tokens, old_row_len, trained) = old.unwrap_or_default();
            let (tokens, row_len) = (n.max(old_tokens), row_len.max(old_row_len));
            self.memory = Some(Memory::new(&self.device, &self.arch, tokens, row_len, training || trained));
        }
        let memory = self.memory.as_mut().expect("made above");
        part_mut(&mut memory.ids, n, 1).cpu().copy_from_slice(tokens);
        let targets = part_mut(&mut memory.targets, n, 1).cpu();
        for (targets, ids) in targets.chunks_mut(row_len).zip(tokens.chunks(row_len)) {
            targets[..row_len - 1].copy_from_slice(&ids[1..]);
            targets[row_len - 1] = NO_TARGET;
        }
        Ok(Pass { rows: num_rows, row_len, n, dropout: None })
    }

    /// From token ids to the normalised output of the last block, in `memory.norm`.
    fn forward(&mut self, params: &Parts<View<f32>>, pass: Pass) {
        let Self { device, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (n, c) = (pass.n, arch.width);
        let ids = part(&memory.ids, n, 1);
        let first = part_mut(&mut memory.residual[0], n, c);
        embedding::forward(first, ids, params.token, params.position, pass.row_len, c);
        if let Some(mask) = pass.mask(EMBEDDING_SITE) {
            dropout::apply(part_mut(&mut memory.residual[0], n, c), mask);
        }
        for (i, block) in params.blocks.iter().enumerate() {
            let (num_blocks, num_residuals) = (memory.blocks.len(), memory.residual.len());
            let kept = &mut memory.blocks[i % num_blocks];
            let mut branch = memory.training.as_mut().map(|training| part_mut(&mut training.dbranch, n, c));
            let x = part(&memory.residual[i % num_residuals], n, c);
            attention_branch(device, arch, i, pass, block, kept, x, branch.as_mut(), &mut memory.scratch);
            let y = part_mut(&mut memory.residual[(i + 1) % num_residuals], n, c);
            mlp_branch(device, arch, i, pass, block, kept, y, branch.as_mut());
        }
        let last = part(&memory.residual[arch.layers % memory.residual.len()], n, c);
        let stats = part_mut(&mut memory.norm_stats, n, 1);
        let y = part_mut(&mut memory.norm, n, c);
        norm::forward(y, stats, last, params.norm_gain, params.norm_bias, arch.norm_eps);
    }

    /// Head, loss and the whole backward pass; adds to `gradients`, fills `memory.losses`.
    fn backward(
        &mut self,
        params: &Parts<View<f32>>,
        mut gradients: Parts<ViewMut<f32>>,
        pass: Pass,
        scale_per_target: f32,
    ) {
        let Self { device, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let kept = memory.training.as_mut().expect("prepared for training");
        let (n, c) = (pass.n, arch.width);
        cross_entropy::forward_backward(
            device,
            part_mut(&mut memory.losses, n, 1),
            part_mut(&mut kept.dinput, n, c),
            gradients.head.as_mut().unwrap_or(&mut gradients.token).reborrow(),
            part(&memory.norm, n, c),
            params.head.unwrap_or(params.token),
            part(&memory.targets, n, 1),
            c,
            scale_per_target,
            &mut memory.logits,
        );
        let mut dx = part_mut(&mut kept.dx, n, c);
        dx.reborrow().cpu().fill(0.0);
        norm::backward(
            dx,
            gradients.norm_gain,
            gradients.norm_bias,
            part(&kept.dinput, n, c),
            part(&memory.residual[arch.layers], n, c),
            part(&memory.norm_stats, n, 1),
            params.norm_gain,
        );
        let blocks = params.blocks.iter().zip(gradients.blocks).zip(&memory.blocks).enumerate();
        for (i, ((block, gradients), saved)) in blocks.rev() {
            let x = part(&memory.residual[i], n, c);
            backward_block(device, arch, i, pass, block, gradients, saved, x, kept, &mut memory.scratch);
        }
        if let Some(mask) = pass.mask(EMBEDDING_SITE) {
            dropout::apply(part_mut(&mut kept.dx, n, c), mask);
        }
        let dx = part(&kept.dx, n, c);
        embedding::backward(gradients.token, gradients.position, dx, part(&memory.ids, n, 1), pass.row_len, c);
    }
}

/// `middle = x + attention(norm1(x))`.
#[allow(clippy::too_many_arguments)]
fn attention_branch(
    device: &Device,
    arch: &Arch,
    layer: usize,
    pass: Pass,
    params: &BlockParts<View<f32>>,
    kept: &mut BlockMemory,
    x: View<f32>,
    branch: Option<&mut ViewMut<f32>>,
    scratch: &mut attention::Scratch,
) {
    let (n, c) = (pass.n, arch.width);
    let norm1 = part_mut(&mut kept.norm1, n, c);
    let stats = part_mut(&mut kept.norm1_stats, n, 1);
    norm::forward(norm1, stats, x, params.norm1_gain, params.norm1_bias, arch.norm_eps);
    let qkv = part_mut(&mut kept.qkv, n, 3 * c);
    linear::forward(device, qkv, part(&kept.norm1, n, c), params.qkv_weight, params.qkv_bias, None);
    attention::forward(
        attention_shape(arch, layer, pass),
        part_mut(&mut kept.attention, n, c),
        part_mut(&mut kept.log_sum_exp, n, arch.heads),
        part(&kept.qkv, n, 3 * c),
        pass.mask(attention_site(layer)),
        scratch,
    );
    let input = part(&kept.attention, n, c);
    let middle = part_mut(&mut kept.middle, n, c);
    let mask = pass.mask(attention_branch_site(layer));
    join(device, middle, x, input, params.out_weight, params.out_bias, mask, branch);
}

/// `y = middle + mlp(norm2(middle))`.
#[allow(clippy::too_many_arguments)]
fn mlp_branch(
    device: &Device,
    arch: &Arch,
    layer: usize,
    pass: Pass,
    params: &BlockParts<View<f32>>,
    kept: &mut BlockMemory,
    y: ViewMut<f32>,
    branch: Option<&mut ViewMut<f32>>,
) {
    let (n, c, m) = (pass.n, arch.width, arch.mlp_width);
    let middle = part(&kept.middle, n, c);
    let norm2 = part_mut(&mut kept.norm2, n, c);
    let stats = part_mut(&mut kept.norm2_stats, n, 1);
    norm::forward(norm2, stats, middle, params.norm2_gain, params.norm2_bias, arch.norm_eps);
    let hidden = part_mut(&mut kept.hidden, n, m);
    linear::forward_without_bias(device, [n, m, c], hidden, part(&kept.norm2, n, c), params.up_weight);
    let activated = part_mut(&mut kept.activated, n, m);
    activation::forward(arch.activation, activated, part(&kept.hidden, n, m), params.up_bias);
    let input = part(&kept.activated, n, m);
    let mask = pass.mask(mlp_branch_site(layer));
    join(device, y, middle, input, params.down_weight, params.down_bias, mask, branch);
}

/// `y = residual + dropout(x weightᵀ + bias)`.
#[allow(clippy::too_many_arguments)]
fn join(
    device: &Device,
    mut y: ViewMut<f32>,
    residual: View<f32>,
    x: View<f32>,
    weight: View<f32>,
    bias: View<f32>,
    mask: Option<Mask>,
    branch: Option<&mut ViewMut<f32>>,
) {
    match (mask, branch) {
        (Some(mask), Some(branch)) => {
            linear::forward(device, branch.reborrow(), x, weight, bias, None);
            y.reborrow().cpu().copy_from_slice(residual.cpu());
            dropout::add(y, branch.as_view(), mask);
        }
        _ => linear::forward(device, y, x, weight, bias, Some(residual)),
    }
}

fn attention_shape(arch: &Arch, layer: usize, pass: Pass) -> attention::Shape {
    attention::Shape {
        b: pass.rows,
        t: pass.row_len,
        h: arch.heads,
        d: arch.head_size(),
        scale: arch.attention_scale(layer),
    }
}

/// Both branches of a block, last first; `kept.dx` holds the gradient of the block's output, then that of its input.
#[allow(clippy::too_many_arguments)]
fn backward_block(
    device: &Device,
    arch: &Arch,
    layer: usize,
    pass: Pass,
    params: &BlockParts<View<f32>>,
    gradients: BlockParts<ViewMut<f32>>,
    saved: &BlockMemory,
    x: View<f32>,
    kept: &mut TrainingMemory,
    scratch: &mut attention::Scratch,
) {
    let (n, c, m) = (pass.n, arch.width, arch.mlp_width);
    let TrainingMemory { dx, dbranch, dinput, dqkv, dhidden } = kept;

    let dy = branch_gradient(part_mut(dbranch, n, c), part(dx, n, c), pass.mask(mlp_branch_site(layer)));
    let activated = part(&saved.activated, n, m);
    let (dweight, dbias) = (gradients.down_weight, gradients.down_bias);
    linear::backward(device, part_mut(dhidden, n, m), dweight, dbias, dy, activated, params.down_weight);
    let hidden = part(&saved.hidden, n, m);
    activation::backward(arch.activation, part_mut(dhidden, n, m), gradients.up_bias, hidden, params.up_bias);
    let (dnorm, norm2) = (part_mut(dinput, n, c), part(&saved.norm2, n, c));
    linear::backward_without_bias(device, m, dnorm, gradients.up_weight, part(dhidden, n, m), norm2, params.up_weight);
    let (middle, stats) = (part(&saved.middle, n, c), part(&saved.norm2_stats, n, 1));
    let (dgain, dbias) = (gradients.norm2_gain, gradients.norm2_bias);
    norm::backward(part_mut(dx, n, c), dgain, dbias, part(dinput, n, c), middle, stats, params.norm2_gain);

    let dy = branch_gradient(part_mut(dbranch, n, c), part(dx, n, c), pass.mask(attention_branch_site(layer)));
    let attended = part(&saved.attention, n, c);
    let (dweight, dbias) = (gradients.out_weight, gradients.out_bias);
    linear::backward(device, part_mut(dinput, n, c), dweight, dbias, dy, attended, params.out_weight);
    attention::backward(
        attention_shape(arch, layer, pass),
        part_mut(dqkv, n, 3 * c),
        part(dinput, n, c),
        part(&saved.qkv, n, 3 * c),
        attended,
        part(&saved.log_sum_exp, n, arch.heads),
        pass.mask(attention_site(layer)),
        scratch,
    );
    let (dnorm, norm1) = (part_mut(dinput, n, c), part(&saved.norm1, n, c));
    let (dweight, dbias) = (gradients.qkv_weight, gradients.qkv_bias);
    linear::backward(device, dnorm, dweight, dbias, part(dqkv, n, 3 * c), norm1, params.qkv_weight);
    let stats = part(&saved.norm1_stats, n, 1);
    let (dgain, dbias) = (gradients.norm1_gain, gradients.norm1_bias);
    norm::backward(part_mut(dx, n, c), dgain, dbias, part(dinput, n, c), x, stats, params.norm1_gain);
}

/// The gradient of a branch's output: that of the residual stream, through the mask if there is one.
fn branch_gradient<'a>(mut scratch: ViewMut<'a, f32>, dx: View<'a, f32>, mask: Option<Mask>) -> View<'a, f32> {
    match mask {
        None => dx,
        Some(mask) => {
            dropout::apply_to(scratch.reborrow(), dx, mask);
            scratch.into_view()
        }
    }
}

impl LossAndGradients for Decoder {
    fn loss_and_gradients(
        &mut self,
        params: &[f32],
        gradients: &mut [f32],
        rows: Rows,
        scale: f32,
        dropout: Option<DropoutSeed>,
    ) -> Result<f32> {
        ensure!(rows.row_len > 1, "a row of one token has nothing to predict");
        ensure!(gradients.len() == params.len(), "{} gradients for {} parameters", gradients.len(), params.len());
        let pass = Pass { dropout, ..self.prepare(params.len(), rows, true)? };
        let layout = Arc::clone(&self.layout);
        let params = Parts::of(&self.arch, &layout, params.into());
        let gradients = Parts::of_mut(&self.arch, &layout, gradients.into());
        let num_targets = rows.num_rows * (rows.row_len - 1);
        self.forward(&params, pass);
        self.backward(&params, gradients, pass, scale / num_targets as f32);
        let memory = self.memory.as_ref().expect("made by prepare");
        let sum: f64 = part(&memory.losses, pass.n, 1).cpu().iter().map(|&loss| f64::from(loss)).sum();
        Ok((sum / num_targets as f64) as f32)
    }

    fn row_losses(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
        let pass = self.prepare(params.len(), rows, false)?;
        let layout = Arc::clone(&self.layout);
        let params = Parts::of(&self.arch, &layout, params.into());
        self.forward(&params, pass);
        let Self { device, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let weight = params.head.unwrap_or(params.token);
        let (losses, targets) = (part_mut(&mut memory.losses, pass.n, 1), part(&memory.targets, pass.n, 1));
        let x = part(&memory.norm, pass.n, arch.width);
        cross_entropy::forward(device, losses, x, weight, targets, arch.width, &mut memory.logits);
        let losses = part(&memory.losses, pass.n, 1).cpu();
        let mean = |row: &[f32]| {
            let sum: f64 = row.iter().map(|&loss| f64::from(loss)).sum();
            (sum / (rows.row_len - 1) as f64) as f32
        };
        Ok(losses.chunks(rows.row_len).map(mean).collect())
    }

    fn logits(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
        let pass = self.prepare(params.len(), rows, false)?;
        let layout = Arc::clone(&self.layout);
        let params = Parts::of(&self.arch, &layout, params.into());
        self.forward(&params, pass);
        let memory = self.memory.as_ref().expect("made by prepare");
        let (v, c) = (self.arch.vocab_size, self.arch.width);
        let mut logits = vec![0.0; pass.n * v];
        let x = part(&memory.norm, pass.n, c);
        let weight = params.head.unwrap_or(params.token);
        let sizes = [pass.n, v, c];
        matmul(&self.device, sizes, 1.0, (x, Order::N), (weight, Order::T), 0.0, logits.as_mut_slice().into());
        Ok(logits)
    }
}

#[cfg(test)]
mod assembly_tests;
#[cfg(test)]
mod tests;
