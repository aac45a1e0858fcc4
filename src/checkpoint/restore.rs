//! Reading a checkpoint back: the newest sound one, straight into the buffers of the run, every file hashed while it is
//! read. A damaged checkpoint is told of and the one before it is used.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::verify::{Manifest, state_path};
use super::{LATEST, MOMENTS_FILE, STATE_FILE, Store, step_name};
use crate::error::input;
use crate::model::arch::Arch;
use crate::model::config::{CONFIG_FILE, GENERATION_FILE, ModelConfig};
use crate::model::layout::Layout;
use crate::model::weights::{HashedReader, ModelFiles, WEIGHTS_FILE};

/// The buffers that a checkpoint is read into. They hold nothing of use if restoring fails.
#[derive(Debug)]
pub struct Targets<'a> {
    /// The architecture the run has.
    pub arch: &'a Arch,
    /// Its layout.
    pub layout: &'a Layout,
    /// The weights.
    pub params: &'a mut [f32],
    /// The optimizer's buffers, with their names, in the order in which they were saved.
    pub moments: &'a mut [(&'static str, &'a mut [f32])],
}

/// What a run goes on from.
#[derive(Debug)]
pub struct Restored<T> {
    /// Optimizer steps that are done.
    pub step: u64,
    /// The training loop's own state.
    pub state: T,
    /// The model's configuration with keys this program does not use.
    pub config: ModelConfig,
    /// The model folder that was read.
    pub dir: PathBuf,
    /// Sentences about newer checkpoints that are damaged.
    pub warnings: Vec<String>,
}

/// Why a checkpoint was not restored.
enum Refusal {
    /// Its files are not as they were written: try the one before.
    Damaged(anyhow::Error),
    /// It is sound, but not of this run: no other will do.
    Foreign(anyhow::Error),
}

impl Store {
    /// Reads the newest sound checkpoint, and lets `latest` name it; `None` if the folder holds none at all. An error if
    /// all are damaged, or if the sound one is of another model.
    pub fn restore_latest<T: DeserializeOwned>(&self, targets: &mut Targets<'_>) -> Result<Option<Restored<T>>> {
        let mut warnings = Vec::new();
        for step in self.claimed_steps()?.into_iter().rev() {
            match self.restore(step, targets) {
                Ok((config, state)) => {
                    let dir = self.model_dir(step);
                    if self.latest() != Some(step) {
                        self.set_link(LATEST, step)?;
                    }
                    return Ok(Some(Restored { step, state, config, dir, warnings }));
                }
                Err(Refusal::Foreign(error)) => return Err(error),
                Err(Refusal::Damaged(error)) => {
                    warnings.push(format!("The checkpoint {} is damaged or incomplete: {error:#}.", step_name(step)));
                }
            }
        }
        if warnings.is_empty() {
            return Ok(None);
        }
        let all = warnings.join(" ");
        bail!("{} holds no sound checkpoint. {all} Start over with --fresh.", self.run_dir().display())
    }

    /// The training state of the newest checkpoint whose sizes are right, without its weights: a look before buffers
    /// are made. The step of a damaged file may differ from what [`Self::restore_latest`] finds.
    pub fn peek_state<T: DeserializeOwned>(&self) -> Result<Option<(u64, T)>> {
        let Some(step) = self.steps()?.pop() else { return Ok(None) };
        let path = state_path(self.run_dir(), step).join(STATE_FILE);
        let mut reader = HashedReader::open(&path)?;
        let bytes = reader.read_bytes(reader.bytes())?;
        let state = serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some((step, state)))
    }

    fn restore<T: DeserializeOwned>(&self, step: u64, targets: &mut Targets<'_>) -> Result<(ModelConfig, T), Refusal> {
        let model_dir = self.model_dir(step);
        let state_dir = state_path(self.run_dir(), step);
        let manifest = self.small_files_are_sound(step).map_err(Refusal::Damaged)?;

        let foreign = |sentence: String| Refusal::Foreign(input(sentence));
        let config = ModelConfig::read(&model_dir).map_err(Refusal::Foreign)?;
        if config.arch != *targets.arch {
            return Err(foreign(format!(
                "{} holds a model of another shape than the recipe's; restore the recipe, or start over with --fresh.",
                model_dir.display()
            )));
        }
        let state_path = state_dir.join(STATE_FILE);
        let state = std::fs::read(&state_path).map_err(|error| Refusal::Damaged(error.into()))?;
        let state = serde_json::from_slice(&state).map_err(|error| {
            foreign(format!("{} is of another version of this program: {error}.", state_path.display()))
        })?;

        self.read_buffers(step, &manifest, targets)?;
        Ok((config, state))
    }

    /// Reads weights and moments, checking their hashes on the way.
    fn read_buffers(&self, step: u64, manifest: &Manifest, targets: &mut Targets<'_>) -> Result<(), Refusal> {
        let header = moments_header(targets.moments.iter().map(|(name, values)| (*name, values.len())));
        let path = state_path(self.run_dir(), step).join(MOMENTS_FILE);
        let mut read = || -> Result<bool> {
            let files = ModelFiles::open(&self.model_dir(step), targets.arch, targets.layout)?;
            for sum in files.read_into(targets.layout, targets.params)? {
                manifest.check(WEIGHTS_FILE, &sum)?;
            }
            let mut reader = HashedReader::open(&path)?;
            let is_ours = reader.read_bytes((header.len() as u64).min(reader.bytes()))? == header;
            if is_ours {
                targets.moments.iter_mut().try_for_each(|(_, values)| reader.read_floats(values))?;
            }
            manifest.check(MOMENTS_FILE, &reader.finish()?)?;
            Ok(is_ours)
        };
        if read().map_err(Refusal::Damaged)? {
            return Ok(());
        }
        Err(Refusal::Foreign(input(format!(
            "{} is of another optimizer than the recipe's; restore the recipe, or start over with --fresh.",
            path.display()
        ))))
    }

    /// Checks all sizes, and the hashes of the files that are read at once; those of the large ones are checked while
    /// they are read.
    fn small_files_are_sound(&self, step: u64) -> Result<Manifest> {
        let manifest = Manifest::read(self.run_dir(), step)?;
        manifest.check_sizes(self.run_dir())?;
        for file in [CONFIG_FILE, GENERATION_FILE] {
            manifest.check(file, &HashedReader::open(&self.model_dir(step).join(file))?.finish()?)?;
        }
        let path = state_path(self.run_dir(), step).join(STATE_FILE);
        manifest.check(STATE_FILE, &HashedReader::open(&path)?.finish()?)?;
        Ok(manifest)
    }
}

/// The safetensors header of flat f32 buffers.
pub(super) fn moments_header<'a>(moments: impl Iterator<Item = (&'a str, usize)>) -> Vec<u8> {
    let mut end = 0;
    let mut json = serde_json::Map::new();
    for (name, len) in moments {
        let start = end;
        end += 4 * len;
        json.insert(name.to_owned(), serde_json::json!({"dtype": "F32", "shape": [len], "data_offsets": [start, end]}));
    }
    crate::model::weights::header_bytes(json)
}
