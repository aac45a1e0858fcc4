//! A run between its steps: opening its folder, restoring, telling, saving, ending.
//!
//! The numbers are computed elsewhere; this file decides what is written when. A checkpoint is saved at the recipe's
//! interval, before each evaluation, at the end, and when the user asks for one; its records are on disk before it is.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::Start;
use super::engine::{self, Engine, Options};
use super::first_model;
use super::meter::{self, Meter};
use super::phases::{Phase, Stopwatch};
use super::run_contest::Outcome;
use super::run_folder::{self, Evaluation, Evaluations};
use super::state::{Place, Weights};
use super::step::StepReport;
use crate::checkpoint::{Snapshot, Store, Targets};
use crate::data::held_out::HeldOut;
use crate::dist::World;
use crate::error::{Failure, input};
use crate::figures::count;
use crate::gpu::Dtype;
use crate::metrics::Recorder;
use crate::metrics::printer::Printer;
use crate::metrics::progress::{self, Progress};
use crate::model::Scorer;
use crate::model::config::{self, ModelConfig};
use crate::model::layout::Layout;
use crate::model::{init, weights};
use crate::placement::Placement;
use crate::recipe::{DeviceChoice, Init, Resolved};

/// An open run.
pub struct Session<'a> {
    resolved: &'a Resolved,
    printer: &'a Printer,
    store: Store,
    layout: Layout,
    config: ModelConfig,
    engine: Box<dyn Engine>,
    place: Place,
    saved_step: u64,
    evaluations: Evaluations,
    unigram_cross_entropy: f64,
    unigram_entropy: f64,
    recorder: Recorder,
    progress: Progress,
    meter: Meter,
    stopwatch: Stopwatch,
    started: Instant,
    /// Steps that were done when this process began.
    steps_before: u64,
    /// What came of the last judging.
    outcome: Option<Outcome>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Summary {
    /// For the user: what happened and where everything lies.
    pub text: String,
    /// The last held-out loss, in nats per token.
    pub held_out_loss: f64,
    /// The held-out rows' unigram cross-entropy.
    pub unigram_cross_entropy: f64,
    /// The run's folder.
    pub run_dir: PathBuf,
    /// Why the last model was not judged, or not published although the gate let it through.
    pub failure: Option<anyhow::Error>,
}

impl<'a> Session<'a> {
    /// Opens the run's folder and restores its newest sound checkpoint, or starts with first weights. Nothing is
    /// written before everything that can be wrong with the user's input is known to be right.
    pub fn open(
        resolved: &'a Resolved,
        start: Start,
        placement: &Placement,
        held_out: &HeldOut,
        world: World,
        printer: &'a Printer,
    ) -> Result<Self> {
        let (recipe, run_dir) = (&resolved.recipe, &resolved.run_dir);
        let found = run_folder::examine(run_dir, recipe, start)?;
        for warning in &found.warnings {
            printer.warn(warning);
        }
        let layout = Layout::of(&resolved.arch);
        let mut weights = Weights::zeros(&layout);
        // Before the folder is touched: a model to start from may be wrong.
        let first = match found.goes_on {
            false => Some(first_weights(resolved, &layout, &mut weights, printer)?),
            true => None,
        };
        if start == Start::Fresh && run_dir.try_exists()? {
            // Opened first, so that a run that another process is training is not pulled from under it.
            drop(Store::open(run_dir)?);
            let aside = run_folder::move_aside(run_dir)?;
            printer.note(&format!("The earlier run is now {}.", aside.display()));
        }
        let store = Store::open(run_dir)?;
        if !found.goes_on {
            run_folder::write_recipe(run_dir, recipe)?;
        }

        let device = placement.name();
        let mut place = Place::default();
        let mut targets = Targets {
            arch: &resolved.arch,
            layout: &layout,
            params: weights.params.as_mut_slice(),
            moments: &mut [("m", weights.means.as_mut_slice()), ("v", weights.squares.as_mut_slice())],
        };
        let mut resumed_at = None;
        let config = match store.restore_latest::<Place>(&mut targets)? {
            Some(restored) => {
                if restored.step > recipe.train.steps as u64 {
                    return Err(input(format!(
                        "train.steps is {}, but {} steps of this run are done: give at least as many, or start over with \
                         --fresh",
                        recipe.train.steps, restored.step
                    )));
                }
                if restored.step < recipe.train.steps as u64 {
                    run_folder::write_recipe(run_dir, recipe)?;
                }
                resumed_at = Some(restored.step);
                for warning in &restored.warnings {
                    printer.warn(warning);
                }
                place = restored.state;
                if !place.device.is_empty() && place.device != device {
                    let is_other_kind = (place.device == "cpu") != (device == "cpu");
                    if is_other_kind && recipe.train.device == DeviceChoice::Auto {
                        let kind = if device == "cpu" { "cpu" } else { "cuda" };
                        return Err(input(format!(
                            "this run was computed on {} so far, and now the device would be {device}: name it if that is \
                             meant, with --device {kind}, or the other one",
                            place.device
                        )));
                    }
                    let how = match is_other_kind {
                        true => "a GPU computes in bf16 and the CPU in f32, so that the curve is about the same",
                        false => "the same curve, but with other rounding",
                    };
                    printer.warn(&format!("the device was {} and is now {device}: {how}", place.device));
                }
                printer.note(&format!(
                    "Going on with {} at step {} of {}, from {}.",
                    recipe.name,
                    place.step,
                    recipe.train.steps,
                    restored.dir.display()
                ));
                restored.config
            }
            None => match first {
                Some(config) => config,
                None => {
                    printer.note(&format!("{} stopped before its first checkpoint and starts again.", recipe.name));
                    first_weights(resolved, &layout, &mut weights, printer)?
                }
            },
        };
        place = Place { threads: resolved.threads, device, world_size: world.size, ..place };
        let options = Options { updates: place.updates, ..Options::of(recipe, &layout) };
        let engine = engine::open(placement, &resolved.arch, &options, weights)?;
        let flops = meter::train_flops_per_token(&resolved.arch, resolved.row_len);
        let peak_gflops = placement.peak_tflops(Dtype::Bf16).map(|peak| 1000.0 * peak * world.size as f64);
        let (steps_before, total_steps) = (place.step, recipe.train.steps as u64);
        Ok(Self {
            resolved,
            printer,
            layout,
            config,
            engine,
            saved_step: place.step,
            evaluations: Evaluations::read(run_dir)?,
            unigram_cross_entropy: held_out.unigram_cross_entropy,
            unigram_entropy: held_out.unigram_entropy,
            recorder: Recorder::open(run_dir, resumed_at, recipe.metrics.tensorboard, printer),
            progress: Progress::new(printer, place.step, total_steps, recipe.metrics.print_every as u64),
            meter: Meter::new(flops, peak_gflops, place.step, total_steps, Instant::now()),
            stopwatch: Stopwatch::default(),
            store,
            place,
            started: Instant::now(),
            steps_before,
            outcome: None,
        })
    }

