//! The backward pass of one block: its products, attention and MLP, and the norms of the stream that it reads.

use half::bf16;

use super::backward::Biases;
use super::decoder::{Decoder, Params, Pass};
use super::memory::{BackwardMemory, Memory, part, part_mut};
use crate::gpu::{View, ViewMut, activation, attention, column_sums, linear, norm, rotary};
use crate::model::arch::Residual;
use crate::model::parts::{BlockParts, LinearParts, NormParts};

/// Which norm of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Second,
}

/// Where the gradient of the MLP's input goes.
#[derive(Clone, Copy)]
enum Into {
    Input,
    AddedToInput,
    Side,
}

impl Decoder<bf16> {
    /// Turns the gradient of the block's output into that of its input, and adds to `gradients`, and to those of the biases
    /// below that the input's is.
    pub(super) fn block_backward(
        &mut self,
        params: &Params<bf16>,
        gradients: BlockParts<ViewMut<f32>>,
        below: Biases,
        pass: Pass,
        layer: usize,
    ) {
        let BlockParts { norm1, qkv, out, norm2, up, down } = gradients;
        let second = || norm2.expect("this kind of block has one");
        match self.arch.residual {
            Residual::Serial => {
                self.mlp_backward(params, up, down.weight, pass, layer, Into::Input);
                self.stream_norm_backward(params, second(), [out.bias, None], pass, layer, Which::Second);
                self.attention_backward(params, out.weight, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
                self.stream_norm_backward(params, norm1, below, pass, layer, Which::First);
            }
            Residual::Parallel => {
                self.mlp_backward(params, up, down.weight, pass, layer, Into::Side);
                self.attention_backward(params, out.weight, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
                self.stream_norm_backward(params, norm1, [None, None], pass, layer, Which::First);
                self.stream_norm_backward(params, second(), below, pass, layer, Which::Second);
            }
            Residual::ParallelOneNorm => {
                self.attention_backward(params, out.weight, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
                self.mlp_backward(params, up, down.weight, pass, layer, Into::AddedToInput);
                self.stream_norm_backward(params, norm1, below, pass, layer, Which::First);
            }
            Residual::PostNorm => {
                self.post_norm_backward(params, second(), down.bias, pass, layer, Which::Second);
                self.mlp_backward(params, up, down.weight, pass, layer, Into::Input);
                self.post_norm_backward(params, norm1, out.bias, pass, layer, Which::First);
                self.attention_backward(params, out.weight, pass, layer);
                self.qkv_backward(params, qkv, pass, layer);
            }
        }
    }

    /// `dx +=` the gradient through a norm of the stream, which is then rounded for the products that come next, and is that
    /// of the `biases`.
    fn stream_norm_backward(
        &mut self,
        params: &Params<bf16>,
        gradients: NormParts<ViewMut<f32>>,
        biases: Biases,
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
            narrow_sums: biases,
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
    /// second norm's goes from `dx` to `dwide`, the first one's back. It is that of the `bias`.
    fn post_norm_backward(
        &mut self,
        params: &Params<bf16>,
        gradients: NormParts<ViewMut<f32>>,
        bias: Option<ViewMut<f32>>,
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
            narrow_sums: [bias, None],
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
        d_up: LinearParts<ViewMut<f32>>,
        d_down: ViewMut<f32>,
        pass: Pass,
        layer: usize,
        into: Into,
    ) {
        let Self { gpu, arch, memory, fuses_gelu, .. } = self;
        let Memory { norm1, norm2, hidden, activated, backward, .. } = memory.as_mut().expect("made by prepare");
        let BackwardMemory { narrow, dinput, dside, dhidden, dactivated, partials, .. } =
            backward.as_mut().expect("prepared for training");
        let (masters, compute) = params.block(layer);
        let (n, c, m, up) = (pass.n, arch.width, arch.mlp_width, arch.up_width());
        let (block, mlp) = (layer % norm1.len(), layer % hidden.len());
        let (hidden, activated) = (part(&hidden[mlp], n, up), part(&activated[mlp], n, m));
        let dy = part(narrow, n, c);
        let down = [n, c, m];
        linear::backward_weight(gpu, down, d_down, pass.accumulates, dy, activated);
        match dactivated {
            Some(dactivated) => {
                linear::backward_input(gpu, down, part_mut(dactivated, n, m), false, dy, compute.down.weight);
                let dactivated = part(dactivated, n, m);
                activation::gated_backward(gpu, arch.activation, part_mut(dhidden, n, up), dactivated, hidden, m);
            }
            None if *fuses_gelu => {
                linear::backward_gelu(gpu, down, part_mut(dhidden, n, m), hidden, dy, compute.down.weight);
                if let Some(dbias) = d_up.bias {
                    column_sums::add(gpu, dbias, part(dhidden, n, m), partials.view_mut());
                }
            }
            None => {
                linear::backward_input(gpu, down, part_mut(dhidden, n, m), false, dy, compute.down.weight);
                let bias = masters.up.bias.zip(d_up.bias);
                let bias = bias.map(|(bias, dbias)| activation::Bias { bias, dbias, partials: partials.view_mut() });
                activation::backward(gpu, arch.activation, part_mut(dhidden, n, m), hidden, bias, m);
            }
        }
        let input = part(norm2.get(block).unwrap_or(&norm1[block]), n, c);
        let (dhidden, shape) = (part(dhidden, n, up), [n, up, c]);
        linear::backward_weight(gpu, shape, d_up.weight, pass.accumulates, dhidden, input);
        let (target, is_added) = match into {
            Into::Input => (dinput, false),
            Into::AddedToInput => (dinput, true),
            Into::Side => (dside.as_mut().expect("parallel blocks have one"), false),
        };
        linear::backward_input(gpu, shape, part_mut(target, n, c), is_added, dhidden, compute.up.weight);
    }

    /// `dqkv` from the gradient of the stream, in `narrow`.
    fn attention_backward(&mut self, params: &Params<bf16>, d_out: ViewMut<f32>, pass: Pass, layer: usize) {
        let shape = self.arch.attention_shape(pass.rows, pass.row_len, layer);
        let Self { gpu, arch, memory, positions, .. } = self;
        let Memory { norm1, qkv, attention: attended, log_sum_exp, backward, .. } =
            memory.as_mut().expect("made by prepare");
        let BackwardMemory { narrow, dinput, dqkv, delta, .. } = backward.as_mut().expect("prepared for training");
        let (_, compute) = params.block(layer);
        let (n, c, a, width) = (pass.n, arch.width, arch.attention_width(), arch.qkv_width());
        let block = layer % norm1.len();
        let (dy, attended): (View<bf16>, View<bf16>) = (part(narrow, n, c), part(&attended[block], n, a));
        let out = [n, c, a];
        linear::backward_weight(gpu, out, d_out, pass.accumulates, dy, attended);
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
        linear::backward_weight(gpu, shape, d_qkv.weight, pass.accumulates, dqkv, input);
        if let Some(dbias) = d_qkv.bias {
            column_sums::add(gpu, dbias, dqkv, partials.view_mut());
        }
        linear::backward_input(gpu, shape, part_mut(dinput, n, c), false, dqkv, compute.qkv.weight);
    }
}
