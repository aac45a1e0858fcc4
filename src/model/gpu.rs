//! The decoder on a GPU: forward ([`decoder`]) and backward ([`backward`]) over the operations of `crate::gpu`, its memory
//! ([`memory`]) and the order of its parameters ([`layout`]); an [`Engine`] that trains in bfloat16 with f32 masters, and a
//! [`Scorer`] in f32 or bfloat16.
//!
//! It computes what `model/decoder.rs` computes, in another order of the same operations; the tests hold it to the same
//! references, on the emulated GPU.

mod backward;
mod decoder;
mod layout;
mod memory;
mod positions;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};
use half::bf16;

use super::arch::Arch;
use super::layout::Layout;
use super::scorer::Scorer;
use super::{DropoutSeed, Rows};
use crate::dist::Collective;
use crate::error::input;
use crate::gpu::adamw::Rounding;
use crate::gpu::gradient_norm::{self, Partials};
use crate::gpu::{Buffer, Dtype, Element, Gpu, OutOfMemory, adamw, attention, cast};
use crate::ops::random;
use crate::optim::adamw::AdamW;
use crate::recipe::{Bf16Rounding, Recompute};
use crate::rules::ScoreDtype;
use crate::train::engine::{Engine, Options};
use crate::train::state::Weights;
use decoder::{Decoder, Params};
use layout::DeviceLayout;
use memory::{ActivationBytes, part};

/// Parameters on the device: f32 masters, and rounded where products read bfloat16.
struct Stored {
    layout: DeviceLayout,
    masters: Buffer<f32>,
    rounded: Option<Buffer<bf16>>,
}

impl Stored {
    fn new(gpu: &Gpu, arch: &Arch, params: &[f32], is_rounded: bool) -> Result<Self> {
        let host = Layout::of(arch);
        ensure!(params.len() == host.len(), "{} parameters were given for a model of {}", params.len(), host.len());
        let layout = DeviceLayout::of(&host);
        let mut masters = gpu.zeros(layout.len())?;
        layout.upload(gpu, &mut masters, params);
        let mut rounded = is_rounded.then(|| gpu.zeros(layout.len())).transpose()?;
        if let Some(rounded) = &mut rounded {
            cast::to_bf16(gpu, rounded.view_mut(), masters.view());
        }
        Ok(Self { layout, masters, rounded })
    }

    fn in_f32(&self, arch: &Arch) -> Params<'_, f32> {
        let parts = || self.layout.parts(arch, self.masters.view());
        Params { masters: parts(), compute: parts() }
    }

    fn in_bf16(&self, arch: &Arch) -> Params<'_, bf16> {
        let rounded = self.rounded.as_ref().expect("made with a rounded copy").view();
        Params { masters: self.layout.parts(arch, self.masters.view()), compute: self.layout.parts(arch, rounded) }
    }
}

/// A model on the GPU, to be scored in the number format of the rules.
///
/// # Errors
/// Out of memory; heads larger than the kernels take.
pub fn scorer(gpu: &Gpu, arch: &Arch, params: &[f32], dtype: ScoreDtype) -> Result<Box<dyn Scorer>> {
    Ok(match dtype {
        ScoreDtype::F32 => {
            check_head_size::<f32>(arch)?;
            let stored = Stored::new(gpu, arch, params, false)?;
            Box::new(GpuScorer { decoder: Decoder::<f32>::new(gpu, arch, Recompute::None), stored })
        }
        ScoreDtype::Bf16 => {
            check_head_size::<bf16>(arch)?;
            let stored = Stored::new(gpu, arch, params, true)?;
            Box::new(GpuScorer { decoder: Decoder::<bf16>::new(gpu, arch, Recompute::None), stored })
        }
    })
}

fn check_head_size<T: Element>(arch: &Arch) -> Result<()> {
    let most = match T::DTYPE {
        Dtype::F32 => attention::MAX_HEAD_SIZE_F32,
        Dtype::Bf16 => attention::MAX_HEAD_SIZE_BF16,
    };
    if arch.head_size <= most {
        return Ok(());
    }
    let (size, format) = (arch.head_size, T::SUFFIX);
    Err(input(format!(
        "attention on a GPU takes heads of up to {most} channels in {format}, and this model's have {size}: choose the device \
         cpu, or smaller heads"
    )))
}

struct GpuScorer<T> {
    decoder: Decoder<T>,
    stored: Stored,
}