    /// How far the run is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Gives back what only steps need, so that other models find room.
    pub fn make_room(&mut self) {
        self.engine.make_room();
    }

    /// The weights as they are.
    pub fn params(&mut self) -> Result<&[f32]> {
        Ok(self.engine.weights()?.params.as_slice())
    }

    /// The model with the weights as they are.
    pub fn model(&mut self) -> &mut dyn Scorer {
        self.engine.as_mut()
    }

    /// What a step changes, and what measures it.
    pub fn state(&mut self) -> (&mut dyn Engine, &mut Place, &mut Stopwatch) {
        (self.engine.as_mut(), &mut self.place, &mut self.stopwatch)
    }

    /// Whether all steps are done.
    pub fn is_finished(&self) -> bool {
        self.place.step >= self.resolved.recipe.train.steps as u64
    }

    /// Whether the held-out loss of the weights as they are is wanted and not known.
    pub fn evaluation_is_due(&self) -> bool {
        self.evaluates_at(self.place.step) && self.evaluations.last.is_none_or(|last| last.step != self.place.step)
    }

    fn evaluates_at(&self, step: u64) -> bool {
        let every = self.resolved.recipe.eval.every as u64;
        step > 0 && (self.is_finished() || every > 0 && step.is_multiple_of(every))
    }

    /// Shows and measures what is done between two steps.
    pub fn enter(&mut self, phase: Phase) {
        self.stopwatch.enter(phase);
        self.progress.stage(phase.name());
    }

    /// Tells and keeps the held-out loss of the weights as they are, which are on disk.
    pub fn evaluated(&mut self, loss: f64) -> Result<()> {
        let step = self.place.step;
        self.recorder.record(
            step,
            &[
                ("held_out_loss", loss),
                ("unigram_cross_entropy", self.unigram_cross_entropy),
                ("unigram_entropy", self.unigram_entropy),
            ],
        );
        let is_best = self.evaluations.add(Evaluation { step, loss });
        if !loss.is_finite() {
            self.printer.warn(&format!(
                "the held-out loss of step {step} is {loss}: the weights are of no use any more; lower \
                 optimizer.learning_rate, or lengthen schedule.warmup_steps"
            ));
        }
        if is_best {
            self.store.mark_best(step)?;
            self.evaluations.write_best(self.store.run_dir())?;
        }
        self.printer.note(&format!(
            "step {step}/{}: held-out loss {loss:.4}{} (unigram cross-entropy {:.4})",
            self.resolved.recipe.train.steps,
            if is_best { ", the best so far" } else { "" },
            self.unigram_cross_entropy
        ));
        Ok(())
    }

