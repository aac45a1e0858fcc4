//! One block, forward and backward: attention and MLP, and the four ways in which they join the residual stream.

use super::Pass;
use super::cache::LayerCache;
use super::memory::{BlockMemory, MlpMemory, TrainingMemory, part, part_mut};
use super::positions::Positions;
use crate::model::arch::{Arch, Residual};
use crate::model::parts::{BlockParts, LinearParts, NormParts};
use crate::ops::linear::Start;
use crate::ops::norm::NormStats;
use crate::ops::random::{Mask, attention_branch_site, attention_site, mlp_branch_site};
use crate::ops::{Buffer, Device, View, ViewMut, activation, attention, dropout, linear, norm, rotary};

/// A block in one pass.
pub(super) struct Block<'a> {
    pub(super) device: &'a Device,
    pub(super) arch: &'a Arch,
    pub(super) layer: usize,
    pub(super) pass: Pass,
    pub(super) positions: &'a Positions,
    pub(super) params: &'a BlockParts<View<'a, f32>>,
}

/// What a block works with beside its own memory.
pub(super) struct Tools<'a, 'b> {
    /// The branch before dropout, while training.
    pub(super) branch: Option<ViewMut<'a, f32>>,
    pub(super) scratch: &'a mut attention::Scratch,
    /// Keys and values of earlier tokens, while generating.
    pub(super) cache: Option<&'a mut LayerCache<'b>>,
}