impl Scorer for GpuScorer<f32> {
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
        let pass = self.decoder.prepare(rows, false)?;
        let params = self.stored.in_f32(&self.decoder.arch.clone());
        self.decoder.row_losses(&params, pass)
    }

    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
        let pass = self.decoder.prepare(rows, false)?;
        let params = self.stored.in_f32(&self.decoder.arch.clone());
        self.decoder.logits(&params, pass)
    }
}

impl Scorer for GpuScorer<bf16> {
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
        let pass = self.decoder.prepare(rows, false)?;
        let params = self.stored.in_bf16(&self.decoder.arch.clone());
        self.decoder.row_losses(&params, pass)
    }

    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
        let pass = self.decoder.prepare(rows, false)?;
        let params = self.stored.in_bf16(&self.decoder.arch.clone());
        self.decoder.logits(&params, pass)
    }
}

/// A model on the GPU with its gradients and moments, to be trained in bfloat16.
///
/// # Errors
/// Out of memory; heads larger than the kernels take.
pub fn engine(gpu: &Gpu, arch: &Arch, options: &Options, weights: Weights) -> Result<Box<dyn Engine>> {
    Ok(Box::new(GpuEngine::new(gpu, arch, options, weights)?))
}

/// Parameters, gradients and moments on the device, and their copy on the host where it is up to date.
pub(crate) struct GpuEngine {
    gpu: Gpu,
    decoder: Decoder<bf16>,
    stored: Stored,
    gradients: Buffer<f32>,
    means: Buffer<f32>,
    squares: Buffer<f32>,
    decays: Buffer<u8>,
    partials: Partials,
    optimizer: AdamW,
    rounding: Bf16Rounding,
    rounding_key: u64,
    host: Weights,
    host_is_current: bool,
}

impl GpuEngine {
    pub(crate) fn new(gpu: &Gpu, arch: &Arch, options: &Options, weights: Weights) -> Result<Self> {
        check_head_size::<bf16>(arch)?;
        let host_len = weights.params.len();
        let make = || -> Result<_> {
            let stored = Stored::new(gpu, arch, weights.params.as_slice(), true)?;
            let len = stored.layout.len();
            let [mut means, mut squares] = [gpu.zeros(len)?, gpu.zeros(len)?];
            stored.layout.upload(gpu, &mut means, weights.means.as_slice());
            stored.layout.upload(gpu, &mut squares, weights.squares.as_slice());
            Ok((stored, gpu.zeros(len)?, means, squares))
        };
        let (stored, gradients, means, squares) = make().context("parameters, gradients and moments")?;
        let decays = stored.layout.decays(&options.decayed);
        Ok(Self {
            gpu: gpu.clone(),
            decoder: Decoder::new(gpu, arch, options.recompute),
            gradients,
            means,
            squares,
            decays: gpu.buffer_of(&decays)?,
            partials: Partials::new(gpu, stored.layout.len())?,
            stored,
            optimizer: AdamW::new(&options.optimizer, host_len, &options.decayed),
            rounding: options.bf16_rounding,
            rounding_key: random::derive_named(options.seed, "bf16 rounding"),
            host: weights,
            host_is_current: true,
        })
    }

    /// What stands in the gradient buffer, in the host's order.
    #[cfg(test)]
    pub(crate) fn host_gradients(&self) -> Result<Vec<f32>> {
        let mut gradients = vec![0.0; self.host.params.len()];
        self.stored.layout.download(&self.gpu, &mut gradients, &self.gradients)?;
        Ok(gradients)
    }
}

impl Engine for GpuEngine {
    fn zero_gradients(&mut self) {
        self.gpu.zero(self.gradients.view_mut());
    }

