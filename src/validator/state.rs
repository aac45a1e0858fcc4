//! What a validator must not forget: one file in its folder, replaced as a whole, so that a process that is killed at any
//! moment leaves the old state or the new one.
//!
//! ```text
//! DIR/state.json   this
//! DIR/steps.jsonl  one object per step; what a killed process wrote beyond its state is cut off at the next start
//! DIR/models/      the models it evaluates (hub/fetch.rs)
//! DIR/.lock        held by the validator that works here
//! ```
//! The reference keeps the uids it evaluates and the models it knows, in two files that are written one after the other,
//! and forgets its weights, its clockwork and its place in the round. Here nothing is forgotten: a validator that is
//! started again goes on as if it had never stopped. Only a new version of its program evaluates everybody afresh, as the
//! reference does; the weights stay then, too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::iterator::MinerIterator;
use crate::chain::Hotkey;
use crate::disk::Disk;
use crate::error::input;
use crate::figures::count;
use crate::hub::model_id::ModelMetadata;
use crate::lock;
use crate::metrics::jsonl::bytes_up_to;
use crate::score::step::Judge;
use crate::score::uid_set::UidSet;

/// The file's name.
pub const STATE_FILE: &str = "state.json";
/// Name of the file of steps.
pub const STEPS_FILE: &str = "steps.jsonl";
/// Name of the folder of models.
pub const MODELS_DIR: &str = "models";
const LOCK_FILE: &str = ".lock";
/// The state before it takes the old one's place.
const TEMPORARY: &str = ".tmp-state";

const FORMAT: &str = "assay validator 2";

/// See the module's text.
#[derive(Clone, Debug)]
pub struct State {
    /// Chain and hub that it is of, in words.
    pub network: String,
    /// Key of the version of the validator's program.
    pub version_key: u64,
    /// What pages are drawn from, together with the number of the step.
    pub seed: u64,
    /// Steps that have been begun and ended, well or not.
    pub step: u64,
    /// When this was saved, in milliseconds of Unix time.
    pub saved_at: u64,
    /// Weights of all uids, and who is evaluated.
    pub judge: Judge,
    /// The model of each hotkey that was fetched and found good.
    pub tracker: BTreeMap<Hotkey, ModelMetadata>,
    /// Whose turn it is; `None` before the subnet was first seen.
    pub iterator: Option<MinerIterator>,
    /// When each uid was last looked at in its turn, in milliseconds of Unix time.
    pub checked: BTreeMap<u16, u64>,
    /// When each uid was last looked at for its incentive.
    pub checked_for_incentive: BTreeMap<u16, u64>,
    /// When miners with most of a large validator's weight were last looked for.
    pub majority_checked: Option<u64>,
    /// When each of them was last brought back.
    pub retried: BTreeMap<u16, u64>,
    /// When models that nobody evaluates are next deleted.
    pub next_cleanup: u64,
    /// Block at which the present epoch began; `None` before the subnet was first seen.
    pub epoch_block: Option<u64>,
}

impl State {
    fn new(network: &str, version_key: u64, seed: u64, next_cleanup: u64) -> Self {
        Self {
            network: network.to_owned(),
            version_key,
            seed,
            step: 0,
            saved_at: 0,
            judge: Judge::new(0),
            tracker: BTreeMap::new(),
            iterator: None,
            checked: BTreeMap::new(),
            checked_for_incentive: BTreeMap::new(),
            majority_checked: None,
            retried: BTreeMap::new(),
            next_cleanup,
            epoch_block: None,
        }
    }
}

/// A validator's folder, which nobody else works in.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    disk: Disk,
    _lock: File,
}

/// What a folder's state is begun with, where it has none.
#[derive(Clone, Copy, Debug)]
pub struct Beginning<'a> {
    /// Chain and hub, in words.
    pub network: &'a str,
    /// The chain's block now.
    pub block: u64,
    /// Key of the version of the validator's program.
    pub version_key: u64,
    /// The seed; `None`: whatever the folder has, or a fresh one.
    pub seed: Option<u64>,
    /// When models that nobody evaluates are first deleted, in milliseconds of Unix time.
    pub next_cleanup: u64,
}

impl Folder {
    /// Opens a validator's folder, or makes one, and reads its state. The last value is what the user should know.
    ///
    /// # Errors
    /// Of the user: another validator works there, it holds something else, or its state cannot be read. Nothing is changed
    /// then.
    pub fn open(dir: &Path, beginning: Beginning<'_>) -> Result<(Self, State, Option<String>)> {
        Self::open_on(dir, beginning, Disk::default())
    }

