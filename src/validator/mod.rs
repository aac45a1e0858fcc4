//! The local validator: what subnet 9's validators did all day, on a miner's own machine, over the same hub and chain that
//! he publishes to.
//!
//! ```text
//! run ─► the subnet as it is now (metagraph)                      run.rs
//!     ─► miners that are due: commitment → fetch → tracker        update.rs, iterator.rs
//!     ─► models that nobody evaluates are deleted                 cleanup.rs
//!     ─► fresh pages → losses → wins → weights → whom to keep     step.rs (score/step.rs), examiner.rs
//!     ─► a row and two tables, the state to disk                  report.rs, state.rs
//!     ─► every 50 blocks: weights to the chain                    weights.rs
//! ```
//! The reference does the second and the third line in threads beside the fourth. Here one thread does all in this order,
//! so that a validator that was killed and started again does just what it would have done; a second thread only warms the
//! cache with models that are to come (`warm.rs`), and nothing depends on it.
//!
//! Hub, chain, clock, pages and losses are seams. What differs from one version of the reference to the next is data
//! ([`crate::rules::VALIDATORS`]).
//!
//! Differences from the reference, on purpose:
//! - weights, clockwork and the place in the round survive a restart ([`state`]);
//! - a uid that is new on the subnet makes the vector of weights longer, where the reference's step fails from then on;
//! - pages are drawn from the text of the recipe, and from the dataset's service where it says so (`score.source`);
//! - a model may take as long as it takes, unless a limit is asked for: a CPU is no validator's card;
//! - the versions from 27 March 2024 on count only as many batches as the pages have with GPT-4's tokenizer, which is not
//!   implemented here: all batches count. Where a model needs that tokenizer, the validator does not start;
//! - a model that lacks a tensor is refused, where transformers fills it at random;
//! - a model of which it cannot be told here whether its text would pass is taken to pass;
//! - the text is generated on the CPU, wherever losses are computed;
//! - `steps.jsonl` grows without end, where the reference begins a new run every 100 steps.

mod cleanup;
pub mod examiner;
pub mod iterator;
mod report;
mod run;
pub mod state;
mod step;
mod update;
mod warm;
pub mod weights;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use crate::chain::places::Places;
use crate::chain::{Chain, Hotkey, Snapshot};
use crate::clock::Clock;
use crate::data::pages::Draw;
use crate::hub::Hub;
use crate::hub::fetch::Cache;
use crate::hub::model_id::ModelMetadata;
use crate::metrics::printer::Printer;
use crate::rules::Rules;
pub use cleanup::FIRST_AFTER as FIRST_CLEANUP_AFTER;
use state::{Folder, State};

/// What a step needs besides the state: pages, and the losses of models on them.
pub trait Examiner: Sync {
    /// Draws the pages of a step: the same ones for the same seed.
    fn draw(&self, num_pages: usize, seed: u64) -> Result<Draw>;

    /// The loss of the model in a folder on each row, or why it has none; `None` if an orderly end was asked for. An error
    /// only where the fault is not the model's, which loses the step nevertheless. `seed` is for the text it writes, where that is looked at.
    fn losses(&self, entry: &Entry<'_>, rows: &[Vec<u32>], seed: u64) -> Result<Option<Result<Vec<f64>, String>>>;
}

/// A model to be examined.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The miner's place.
    pub uid: u16,
    /// His key.
    pub hotkey: &'a str,
    /// What he has committed.
    pub metadata: &'a ModelMetadata,
    /// The model's folder.
    pub dir: &'a Path,
}

/// What a validator works with.
#[derive(Clone, Copy)]
pub struct Seams<'a> {
    /// Where models are.
    pub hub: &'a dyn Hub,
    /// Where their metadata is, and weights go.
    pub chain: &'a dyn Chain,
    /// Its own folder of models.
    pub cache: &'a Cache,
    /// What time it is.
    pub clock: &'a dyn Clock,
    /// Pages and losses.
    pub examiner: &'a dyn Examiner,
    /// Where it tells what it does.
    pub printer: &'a Printer,
}

/// How a validator works.
#[derive(Clone, Debug)]
pub struct Options {
    /// The rules, with the version of the validator's program.
    pub rules: Rules,
    /// Pages of a step.
    pub num_pages: usize,
    /// Send weights under this hotkey; `None`: send none.
    pub sets_weights_as: Option<Hotkey>,
    /// A model that takes longer loses the step's batches.
    pub seconds_per_model: Option<u64>,
    /// Print each step's row instead of its tables.
    pub json: bool,
    /// Whether a second thread fetches what is to come.
    pub warms: bool,
}

/// What a validator has just done. An observer that returns an error ends it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has read the subnet.
    Synced {
        /// At this block.
        block: u64,
    },
    /// It has looked at a miner's commitment.
    Checked {
        /// The miner.
        uid: u16,
        /// What came of it.
        outcome: Outcome,
    },
    /// It has deleted models.
    Cleaned {
        /// How many.
        num_models: usize,
    },
    /// It has found a model's losses.
    Evaluated {
        /// The miner.
        uid: u16,
    },
    /// It has weighed a step.
    Weighed,
    /// It has written a step's row.
    Recorded,
    /// It has sent weights to the chain.
    WeightsSet,
    /// Its state is on disk.
    Saved,
}

/// What came of looking at a miner's commitment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It names no model.
    NoModel,
    /// It names the model that is known.
    Unchanged,
    /// It names a new model, which is here now.
    Updated,
    /// It names a new model that cannot be had or is not taken; the old one stays.
    Failed,
}

/// Told after each event.
pub type Observer<'a> = &'a dyn Fn(&Event) -> Result<()>;

/// Something that was told of a hotkey's model. The sentence is no part of it: it may hold figures that change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    hotkey: Hotkey,
    model: String,
    about: About,
}

impl Told {
    fn new(hotkey: &str, metadata: &ModelMetadata, about: About) -> Self {
        Self { hotkey: hotkey.to_owned(), model: format!("{} {}", metadata.block, metadata.id), about }
    }
}

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    NotImplemented,
    NotTaken,
    NotFetched,
    Gone,
    NoLosses,
    NotScored,
    Late,
}

/// A validator at work.
pub struct Validator<'a> {
    seams: Seams<'a>,
    options: Options,
    folder: Folder,
    state: State,
    /// The subnet as it was last read.
    snapshot: Snapshot,
    /// Where the own hotkey was last seen.
    places: Places,
    /// What was told, which is told once.
    told: BTreeSet<Told>,
    /// What is not fetched ahead.
    failed: warm::Failed,
}

impl<'a> Validator<'a> {
    /// One that goes on from a state.
    pub fn new(seams: Seams<'a>, options: Options, folder: Folder, state: State) -> Self {
        Self {
            seams,
            options,
            folder,
            state,
            snapshot: Snapshot::default(),
            places: Places::default(),
            told: BTreeSet::new(),
            failed: warm::Failed::default(),
        }
    }

    /// What it remembers.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn now(&self) -> u64 {
        self.seams.clock.unix_ms()
    }

    /// The key that holds a uid now.
    fn hotkey(&self, uid: u16) -> Option<&str> {
        self.snapshot.neurons.iter().find(|neuron| neuron.uid == uid).map(|neuron| neuron.hotkey.as_str())
    }
}
