//! The loop: one turn after another, each from the subnet as it is to the state on disk.

use std::time::Duration;

use anyhow::{Context, Result};

use super::iterator::MinerIterator;
use super::step::Stepped;
use super::{Event, Observer, Validator};
use crate::error::{Failure, input};
use crate::figures::count;
use crate::interrupt;
use crate::ops::random;
use crate::rules::{CRITERIA, Tokenizer};

/// How long to wait where there is nothing to evaluate.
const NOBODY: Duration = Duration::from_secs(300);
/// How long to wait after a step that failed, lest a fault that stays be repeated as fast as can be.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// What came of a turn.
enum Turn {
    Weighed,
    Nobody,
    Failed(anyhow::Error),
}

impl Validator<'_> {
    /// Works until so many steps are done, or for ever; a turn with nothing to evaluate, or in which the step fails, is one
    /// of them.
    ///
    /// # Errors
    /// An orderly end was asked for: its state is on disk. Or its state cannot be put there: what it would not remember it
    /// does not do. What goes wrong in a step is told, and the next one begins. Or none of so many steps was weighed: the error
    /// is that of the last that failed, or of kind [`Failure::No`] where there was never a model.
    pub fn run(&mut self, num_steps: Option<u64>, observe: Observer<'_>) -> Result<()> {
        let (mut num_done, mut num_weighed, mut last_error) = (0, 0, None);
        loop {
            // Here and not at the end of a turn, so that one that was killed before it ends the epoch first as well.
            self.end_epoch(observe)?;
            if num_steps == Some(num_done) {
                return match last_error {
                    _ if num_done == 0 || num_weighed > 0 => Ok(()),
                    Some(error) => Err(error),
                    None => Err(Failure::No("there was no model to evaluate in any step".to_owned()).into()),
                };
            }
            if interrupt::requested() {
                let sentence = format!("Interrupted after step {}; its state is saved.", self.state.step);
                return Err(Failure::Interrupted(sentence).into());
            }
            num_done += 1;
            match self.turn(num_steps == Some(num_done), observe)? {
                Turn::Weighed => num_weighed += 1,
                Turn::Nobody => {}
                Turn::Failed(error) => last_error = Some(error),
            }
        }
    }

    /// One turn; nobody waits after the last one.
    fn turn(&mut self, is_last: bool, observe: Observer<'_>) -> Result<Turn> {
        self.sync_subnet()?;
        observe(&Event::Synced { block: self.snapshot.block })?;
        self.update(observe)?;
        self.clean(observe)?;
        self.save(observe)?;
        let patience = |wanted| if is_last { Duration::ZERO } else { wanted };
        Ok(match self.step(observe)? {
            Stepped::Weighed(report) => {
                let row = report.json();
                self.folder.record(&row)?;
                observe(&Event::Recorded)?;
                self.save(observe)?;
                let tables = || report.tables(&self.state.judge.weights);
                self.seams.printer.result(&if self.options.json { row } else { tables() })?;
                Turn::Weighed
            }
            Stepped::Nobody => {
                let then = if is_last { "." } else { "; looking again in 5 minutes." };
                self.seams.printer.note(&format!("There is no model to evaluate{then}"));
                self.seams.clock.sleep(patience(NOBODY));
                self.state.step += 1;
                self.save(observe)?;
                Turn::Nobody
            }
            Stepped::Failed(error) => {
                self.seams.printer.warn(&format!("step {} failed and decides nothing: {error:#}", self.state.step + 1));
                self.seams.clock.sleep(patience(AFTER_FAILURE));
                // The next one draws other pages.
                self.state.step += 1;
                self.save(observe)?;
                Turn::Failed(error)
            }
        })
    }

    /// Reads the subnet, and forgets who has left it. Where the chain does not answer, the subnet as it was last read must
    /// do; there must be one.
    fn sync_subnet(&mut self) -> Result<()> {
        match self.seams.chain.snapshot() {
            Ok(snapshot) => {
                let changes = self.places.changes(&snapshot, self.options.sets_weights_as.as_slice());
                changes.iter().for_each(|change| self.seams.printer.warn(change));
                self.snapshot = snapshot;
            }
            Err(error) if self.snapshot.neurons.is_empty() => return Err(error),
            Err(error) => self.seams.printer.warn(&format!(
                "the chain could not be read; the subnet is taken as it was at block {}: {error:#}",
                count(self.snapshot.block)
            )),
        }
        self.refuse_other_tokenizers()?;
        let uids: Vec<u16> = self.snapshot.neurons.iter().map(|neuron| neuron.uid).collect();
        let state = &mut self.state;
        match &mut state.iterator {
            Some(iterator) => iterator.set_uids(uids.iter().copied()),
            None => {
                let anywhere = || random::derive(state.seed, u64::MAX) % uids.len().max(1) as u64;
                let index = self.options.rules.validator.first_index.unwrap_or_else(|| anywhere() as usize);
                state.iterator = Some(MinerIterator::new(uids.iter().copied(), index));
            }
        }
        state.tracker.retain(|hotkey, _| self.snapshot.neurons.iter().any(|neuron| neuron.hotkey == *hotkey));
        state.epoch_block.get_or_insert(self.snapshot.block);
        self.told.retain(|told| self.snapshot.neurons.iter().any(|neuron| neuron.hotkey == told.hotkey));
        self.grow(uids.iter().map(|&uid| usize::from(uid) + 1).max().unwrap_or(0));
        Ok(())
    }

    /// Ends the work where validators of this version score models with a tokenizer that is not implemented here.
    fn refuse_other_tokenizers(&self) -> Result<()> {
        let validator = &self.options.rules.validator;
        let known = &CRITERIA[..validator.num_criteria.min(CRITERIA.len())];
        let Some(other) = known.iter().find(|criteria| criteria.tokenizer == Tokenizer::Gpt4) else { return Ok(()) };
        let commitments = self.snapshot.commitments.values().map(|commitment| commitment.block);
        let block = commitments.chain([self.snapshot.block]).max().unwrap_or(0);
        if block < other.from_block {
            return Ok(());
        }
        Err(input(format!(
            "the chain is at block {}, and validators of {} score models committed from block {} on with the tokenizer of \
             {}, which assay does not have: choose an earlier version by --rules, such as 2024-03-21",
            count(block),
            validator.since,
            count(other.from_block),
            other.tokenizer.name()
        )))
    }

    pub(super) fn save(&mut self, observe: Observer<'_>) -> Result<()> {
        self.state.saved_at = self.now();
        self.folder.save(&self.state).context("the validator stops, for its state cannot be saved")?;
        observe(&Event::Saved)
    }
}