    pub(super) fn open_on(dir: &Path, beginning: Beginning<'_>, disk: Disk) -> Result<(Self, State, Option<String>)> {
        refuse_strangers(dir)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = lock::take(&dir.join(LOCK_FILE), |holder| {
            format!("{holder} is a validator at work in {}: stop it, or choose another folder by --dir", dir.display())
        })?;
        let folder = Self { dir: dir.to_owned(), disk, _lock: lock };
        let path = folder.path(STATE_FILE);
        let (mut state, mut note) = match fs::read(&path) {
            Ok(bytes) => (read(&bytes).map_err(|reason| damaged(&path, &reason))?, None),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let Beginning { network, version_key, seed, next_cleanup, .. } = beginning;
                (State::new(network, version_key, seed.unwrap_or_else(crate::contest::fresh_seed), next_cleanup), None)
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        if state.network != beginning.network {
            return Err(input(format!(
                "the validator in {} is one of {}, and not of {}: choose another folder by --dir, or move it away",
                dir.display(),
                state.network,
                beginning.network
            )));
        }
        if let Some(began) = state.epoch_block.filter(|&began| beginning.block < began) {
            return Err(input(format!(
                "the validator in {} has seen block {} of {}, which is at block {} now, so that it was made anew: choose \
                 another folder by --dir, or move it away",
                dir.display(),
                count(began),
                state.network,
                count(beginning.block)
            )));
        }
        if let Some(seed) = beginning.seed.filter(|&seed| seed != state.seed) {
            return Err(input(format!(
                "--seed {seed}: the validator in {} draws its pages by the seed {}; leave --seed out, or choose another \
                 folder by --dir",
                dir.display(),
                state.seed
            )));
        }
        if state.version_key != beginning.version_key {
            note = Some(format!(
                "The validator's version was {} and is {} now: every model is evaluated afresh.",
                state.version_key, beginning.version_key
            ));
            state.version_key = beginning.version_key;
            state.judge.kept = UidSet::default();
            state.judge.pending = UidSet::default();
            state.tracker.clear();
            for times in [&mut state.checked, &mut state.checked_for_incentive, &mut state.retried] {
                times.clear();
            }
            state.majority_checked = None;
        }
        let leftover = folder.path(TEMPORARY);
        if leftover.symlink_metadata().is_ok() {
            folder.disk.remove(&leftover)?;
        }
        folder.cut_steps(state.step)?;
        folder.save(&state)?;
        Ok((folder, state, note))
    }

    /// Where models are kept.
    pub fn models_dir(dir: &Path) -> PathBuf {
        dir.join(MODELS_DIR)
    }

    /// Replaces the state on disk.
    pub fn save(&self, state: &State) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&Saved::of(state))?;
        bytes.push(b'\n');
        let temporary = self.path(TEMPORARY);
        self.disk.write(&temporary, || {
            let write = || {
                fs::write(&temporary, &bytes)?;
                File::open(&temporary)?.sync_all()
            };
            write().with_context(|| format!("cannot write {}", temporary.display()))
        })?;
        self.disk.rename(&temporary, &self.path(STATE_FILE))?;
        self.disk.sync_dir(&self.dir)
    }

    /// What it writes to.
    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Adds the row of a step.
    pub(super) fn record(&self, row: &str) -> Result<()> {
        self.disk.append(&self.path(STEPS_FILE), format!("{row}\n").as_bytes())
    }

    /// Cuts off the rows of steps that the state does not know: they are made again.
    fn cut_steps(&self, step: u64) -> Result<()> {
        let path = self.path(STEPS_FILE);
        let cut = || {
            let file = match File::options().read(true).write(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            let kept = bytes_up_to(step, &file)?;
            if kept < file.metadata()?.len() {
                file.set_len(kept)?;
            }
            Ok::<_, std::io::Error>(())
        };
        cut().with_context(|| format!("cannot write {}", path.display()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Refuses a folder that holds something and no state: whatever it is, a validator has not begun it.
fn refuse_strangers(dir: &Path) -> Result<()> {
    let context = || format!("cannot list {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(context)?,
    };
    let names =
        entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>().with_context(context)?;
    if names.iter().any(|name| name == STATE_FILE) {
        return Ok(());
    }
    // What a first start that was killed has left.
    match names.iter().find(|name| *name != LOCK_FILE && *name != TEMPORARY) {
        None => Ok(()),
        Some(name) => Err(input(format!(
            "{} is no validator's folder, for it holds {} and no {STATE_FILE}: choose another folder by --dir, or move what \
             is in it away",
            dir.display(),
            name.display()
        ))),
    }
}

fn damaged(path: &Path, reason: &str) -> anyhow::Error {
    let dir = path.parent().unwrap_or(path);
    input(format!(
        "{} is no state of a validator that this version can read: {reason}. It was left as it is. Move {} away to begin \
         anew there, or choose another folder by --dir",
        path.display(),
        dir.display()
    ))
}

fn read(bytes: &[u8]) -> Result<State, String> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.format != FORMAT {
        return Err(format!("its format is {:?}, not {FORMAT:?}", head.format));
    }
    let saved: Saved = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    saved.state()
}

/// The state as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: String,
    network: String,
    version_key: u64,
    seed: u64,
    step: u64,
    saved_at: u64,
    epoch_block: Option<u64>,
    next_cleanup: u64,
    /// Every weight is an `f32`; written as the `f64` of the same value, which comes back as it was.
    weights: Vec<f64>,
    /// Tables of CPython's sets: their order decides ties.
    kept: Vec<Option<u16>>,
    pending: Vec<Option<u16>>,
    tracker: BTreeMap<Hotkey, Tracked>,
    iterator: Option<MinerIterator>,
    checked: BTreeMap<u16, u64>,
    checked_for_incentive: BTreeMap<u16, u64>,
    majority_checked: Option<u64>,
    retried: BTreeMap<u16, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tracked {
    model: String,
    block: NonZeroU64,
}

impl Saved {
    fn of(state: &State) -> Self {
        let tracked = |metadata: &ModelMetadata| Tracked { model: metadata.id.to_string(), block: metadata.block };
        Self {
            format: FORMAT.to_owned(),
            network: state.network.clone(),
            version_key: state.version_key,
            seed: state.seed,
            step: state.step,
            saved_at: state.saved_at,
            epoch_block: state.epoch_block,
            next_cleanup: state.next_cleanup,
            weights: state.judge.weights.iter().copied().map(f64::from).collect(),
            kept: state.judge.kept.slots().to_vec(),
            pending: state.judge.pending.slots().to_vec(),
            tracker: state.tracker.iter().map(|(hotkey, metadata)| (hotkey.clone(), tracked(metadata))).collect(),
            iterator: state.iterator.clone(),
            checked: state.checked.clone(),
            checked_for_incentive: state.checked_for_incentive.clone(),
            majority_checked: state.majority_checked,
            retried: state.retried.clone(),
        }
    }

    fn state(self) -> Result<State, String> {
        let set = |name: &str, table| UidSet::from_slots(table).ok_or(format!("`{name}` is no set of uids"));
        let weight = |weight: f64| {
            let exact = weight as f32;
            let is_weight = (0.0..=f64::from(f32::MAX)).contains(&weight) && f64::from(exact) == weight;
            is_weight.then_some(exact).ok_or(format!("{weight} is no weight"))
        };
        if self.weights.len() > usize::from(u16::MAX) + 1 {
            return Err(format!("it has {} weights", self.weights.len()));
        }
        if self.iterator.as_ref().is_some_and(|iterator| !iterator.is_sound()) {
            return Err("`iterator` is none".to_owned());
        }
        let tracked = |(hotkey, Tracked { model, block })| {
            let id = model.parse().map_err(|error: crate::hub::model_id::ParseModelIdError| error.to_string())?;
            Ok((hotkey, ModelMetadata { id, block }))
        };
        Ok(State {
            network: self.network,
            version_key: self.version_key,
            seed: self.seed,
            step: self.step,
            saved_at: self.saved_at,
            judge: Judge {
                weights: self.weights.into_iter().map(weight).collect::<Result<_, String>>()?,
                kept: set("kept", self.kept)?,
                pending: set("pending", self.pending)?,
            },
            tracker: self.tracker.into_iter().map(tracked).collect::<Result<_, String>>()?,
            iterator: self.iterator,
            checked: self.checked,
            checked_for_incentive: self.checked_for_incentive,
            majority_checked: self.majority_checked,
            retried: self.retried,
            next_cleanup: self.next_cleanup,
            epoch_block: self.epoch_block,
        })
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
