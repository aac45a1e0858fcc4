//! The native backend: the decoder on our own operations, with the backward pass written out.
//!
//! Blocks run forward in order and backward in reverse over named buffers that are sized once ([`memory`]); what a block
//! does is in `block.rs`. The loss is a mean, so its gradient is known before the loss: head, softmax and loss run forward
//! and backward together, chunk by chunk (`ops/cross_entropy.rs`). What is not kept for the backward pass is computed again
//! there, with the same bits.

mod block;
pub mod cache;
pub mod memory;
pub(super) mod positions;

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::arch::{Arch, Position};
use super::layout::Layout;
use super::parts::{NormParts, Parts};
use super::{DropoutSeed, LossAndGradients, Rows, check_tokens};
use crate::ops::cross_entropy::{self, NO_TARGET};
use crate::ops::embedding::{self, Embedding};
use crate::ops::linear::{self, Start};
use crate::ops::norm::{self, NormStats};
use crate::ops::random::{EMBEDDING_SITE, Mask};
use crate::ops::{Buffer, Device, View, ViewMut, dropout};
use crate::recipe::Recompute;
use block::{Block, Tools};
use cache::Cache;
use memory::{Memory, part, part_mut};
use positions::Positions;

/// The decoder on our own operations.
pub struct Decoder {
    device: Device,
    arch: Arch,
    layout: Arc<Layout>,
    recompute: Recompute,
    positions: Positions,
    memory: Option<Memory>,
}

