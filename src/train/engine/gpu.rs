//! The engine on a GPU: a model that trains in bfloat16 with f32 masters, gradients and moments, all on the device.

use anyhow::{Result, ensure};
use half::bf16;

use super::{Engine, Options};
use crate::dist::Collective;
use crate::error::input;
use crate::figures;
use crate::gpu::adamw::{self, Rounding};
use crate::gpu::gradient_norm::{self, Partials};
use crate::gpu::{Buffer, Gpu, OutOfMemory};
use crate::model::arch::Arch;
use crate::model::gpu::estimate::{memory_estimate, what_would_fit};
use crate::model::gpu::{Model, cannot_train};
use crate::model::{DropoutSeed, Rows, Scorer};
use crate::ops::random;
use crate::optim::adamw::AdamW;
use crate::recipe::{Bf16Rounding, Recompute};
use crate::train::state::Weights;

/// A model, its gradients and moments on the device, and their copy on the host where it is up to date.
pub(crate) struct GpuEngine {
    model: Model<bf16>,
    arch: Arch,
    recompute: Recompute,
    gradients: Buffer<f32>,
    /// Whether the next pass adds to all gradients; the first one of a step overwrites what products compute.
    accumulates: bool,
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
    /// Takes the memory that is needed whatever the batch.
    ///
    /// # Errors
    /// Out of memory; a model that a GPU cannot train.
    pub(crate) fn new(gpu: &Gpu, arch: &Arch, options: &Options, weights: Weights) -> Result<Self> {
        if let Some(reason) = cannot_train(arch, 0.0) {
            return Err(input(format!("{reason}: choose the device cpu, or smaller heads")));
        }
        let make = || -> Result<_> {
            let mut model = Model::new(gpu, arch, options.recompute, weights.params.as_slice())?;
            if options.gelu_epilogue {
                model.fuse_gelu();
            }
            let len = model.layout.len();
            let [mut means, mut squares] = [gpu.zeros(len)?, gpu.zeros(len)?];
            model.layout.upload(gpu, &mut means, weights.means.as_slice());
            model.layout.upload(gpu, &mut squares, weights.squares.as_slice());
            Ok((model, gpu.zeros(len)?, means, squares))
        };
        let (model, gradients, means, squares) = make().map_err(|error| match error.downcast_ref::<OutOfMemory>() {
            Some(_) => input(format!(
                "{error}. Parameters, gradients and moments alone take 18 bytes for each of {} parameters: choose a \
                 smaller model, a larger card, or train.device: cpu.",
                figures::count(arch.num_parameters())
            )),
            None => error,
        })?;
        let decays = gpu.buffer_of(&model.layout.decays(&options.decayed))?;
        let mut engine = Self {
            partials: Partials::new(gpu, model.layout.len())?,
            model,
            arch: arch.clone(),
            recompute: options.recompute,
            gradients,
            accumulates: true,
            means,
            squares,
            decays,
            optimizer: AdamW::new(&options.optimizer, weights.params.len(), &options.decayed),
            rounding: options.bf16_rounding,
            rounding_key: random::derive_named(options.seed, "bf16 rounding"),
            host: weights,
            host_is_current: true,
        };
        if let (Some(last), Some(rounded)) = (options.updates.checked_sub(1), &mut engine.model.rounded) {
            let rounding = rounding_of(engine.rounding, engine.rounding_key, last);
            adamw::round(gpu, rounded.view_mut(), engine.model.masters.view(), rounding);
        }
        Ok(engine)
    }

    /// What stands in the gradient buffer, in the host's order.
    #[cfg(test)]
    pub(crate) fn host_gradients(&self) -> Result<Vec<f32>> {
        let mut gradients = vec![0.0; self.host.params.len()];
        self.model.layout.download(&self.model.gpu, &mut gradients, &self.gradients)?;
        Ok(gradients)
    }

    /// Sets all gradients of parameters, as a step that was given up may have left them.
    #[cfg(test)]
    pub(crate) fn fill_gradients(&mut self, value: f32) {
        let values = vec![value; self.host.params.len()];
        self.model.layout.upload(&self.model.gpu, &mut self.gradients, &values);
    }

