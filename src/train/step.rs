//! One optimizer step: micro-batches, sum over processes, norm, guard, AdamW.
//!
//! The gradient is that of the mean loss over the step's tokens on all processes: each micro-batch adds its mean with
//! weight `1 / (micro-steps * processes)`.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::state::{Place, Weights};
use crate::data::loader::Loader;
use crate::dist::Collective;
use crate::interrupt;
use crate::model::arch::Arch;
use crate::model::layout::Layout;
use crate::model::{self, DropoutSeed, LossAndGradients, Rows};
use crate::ops::{Buffer, random};
use crate::optim::adamw::AdamW;
use crate::optim::{adamw, clip, schedule};
use crate::recipe::Recipe;

/// What a run computes with; its state is in [`Weights`] and [`Place`].
pub struct Stepper<'a> {
    recipe: &'a Recipe,
    collective: &'a dyn Collective,
    model: Box<dyn LossAndGradients>,
    gradients: Buffer<f32>,
    optimizer: AdamW,
    micro_steps: usize,
}

/// What one step was like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss over the step's tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Whether the weights were touched.
    pub applied: bool,
    /// How long it took in all.
    pub took: Duration,
    /// How much of that was spent waiting for data.
    pub data_wait: Duration,
}

impl<'a> Stepper<'a> {
    /// Takes the memory for gradients; `micro_steps` forward and backward passes make a step.
    pub fn new(recipe: &'a Recipe, arch: &Arch, micro_steps: usize, collective: &'a dyn Collective) -> Self {
        let layout = Layout::of(arch);
        Self {
            recipe,
            collective,
            model: model::trainer(recipe.model.backend, arch, recipe.train.recompute),
            gradients: Buffer::zeros(layout.len()),
            optimizer: AdamW::new(&recipe.optimizer, layout.len(), &adamw::decayed_ranges(&layout)),
            micro_steps,
        }
    }

    /// The model, for evaluations between steps.
    pub fn model(&mut self) -> &mut dyn LossAndGradients {
        self.model.as_mut()
    }

    /// Takes the step after `place`, which moves on; `None`, and nothing changed, if an orderly end was asked for.
    pub fn step(
        &mut self,
        weights: &mut Weights,
        place: &mut Place,
        loader: &mut Loader,
    ) -> Result<Option<StepReport>> {
        let started = Instant::now();
        let waited_before = loader.waited();
        let world = self.collective.world();
        let scale = 1.0 / (self.micro_steps * world.size) as f64;
        let mut loss = 0.0;
        let mut tokens = 0;
        let mut cursor = place.cursor;
        self.gradients.as_mut_slice().fill(0.0);
        for micro_step in 0..self.micro_steps {
            let Some(batch) = loader.next_batch()? else { return Ok(None) };
            let dropout = self.dropout(place.step, micro_step, world.rank);
            let (params, gradients) = (weights.params.as_slice(), self.gradients.as_mut_slice());
            let (rows, row_len) = (batch.num_rows, batch.row_len);
            let mean = self.model.loss_and_gradients(
                params,
                gradients,
                Rows::new(&batch.tokens, rows, row_len),
                scale as f32,
                dropout,
            )?;
            loss += f64::from(mean) * scale;
            tokens += (batch.tokens.len() * world.size) as u64;
            cursor = batch.cursor_after;
            // After the last micro-step the update is nearly all that is left, and too good to throw away.
            if interrupt::requested() && micro_step + 1 < self.micro_steps {
                return Ok(None);
            }
        }
        self.collective.sum(self.gradients.view_mut())?;
        let mut sums = [loss];
        self.collective.sum_scalars(&mut sums)?;
        let [loss] = sums;

        let options = &self.recipe.optimizer;
        let total_steps = self.recipe.train.steps;
        let learning_rate =
            schedule::learning_rate(&self.recipe.schedule, options.learning_rate, place.step as usize, total_steps);
        let gradient_norm = clip::global_norm(self.gradients.as_slice());
        place.step += 1;
        place.tokens += tokens;
        place.cursor = cursor;
        let applied = place.guard.admits(place.step, loss, gradient_norm)?;
        if applied {
            self.optimizer.step(
                place.updates,
                learning_rate,
                clip::clip_factor(gradient_norm, options.clip_norm),
                weights.params.as_mut_slice(),
                self.gradients.as_slice(),
                weights.means.as_mut_slice(),
                weights.squares.as_mut_slice(),
            );
            place.updates += 1;
        }
        let took = started.elapsed();
        place.seconds += took.as_secs_f64();
        let data_wait = loader.waited() - waited_before;
        Ok(Some(StepReport { loss, gradient_norm, learning_rate, applied, took, data_wait }))
    }

    /// Masks differ from step to step, from micro-batch to micro-batch and from process to process.
    fn dropout(&self, step: u64, micro_step: usize, rank: usize) -> Option<DropoutSeed> {
        let rate = self.recipe.model.dropout;
        (rate > 0.0).then(|| {
            let key = random::derive_named(self.recipe.train.seed, "dropout");
            let seed = [step, micro_step as u64, rank as u64].into_iter().fold(key, random::derive);
            DropoutSeed { rate, seed }
        })
    }
}