/// Sizes of one pass.
#[derive(Clone, Copy)]
struct Pass {
    rows: usize,
    row_len: usize,
    /// `rows * row_len`.
    n: usize,
    /// Position of the rows' first token: not 0 where a cache holds earlier ones.
    first_position: usize,
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
        Self::recomputing(device, arch, Recompute::None)
    }

    /// A decoder that computes a part of the activations again in its backward pass.
    pub fn recomputing(device: Device, arch: &Arch, recompute: Recompute) -> Self {
        let (positions, layout) = (Positions::default(), Arc::new(Layout::of(arch)));
        Self { device, arch: arch.clone(), layout, recompute, positions, memory: None }
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
            let training = training || trained;
            self.memory = Some(Memory::new(&self.device, &self.arch, tokens, row_len, self.recompute, training));
        }
        self.positions.prepare(&self.arch, row_len);
        let memory = self.memory.as_mut().expect("made above");
        part_mut(&mut memory.ids, n, 1).cpu().copy_from_slice(tokens);
        let targets = part_mut(&mut memory.targets, n, 1).cpu();
        for (targets, ids) in targets.chunks_mut(row_len).zip(tokens.chunks(row_len)) {
            targets[..row_len - 1].copy_from_slice(&ids[1..]);
            targets[row_len - 1] = NO_TARGET;
        }
        Ok(Pass { rows: num_rows, row_len, n, first_position: 0, dropout: None })
    }

    /// From token ids to what the head reads ([`head_input`]).
    fn forward(&mut self, params: &Parts<View<f32>>, pass: Pass, mut cache: Option<&mut Cache>) {
        let Self { device, arch, memory, positions, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (n, c) = (pass.n, arch.width);
        let ids = part(&memory.ids, n, 1);
        let first = &mut memory.residual[0];
        let shape = embedding_shape(arch, pass);
        match (&mut memory.embedded, &params.embedding_norm) {
            (Some((embedded, stats)), Some(params_norm)) => {
                embedding::forward(shape, part_mut(embedded, n, c), ids, params.token, params.position);
                normalise(arch, n, part_mut(first, n, c), stats, part(embedded, n, c), params_norm);
            }
            _ => embedding::forward(shape, part_mut(first, n, c), ids, params.token, params.position),
        }
        if let Some(mask) = pass.mask(EMBEDDING_SITE) {
            dropout::apply(part_mut(first, n, c), mask);
        }
        for (layer, params) in params.blocks.iter().enumerate() {
            let block = Block { device, arch, layer, pass, positions, params };
            let mut layer_cache = cache.as_mut().map(|cache| cache.layer(layer));
            forward_block(&block, memory, layer_cache.as_mut());
        }
        if let (Some((y, stats)), Some(params_norm)) = (&mut memory.norm, &params.norm) {
            let last = part(&memory.residual[arch.layers % memory.residual.len()], n, c);
            normalise(arch, n, part_mut(y, n, c), stats, last, params_norm);
        }
    }

    /// Head, loss and the whole backward pass; adds to `gradients`, fills `memory.losses`.
    fn backward(
        &mut self,
        params: &Parts<View<f32>>,
        mut gradients: Parts<ViewMut<f32>>,
        pass: Pass,
        scale_per_target: f32,
    ) {
        let Self { device, arch, memory, positions, recompute, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (n, c) = (pass.n, arch.width);
        let work = memory.training.as_mut().expect("prepared for training");
        let head_input = head_input(arch, &memory.norm, &memory.residual, n);
        let dhead = if memory.norm.is_some() { &mut work.dinput } else { &mut work.dx };
        cross_entropy::forward_backward(
            device,
            part_mut(&mut memory.losses, n, 1),
            part_mut(dhead, n, c),
            gradients.head.as_mut().unwrap_or(&mut gradients.token).reborrow(),
            gradients.head_bias,
            head_input,
            params.head.unwrap_or(params.token),
            params.head_bias,
            part(&memory.targets, n, 1),
            c,
            scale_per_target,
            &mut memory.logits,
        );
        if let (Some((_, stats)), Some(params_norm), Some(gradients)) = (&memory.norm, &params.norm, gradients.norm) {
            part_mut(&mut work.dx, n, c).cpu().fill(0.0);
            let (dx, dy) = (part_mut(&mut work.dx, n, c), part(&work.dinput, n, c));
            let x = part(&memory.residual[arch.layers], n, c);
            norm::backward(arch.norm, dx, gradients.gain, gradients.bias, dy, x, part(stats, n, 1), params_norm.gain);
        }
        for (layer, (params, gradients)) in params.blocks.iter().zip(gradients.blocks).enumerate().rev() {
            let block = Block { device, arch, layer, pass, positions, params };
            // The last block's memory is still as its forward pass left it.
            if layer + 1 < arch.layers {
                match recompute {
                    Recompute::None => {}
                    Recompute::Mlp => block.recompute_mlp(&memory.blocks[layer], &mut memory.mlps[0]),
                    Recompute::Block => forward_block(&block, memory, None),
                }
            }
            let Memory { blocks, mlps, residual, training, scratch, .. } = memory;
            let (kept, mlp) = (&blocks[layer % blocks.len()], &mlps[layer % mlps.len()]);
            let work = training.as_mut().expect("prepared for training");
            block.backward(gradients, kept, mlp, part(&residual[layer], n, c), work, scratch);
        }
        let work = memory.training.as_mut().expect("prepared for training");
        if let Some(mask) = pass.mask(EMBEDDING_SITE) {
            dropout::apply(part_mut(&mut work.dx, n, c), mask);
        }
        let dx = match (&memory.embedded, &params.embedding_norm, gradients.embedding_norm, &mut work.dside) {
            (Some((x, stats)), Some(params_norm), Some(NormParts { gain, bias }), Some(dside)) => {
                part_mut(dside, n, c).cpu().fill(0.0);
                let (dx, dy, x) = (part_mut(dside, n, c), part(&work.dx, n, c), part(x, n, c));
                norm::backward(arch.norm, dx, gain, bias, dy, x, part(stats, n, 1), params_norm.gain);
                part(dside, n, c)
            }
            _ => part(&work.dx, n, c),
        };
        let ids = part(&memory.ids, n, 1);
        embedding::backward(embedding_shape(arch, pass), gradients.token, gradients.position, dx, ids);
    }

    /// Logits of the last of one row's `tokens`, which follow those that the cache holds and join them.
    ///
    /// # Errors
    /// Tokens that the model cannot read; more of them than the cache has room for; more than one token after the first
    /// call.
    pub fn next_logits(&mut self, params: &[f32], tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let len = cache.len() + tokens.len();
        ensure!(len <= cache.capacity(), "{len} tokens are more than the cache's {}", cache.capacity());
        ensure!(cache.is_empty() || tokens.len() == 1, "behind earlier tokens they come one by one");
        let longest = self.arch.max_row_len().unwrap_or(usize::MAX);
        ensure!(len <= longest, "a row of {len} tokens is longer than the {longest} positions of the model");
        let pass = self.prepare(params.len(), Rows::new(tokens, 1, tokens.len()), false)?;
        self.positions.prepare(&self.arch, len);
        let pass = Pass { first_position: cache.len(), ..pass };
        let layout = Arc::clone(&self.layout);
        let params = Parts::of(&self.arch, &layout, params.into());
        self.forward(&params, pass, Some(cache));
        cache.grow(tokens.len());
        let c = self.arch.width;
        let last = self.head_input(pass.n).window((pass.n - 1) * c..pass.n * c);
        let mut logits = vec![0.0; self.arch.vocab_size];
        self.head(&params, 1, last, logits.as_mut_slice().into());
        Ok(logits)
    }

    /// What the head reads, after a forward pass.
    fn head_input(&self, n: usize) -> View<'_, f32> {
        let memory = self.memory.as_ref().expect("made by prepare");
        head_input(&self.arch, &memory.norm, &memory.residual, n)
    }

    fn head(&self, params: &Parts<View<f32>>, n: usize, x: View<f32>, logits: ViewMut<f32>) {
        let sizes = [n, self.arch.vocab_size, self.arch.width];
        let weight = params.head.unwrap_or(params.token);
        linear::forward(&self.device, sizes, logits, x, weight, params.head_bias, Start::Zero);
    }
}

