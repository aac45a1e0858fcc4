//! The decoder's forward pass on the device, and what both passes share.
//!
//! A branch's output joins the residual stream where the next norm reads it, so that the stream is walked once: a block
//! ends with the norm that follows it, the next block's first or the one before the head. Matrix products read the
//! parameters in the compute format; embeddings, norms and the bias before an activation read the f32 masters.

use anyhow::{Result, ensure};

use super::memory::{Batch, Memory, Sent, part, part_mut};
use super::positions::Positions;
use crate::gpu::cross_entropy::Head;
use crate::gpu::embedding::SortedIds;
use crate::gpu::{Element, Gpu, View, activation, attention, cross_entropy, embedding, linear, norm, rotary};
use crate::model::arch::{Arch, Position, Residual};
use crate::model::parts::{BlockParts, LinearParts, NormParts, Parts};
use crate::model::{Rows, check_tokens};
use crate::ops::cross_entropy::NO_TARGET;
use crate::ops::embedding::Embedding;
use crate::recipe::Recompute;

/// A decoder of an architecture that computes in `T`; the parameters are the caller's.
pub(super) struct Decoder<T> {
    pub(super) gpu: Gpu,
    pub(super) arch: Arch,
    pub(super) recompute: Recompute,
    /// Whether matrix products compute the MLP's function in passing; `hidden` then has the bias in it.
    pub(super) fuses_gelu: bool,
    pub(super) positions: Positions,
    pub(super) memory: Option<Memory<T>>,
}

/// One pass: its sizes, and what a backward pass finds.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) rows: usize,
    pub(super) row_len: usize,
    /// `rows * row_len`.
    pub(super) n: usize,
    /// Different ids that get a gradient, and rows that have them.
    pub(super) num_sorted: [usize; 2],
    /// Whether gradients that products compute are added to, or overwritten.
    pub(super) accumulates: bool,
}

/// A model's parameters: masters, and in the compute format.
pub(super) struct Params<'a, T> {
    pub(super) masters: Parts<View<'a, f32>>,
    pub(super) compute: Parts<View<'a, T>>,
}

impl<'a, T> Params<'a, T> {
    /// One block's, masters and compute format.
    pub(super) fn block(&self, layer: usize) -> (&BlockParts<View<'a, f32>>, &BlockParts<View<'a, T>>) {
        (&self.masters.blocks[layer], &self.compute.blocks[layer])
    }

    pub(super) fn head(&self, arch: &Arch) -> Head<'a, T> {
        let weight = self.compute.head.unwrap_or(self.compute.token);
        Head { weight, bias: self.compute.head_bias, v: arch.vocab_size, c: arch.width }
    }
}

impl<T: Element> Decoder<T> {
    pub(super) fn new(gpu: &Gpu, arch: &Arch, recompute: Recompute) -> Self {
        let positions = Positions::default();
        Self { gpu: gpu.clone(), arch: arch.clone(), recompute, fuses_gelu: false, positions, memory: None }
    }

    /// Checks the tokens, makes sure that the memory suffices, and sends ids and targets.
    pub(super) fn prepare(&mut self, rows: Rows, training: bool) -> Result<Pass> {
        check_tokens(&self.arch, rows)?;
        let Rows { tokens, num_rows, row_len } = rows;
        let n = tokens.len();
        ensure!(i32::try_from(n).is_ok(), "{n} tokens are more than one pass can take");
        let suffices =
            self.memory.as_ref().is_some_and(|memory| memory.tokens >= n && (memory.backward.is_some() || !training));
        if !suffices {
            // The old memory goes before the new one comes, which serves for both kinds of passes.
            let old = self.memory.take().map(|old| (old.tokens, old.backward.is_some()));
            let (old_tokens, trained) = old.unwrap_or_default();
            let (tokens, training) = (n.max(old_tokens), training || trained);
            self.memory = Some(Memory::new(&self.gpu, &self.arch, tokens, self.recompute, training)?);
        }
        self.positions.prepare(&self.gpu, &self.arch, row_len)?;
        let Self { gpu, arch, memory, .. } = self;
        let batches = &mut memory.as_mut().expect("made above").batches;
        let was_sent = |sent: &Sent| sent.tokens == tokens && sent.row_len == row_len;
        let sent = match batches.sent.take().filter(was_sent) {
            Some(sent) => sent,
            None => send(gpu, arch, &mut batches.other, rows),
        };
        std::mem::swap(&mut batches.current, &mut batches.other);
        Ok(Pass { rows: num_rows, row_len, n, num_sorted: sent.num_sorted, accumulates: true })
    }