    fn accumulate(&mut self, rows: Rows, scale: f32, dropout: Option<DropoutSeed>, next: Option<Rows>) -> Result<f64> {
        ensure!(rows.row_len > 1, "a row of one token has nothing to predict");
        if dropout.is_some() {
            return Err(input("model.dropout is for the CPU only: set it to 0, or train.device to cpu"));
        }
        let Self { gpu, decoder, stored, gradients, .. } = self;
        let arch = decoder.arch.clone();
        let pass = decoder.prepare(rows, true).map_err(|error| advise(error, &arch, rows, decoder.recompute))?;
        let params = stored.in_bf16(&arch);
        let gradients = stored.layout.parts_mut(&arch, gradients.view_mut());
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

    fn sum_over(&mut self, collective: &dyn Collective) -> Result<()> {
        ensure!(collective.world().size == 1, "several GPUs cannot train one model yet");
        Ok(())
    }

    fn gradient_norm(&mut self) -> Result<f64> {
        Ok(gradient_norm::sum_of_squares(&self.gpu, self.gradients.view(), &mut self.partials)?.sqrt())
    }

    fn update(&mut self, update: u64, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        let rounding = match self.rounding {
            Bf16Rounding::Nearest => Rounding::Nearest,
            Bf16Rounding::Stochastic => Rounding::Stochastic(random::derive(self.rounding_key, update)),
        };
        let buffers = adamw::Buffers {
            params: self.stored.masters.view_mut(),
            gradients: self.gradients.view(),
            means: self.means.view_mut(),
            squares: self.squares.view_mut(),
            copy: self.stored.rounded.as_mut().map(Buffer::view_mut),
            decays: self.decays.view(),
        };
        adamw::step(&self.gpu, &self.optimizer.factors(update, learning_rate, gradient_scale), rounding, buffers);
        self.host_is_current = false;
        Ok(())
    }

    fn weights(&mut self) -> Result<&Weights> {
        if !self.host_is_current {
            let Self { gpu, stored, means, squares, host, .. } = self;
            stored.layout.download(gpu, host.params.as_mut_slice(), &stored.masters)?;
            stored.layout.download(gpu, host.means.as_mut_slice(), means)?;
            stored.layout.download(gpu, host.squares.as_mut_slice(), squares)?;
            self.host_is_current = true;
        }
        Ok(&self.host)
    }
}

impl Scorer for GpuEngine {
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
        let pass = self.decoder.prepare(rows, false)?;
        let params = self.stored.in_bf16(&self.decoder.arch.clone());
        self.decoder.row_losses(&params, pass)
    }

    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
        let pass = self.decoder.prepare(rows, false)?;
        let params = self.stored.in_bf16(&self.decoder.arch.clone());
        self.decoder.logits(&params, pass)
    }
}

/// Adds to an error for want of memory which options would fit.
fn advise(error: anyhow::Error, arch: &Arch, rows: Rows, recompute: Recompute) -> anyhow::Error {
    let Some(&OutOfMemory { total, .. }) = error.downcast_ref::<OutOfMemory>() else { return error };
    input(format!("{error}. {}", what_would_fit(arch, rows.num_rows, rows.row_len, recompute, total as u128)))
}

/// The first change of options with which training fits into `total` bytes, as a sentence.
fn what_would_fit(arch: &Arch, rows: usize, row_len: usize, recompute: Recompute, total: u128) -> String {
    // CUDA itself, cuBLASLt's workspace and fragments of free memory.
    const RESERVE: u128 = 1 << 30;
    let fits =
        |rows, recompute| memory_estimate(arch, rows, row_len, recompute).total().saturating_add(RESERVE) <= total;
    let choices = [(Recompute::Mlp, "mlp"), (Recompute::Block, "block")];
    let saving = choices.into_iter().skip_while(|&(choice, _)| recompute != Recompute::None && choice != recompute);
    if let Some((_, name)) = saving.filter(|&(choice, _)| choice != recompute).find(|&(choice, _)| fits(rows, choice)) {
        return format!("train.recompute: {name} would fit.");
    }
    let halves = std::iter::successors(Some(rows / 2), |rows| Some(rows / 2)).take_while(|&rows| rows > 0);
    for rows in halves {
        if fits(rows, recompute) {
            return format!("train.micro_batch: {rows} would fit.");
        }
        if fits(rows, Recompute::Block) {
            return format!("train.micro_batch: {rows} with train.recompute: block would fit.");
        }
    }
    "No micro-batch of this model fits on this card.".to_owned()
}

/// What training takes of a GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// f32 masters and the rounded copy that products read.
    pub weights: u128,
    /// Gradients.
    pub gradients: u128,
    /// AdamW's moments.
    pub moments: u128,
    /// What forward saves for backward and both work in, for one micro batch.
    pub activations: u128,
    /// One chunk of logits.
    pub logits: u128,
}

impl GpuMemory {
    /// Everything together.
    pub fn total(&self) -> u128 {
        let parts = [self.weights, self.gradients, self.moments, self.activations, self.logits];
        parts.into_iter().fold(0, u128::saturating_add)
    }
}

/// What training on rows of a length takes of a GPU's memory, as the engine takes it; CUDA's own memory not counted.
pub fn memory_estimate(arch: &Arch, rows: usize, row_len: usize, recompute: Recompute) -> GpuMemory {
    let ActivationBytes { saved, backward, logits } = ActivationBytes::of(arch, rows, row_len, recompute);
    let len = layout::device_len_of(arch);
    GpuMemory {
        weights: len.saturating_mul(6),
        gradients: len.saturating_mul(4),
        moments: len.saturating_mul(8),
        activations: saved.saturating_add(backward),
        logits,
    }
}
