//! The decoder on a GPU: forward and backward over the operations of `crate::gpu`, its memory and the order of its
//! parameters, together a model; and what that takes of a card's memory.
//!
//! It computes what `model/decoder.rs` computes, in another order of the same operations; the tests hold it to the same
//! references, on the emulated GPU.

mod backward;
mod block_backward;
mod decoder;
pub(crate) mod estimate;
mod layout;
mod memory;
mod positions;

#[cfg(test)]
mod accumulation_tests;
#[cfg(test)]
mod epilogue_tests;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};
use half::bf16;

use super::arch::Arch;
use super::layout::Layout;
use super::{Rows, Scorer};
use crate::gpu::{Buffer, Dtype, Element, Gpu, View, attention, cast, norm};
use crate::ops::activation::Activation;
use crate::recipe::Recompute;
use crate::rules::ScoreDtype;
use decoder::{Decoder, Params, Pass};
pub use estimate::{GpuMemory, memory_estimate};
pub(crate) use layout::DeviceLayout;
use memory::{Memory, part};

/// Tokens that are scored together: enough for the matrix products of small models to fill a card, and some hundred MiB of
/// activations for the largest that the rules allow.
const TOKENS_AT_ONCE: usize = 4096;

/// A number format that the decoder computes in.
pub(crate) trait Compute: Element {
    /// The parameters that matrix products read, of masters in f32 and the same rounded.
    fn of<'a>(masters: &'a Buffer<f32>, rounded: &'a Option<Buffer<bf16>>) -> View<'a, Self>;
}

impl Compute for f32 {
    fn of<'a>(masters: &'a Buffer<f32>, _rounded: &'a Option<Buffer<bf16>>) -> View<'a, Self> {
        masters.view()
    }
}

impl Compute for bf16 {
    fn of<'a>(_masters: &'a Buffer<f32>, rounded: &'a Option<Buffer<bf16>>) -> View<'a, Self> {
        rounded.as_ref().expect("made for products in bfloat16").view()
    }
}

/// A model on the device: f32 masters, the same rounded where products read bfloat16, and what computes with them.
pub(crate) struct Model<T> {
    pub(crate) gpu: Gpu,
    pub(crate) layout: DeviceLayout,
    pub(crate) masters: Buffer<f32>,
    pub(crate) rounded: Option<Buffer<bf16>>,
    decoder: Decoder<T>,
}

impl<T: Compute> Model<T> {
    /// # Errors
    /// Out of memory.
    pub(crate) fn new(gpu: &Gpu, arch: &Arch, recompute: Recompute, params: &[f32]) -> Result<Self> {
        let host = Layout::of(arch);
        ensure!(params.len() == host.len(), "{} parameters were given for a model of {}", params.len(), host.len());
        let layout = DeviceLayout::of(&host);
        let mut masters = gpu.zeros(layout.len())?;
        layout.upload(gpu, &mut masters, params);
        let mut rounded = (T::DTYPE == Dtype::Bf16).then(|| gpu.zeros(layout.len())).transpose()?;
        if let Some(rounded) = &mut rounded {
            cast::to_bf16(gpu, rounded.view_mut(), masters.view());
        }
        Ok(Self { gpu: gpu.clone(), layout, masters, rounded, decoder: Decoder::new(gpu, arch, recompute) })
    }

    /// The decoder, and the parameters that it reads.
    fn parts(&mut self) -> (&mut Decoder<T>, Params<'_, T>) {
        let Self { layout, masters, rounded, decoder, .. } = self;
        let params = Params {
            masters: layout.parts(&decoder.arch, masters.view()),
            compute: layout.parts(&decoder.arch, T::of(masters, rounded)),
        };
        (decoder, params)
    }

    /// Scores rows. Memory of training is left as it is where the rows do not fit into it: what it would grow by is far more
    /// than what scoring takes.
    fn score<R>(
        &mut self,
        rows: Rows,
        compute: impl FnOnce(&mut Decoder<T>, &Params<'_, T>, Pass) -> Result<R>,
    ) -> Result<R> {
        let (decoder, params) = self.parts();
        let is_too_small = |memory: &Memory<T>| memory.backward.is_some() && memory.tokens < rows.tokens.len();
        let kept = if decoder.memory.as_ref().is_some_and(is_too_small) { decoder.memory.take() } else { None };
        let result = decoder.prepare(rows, false).and_then(|pass| compute(decoder, &params, pass));
        if kept.is_some() {
            decoder.memory = kept;
        }
        result
    }

    /// Gives back what only passes need; the next one takes it again.
    pub(crate) fn make_room(&mut self) {
        self.decoder.memory = None;
    }
}

impl<T: Compute> Scorer for Model<T> {
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.score(rows, Decoder::row_losses)
    }

    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.score(rows, Decoder::logits)
    }

    fn rows_at_once(&self, row_len: usize) -> usize {
        (TOKENS_AT_ONCE / row_len.max(1)).max(1)
    }
}

