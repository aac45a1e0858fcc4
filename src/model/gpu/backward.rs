//! The decoder's backward pass on the device, in bfloat16 with f32 sums.
//!
//! The residual stream's gradient is f32 in `dx`; a norm's backward pass, which is the last to add to it, also writes it
//! rounded to `narrow`, which the matrix products of the block below read. With post-norms the stream ends in each norm, so
//! that `dx` is overwritten, and what flows past it waits in `dinput` until the next norm below adds it.

use half::bf16;

use super::decoder::{Decoder, Params, Pass, embedding_shape};
use super::memory::{BackwardMemory, Memory, part, part_mut};
use crate::gpu::cross_entropy::HeadGradients;
use crate::gpu::embedding::SortedViews;
use crate::gpu::{View, ViewMut, activation, attention, cast, cross_entropy, embedding, linear, norm, rotary};
use crate::model::arch::Residual;
use crate::model::parts::{BlockParts, LinearParts, NormParts, Parts};
use crate::recipe::Recompute;

/// Which norm of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Second,
}

impl Decoder<bf16> {
    /// Head, loss and the whole backward pass after a forward pass; adds to `gradients`, fills `memory.losses`.
    pub(super) fn backward(
        &mut self,
        params: &Params<bf16>,
        mut gradients: Parts<ViewMut<f32>>,
        pass: Pass,
        scale_per_target: f32,
    ) {
        let (n, c) = (pass.n, self.arch.width);
        self.head_backward(params, &mut gradients, pass, scale_per_target);
        for (layer, gradients) in gradients.blocks.into_iter().enumerate().rev() {
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
            self.block_backward(params, gradients, pass, layer);
        }
        let Self { gpu, arch, memory, .. } = self;
        let memory = memory.as_mut().expect("made by prepare");
        let work = memory.backward.as_mut().expect("prepared for training");
        if let (Some((embedded, stats)), Some(of_norm), Some(NormParts { gain, bias })) =
            (&memory.embedded, &params.masters.embedding_norm, gradients.embedding_norm)
        {
            let waits = arch.residual == Residual::PostNorm && arch.layers > 0;
            // `dx` is both what comes in and what goes out: through the second wide buffer.
            let BackwardMemory { dx, dinput, dwide, partials, narrow, .. } = work;
            let dwide = dwide.as_mut().expect("models with a norm of the embedding have one");
            gpu.copy(part_mut(dwide, n, c), part(dx, n, c));
            let io = norm::Backward {
                dx: part_mut(dx, n, c),
                is_added: false,
                narrow: Some(part_mut(narrow, n, c)),
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
            HeadGradients { dweight, dbias },
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

    /// Turns the gradient of the block's output into that of its input, and adds to `gradients`.
    fn block_backward(&mut self, params: &Params<bf16>, gradients: BlockParts<ViewMut<f32>>, pass: Pass, layer: usize) {
        let BlockParts { norm1, qkv, out, norm2, up, down } = gradients;
        let second = || norm2.expect("this kind of block has one");
        match self.arch.residual {
            Residual::Serial => {
                self.mlp_backward(params, [up, down], pass, layer, Into::Input);
                self.stream_norm_backward(params, second(), pass, layer, Which::Second);
                self.attention_backward(params, out, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
                self.stream_norm_backward(params, norm1, pass, layer, Which::First);
            }
            Residual::Parallel => {
                self.mlp_backward(params, [up, down], pass, layer, Into::Side);
                self.attention_backward(params, out, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
                self.stream_norm_backward(params, norm1, pass, layer, Which::First);
                self.stream_norm_backward(params, second(), pass, layer, Which::Second);
            }
            Residual::ParallelOneNorm => {
                self.attention_backward(params, out, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
                self.mlp_backward(params, [up, down], pass, layer, Into::AddedToInput);
                self.stream_norm_backward(params, norm1, pass, layer, Which::First);
            }
            Residual::PostNorm => {
                self.post_norm_backward(params, second(), pass, layer, Which::Second);
                self.mlp_backward(params, [up, down], pass, layer, Into::Input);
                self.post_norm_backward(params, norm1, pass, layer, Which::First);
                self.attention_backward(params, out, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
            }
        }
    }

    /// `dx +=` the gradient through a norm of the stream, which is then rounded for the products that come next.
    fn stream_norm_backward(
        &mut self,
        params: &Params<bf16>,
        gradients: NormParts<ViewMut<f32>>,
        pass: Pass,
        layer: usize,
        which: Which,
    ) {
        let Self { gpu, arch, memory, .. } = self;
        let Memory { residual, middle, norm1_stats, norm2_stats, backward, .. } =
            memory.as_mut().expect("made by prepare");
        let BackwardMemory { dx, narrow, dinput, dside, partials, .. } =
            backward.as_mut().expect("prepared for training");
        let (n, c) = (pass.n, arch.width);
        let block = layer % norm1_stats.len();
        let of_block = &params.masters.blocks[layer];
        let (stats, of_norm, x) = match which {
            Which::First => (&norm1_stats[block], &of_block.norm1, &residual[layer]),
            Which::Second => {
                let of_norm = of_block.norm2.as_ref().expect("this kind of block has one");
                (&norm2_stats[block], of_norm, middle.get(block).unwrap_or(&residual[layer]))
            }
        };
        let dy = match (which, dside) {
            (Which::Second, Some(dside)) => dside,
            _ => dinput,
        };
        let io = norm::Backward {
            dx: part_mut(dx, n, c),
            is_added: true,
            narrow: Some(part_mut(narrow, n, c)),
            dgain: gradients.gain,
            dbias: gradients.bias,
            dy: part(dy, n, c),
            side: None,
            x: part(x, n, c),
            stats: part(stats, n, 1),
            gain: of_norm.gain,
            partials: partials.view_mut(),
        };
        norm::backward(gpu, arch.norm, io);
    }

    /// The gradient of what a post-norm reads from that of what it gives, `dx` or `dwide`, and what waits in `dinput`: the
    /// second norm's goes from `dx` to `dwide`, the first one's back.
    fn post_norm_backward(
        &mut self,
        params: &Params<bf16>,
        gradients: NormParts<ViewMut<f32>>,
        pass: Pass,
        layer: usize,
        which: Which,
    ) {
        let Self { gpu, arch, memory, .. } = self;
        let Memory { middle, sum, norm1_stats, norm2_stats, backward, .. } = memory.as_mut().expect("made by prepare");
        let BackwardMemory { dx, narrow, dinput, dwide, partials, .. } =
            backward.as_mut().expect("prepared for training");
        let dwide = dwide.as_mut().expect("post-norms have one");
        let (n, c) = (pass.n, arch.width);
        let block = layer % norm1_stats.len();
        let of_block = &params.masters.blocks[layer];
        let (into, from, stats, of_norm, x) = match which {
            Which::First => (dx, dwide, &norm1_stats[block], &of_block.norm1, &middle[block]),
            Which::Second => {
                let of_norm = of_block.norm2.as_ref().expect("blocks with post-norms have one");
                (dwide, dx, &norm2_stats[block], of_norm, &sum[block])
            }
        };
        let io = norm::Backward {
            dx: part_mut(into, n, c),
            is_added: false,
            narrow: Some(part_mut(narrow, n, c)),
            dgain: gradients.gain,
            dbias: gradients.bias,
            dy: part(from, n, c),
            side: Some(part(dinput, n, c)),
            x: part(x, n, c),
            stats: part(stats, n, 1),
            gain: of_norm.gain,
            partials: partials.view_mut(),
        };
        norm::backward(gpu, arch.norm, io);
    }

    /// The gradient of the MLP's input from that of the stream, in `narrow`.
    fn mlp_backward(
        &mut self,
        params: &Params<bf16>,
        [d_up, d_down]: [LinearParts<ViewMut<f32>>; 2],
        pass: Pass,
        layer: usize,
        into: Into,
    ) {
        let Self { gpu, arch, memory, .. } = self;
        let Memory { norm1, norm2, hidden, activated, backward, .. } = memory.as_mut().expect("made by prepare");
        let BackwardMemory { narrow, dinput, dside, dhidden, dactivated, partials, .. } =
            backward.as_mut().expect("prepared for training");
        let (masters, compute) = params.block(layer);
        let (n, c, m, up) = (pass.n, arch.width, arch.mlp_width, arch.up_width());
        let (block, mlp) = (layer % norm1.len(), layer % hidden.len());
        let (hidden, activated) = (part(&hidden[mlp], n, up), part(&activated[mlp], n, m));
        let dy = part(narrow, n, c);
        let down = [n, c, m];
        linear::backward_parameters(gpu, down, d_down.weight, d_down.bias, dy, activated, partials.view_mut());
        let d_up_bias = d_up.bias;
        match dactivated {
            Some(dactivated) => {
                linear::backward_input(gpu, down, part_mut(dactivated, n, m), false, dy, compute.down.weight);
                let dactivated = part(dactivated, n, m);
                activation::gated_backward(gpu, arch.activation, part_mut(dhidden, n, up), dactivated, hidden, m);
            }
            None => {
                linear::backward_input(gpu, down, part_mut(dhidden, n, m), false, dy, compute.down.weight);
                activation::backward(gpu, arch.activation, part_mut(dhidden, n, m), hidden, masters.up.bias, m);
            }
        }
        let input = part(norm2.get(block).unwrap_or(&norm1[block]), n, c);
        let (dhidden, shape) = (part(dhidden, n, up), [n, up, c]);
        linear::backward_parameters(gpu, shape, d_up.weight, d_up_bias, dhidden, input, partials.view_mut());
        let (target, is_added) = match into {
            Into::Input => (dinput, false),
            Into::AddedToInput => (dinput, true),
            Into::Side => (dside.as_mut().expect("parallel blocks have one"), false),
        };
        linear::backward_input(gpu, shape, part_mut(target, n, c), is_added, dhidden, compute.up.weight);
    }

    /// `dqkv` from the gradient of the stream, in `narrow`.
    fn attention_backward(
        &mut self,
        params: &Params<bf16>,
        d_out: LinearParts<ViewMut<f32>>,
        pass: Pass,
        layer: usize,
    ) {
        let shape = self.attention_shape(pass, layer);
        let Self { gpu, arch, memory, positions, .. } = self;
        let Memory { norm1, qkv, attention: attended, log_sum_exp, backward, .. } =
            memory.as_mut().expect("made by prepare");
        let BackwardMemory { narrow, dinput, dqkv, delta, partials, .. } =
            backward.as_mut().expect("prepared for training");
        let (_, compute) = params.block(layer);
        let (n, c, a, width) = (pass.n, arch.width, arch.attention_width(), arch.qkv_width());
        let block = layer % norm1.len();
        let (dy, attended): (View<bf16>, View<bf16>) = (part(narrow, n, c), part(&attended[block], n, a));
        let out = [n, c, a];
        linear::backward_parameters(gpu, out, d_out.weight, d_out.bias, dy, attended, partials.view_mut());
        linear::backward_input(gpu, out, part_mut(dinput, n, a), false, dy, compute.out.weight);
        attention::backward(
            gpu,
            shape,
            part_mut(dqkv, n, width),
            part_mut(delta, n, arch.heads),
            part(dinput, n, a),
            part(&qkv[block], n, width),
            attended,
            part(&log_sum_exp[block], n, arch.heads),
            positions.key_bias(),
        );
        if let Some((shape, table)) = positions.rotary(arch, pass.row_len) {
            rotary::backward(gpu, shape, part_mut(dqkv, n, width), table);
        }
    }

    /// The gradient of the input of queries, keys and values, in `dinput`.
    fn qkv_backward(&mut self, params: &Params<bf16>, d_qkv: LinearParts<ViewMut<f32>>, pass: Pass, layer: usize) {
        let Self { gpu, arch, memory, .. } = self;
        let Memory { norm1, backward, .. } = memory.as_mut().expect("made by prepare");
        let BackwardMemory { dinput, dqkv, partials, .. } = backward.as_mut().expect("prepared for training");
        let (_, compute) = params.block(layer);
        let (n, c, width) = (pass.n, arch.width, arch.qkv_width());
        let (input, dqkv) = (part(&norm1[layer % norm1.len()], n, c), part(dqkv, n, width));
        let shape = [n, width, c];
        linear::backward_parameters(gpu, shape, d_qkv.weight, d_qkv.bias, dqkv, input, partials.view_mut());
        linear::backward_input(gpu, shape, part_mut(dinput, n, c), false, dqkv, compute.qkv.weight);
    }
}

/// Where the gradient of the MLP's input goes.
#[derive(Clone, Copy)]
enum Into {
    Input,
    AddedToInput,
    Side,
}
