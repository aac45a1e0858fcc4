//! One optimizer step: micro-batches, sum over processes, norm, guard, AdamW.
//!
//! The gradient is that of the mean loss over the step's tokens on all processes: each micro-batch adds its mean with
//! weight `1 / (micro-steps * processes)`.

use std::time::Instant;

use anyhow::Result;

use super::engine::Engine;
use super::phases::{Phase, Stopwatch};
use super::state::Place;
use crate::data::Batch;
use crate::data::loader::{Loader, Waits};
use crate::dist::Collective;
use crate::interrupt;
use crate::model::{DropoutSeed, Rows};
use crate::ops::random;
use crate::optim::{clip, schedule};
use crate::recipe::Recipe;

/// How a run takes its steps; what it computes with is its [`Engine`], how far it is its [`Place`].
pub struct Stepper<'a> {
    recipe: &'a Recipe,
    collective: &'a dyn Collective,
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
    /// How long it waited for data, and for which stage of reading it.
    pub waits: Waits,
}

/// What came of a step.
#[derive(Debug)]
pub enum Stepped {
    /// It was taken.
    Taken(StepReport),
    /// An orderly end was asked for; nothing has changed.
    Interrupted,
    /// There is no further data, and why; nothing has changed.
    NoData(anyhow::Error),
}

/// What keeps a step from having its next batch.
enum Gap {
    Interrupted,
    NoData(anyhow::Error),
}

impl From<Gap> for Stepped {
    fn from(gap: Gap) -> Self {
        match gap {
            Gap::Interrupted => Self::Interrupted,
            Gap::NoData(error) => Self::NoData(error),
        }
    }
}

fn next_batch(loader: &mut Loader, stopwatch: &mut Stopwatch) -> Result<Batch, Gap> {
    stopwatch.enter(Phase::Data);
    loader.next_batch().map_err(Gap::NoData)?.ok_or(Gap::Interrupted)
}

impl<'a> Stepper<'a> {
    /// `micro_steps` forward and backward passes make a step.
    pub fn new(recipe: &'a Recipe, micro_steps: usize, collective: &'a dyn Collective) -> Self {
        Self { recipe, collective, micro_steps }
    }

    /// Takes the step after `place`, which moves on if it is taken.
    pub fn step(
        &self,
        engine: &mut dyn Engine,
        place: &mut Place,
        loader: &mut Loader,
        stopwatch: &mut Stopwatch,
    ) -> Result<Stepped> {
        let started = Instant::now();
        stopwatch.enter(Phase::Passes);
        let waits_before = loader.waits();
        let world = self.collective.world();
        let scale = 1.0 / (self.micro_steps * world.size) as f64;
        let mut loss = 0.0;
        let mut tokens = 0;
        let mut cursor = place.cursor.clone();
        engine.zero_gradients();
        let mut upcoming = None;
        for micro_step in 0..self.micro_steps {
            let batch = match upcoming.take().map_or_else(|| next_batch(loader, stopwatch), Ok) {
                Ok(batch) => batch,
                Err(gap) => return Ok(gap.into()),
            };
            if micro_step + 1 < self.micro_steps {
                match next_batch(loader, stopwatch) {
                    Ok(next) => upcoming = Some(next),
                    Err(gap) => return Ok(gap.into()),
                }
            }
            stopwatch.enter(Phase::Passes);
            let dropout = self.dropout(place.step, micro_step, world.rank);
            let next = upcoming.as_ref().map(rows_of);
            loss += engine.accumulate(rows_of(&batch), scale as f32, dropout, next)? * scale;
            tokens += (batch.tokens.len() * world.size) as u64;
            cursor = batch.cursor_after;
            // After the last micro-step the update is nearly all that is left, and too good to throw away.
            if interrupt::requested() && micro_step + 1 < self.micro_steps {
                return Ok(Stepped::Interrupted);
            }
        }
        stopwatch.enter(Phase::Sum);
        engine.sum_over(self.collective)?;
        let mut sums = [loss];
        self.collective.sum_scalars(&mut sums)?;
        let [loss] = sums;

        let options = &self.recipe.optimizer;
        let total_steps = self.recipe.train.steps;
        let learning_rate =
            schedule::learning_rate(&self.recipe.schedule, options.learning_rate, place.step as usize, total_steps);
        stopwatch.enter(Phase::Optimizer);
        let gradient_norm = engine.gradient_norm()?;
        place.step += 1;
        place.tokens += tokens;
        place.cursor = cursor;
        let applied = place.guard.admits(place.step, loss, gradient_norm)?;
        if applied {
            let scale = clip::clip_factor(gradient_norm, options.clip_norm);
            engine.update(place.updates, learning_rate, scale)?;
            place.updates += 1;
        }
        place.seconds += started.elapsed().as_secs_f64();
        let waits = loader.waits().since(&waits_before);
        Ok(Stepped::Taken(StepReport { loss, gradient_norm, learning_rate, applied, waits }))
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

fn rows_of(batch: &Batch) -> Rows<'_> {
    Rows::new(&batch.tokens, batch.num_rows, batch.row_len)
}
