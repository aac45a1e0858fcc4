//! Checkpoints of a run: a Hugging Face model folder, and beside it what is needed to go on training.
//!
//! ```text
//! RUN/step-00000100/         config.json generation_config.json model.safetensors: exactly what publishing uploads
//! RUN/state/step-00000100/   moments.safetensors state.json manifest.json
//! RUN/latest, RUN/best       relative links to step folders
//! ```
//! A checkpoint is complete if its manifest is there and agrees with the files of both folders; the manifest, not the
//! link, decides, so a run folder survives being moved or copied. `write.rs` saves, replaces and deletes so that a
//! process killed at any moment leaves complete checkpoints and folders that are recognised as leftovers; `verify.rs`
//! owns the manifest; `restore.rs` reads back. What the state means is the training loop's affair: any serde type.

mod restore;
mod verify;
mod write;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::disk::Disk;
use crate::lock;
use crate::model::arch::Arch;
use crate::model::layout::Layout;
use crate::model::weights::save_bytes;
use verify::Manifest;

pub use restore::{Restored, Targets};
pub use write::{Saved, Snapshot};

const STATE_DIR: &str = "state";
pub(crate) const LATEST: &str = "latest";
const BEST: &str = "best";
const LOCK_FILE: &str = ".lock";
/// Folders and links that are being made or deleted; nothing below such a name is ever needed again.
const TEMPORARY: &str = ".tmp-";
/// Folders that are being replaced and come back if the replacement is not finished.
const REPLACED: &str = ".old-";

const MOMENTS_FILE: &str = "moments.safetensors";
const STATE_FILE: &str = "state.json";
const MANIFEST_FILE: &str = "manifest.json";

/// The checkpoints of one run folder, held by one process at a time.
#[derive(Debug)]
pub struct Store {
    run_dir: PathBuf,
    disk: Disk,
    /// Held until the store is dropped; the system frees it when the process dies.
    _lock: File,
}

impl Store {
    /// Opens a run folder, which is made if need be: takes its lock, brings back what a killed process was replacing
    /// and removes what it left half-made.
    pub fn open(run_dir: &Path) -> Result<Self> {
        Self::open_on(run_dir, Disk::default())
    }

    fn open_on(run_dir: &Path, disk: Disk) -> Result<Self> {
        let state_dir = run_dir.join(STATE_DIR);
        fs::create_dir_all(&state_dir).with_context(|| format!("cannot create {}", state_dir.display()))?;
        let store = Self { run_dir: run_dir.to_owned(), disk, _lock: lock(run_dir)? };
        store.finish_interrupted_work()?;
        Ok(store)
    }

    /// The run folder.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Steps with a complete checkpoint, ascending. Sizes are compared, data is not read.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let complete =
            |step: &u64| Manifest::read(&self.run_dir, *step).and_then(|m| m.check_sizes(&self.run_dir)).is_ok();
        Ok(self.claimed_steps()?.into_iter().filter(complete).collect())
    }

    /// The model folder of a step.
    pub fn model_dir(&self, step: u64) -> PathBuf {
        self.run_dir.join(step_name(step))
    }

    /// The step that `best` names.
    pub fn best(&self) -> Option<u64> {
        self.link(BEST)
    }

    /// The step that `latest` names.
    pub fn latest(&self) -> Option<u64> {
        self.link(LATEST)
    }

    /// Steps with a folder of training state, complete or not, ascending.
    fn claimed_steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> = names_in(&self.state_dir())?.iter().filter_map(|name| parse_step(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn state_dir(&self) -> PathBuf {
        self.run_dir.join(STATE_DIR)
    }

    fn link(&self, name: &str) -> Option<u64> {
        parse_step(fs::read_link(self.run_dir.join(name)).ok()?.to_str()?)
    }
}

/// Bytes that one checkpoint takes, to within a few KiB: the model and `num_moments` buffers of its size.
pub fn checkpoint_bytes(arch: &Arch, layout: &Layout, num_moments: usize) -> u64 {
    save_bytes(arch, layout) + 4 * (num_moments * layout.len()) as u64 + (64 << 10)
}

/// Bytes that the user may still write to the file system that holds a folder.
pub fn free_bytes(dir: &Path) -> Result<u64> {
    let info = rustix::fs::statvfs(dir).with_context(|| format!("cannot tell the free space of {}", dir.display()))?;
    Ok(info.f_bavail.saturating_mul(info.f_frsize))
}

fn lock(run_dir: &Path) -> Result<File> {
    lock::take(&run_dir.join(LOCK_FILE), |holder| {
        format!(
            "{} is being trained in by {holder}; wait for it to end, stop it, or give this run another folder.",
            run_dir.display()
        )
    })
}

fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn parse_step(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

/// Names in a folder that are UTF-8; all of ours are.
fn names_in(dir: &Path) -> Result<Vec<String>> {
    let context = || format!("cannot list {}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        names.extend(entry.with_context(context)?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests;