    /// What matrix products read.
    #[cfg(test)]
    pub(crate) fn rounded(&self) -> Result<Vec<bf16>> {
        self.model.gpu.to_vec(self.model.rounded.as_ref().expect("products are in bfloat16").view())
    }

    /// Zeroes what the first pass would have overwritten, where there was none.
    fn complete_gradients(&mut self) {
        if !self.accumulates {
            self.model.gpu.zero(self.gradients.view_mut());
            self.accumulates = true;
        }
    }

    /// Adds to an error for want of memory which options would fit.
    fn advise(&mut self, error: anyhow::Error, rows: Rows) -> anyhow::Error {
        let Some(&OutOfMemory { free, .. }) = error.downcast_ref::<OutOfMemory>() else { return error };
        // What training can have: what is free without its activations, and what it holds beside them.
        self.model.make_room();
        let free = self.model.gpu.memory().map_or(free, |[free, _]| free);
        let held = memory_estimate(&self.arch, 0, 0, self.recompute).total();
        let available = (free as u128).saturating_add(held);
        let advice = what_would_fit(&self.arch, rows.num_rows, rows.row_len, self.recompute, available);
        input(format!("{error}. {advice} train.device: cpu always does."))
    }
}

fn rounding_of(choice: Bf16Rounding, key: u64, update: u64) -> Rounding {
    match choice {
        Bf16Rounding::Nearest => Rounding::Nearest,
        Bf16Rounding::Stochastic => Rounding::Stochastic(random::derive(key, update)),
    }
}

impl Engine for GpuEngine {
    fn zero_gradients(&mut self) {
        let added_to = self.model.layout.added_to();
        self.model.gpu.zero(self.gradients.view_mut().window(added_to));
        self.accumulates = false;
    }

    fn accumulate(&mut self, rows: Rows, scale: f32, dropout: Option<DropoutSeed>, next: Option<Rows>) -> Result<f64> {
        ensure!(rows.row_len > 1, "a row of one token has nothing to predict");
        if dropout.is_some() {
            return Err(input("model.dropout is for the CPU only: set it to 0, or train.device to cpu"));
        }
        let loss = self.model.loss_and_gradients(&mut self.gradients, self.accumulates, rows, scale, next);
        let loss = loss.map_err(|error| self.advise(error, rows))?;
        self.accumulates = true;
        Ok(loss)
    }

    fn sum_over(&mut self, collective: &dyn Collective) -> Result<()> {
        ensure!(collective.world().size == 1, "several GPUs cannot train one model yet");
        self.complete_gradients();
        Ok(())
    }

    fn gradient_norm(&mut self) -> Result<f64> {
        self.complete_gradients();
        Ok(gradient_norm::sum_of_squares(&self.model.gpu, self.gradients.view(), &mut self.partials)?.sqrt())
    }

    fn update(&mut self, update: u64, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        self.complete_gradients();
        let rounding = rounding_of(self.rounding, self.rounding_key, update);
        let buffers = adamw::Buffers {
            params: self.model.masters.view_mut(),
            gradients: self.gradients.view(),
            means: self.means.view_mut(),
            squares: self.squares.view_mut(),
            copy: self.model.rounded.as_mut().map(Buffer::view_mut),
            decays: self.decays.view(),
        };
        adamw::step(&self.model.gpu, &self.optimizer.factors(update, learning_rate, gradient_scale), rounding, buffers);
        self.host_is_current = false;
        Ok(())
    }

    fn make_room(&mut self) {
        self.model.make_room();
    }

    fn weights(&mut self) -> Result<&Weights> {
        if !self.host_is_current {
            let Self { model: Model { gpu, layout, masters, .. }, means, squares, host, .. } = self;
            layout.download(gpu, host.params.as_mut_slice(), masters)?;
            layout.download(gpu, host.means.as_mut_slice(), means)?;
            layout.download(gpu, host.squares.as_mut_slice(), squares)?;
            self.host_is_current = true;
        }
        Ok(&self.host)
    }
}

impl Scorer for GpuEngine {
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.model.row_losses(rows)
    }

    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.model.logits(rows)
    }
}