/// Runs a block on its place in memory.
fn forward_block(block: &Block<'_>, memory: &mut Memory, cache: Option<&mut cache::LayerCache<'_>>) {
    let Memory { residual, blocks, mlps, training, scratch, .. } = memory;
    let (n, c, layer) = (block.pass.n, block.arch.width, block.layer);
    let (num_residuals, num_blocks, num_mlps) = (residual.len(), blocks.len(), mlps.len());
    let [x, y] = residual
        .get_disjoint_mut([layer % num_residuals, (layer + 1) % num_residuals])
        .expect("there are two at least, and one is not the next");
    let branch = training.as_mut().map(|training| part_mut(&mut training.dbranch, n, c));
    let mut tools = Tools { branch, scratch, cache };
    let (kept, mlp) = (&mut blocks[layer % num_blocks], &mut mlps[layer % num_mlps]);
    block.forward(kept, mlp, part(x, n, c), part_mut(y, n, c), &mut tools);
}

/// The last block's output, behind the final norm if there is one.
fn head_input<'a>(
    arch: &Arch,
    norm: &'a Option<(Buffer<f32>, NormStats)>,
    residual: &'a [Buffer<f32>],
    n: usize,
) -> View<'a, f32> {
    let last = &residual[arch.layers % residual.len()];
    part(norm.as_ref().map_or(last, |(y, _)| y), n, arch.width)
}

fn normalise(
    arch: &Arch,
    n: usize,
    y: ViewMut<f32>,
    stats: &mut NormStats,
    x: View<f32>,
    params: &NormParts<View<f32>>,
) {
    norm::forward(arch.norm, y, part_mut(stats, n, 1), x, params.gain, params.bias, arch.norm_eps);
}

fn embedding_shape(arch: &Arch, pass: Pass) -> Embedding {
    let offset = if let Position::Learned { offset } = arch.position { offset } else { 0 };
    Embedding {
        t: pass.row_len,
        c: arch.width,
        scale: arch.embedding_scale,
        first_position: offset + pass.first_position,
        frozen_id: arch.frozen_id,
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
        self.forward(&params, pass, None);
        self.backward(&params, gradients, pass, scale / num_targets as f32);
        let memory = self.memory.as_ref().expect("made by prepare");
        let sum: f64 = part(&memory.losses, pass.n, 1).cpu().iter().map(|&loss| f64::from(loss)).sum();
        Ok((sum / num_targets as f64) as f32)
    }

    fn row_losses(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
        let pass = self.prepare(params.len(), rows, false)?;
        let layout = Arc::clone(&self.layout);
        let params = Parts::of(&self.arch, &layout, params.into());
        self.forward(&params, pass, None);
        let Self { device, arch, memory, .. } = self;
        let Memory { norm, residual, losses, targets, logits, .. } = memory.as_mut().expect("made by prepare");
        let (n, c) = (pass.n, arch.width);
        let x = head_input(arch, norm, residual, n);
        let weight = params.head.unwrap_or(params.token);
        let (into, targets) = (part_mut(losses, n, 1), part(targets, n, 1));
        cross_entropy::forward(device, into, x, weight, params.head_bias, targets, c, logits);
        let losses = part(losses, n, 1).cpu();
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
        self.forward(&params, pass, None);
        let mut logits = vec![0.0; pass.n * self.arch.vocab_size];
        self.head(&params, pass.n, self.head_input(pass.n), logits.as_mut_slice().into());
        Ok(logits)
    }
}

#[cfg(test)]
mod assembly_tests;
#[cfg(test)]
mod tests;