impl Block<'_> {
    /// From the block's input `x` to its output `y`.
    pub(super) fn forward(
        &self,
        kept: &mut BlockMemory,
        mlp: &mut MlpMemory,
        x: View<f32>,
        mut y: ViewMut<f32>,
        tools: &mut Tools<'_, '_>,
    ) {
        let Self { arch, pass, params, .. } = self;
        let (n, c) = (pass.n, arch.width);
        match arch.residual {
            Residual::Serial => {
                self.norm(part_mut(&mut kept.norm1, n, c), &mut kept.norm1_stats, x, &params.norm1);
                self.attend(kept, None, tools);
                let middle = kept.middle.as_mut().expect("serial blocks have one");
                let attended = part(&kept.attention, n, arch.attention_width());
                self.join_attention(part_mut(middle, n, c), Start::Residual(x), attended, tools);
                self.second_norm(kept, None);
                let (norm2, _) = kept.norm2.as_ref().expect("serial blocks have one");
                self.mlp(mlp, part(norm2, n, c));
                let middle = kept.middle.as_ref().expect("serial blocks have one");
                self.join_mlp(y, Start::Residual(part(middle, n, c)), mlp, tools);
            }
            Residual::Parallel | Residual::ParallelOneNorm => {
                self.norm(part_mut(&mut kept.norm1, n, c), &mut kept.norm1_stats, x, &params.norm1);
                self.attend(kept, None, tools);
                let attended = part(&kept.attention, n, arch.attention_width());
                self.join_attention(y.reborrow(), Start::Residual(x), attended, tools);
                self.second_norm(kept, Some(x));
                let input = kept.norm2.as_ref().map_or(&kept.norm1, |(norm2, _)| norm2);
                self.mlp(mlp, part(input, n, c));
                self.join_mlp(y, Start::Kept, mlp, tools);
            }
            Residual::PostNorm => {
                self.attend(kept, Some(x), tools);
                let attended = part(&kept.attention, n, arch.attention_width());
                self.join_attention(part_mut(&mut kept.norm1, n, c), Start::Residual(x), attended, tools);
                let middle = kept.middle.as_mut().expect("blocks with post-norms have one");
                self.norm(part_mut(middle, n, c), &mut kept.norm1_stats, part(&kept.norm1, n, c), &params.norm1);
                let middle = part(middle, n, c);
                self.mlp(mlp, middle);
                let (sum, stats) = kept.norm2.as_mut().expect("blocks with post-norms have one");
                self.join_mlp(part_mut(sum, n, c), Start::Residual(middle), mlp, tools);
                let norm2 = params.norm2.as_ref().expect("blocks with post-norms have one");
                self.norm(y, stats, part(sum, n, c), norm2);
            }
        }
    }

    /// The MLP's hidden layer again, from what the block has kept.
    pub(super) fn recompute_mlp(&self, kept: &BlockMemory, mlp: &mut MlpMemory) {
        self.mlp(mlp, self.mlp_input(kept));
    }

    fn mlp_input<'b>(&self, kept: &'b BlockMemory) -> View<'b, f32> {
        let input = match (self.arch.residual, &kept.norm2, &kept.middle) {
            (Residual::PostNorm, _, Some(middle)) => middle,
            (_, Some((norm2, _)), _) => norm2,
            _ => &kept.norm1,
        };
        part(input, self.pass.n, self.arch.width)
    }

    fn norm(&self, y: ViewMut<f32>, stats: &mut NormStats, x: View<f32>, params: &NormParts<View<f32>>) {
        let NormParts { gain, bias } = params;
        norm::forward(self.arch.norm, y, part_mut(stats, self.pass.n, 1), x, *gain, *bias, self.arch.norm_eps);
    }

    /// The MLP's own norm, if it has one, of `x` or of the stream between the branches.
    fn second_norm(&self, kept: &mut BlockMemory, x: Option<View<f32>>) {
        let (n, c) = (self.pass.n, self.arch.width);
        if let (Some(params), Some((norm2, stats))) = (&self.params.norm2, &mut kept.norm2) {
            let x = x.unwrap_or_else(|| part(kept.middle.as_ref().expect("serial blocks have one"), n, c));
            self.norm(part_mut(norm2, n, c), stats, x, params);
        }
    }

    fn linear(&self, [o, i]: [usize; 2], y: ViewMut<f32>, start: Start, x: View<f32>, params: &LinearParts<View<f32>>) {
        linear::forward(self.device, [self.pass.n, o, i], y, x, params.weight, params.bias, start);
    }

    /// Queries, keys and values of `x`, or of the first norm's output, and the attention between them.
    fn attend(&self, kept: &mut BlockMemory, x: Option<View<f32>>, tools: &mut Tools<'_, '_>) {
        let Self { arch, pass, positions, .. } = self;
        let (n, c, width) = (pass.n, arch.width, arch.qkv_width());
        let x = x.unwrap_or_else(|| part(&kept.norm1, n, c));
        self.linear([width, c], part_mut(&mut kept.qkv, n, width), Start::Zero, x, &self.params.qkv);
        if let Some((shape, table)) = positions.rotary(arch, *pass) {
            rotary::forward(shape, part_mut(&mut kept.qkv, n, width), table);
        }
        let y = part_mut(&mut kept.attention, n, arch.attention_width());
        let qkv = part(&kept.qkv, n, width);
        let shape = self.attention_shape();
        if let Some(cache) = &mut tools.cache {
            cache.store(arch, qkv, *pass);
            if pass.first_position > 0 {
                let shape = attention::Shape { t: pass.first_position + 1, ..shape };
                attention::forward_cached(shape, cache.capacity, y, qkv, cache.view(), positions.key_bias());
                return;
            }
        }
        attention::forward(
            shape,
            y,
            part_mut(&mut kept.log_sum_exp, n, arch.heads),
            qkv,
            positions.key_bias(),
            pass.mask(attention_site(self.layer)),
            tools.scratch,
        );
    }

    fn attention_shape(&self) -> attention::Shape {
        self.arch.attention_shape(self.pass.rows, self.pass.row_len, self.layer)
    }

    fn mlp(&self, mlp: &mut MlpMemory, x: View<f32>) {
        let Self { arch, pass, params, .. } = self;
        let (n, c, m, up) = (pass.n, arch.width, arch.mlp_width, arch.up_width());
        // The bias is the activation's matter, which walks over the hidden layer anyway.
        let weight = params.up.weight;
        linear::forward(self.device, [n, up, c], part_mut(&mut mlp.hidden, n, up), x, weight, None, Start::Zero);
        let (activated, hidden) = (part_mut(&mut mlp.activated, n, m), part(&mlp.hidden, n, up));
        match arch.gated {
            true => activation::gated_forward(arch.activation, activated, hidden, m),
            false => activation::forward(arch.activation, activated, hidden, params.up.bias, m),
        }
    }

    fn join_attention(&self, y: ViewMut<f32>, start: Start, attended: View<f32>, tools: &mut Tools<'_, '_>) {
        let mask = self.pass.mask(attention_branch_site(self.layer));
        self.join(y, start, self.arch.attention_width(), attended, &self.params.out, mask, tools);
    }

    fn join_mlp(&self, y: ViewMut<f32>, start: Start, mlp: &MlpMemory, tools: &mut Tools<'_, '_>) {
        let mask = self.pass.mask(mlp_branch_site(self.layer));
        let activated = part(&mlp.activated, self.pass.n, self.arch.mlp_width);
        self.join(y, start, self.arch.mlp_width, activated, &self.params.down, mask, tools);
    }

    /// `y = start + dropout(x weightᵀ + bias)`. With dropout the branch goes through a buffer of its own; without, the
    /// matrix product itself adds it.
    #[allow(clippy::too_many_arguments)]
    fn join(
        &self,
        mut y: ViewMut<f32>,
        start: Start,
        inputs: usize,
        x: View<f32>,
        params: &LinearParts<View<f32>>,
        mask: Option<Mask>,
        tools: &mut Tools<'_, '_>,
    ) {
        let shape = [self.arch.width, inputs];
        match (mask, &mut tools.branch) {
            (Some(mask), Some(branch)) => {
                self.linear(shape, branch.reborrow(), Start::Zero, x, params);
                match start {
                    Start::Kept => {}
                    Start::Residual(residual) => y.reborrow().cpu().copy_from_slice(residual.cpu()),
                    Start::Zero => y.reborrow().cpu().fill(0.0),
                }
                dropout::add(y, branch.as_view(), mask);
            }
            _ => self.linear(shape, y, start, x, params),
        }
    }

    /// Turns the gradient of the block's output in `work.dx` into that of its input `x`, and adds to `gradients`.
    pub(super) fn backward(
        &self,
        gradients: BlockParts<ViewMut<f32>>,
        kept: &BlockMemory,
        mlp: &MlpMemory,
        x: View<f32>,
        work: &mut TrainingMemory,
        scratch: &mut attention::Scratch,
    ) {
        let Self { arch, params, .. } = self;
        let (n, c) = (self.pass.n, arch.width);
        let BlockParts { norm1, qkv, out, norm2, up, down } = gradients;
        let TrainingMemory { dx, dbranch, dinput, dside, dqkv, dhidden, dactivated } = work;
        let mlp_input = self.mlp_input(kept);
        let second = norm2.zip(params.norm2.as_ref()).zip(kept.norm2.as_ref());
        let mlp_backward = |dinput: ViewMut<f32>, is_added: bool, dy: View<f32>, dbranch: &mut Buffer<f32>| {
            self.mlp_backward(dinput, is_added, [up, down], mlp, mlp_input, dy, dbranch, dhidden, dactivated.as_mut());
        };
        match arch.residual {
            Residual::Serial => {
                let ((norm2, params2), (_, stats2)) = second.expect("serial blocks have one");
                let middle = part(kept.middle.as_ref().expect("serial blocks have one"), n, c);
                mlp_backward(part_mut(dinput, n, c), false, part(dx, n, c), dbranch);
                self.norm_backward(part_mut(dx, n, c), norm2, part(dinput, n, c), middle, stats2, params2);
                self.attention_backward(dinput, out, kept, part(dx, n, c), dbranch, dqkv, scratch);
                self.qkv_backward(part_mut(dinput, n, c), false, qkv, dqkv, part(&kept.norm1, n, c));
                self.norm_backward(part_mut(dx, n, c), norm1, part(dinput, n, c), x, &kept.norm1_stats, &params.norm1);
            }
            Residual::Parallel => {
                let ((norm2, params2), (_, stats2)) = second.expect("blocks with two norms have one");
                let dside = dside.as_mut().expect("parallel blocks have one");
                self.attention_backward(dinput, out, kept, part(dx, n, c), dbranch, dqkv, scratch);
                self.qkv_backward(part_mut(dinput, n, c), false, qkv, dqkv, part(&kept.norm1, n, c));
                mlp_backward(part_mut(dside, n, c), false, part(dx, n, c), dbranch);
                self.norm_backward(part_mut(dx, n, c), norm1, part(dinput, n, c), x, &kept.norm1_stats, &params.norm1);
                self.norm_backward(part_mut(dx, n, c), norm2, part(dside, n, c), x, stats2, params2);
            }
            Residual::ParallelOneNorm => {
                self.attention_backward(dinput, out, kept, part(dx, n, c), dbranch, dqkv, scratch);
                self.qkv_backward(part_mut(dinput, n, c), false, qkv, dqkv, part(&kept.norm1, n, c));
                mlp_backward(part_mut(dinput, n, c), true, part(dx, n, c), dbranch);
                self.norm_backward(part_mut(dx, n, c), norm1, part(dinput, n, c), x, &kept.norm1_stats, &params.norm1);
            }
            Residual::PostNorm => {
                let ((norm2, params2), (sum2, stats2)) = second.expect("blocks with post-norms have one");
                let (sum1, stats1) = (part(&kept.norm1, n, c), &kept.norm1_stats);
                let dside = dside.as_mut().expect("blocks with post-norms have one");
                part_mut(dside, n, c).cpu().fill(0.0);
                self.norm_backward(part_mut(dside, n, c), norm2, part(dx, n, c), part(sum2, n, c), stats2, params2);
                part_mut(dx, n, c).cpu().copy_from_slice(part(dside, n, c).cpu());
                mlp_backward(part_mut(dside, n, c), true, part(dx, n, c), dbranch);
                part_mut(dx, n, c).cpu().fill(0.0);
                self.norm_backward(part_mut(dx, n, c), norm1, part(dside, n, c), sum1, stats1, &params.norm1);
                self.attention_backward(dinput, out, kept, part(dx, n, c), dbranch, dqkv, scratch);
                self.qkv_backward(part_mut(dx, n, c), true, qkv, dqkv, x);
            }
        }
    }

    /// `dx +=` the gradient through a norm.
    fn norm_backward(
        &self,
        dx: ViewMut<f32>,
        gradients: NormParts<ViewMut<f32>>,
        dy: View<f32>,
        x: View<f32>,
        stats: &NormStats,
        params: &NormParts<View<f32>>,
    ) {
        let NormParts { gain, bias } = gradients;
        norm::backward(self.arch.norm, dx, gain, bias, dy, x, part(stats, self.pass.n, 1), params.gain);
    }

    /// The gradient of the MLP's input from that of the stream it was added to.
    #[allow(clippy::too_many_arguments)]
    fn mlp_backward(
        &self,
        dinput: ViewMut<f32>,
        is_added: bool,
        [up, down]: [LinearParts<ViewMut<f32>>; 2],
        mlp: &MlpMemory,
        input: View<f32>,
        dy: View<f32>,
        dbranch: &mut Buffer<f32>,
        dhidden: &mut Buffer<f32>,
        dactivated: Option<&mut Buffer<f32>>,
    ) {
        let Self { device, arch, pass, params, .. } = self;
        let (n, c, m, width) = (pass.n, arch.width, arch.mlp_width, arch.up_width());
        let dy = branch_gradient(part_mut(dbranch, n, c), dy, pass.mask(mlp_branch_site(self.layer)));
        let (activated, hidden) = (part(&mlp.activated, n, m), part(&mlp.hidden, n, width));
        match dactivated {
            Some(dactivated) => {
                let (dweight, weight) = (down.weight, params.down.weight);
                let into = part_mut(dactivated, n, m);
                linear::backward(device, [n, c, m], into, false, dweight, down.bias, dy, activated, weight);
                let (dhidden, dactivated) = (part_mut(dhidden, n, width), part(dactivated, n, m));
                activation::gated_backward(arch.activation, dhidden, dactivated, hidden, m);
            }
            None => {
                let (dweight, weight) = (down.weight, params.down.weight);
                let into = part_mut(dhidden, n, m);
                linear::backward(device, [n, c, m], into, false, dweight, down.bias, dy, activated, weight);
                let bias = params.up.bias;
                activation::backward(arch.activation, part_mut(dhidden, n, m), up.bias, hidden, bias, m);
            }
        }
        let (dhidden, weight) = (part(dhidden, n, width), params.up.weight);
        linear::backward(device, [n, width, c], dinput, is_added, up.weight, None, dhidden, input, weight);
    }

    /// `dqkv` from the gradient of the stream that attention's branch was added to.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        dattended: &mut Buffer<f32>,
        out: LinearParts<ViewMut<f32>>,
        kept: &BlockMemory,
        dy: View<f32>,
        dbranch: &mut Buffer<f32>,
        dqkv: &mut Buffer<f32>,
        scratch: &mut attention::Scratch,
    ) {
        let Self { device, arch, pass, params, positions, .. } = self;
        let (n, c, a, width) = (pass.n, arch.width, arch.attention_width(), arch.qkv_width());
        let dy = branch_gradient(part_mut(dbranch, n, c), dy, pass.mask(attention_branch_site(self.layer)));
        let (attended, weight) = (part(&kept.attention, n, a), params.out.weight);
        let into = part_mut(dattended, n, a);
        linear::backward(device, [n, c, a], into, false, out.weight, out.bias, dy, attended, weight);
        attention::backward(
            self.attention_shape(),
            part_mut(dqkv, n, width),
            part(dattended, n, a),
            part(&kept.qkv, n, width),
            attended,
            part(&kept.log_sum_exp, n, arch.heads),
            positions.key_bias(),
            pass.mask(attention_site(self.layer)),
            scratch,
        );
        if let Some((shape, table)) = positions.rotary(arch, *pass) {
            rotary::backward(shape, part_mut(dqkv, n, width), table);
        }
    }

    /// The gradient of the input of queries, keys and values.
    fn qkv_backward(
        &self,
        dinput: ViewMut<f32>,
        is_added: bool,
        qkv: LinearParts<ViewMut<f32>>,
        dqkv: &Buffer<f32>,
        input: View<f32>,
    ) {
        let (n, width, weight) = (self.pass.n, self.arch.qkv_width(), self.params.qkv.weight);
        let shape = [n, width, self.arch.width];
        let dqkv = part(dqkv, n, width);
        linear::backward(self.device, shape, dinput, is_added, qkv.weight, qkv.bias, dqkv, input, weight);
    }
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
