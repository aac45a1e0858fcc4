//! What computes a run: parameters, gradients and moments, wherever they lie, behind [`Engine`].
//!
//! The engine owns the run's [`Weights`]; a step drives it (`step.rs`), and the session reads the weights back when they
//! are saved or judged. On the CPU they lie in ordinary memory and are read without a copy; a GPU keeps its own and the
//! host's are brought up to date when they are asked for.

pub(crate) mod gpu;

use std::ops::Range;

use anyhow::Result;

use super::state::Weights;
use crate::dist::Collective;
use crate::model::Scorer;
use crate::model::arch::Arch;
use crate::model::layout::Layout;
use crate::model::{self, DropoutSeed, LossAndGradients, Rows};
use crate::ops::Buffer;
use crate::optim::adamw::{self, AdamW};
use crate::optim::clip;
use crate::placement::Placement;
use crate::recipe::{Backend, Bf16Rounding, Optimizer, Recipe, Recompute};

/// What computes a run. As a [`Scorer`] it is the model with the weights as they are.
///
/// A step is `zero_gradients`, `accumulate` for each micro-batch, `sum_over`, `gradient_norm` and `update`; one that is
/// given up, or whose numbers are not finite, leaves out the last and has changed no weight.
pub trait Engine: Scorer {
    /// Begins a step.
    fn zero_gradients(&mut self);

    /// Returns the mean loss over the targets of the rows and adds `scale` times its gradient. `next` are the rows of the next
    /// call, where they are known: they may be sent ahead while these are computed.
    fn accumulate(&mut self, rows: Rows, scale: f32, dropout: Option<DropoutSeed>, next: Option<Rows>) -> Result<f64>;

    /// The gradients become their sums over all processes.
    fn sum_over(&mut self, collective: &dyn Collective) -> Result<()>;

    /// The Euclidean norm of all gradients.
    fn gradient_norm(&mut self) -> Result<f64>;

    /// Changes the weights by `gradient_scale` times the gradients; `update` counts from 0.
    fn update(&mut self, update: u64, learning_rate: f64, gradient_scale: f64) -> Result<()>;

    /// Gives back what only steps need, so that other models find room; the next step takes it again.
    fn make_room(&mut self) {}

    /// Parameters and moments as they are.
    fn weights(&mut self) -> Result<&Weights>;
}

/// What an engine computes by.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which implementation, on the CPU.
    pub backend: Backend,
    /// What is computed twice to save memory.
    pub recompute: Recompute,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Ascending, disjoint ranges of the parameters to which weight decay applies.
    pub decayed: Vec<Range<usize>>,
    /// How masters become what a GPU computes with.
    pub bf16_rounding: Bf16Rounding,
    /// The run's seed; what is drawn from it here is stochastic rounding.
    pub seed: u64,
    /// Whether a GPU's matrix products compute the MLP's function in passing, where they can: an experiment.
    pub gelu_epilogue: bool,
    /// Updates that the weights have seen: by the last one's number their copy was rounded.
    pub updates: u64,
}

impl Options {
    /// Those of a recipe.
    pub fn of(recipe: &Recipe, layout: &Layout) -> Self {
        Self {
            backend: recipe.model.backend,
            recompute: recipe.train.recompute,
            optimizer: recipe.optimizer.clone(),
            decayed: adamw::decayed_ranges(layout),
            bf16_rounding: recipe.train.bf16_rounding,
            seed: recipe.train.seed,
            gelu_epilogue: false,
            updates: 0,
        }
    }

    /// Those of a recipe that says nothing about them.
    pub fn usual(layout: &Layout) -> Self {
        Self {
            backend: Backend::default(),
            recompute: Recompute::default(),
            optimizer: Optimizer::default(),
            decayed: adamw::decayed_ranges(layout),
            bf16_rounding: Bf16Rounding::default(),
            seed: 0,
            gelu_epilogue: false,
            updates: 0,
        }
    }
}

/// The engine of a place, with the weights that it goes on from; takes the memory that training needs.
pub fn open(placement: &Placement, arch: &Arch, options: &Options, weights: Weights) -> Result<Box<dyn Engine>> {
    match placement {
        Placement::Cpu => {
            let model = model::trainer(options.backend, arch, options.recompute);
            Ok(Box::new(CpuEngine::new(model, options, weights)))
        }
        Placement::Gpu(gpu) => Ok(Box::new(gpu::GpuEngine::new(gpu, arch, options, weights)?)),
    }
}

/// A decoder on the CPU, with everything in ordinary memory.
pub struct CpuEngine {
    model: Box<dyn LossAndGradients>,
    weights: Weights,
    gradients: Buffer<f32>,
    optimizer: AdamW,
}

impl CpuEngine {
    /// Pairs a decoder with its weights.
    pub fn new(model: Box<dyn LossAndGradients>, options: &Options, weights: Weights) -> Self {
        let len = weights.params.len();
        let optimizer = AdamW::new(&options.optimizer, len, &options.decayed);
        Self { model, weights, gradients: Buffer::zeros(len), optimizer }
    }
}

impl Engine for CpuEngine {
    fn zero_gradients(&mut self) {
        self.gradients.as_mut_slice().fill(0.0);
    }

    fn accumulate(&mut self, rows: Rows, scale: f32, dropout: Option<DropoutSeed>, _next: Option<Rows>) -> Result<f64> {
        let (params, gradients) = (self.weights.params.as_slice(), self.gradients.as_mut_slice());
        self.model.loss_and_gradients(params, gradients, rows, scale, dropout).map(f64::from)
    }

    fn sum_over(&mut self, collective: &dyn Collective) -> Result<()> {
        collective.sum(self.gradients.view_mut())
    }

    fn gradient_norm(&mut self) -> Result<f64> {
        Ok(clip::global_norm(self.gradients.as_slice()))
    }

    fn update(&mut self, update: u64, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        let Self { weights, gradients, optimizer, .. } = self;
        optimizer.step(
            update,
            learning_rate,
            gradient_scale,
            weights.params.as_mut_slice(),
            gradients.as_slice(),
            weights.means.as_mut_slice(),
            weights.squares.as_mut_slice(),
        );
        Ok(())
    }

    fn weights(&mut self) -> Result<&Weights> {
        Ok(&self.weights)
    }
}

impl Scorer for CpuEngine {
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.model.row_losses(self.weights.params.as_slice(), rows)
    }

    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.model.logits(self.weights.params.as_slice(), rows)
    }
}
