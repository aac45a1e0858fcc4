//! The decoder's backward pass on the device, in bfloat16 with f32 sums.
//!
//! The residual stream's gradient is f32 in `dx`; a norm's backward pass, which is the last to add to it, also writes it
//! rounded to `narrow`, which the matrix products of the block below read. With post-norms the stream ends in each norm, so
//! that `dx` is overwritten, and what flows past it waits in `dinput` until the next norm below adds it.
//!
//! The gradient of a bias is the sum of the rows that some kernel writes, and that kernel's matter where it can be: `narrow`
//! is that of the layers whose outputs join the stream, so that the norm behind them has it.

use half::bf16;

use super::decoder::{Decoder, Params, Pass, embedding_shape};
use super::memory::{BackwardMemory, Memory, part, part_mut};
use crate::gpu::cross_entropy::HeadGradients;
use crate::gpu::embedding::SortedViews;
use crate::gpu::{ViewMut, cast, cross_entropy, embedding, norm};
use crate::model::arch::Residual;
use crate::model::parts::{BlockParts, NormParts, Parts};
use crate::recipe::Recompute;

/// Gradients of biases that have the same one.
pub(super) type Biases<'a> = [Option<ViewMut<'a, f32>>; 2];

/// Those of a block's biases that are the gradient of the stream behind it, without a norm between.
fn stream_biases<'a>(residual: Residual, block: Option<&'a mut BlockParts<ViewMut<'_, f32>>>) -> Biases<'a> {
    let Some(BlockParts { out, down, .. }) = block else { return [None, None] };
    let [out, down] = [out, down].map(|layer| layer.bias.as_mut().map(ViewMut::reborrow));
    match residual {
        Residual::Serial => [down, None],
        Residual::Parallel | Residual::ParallelOneNorm => [out, down],
        Residual::PostNorm => [None, None],
    }
}

impl Decoder<bf16> {
    /// Head, loss and the whole backward pass after a forward pass; adds to `gradients`, where it does not overwrite them, and
    /// fills `memory.losses`.
    pub(super) fn backward(
        &mut self,
        params: &Params<bf16>,
        mut gradients: Parts<ViewMut<f32>>,
        pass: Pass,
        scale_per_target: f32,
    ) {
        let (n, c) = (pass.n, self.arch.width);
        self.head_backward(params, &mut gradients, pass, scale_per_target);
        for layer in (0..self.arch.layers).rev() {
            let of_block = gradients.blocks.pop().expect("there is one for each block");
            // The last block's memory is still as its forward pass left it.
            if layer + 1 < self.arch.layers {
                match self.recompute {
                    Recompute::None => {}
                    Recompute::Mlp => self.mlp_hidden(params, pass, layer),
                    Recompute::Block => {
                        self.restore_input(params, pass, layer);
                        self.block_forward(params, pass, layer);
                        if self.arch.residual == Residual::PostNorm {
                            // The second norm reads what the block adds up last. It leaves its result where the input was.
                            self.join(params, pass, layer);
                            self.restore_input(params, pass, layer);
                        }
                    }
                }
            }
            let below = stream_biases(self.arch.residual, gradients.blocks.last_mut());
            self.block_backward(params, of_block, below, pass, layer);
        }
        let Self { gpu, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let work = memory.backward.as_mut().expect("prepared for training");
        if let (Some((embedded, stats)), Some(of_norm), Some(NormParts { gain, bias })) =
            (&memory.embedded, &params.masters.embedding_norm, gradients.embedding_norm)
        {
            let waits = arch.residual == Residual::PostNorm && arch.layers > 0;
            // `dx` is both what comes in and what goes out: through the second wide buffer.
            let BackwardMemory { dx, dinput, dwide, partials, .. } = work;
            let dwide = dwide.as_mut().expect("models with a norm of the embedding have one");
            gpu.copy(part_mut(dwide, n, c), part(dx, n, c));
            let io = norm::Backward {
                dx: part_mut(dx, n, c),
                is_added: false,
                narrow: None,
                narrow_sums: [None, None],
                dgain: gain,
                dbias: bias,
                dy: part(dwide, n, c),
                side: waits.then(|| part(dinput, n, c)),
                x: part(embedded, n, c),
                stats: part(stats, n, 1),
                gain: of_norm.gain,
                partials: partials.view_mut(),
            };
            norm::backward(gpu, arch.norm, io);
        }
        let [num_ids, num_rows] = pass.num_sorted;
        let [ids, starts, order] = memory.batches.current.sorted.as_ref().expect("prepared for training");
        let sorted = SortedViews {
            ids: part(ids, num_ids, 1),
            starts: part(starts, num_ids + 1, 1),
            order: part(order, num_rows, 1),
        };
        let shape = embedding_shape(arch, pass);
        embedding::backward(gpu, shape, gradients.token, gradients.position, part(&work.dx, n, c), sorted);
    }

    /// The block's input again, from what is kept of the stream, to compute the block again.
    fn restore_input(&mut self, params: &Params<bf16>, pass: Pass, layer: usize) {
        if self.arch.residual == Residual::PostNorm {
            let Self { gpu, arch, memory, .. } = self;
            let memory = memory.as_mut().expect("made by prepare");
            let (n, c) = (pass.n, arch.width);
            let block = layer % memory.norm1.len();
            cast::to_bf16(gpu, part_mut(&mut memory.norm1[block], n, c), part(&memory.residual[layer], n, c));
        } else {
            self.norm_of_stream(params, pass, layer, layer, [false; 2]);
        }
    }

    /// The loss, and the gradient of the last block's output in `dx`, rounded in `narrow`; with post-norms it waits in `dinput`.
    fn head_backward(
        &mut self,
        params: &Params<bf16>,
        gradients: &mut Parts<ViewMut<f32>>,
        pass: Pass,
        scale_per_target: f32,
    ) {
        let Self { gpu, arch, memory, .. } = self;
        let Memory { batches, losses, last, residual, logits, backward, .. } =
            memory.as_mut().expect("made by prepare");
        let BackwardMemory { dx, narrow, dinput, partials, .. } = backward.as_mut().expect("prepared for training");
        let (n, c) = (pass.n, arch.width);
        let dweight = gradients.head.as_mut().unwrap_or(&mut gradients.token).reborrow();
        let dbias = gradients.head_bias.as_mut().map(ViewMut::reborrow);
        cross_entropy::forward_backward(
            gpu,
            part_mut(losses, n, 1),
            part_mut(dinput, n, c),
            HeadGradients { dweight, is_added: pass.accumulates, dbias },
            part(&last.0, n, c),
            params.head(arch),
            part(&batches.current.targets, n, 1),
            scale_per_target,
            logits.view_mut().cast::<bf16>(),
            partials.view_mut(),
        );
        match (&params.masters.norm, &mut gradients.norm) {
            (Some(of_norm), Some(NormParts { gain, bias })) => {
                let io = norm::Backward {
                    dx: part_mut(dx, n, c),
                    is_added: false,
                    narrow: Some(part_mut(narrow, n, c)),
                    narrow_sums: stream_biases(arch.residual, gradients.blocks.last_mut()),
                    dgain: gain.reborrow(),
                    dbias: bias.as_mut().map(ViewMut::reborrow),
                    dy: part(dinput, n, c),
                    side: None,
                    x: part(&residual[arch.layers], n, c),
                    stats: part(&last.1, n, 1),
                    gain: of_norm.gain,
                    partials: partials.view_mut(),
                };
                norm::backward(gpu, arch.norm, io);
            }
            _ => gpu.zero(part_mut(dx, n, c)),
        }
    }
}