    /// Tells of a step that was taken, and saves if it is time.
    pub fn stepped(&mut self, report: &StepReport) -> Result<()> {
        // Records are written from here on.
        self.stopwatch.enter(Phase::Saving);
        let times = self.stopwatch.take();
        let step = self.place.step;
        let recipe = &self.resolved.recipe;
        let tokens = recipe.train.tokens_per_step as u64;
        self.meter.step(Instant::now(), step, tokens, times);
        let speed = self.meter.recent();
        let step_s = times.in_steps().as_secs_f64();
        let share_of_step = |time: Duration| time.as_secs_f64() / step_s;
        let [network, decode, tokenize] = report.waits.stages.map(share_of_step);
        let values = [
            ("loss", report.loss),
            ("grad_norm", report.gradient_norm),
            ("learning_rate", report.learning_rate),
            ("tokens_per_s", tokens as f64 / step_s),
            ("gflops", speed.gflops),
            ("data_wait", share_of_step(report.waits.total)),
            ("data_wait_network", network),
            ("data_wait_decode", decode),
            ("data_wait_tokenize", tokenize),
            ("tokens", self.place.tokens as f64),
            ("skipped", self.place.guard.skipped as f64),
        ];
        let shares = Phase::ALL.map(|phase| (phase.key(), times.share(phase)));
        let mfu = speed.mfu.map(|mfu| ("mfu", mfu));
        self.recorder.record(step, &values.into_iter().chain(mfu).chain(shares).collect::<Vec<_>>());
        let slow = self.meter.slow();
        self.progress.update(step, report.loss, &speed, slow, report.waits.longest(), self.meter.remaining());
        if !report.applied {
            self.printer.warn(&format!(
                "step {step}: the loss ({}) or the gradient norm ({}) is not finite; the step was skipped and the weights \
                 are as before",
                report.loss, report.gradient_norm
            ));
        }
        // What is judged may be published, and so it must be on disk.
        let intervals = [recipe.checkpoint.every, recipe.score.every].map(|every| every as u64);
        if self.evaluates_at(step) || intervals.iter().any(|&every| every > 0 && step.is_multiple_of(every)) {
            self.save()?;
        }
        Ok(())
    }

    /// Keeps what came of judging the model as it is beside the published ones.
    pub fn judged(&mut self, outcome: Outcome) {
        if outcome.loss.is_finite() {
            let share = outcome.share;
            self.recorder.record(self.place.step, &[("score_loss", outcome.loss), ("score_share", share)]);
        }
        self.outcome = Some(outcome);
    }

    /// The model folder of the weights as they are, which are on disk where they are evaluated or judged.
    pub fn model_dir(&self) -> PathBuf {
        self.store.model_dir(self.place.step)
    }

    fn save(&mut self) -> Result<()> {
        self.enter(Phase::Saving);
        self.recorder.sync();
        let weights = self.engine.weights()?;
        self.store.save(&Snapshot {
            step: self.place.step,
            config: &self.config,
            layout: &self.layout,
            params: weights.params.as_slice(),
            moments: &[("m", weights.means.as_slice()), ("v", weights.squares.as_slice())],
            state: &self.place,
        })?;
        self.saved_step = self.place.step;
        let options = &self.resolved.recipe.checkpoint;
        self.store.prune(options.keep_last, options.keep_every as u64)?;
        Ok(())
    }

    /// Saves what is not saved yet; the error that ends the program with exit code 130.
    pub fn end_early(&mut self) -> Result<anyhow::Error> {
        if self.place.step > self.saved_step {
            self.save()?;
        }
        let recipe = &self.resolved.recipe;
        let saved = match self.place.step {
            0 => "nothing was to be saved, and the same command starts again".to_owned(),
            step => {
                format!(
                    "everything is saved in {}; the same command goes on from there",
                    self.store.model_dir(step).display()
                )
            }
        };
        let total_steps = recipe.train.steps;
        Ok(Failure::Interrupted(format!("interrupted at step {} of {total_steps}: {saved}", self.place.step)).into())
    }

    /// Saves what is not saved yet, for what was computed is not the data's fault; the error that ends the program.
    pub fn end_without_data(&mut self, error: anyhow::Error) -> anyhow::Error {
        let saved = if self.place.step > self.saved_step { self.save() } else { Ok(()) };
        let step = self.place.step;
        error.context(match saved {
            Ok(()) if step > 0 => format!("training stopped at step {step}, which is saved, for there is no more data"),
            Ok(()) => "training could not begin, for there is no data".to_owned(),
            Err(fault) => {
                format!(
                    "training stopped at step {step}, which could not be saved ({fault:#}), for there is no more data"
                )
            }
        })
    }