impl Model<bf16> {
    /// Lets matrix products compute the MLP's function in passing, where it is one that they know and has a bias before it.
    pub(crate) fn fuse_gelu(&mut self) {
        let Arch { activation, gated, mlp_bias, .. } = self.decoder.arch;
        self.decoder.fuses_gelu = activation == Activation::GeluTanh && !gated && mlp_bias;
    }

    /// Returns the mean loss over the targets of the rows and adds `scale` times its gradient to `gradients`, in the device's
    /// order; sends `next` ahead meanwhile. If it does not accumulate, only [`DeviceLayout::added_to`] is added to, and the
    /// rest overwritten, whatever stood there.
    ///
    /// # Errors
    /// Out of memory; rows that the model cannot read.
    pub(crate) fn loss_and_gradients(
        &mut self,
        gradients: &mut Buffer<f32>,
        accumulates: bool,
        rows: Rows,
        scale: f32,
        next: Option<Rows>,
    ) -> Result<f64> {
        let Self { gpu, layout, masters, rounded, decoder } = self;
        let pass = Pass { accumulates, ..decoder.prepare(rows, true)? };
        let arch = decoder.arch.clone();
        let params = Params {
            masters: layout.parts(&arch, masters.view()),
            compute: layout.parts(&arch, bf16::of(masters, rounded)),
        };
        let gradients = layout.parts_mut(&arch, gradients.view_mut());
        let num_targets = rows.num_rows * (rows.row_len - 1);
        decoder.forward(&params, pass);
        decoder.backward(&params, gradients, pass, scale / num_targets as f32);
        if let Some(next) = next {
            decoder.send_ahead(next);
        }
        let memory = decoder.memory.as_ref().expect("made by prepare");
        let losses = gpu.to_vec(part(&memory.losses, pass.n, 1))?;
        Ok(losses.into_iter().map(f64::from).sum::<f64>() / num_targets as f64)
    }
}

/// A model on the GPU, to be scored in the number format of the rules; one that it [`can_score`].
///
/// # Errors
/// Out of memory.
pub fn scorer(gpu: &Gpu, arch: &Arch, params: &[f32], dtype: ScoreDtype) -> Result<Box<dyn Scorer>> {
    ensure!(can_score(arch, dtype), "heads of {} channels are too large for the GPU's kernels", arch.head_size);
    let make = || -> Result<Box<dyn Scorer>> {
        Ok(match dtype {
            ScoreDtype::F32 => Box::new(Model::<f32>::new(gpu, arch, Recompute::None, params)?),
            ScoreDtype::Bf16 => Box::new(Model::<bf16>::new(gpu, arch, Recompute::None, params)?),
        })
    };
    make().context("scoring on a GPU; on the CPU: --device cpu")
}

impl From<ScoreDtype> for Dtype {
    fn from(dtype: ScoreDtype) -> Self {
        match dtype {
            ScoreDtype::F32 => Self::F32,
            ScoreDtype::Bf16 => Self::Bf16,
        }
    }
}

/// Whether the kernels can score a model.
pub fn can_score(arch: &Arch, dtype: ScoreDtype) -> bool {
    arch.head_size <= max_head_size(dtype.into()) && arch.width <= norm::MAX_WIDTH_FORWARD
}

/// Why a GPU cannot train a model, if it cannot.
pub fn cannot_train(arch: &Arch, dropout: f32) -> Option<String> {
    let most = max_head_size(Dtype::Bf16);
    if arch.head_size > most {
        return Some(format!("a GPU trains heads of up to {most} channels, and this model's have {}", arch.head_size));
    }
    if arch.width > norm::MAX_WIDTH_BACKWARD {
        let most = norm::MAX_WIDTH_BACKWARD;
        return Some(format!("a GPU trains models of up to {most} channels, and this one has {}", arch.width));
    }
    (dropout > 0.0).then(|| "a GPU trains without dropout, and model.dropout is not 0".to_owned())
}

fn max_head_size(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => attention::MAX_HEAD_SIZE_F32,
        Dtype::Bf16 => attention::MAX_HEAD_SIZE_BF16,
    }
}