    /// Sends the rows of the next `prepare` ahead, while the device computes.
    pub(super) fn send_ahead(&mut self, rows: Rows) {
        let Self { gpu, arch, memory, .. } = self;
        let fits = memory.as_mut().filter(|memory| memory.tokens >= rows.tokens.len());
        if let (Some(memory), Ok(())) = (fits, check_tokens(arch, rows)) {
            memory.batches.sent = Some(send(gpu, arch, &mut memory.batches.other, rows));
        }
    }

    /// From token ids to what the head reads, `memory.last`.
    pub(super) fn forward(&mut self, params: &Params<T>, pass: Pass) {
        let Self { gpu, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (n, c) = (pass.n, arch.width);
        let ids = part(&memory.batches.current.ids, n, 1);
        let (token, position) = (params.masters.token, params.masters.position);
        let into = match &mut memory.embedded {
            Some((embedded, _)) => part_mut(embedded, n, c),
            None => part_mut(&mut memory.residual[0], n, c),
        };
        embedding::forward(gpu, embedding_shape(arch, pass), into, ids, token, position);
        if let (Some((embedded, stats)), Some(of_norm)) = (&mut memory.embedded, &params.masters.embedding_norm) {
            let narrow = if arch.layers == 0 { &mut memory.last.0 } else { &mut memory.norm1[0] };
            let io = norm::Forward {
                y: part_mut(narrow, n, c),
                wide: Some(part_mut(&mut memory.residual[0], n, c)),
                sum: None,
                stats: part_mut(stats, n, 1),
                x: part(embedded, n, c),
                branches: [None, None],
                gain: of_norm.gain,
                bias: of_norm.bias,
            };
            norm::forward(gpu, arch.norm, arch.norm_eps, io);
        }
        if arch.residual != Residual::PostNorm {
            self.norm_of_stream(params, pass, 0, 0, [false; 2]);
        }
        for layer in 0..self.arch.layers {
            self.block_forward(params, pass, layer);
            self.join(params, pass, layer);
        }
    }

    /// A block up to the MLP's hidden layer.
    pub(super) fn block_forward(&mut self, params: &Params<T>, pass: Pass, layer: usize) {
        let (n, c) = (pass.n, self.arch.width);
        self.attend(params, pass, layer);
        let Self { gpu, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (masters, _) = params.block(layer);
        let block = layer % memory.norm1.len();
        let x = part(&memory.residual[layer % memory.residual.len()], n, c);
        let attended = memory.branches[0].as_ref().map(|branch| part(branch, n, c));
        match arch.residual {
            Residual::Serial | Residual::Parallel => {
                let of_norm = masters.norm2.as_ref().expect("blocks with two norms have one");
                // Between branches that follow one another; parallel ones both read the block's input.
                let middle = memory.middle.get_mut(block);
                let io = norm::Forward {
                    y: part_mut(&mut memory.norm2[block], n, c),
                    wide: None,
                    branches: [attended.filter(|_| middle.is_some()), None],
                    sum: middle.map(|middle| part_mut(middle, n, c)),
                    stats: part_mut(&mut memory.norm2_stats[block], n, 1),
                    x,
                    gain: of_norm.gain,
                    bias: of_norm.bias,
                };
                norm::forward(gpu, arch.norm, arch.norm_eps, io);
            }
            Residual::ParallelOneNorm => {}
            Residual::PostNorm => {
                let NormParts { gain, bias } = masters.norm1;
                let io = norm::Forward {
                    y: part_mut(&mut memory.norm2[block], n, c),
                    wide: memory.wide.as_mut().map(|wide| part_mut(wide, n, c)),
                    sum: Some(part_mut(&mut memory.middle[block], n, c)),
                    stats: part_mut(&mut memory.norm1_stats[block], n, 1),
                    x,
                    branches: [attended, None],
                    gain,
                    bias,
                };
                norm::forward(gpu, arch.norm, arch.norm_eps, io);
            }
        }
        self.mlp_hidden(params, pass, layer);
    }

    /// Queries, keys and values, the attention between them, and its branch's output.
    fn attend(&mut self, params: &Params<T>, pass: Pass, layer: usize) {
        let (n, c) = (pass.n, self.arch.width);
        let shape = self.arch.attention_shape(pass.rows, pass.row_len, layer);
        let Self { gpu, arch, memory, positions, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (_, compute) = params.block(layer);
        let block = layer % memory.norm1.len();
        let (width, a) = (arch.qkv_width(), arch.attention_width());
        let qkv = &mut memory.qkv[block];
        let LinearParts { weight, bias } = &compute.qkv;
        linear::forward(gpu, [n, width, c], part_mut(qkv, n, width), part(&memory.norm1[block], n, c), *weight, *bias);
        if let Some((shape, table)) = positions.rotary(arch, pass.row_len) {
            rotary::forward(gpu, shape, part_mut(qkv, n, width), table);
        }
        let attended = &mut memory.attention[block];
        let log_sum_exp = part_mut(&mut memory.log_sum_exp[block], n, arch.heads);
        let (qkv, key_bias) = (part(qkv, n, width), positions.key_bias());
        attention::forward(gpu, shape, part_mut(attended, n, a), log_sum_exp, qkv, key_bias);
        let branch = memory.branches[0].as_mut().expect("there is always one");
        let LinearParts { weight, bias } = &compute.out;
        linear::forward(gpu, [n, c, a], part_mut(branch, n, c), part(attended, n, a), *weight, *bias);
    }

    /// The MLP's hidden layer before and behind its function.
    pub(super) fn mlp_hidden(&mut self, params: &Params<T>, pass: Pass, layer: usize) {
        let Self { gpu, arch, memory, fuses_gelu, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (masters, compute) = params.block(layer);
        let (n, c, m, up) = (pass.n, arch.width, arch.mlp_width, arch.up_width());
        let (block, mlp) = (layer % memory.norm1.len(), layer % memory.hidden.len());
        let input = memory.norm2.get(block).unwrap_or(&memory.norm1[block]);
        let hidden = &mut memory.hidden[mlp];
        if let (true, LinearParts { weight, bias: Some(bias) }) = (*fuses_gelu, &compute.up) {
            let (activated, input) = (part_mut(&mut memory.activated[mlp], n, m), part(input, n, c));
            linear::forward_gelu(gpu, [n, m, c], activated, part_mut(hidden, n, m), input, *weight, *bias);
            return;
        }
        // The bias is the activation's matter.
        linear::forward(gpu, [n, up, c], part_mut(hidden, n, up), part(input, n, c), compute.up.weight, None);
        let (activated, hidden) = (part_mut(&mut memory.activated[mlp], n, m), part(hidden, n, up));
        match arch.gated {
            true => activation::gated_forward(gpu, arch.activation, activated, hidden, m),
            false => activation::forward(gpu, arch.activation, activated, hidden, masters.up.bias, m),
        }
    }

    /// The MLP's branch; adds what a block's branches have to the stream, and takes the norm behind it.
    pub(super) fn join(&mut self, params: &Params<T>, pass: Pass, layer: usize) {
        let Self { gpu, arch, memory, .. } = &mut *self;
        let memory = memory.as_mut().expect("made by prepare");
        let (n, c, m) = (pass.n, arch.width, arch.mlp_width);
        let which = usize::from(memory.branches[1].is_some());
        let branch = memory.branches[which].as_mut().expect("there is one");
        let activated = part(&memory.activated[layer % memory.activated.len()], n, m);
        let LinearParts { weight, bias } = &params.compute.blocks[layer].down;
        linear::forward(gpu, [n, c, m], part_mut(branch, n, c), activated, *weight, *bias);
        match self.arch.residual {
            Residual::Serial => self.norm_of_stream(params, pass, layer, layer + 1, [true, false]),
            Residual::Parallel | Residual::ParallelOneNorm => {
                self.norm_of_stream(params, pass, layer, layer + 1, [true, true]);
            }
            Residual::PostNorm => {
                let Self { gpu, arch, memory, .. } = self;
                let memory = memory.as_mut().expect("made by prepare");
                let (n, c) = (pass.n, arch.width);
                let (block, num_residuals) = (layer % memory.norm1.len(), memory.residual.len());
                let of_norm = params.masters.blocks[layer].norm2.as_ref().expect("blocks with post-norms have one");
                let next = if layer + 1 == arch.layers {
                    &mut memory.last.0
                } else {
                    let num_blocks = memory.norm1.len();
                    &mut memory.norm1[(layer + 1) % num_blocks]
                };
                let io = norm::Forward {
                    y: part_mut(next, n, c),
                    wide: Some(part_mut(&mut memory.residual[(layer + 1) % num_residuals], n, c)),
                    sum: Some(part_mut(&mut memory.sum[block], n, c)),
                    stats: part_mut(&mut memory.norm2_stats[block], n, 1),
                    x: part(memory.wide.as_ref().expect("post-norms have one"), n, c),
                    branches: [memory.branches[0].as_ref().map(|branch| part(branch, n, c)), None],
                    gain: of_norm.gain,
                    bias: of_norm.bias,
                };
                norm::forward(gpu, arch.norm, arch.norm_eps, io);
            }
        }
    }

    /// The norm before block `next` (or before the head) of the stream: at the start of block `layer`, or between its
    /// branches where there is such a place, plus the `branches` wanted. The sum becomes the input of `next`.
    pub(super) fn norm_of_stream(
        &mut self,
        params: &Params<T>,
        pass: Pass,
        layer: usize,
        next: usize,
        branches: [bool; 2],
    ) {
        let Self { gpu, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (n, c) = (pass.n, arch.width);
        let (num_blocks, num_residuals) = (memory.norm1.len().max(1), memory.residual.len());
        let (y, stats, NormParts { gain, bias }) = if next == arch.layers {
            let (y, stats) = &mut memory.last;
            (y, stats, params.masters.norm.as_ref().expect("only post-norms have none"))
        } else {
            let of_block = &params.masters.blocks[next].norm1;
            (&mut memory.norm1[next % num_blocks], &mut memory.norm1_stats[next % num_blocks], of_block)
        };
        let is_behind_block = next > layer;
        let [before, after] = memory
            .residual
            .get_disjoint_mut([layer % num_residuals, (layer + 1) % num_residuals])
            .expect("there are two at least, and one is not the next");
        let x = match memory.middle.get(layer % num_blocks) {
            Some(middle) if is_behind_block => part(middle, n, c),
            _ => part(before, n, c),
        };
        let io = norm::Forward {
            y: part_mut(y, n, c),
            wide: None,
            sum: is_behind_block.then(|| part_mut(after, n, c)),
            stats: part_mut(stats, n, 1),
            x,
            branches: [0, 1].map(|i| {
                let branch = memory.branches[i].as_ref().filter(|_| branches[i]);
                branch.map(|branch| part(branch, n, c))
            }),
            gain: *gain,
            bias: *bias,
        };
        norm::forward(gpu, arch.norm, arch.norm_eps, io);
    }

    /// Mean loss of each row, after `prepare`.
    pub(super) fn row_losses(&mut self, params: &Params<T>, pass: Pass) -> Result<Vec<f32>> {
        self.forward(params, pass);
        let Self { gpu, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (n, c) = (pass.n, arch.width);
        let (x, targets) = (part(&memory.last.0, n, c), part(&memory.batches.current.targets, n, 1));
        let losses = part_mut(&mut memory.losses, n, 1);
        cross_entropy::forward(gpu, losses, x, params.head(arch), targets, memory.logits.view_mut());
        let losses = gpu.to_vec(part(&memory.losses, n, 1))?;
        let mean = |row: &[f32]| {
            let sum: f64 = row.iter().map(|&loss| f64::from(loss)).sum();
            (sum / (pass.row_len - 1) as f64) as f32
        };
        Ok(losses.chunks(pass.row_len).map(mean).collect())
    }

    /// All logits, after `prepare`.
    pub(super) fn logits(&mut self, params: &Params<T>, pass: Pass) -> Result<Vec<f32>> {
        self.forward(params, pass);
        let Self { gpu, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let (c, v) = (arch.width, arch.vocab_size);
        let head = params.head(arch);
        let stride = head.padded_v();
        let chunk_rows = memory.logits.len() / stride;
        let mut logits = Vec::with_capacity(pass.n * v);
        for first in (0..pass.n).step_by(chunk_rows) {
            let n = chunk_rows.min(pass.n - first);
            let x = memory.last.0.view().window(first * c..(first + n) * c);
            let mut chunk = memory.logits.view_mut().window(0..n * stride);
            linear::forward(gpu, [n, stride, c], chunk.reborrow(), x, head.weight, head.bias);
            let padded = gpu.to_vec(chunk.as_view())?;
            logits.extend(padded.chunks_exact(stride).flat_map(|row| &row[..v]));
        }
        Ok(logits)
    }
}

/// Sends ids, targets and sorted ids. The step that read the batch before is over, because its losses were downloaded.
fn send(gpu: &Gpu, arch: &Arch, batch: &mut Batch, rows: Rows) -> Sent {
    let Rows { tokens, row_len, .. } = rows;
    let n = tokens.len();
    let mut targets = tokens.to_vec();
    for row in targets.chunks_mut(row_len) {
        row.rotate_left(1);
        row[row_len - 1] = NO_TARGET;
    }
    gpu.upload_ahead(part_mut(&mut batch.ids, n, 1), tokens);
    gpu.upload_ahead(part_mut(&mut batch.targets, n, 1), &targets);
    let mut num_sorted = [0; 2];
    if let Some(lists) = &mut batch.sorted {
        let sorted = SortedIds::of(tokens, arch.frozen_id);
        num_sorted = [sorted.ids.len(), sorted.order.len()];
        for (list, values) in lists.iter_mut().zip([&sorted.ids, &sorted.starts, &sorted.order]) {
            gpu.upload_ahead(part_mut(list, values.len(), 1), values);
        }
    }
    Sent { tokens: tokens.to_vec(), row_len, num_sorted }
}

pub(super) fn embedding_shape(arch: &Arch, pass: Pass) -> Embedding {
    let first_position = if let Position::Learned { offset } = arch.position { offset } else { 0 };
    Embedding { t: pass.row_len, c: arch.width, scale: arch.embedding_scale, first_position, frozen_id: arch.frozen_id }
}