    /// Closes the records and says what happened; an error if the run ends with weights of no use.
    pub fn finish(mut self) -> Result<Summary> {
        self.recorder.sync();
        self.stopwatch.enter(Phase::Saving);
        self.meter.after(self.stopwatch.take());
        let (Some(last), Some(best)) = (self.evaluations.last, self.evaluations.best) else {
            bail!(
                "{} has diverged: no held-out loss of it was ever finite; its records are in {}",
                self.resolved.recipe.name,
                self.store.run_dir().display()
            );
        };
        ensure!(
            last.loss.is_finite(),
            "{} has diverged: its last held-out loss is {}; the best model, of step {} with a loss of {:.4}, is {}",
            self.resolved.recipe.name,
            last.loss,
            best.step,
            best.loss,
            self.store.run_dir().join("best").display()
        );
        let (recipe, run_dir) = (&self.resolved.recipe, self.store.run_dir().to_owned());
        let steps = self.place.step - self.steps_before;
        let mut lines = Vec::new();
        if steps == 0 {
            lines.push(format!(
                "{} was trained before: all {} steps are done (--fresh trains it anew).",
                recipe.name, self.place.step
            ));
        } else {
            let speed = self.meter.overall();
            lines.push(format!(
                "Trained {}: {} steps, {} tokens in {}, saving and evaluating included ({} in steps).",
                recipe.name,
                count(steps),
                count(steps * recipe.train.tokens_per_step as u64),
                progress::duration(self.started.elapsed()),
                progress::speed(&speed)
            ));
            lines.push(format!("The time went into {}.", self.meter.times()));
            if speed.mfu.is_none() && self.place.device != "cpu" {
                lines.push(format!("MFU n/a: the peak of {} is not known.", self.place.device));
            }
        }
        if self.place.guard.skipped > 0 {
            lines.push(format!("{} steps were skipped because they were not finite.", self.place.guard.skipped));
        }
        let below = self.unigram_cross_entropy - last.loss;
        lines.push(format!(
            "Held-out loss {:.4} nats per token: {:.4} {} the unigram cross-entropy of the same rows, {:.4} (token counts of \
             the training text; {:.4} with the rows' own counts).",
            last.loss,
            below.abs(),
            if below > 0.0 { "below" } else { "above" },
            self.unigram_cross_entropy,
            self.unigram_entropy
        ));
        lines.push(format!(
            "Best model    {} (held-out loss {:.4} at step {})",
            run_dir.join("best").display(),
            best.loss,
            best.step
        ));
        lines.push(format!("Latest model  {}", run_dir.join("latest").display()));
        lines.push(format!(
            "Records       {}, TensorBoard: --logdir {}",
            run_dir.join("metrics.jsonl").display(),
            run_dir.display()
        ));
        if let Some(mib) = meter::peak_memory_mib() {
            lines.push(format!("Peak memory   {mib:.0} MiB"));
        }
        let outcome = self.outcome.unwrap_or_default();
        if outcome.share > 0.0 {
            lines.push(format!(
                "Scoring       {:.1} % of the run's time, the last judging included",
                100.0 * outcome.share
            ));
        }
        if !outcome.sentence.is_empty() {
            lines.push(outcome.sentence);
        }
        Ok(Summary {
            text: lines.join("\n"),
            held_out_loss: last.loss,
            unigram_cross_entropy: self.unigram_cross_entropy,
            run_dir,
            failure: outcome.failure,
        })
    }
}

/// The weights a run starts with: random, or those of a model folder of the same shape.
fn first_weights(
    resolved: &Resolved,
    layout: &Layout,
    weights: &mut Weights,
    printer: &Printer,
) -> Result<ModelConfig> {
    let recipe = &resolved.recipe;
    let params = weights.params.as_mut_slice();
    match &recipe.init {
        Init::Scratch => {
            init::scratch(&resolved.arch, layout, recipe.train.seed, params);
            let mut config = ModelConfig::new(resolved.arch.clone(), recipe.model.dropout);
            config.add_keys(&recipe.model.config);
            Ok(config)
        }
        choice => {
            let dir = first_model::folder(choice, resolved, printer)?;
            let mut config = ModelConfig::read(&dir)?;
            if config.arch != resolved.arch {
                return Err(config::mismatch(&config.arch, &resolved.arch, &dir));
            }
            for note in weights::read_into(&dir, &resolved.arch, layout, params)? {
                printer.note(&note);
            }
            config.set_dropout(recipe.model.dropout);
            Ok(config)
        }
    }
}
