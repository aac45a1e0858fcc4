//! Pages from a text and losses of models, as validators find them: first, where the version asks for it, whether what the
//! model writes is text at all; then its loss on each row, computed only where it is not known from before.

use std::collections::BTreeSet;
use std::sync::Mutex;

use anyhow::Result;

use super::{Entry, Examiner};
use crate::data::pages::{Draw, PageSource};
use crate::field::{self, Competitor};
use crate::metrics::printer::Printer;
use crate::model::scorer::Scoring;
use crate::model::weights;
use crate::ops::random;
use crate::score::cache::LossCache;
use crate::score::continuation::{Continuations, Untellable};
use crate::score::output::OutputRule;

/// The examiner of a validator at work.
pub struct ByModel<'a> {
    /// Where pages come from.
    pub pages: &'a dyn PageSource,
    /// How losses are computed.
    pub scoring: &'a Scoring,
    /// Losses that were computed before.
    pub losses: &'a LossCache,
    /// What is asked of text.
    pub output: Option<OutputRule>,
    /// Where it tells what cannot be told.
    pub printer: &'a Printer,
    told: Mutex<BTreeSet<String>>,
}

impl<'a> ByModel<'a> {
    /// One that has told nothing yet.
    pub fn new(
        pages: &'a dyn PageSource,
        scoring: &'a Scoring,
        losses: &'a LossCache,
        output: Option<OutputRule>,
        printer: &'a Printer,
    ) -> Self {
        Self { pages, scoring, losses, output, printer, told: Mutex::default() }
    }

    /// What is wrong with the text that a model writes.
    fn fault_of_text(&self, entry: &Entry<'_>, rows: &[Vec<u32>], seed: u64) -> Result<Option<String>> {
        let Some(rule) = self.output else { return Ok(None) };
        let loaded = match weights::load(entry.dir) {
            Ok(loaded) => loaded,
            // Told where its losses are asked for.
            Err(_) => return Ok(None),
        };
        let seeds = [random::derive(seed, 0), random::derive(seed, 1)];
        match Continuations::of(entry.dir, &loaded, rows, rule, seeds) {
            Ok(continuations) => Ok(continuations.fault.map(|fault| format!("The continuations of two rows {fault}."))),
            Err(Untellable::TooFewRows) => Ok(Some("The step has fewer than two rows.".to_owned())),
            Err(untellable) => {
                let text = format!(
                    "uid {} ({}): whether its text would pass cannot be told, and it is taken to: {untellable}",
                    entry.uid,
                    entry.metadata.id.repo_id()
                );
                let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if told.insert(entry.metadata.id.to_string()) {
                    self.printer.note(&text);
                }
                Ok(None)
            }
        }
    }
}

impl Examiner for ByModel<'_> {
    fn draw(&self, num_pages: usize, seed: u64) -> Result<Draw> {
        self.pages.draw(num_pages, seed)
    }

    fn losses(&self, entry: &Entry<'_>, rows: &[Vec<u32>], seed: u64) -> Result<Option<Result<Vec<f64>, String>>> {
        if let Some(fault) = self.fault_of_text(entry, rows, seed)? {
            return Ok(Some(Err(fault)));
        }
        let competitor = Competitor {
            uid: entry.uid,
            hotkey: entry.hotkey.to_owned(),
            metadata: entry.metadata.clone(),
            model: Ok(entry.dir.to_owned()),
        };
        let losses = field::losses_of(&competitor, self.scoring, self.losses, rows);
        self.losses.trouble().iter().for_each(|trouble| self.printer.warn(trouble));
        losses
    }
}
