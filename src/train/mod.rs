//! Training: [`run`] is the main path, read from top to bottom; what it calls is named after what it does.
//!
//! A run is determined by its recipe. Its state lies in `state.rs`, what computes it in `engine.rs`, one step in `step.rs`,
//! its folder in `run_folder.rs`; saving happens before evaluating, so that a run that dies while it evaluates loses nothing.

pub mod engine;
pub mod evaluate;
pub mod first_model;
pub mod guard;
pub mod meter;
pub mod phases;
pub mod run_contest;
pub mod run_folder;
pub mod session;
pub mod state;
pub mod step;

use anyhow::Result;

use crate::data;
use crate::data::held_out::HeldOut;
use crate::data::loader::{Loader, LoaderShape};
use crate::dist::Collective;
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::placement::Placement;
use crate::recipe::Resolved;
use phases::Phase;
use run_contest::RunContest;
use session::{Session, Summary};
use step::{Stepped, Stepper};

/// What to do with a run folder that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Go on with the run if there is one, else start.
    Continue,
    /// Go on; an error if there is nothing to go on with.
    Resume,
    /// Move it aside and start.
    Fresh,
}

/// Trains as the recipe says, from wherever the run folder is to the last step. An orderly end on the user's wish is
/// the error [`crate::error::Failure::Interrupted`], after everything is saved.
pub fn run(resolved: &Resolved, start: Start, collective: &dyn Collective, printer: &Printer) -> Result<Summary> {
    let recipe = &resolved.recipe;
    let placement = Placement::for_training(resolved, printer)?;
    let micro_steps = resolved.micro_steps(collective.world().size)?;
    // What is wrong with the folder is told before the data is opened, which may take minutes.
    run_folder::examine(&resolved.run_dir, recipe, start)?;
    let known = run_folder::known_data(&resolved.run_dir, start)?;
    let data = data::open_again(recipe, resolved.rules.criteria.sequence_length, known.as_ref(), printer)?;
    let held_out = HeldOut::read(&data, recipe.eval.rows, resolved.rules.criteria.sequence_length)?;

    warn_of_cut_text(&held_out, printer);
    if let Placement::Gpu(card) = &placement {
        printer.note(&format!("Computing on {}.", card.name()));
    }

    // A device that is not there is told before anything is written.
    let scoring = match recipe.score.device.filter(|_| recipe.score.every > 0) {
        Some(device) => Placement::open(device, recipe.model.backend, printer)?,
        None => placement.clone(),
    };
    let mut session = Session::open(resolved, start, &placement, &held_out, collective.world(), printer)?;
    let mut contest = RunContest::open(resolved, &scoring, &data, printer)?;
    let shape = LoaderShape { row_len: resolved.row_len, rows_per_batch: recipe.train.micro_batch };
    let cursor = session.place().cursor.clone();
    run_folder::write_data(&resolved.run_dir, data.training.record())?;
    let mut loader = Loader::new(data.training, data.reading, shape, collective.world(), cursor)?;
    let teller = printer.clone();
    loader.on_stall(move |text| teller.warn(text));
    let stepper = Stepper::new(recipe, micro_steps, collective);

    loop {
        if session.evaluation_is_due() {
            session.enter(Phase::Evaluating);
            let Some(loss) = evaluate::held_out_loss(session.model(), &held_out.rows)? else {
                return Err(session.end_early()?);
            };
            session.evaluated(loss)?;
        }
        if let Some(contest) = contest.as_mut().filter(|contest| contest.is_due(session.place().step)) {
            session.enter(Phase::Scoring);
            let Some(outcome) = contest.ask(&mut session)? else {
                return Err(session.end_early()?);
            };
            session.judged(outcome);
        }
        if session.is_finished() {
            return session.finish();
        }
        if interrupt::requested() {
            return Err(session.end_early()?);
        }
        let (engine, place, stopwatch) = session.state();
        match stepper.step(engine, place, &mut loader, stopwatch)? {
            Stepped::Taken(report) => session.stepped(&report)?,
            Stepped::Interrupted => return Err(session.end_early()?),
            Stepped::NoData(error) => return Err(session.end_without_data(error)),
        }
    }
}

/// Validators cut documents, and so does training unless told otherwise; a book in one file is nearly all lost by that.
pub fn warn_of_cut_text(held_out: &HeldOut, printer: &Printer) {
    if held_out.cut_off > 0.5 {
        printer.warn(&format!(
            "{:.1} % of the text is cut off, because documents are longer than data.max_document_tokens (a .txt file is one \
             document): cut them into several, or set it to 0 to train on all of the text",
            100.0 * held_out.cut_off
        ));
    }
}
