//! Saving, replacing and deleting checkpoints, so that at every moment the disk holds what was complete before.
//!
//! A checkpoint is made under temporary names, each file and folder synced; then the state folder gets its name, then
//! the model folder, and with this last rename the checkpoint exists: a manifest without its model is not complete.
//! Deleting goes the other way round. Where a step is saved again, the old pair waits under `.old-` names until the new
//! one is there, and [`Store::finish_interrupted_work`] brings it back otherwise.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;

use super::restore::moments_header;
use super::verify::{Manifest, state_path};
use super::{
    BEST, LATEST, MANIFEST_FILE, MOMENTS_FILE, REPLACED, STATE_FILE, Store, TEMPORARY, checkpoint_bytes, free_bytes,
    names_in, parse_step, step_name,
};
use crate::disk::is_out_of_space;
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::weights::{self, FileSum, HashedReader, HashedWriter};

/// What a checkpoint is made of. Nothing is copied.
#[derive(Debug)]
pub struct Snapshot<'a, T> {
    /// Optimizer steps that are done.
    pub step: u64,
    /// The model's configuration.
    pub config: &'a ModelConfig,
    /// Where its parameters lie.
    pub layout: &'a Layout,
    /// The f32 master weights.
    pub params: &'a [f32],
    /// The optimizer's flat buffers, with names: `m` and `v` for AdamW.
    pub moments: &'a [(&'static str, &'a [f32])],
    /// The training loop's own state.
    pub state: &'a T,
}

/// A checkpoint that is on disk.
#[derive(Clone, Debug)]
pub struct Saved {
    /// The model folder.
    pub dir: PathBuf,
    /// Bytes of both folders.
    pub bytes: u64,
    /// Seconds it took.
    pub secs: f64,
}

impl Store {
    /// Saves a checkpoint and lets `latest` name it. If it fails, what was there before is still there.
    pub fn save<T: Serialize>(&self, snapshot: &Snapshot<'_, T>) -> Result<Saved> {
        let start = Instant::now();
        let name = step_name(snapshot.step);
        let needed = checkpoint_bytes(&snapshot.config.arch, snapshot.layout, snapshot.moments.len());
        let free = free_bytes(self.run_dir())?;
        let intact = || match self.steps().ok().and_then(|steps| steps.last().copied()) {
            Some(step) => format!("The checkpoint {} is intact.", step_name(step)),
            None => "There is no earlier checkpoint.".to_owned(),
        };
        let sizes = |free| {
            let (needed, free) = (gigabytes(needed), gigabytes(free));
            let run_dir = self.run_dir().display();
            format!(
                "A checkpoint needs {needed}; {free} are free in {run_dir}. {} Free some space and resume.",
                intact()
            )
        };
        if free < needed {
            bail!("No space left for the checkpoint {name}. {}", sizes(free));
        }
        let written = self.write(snapshot, &name);
        if written.is_err() {
            // Best effort: what cannot be removed now is removed when the folder is opened again.
            let _ = self.remove_temporary();
        }
        let bytes = written.map_err(|error| {
            if is_out_of_space(&error) {
                let free = free_bytes(self.run_dir()).unwrap_or(0);
                anyhow!("No space left for the checkpoint {name}: {error:#}. {}", sizes(free))
            } else {
                anyhow!("The checkpoint {name} could not be saved: {error:#}. {}", intact())
            }
        })?;
        Ok(Saved { dir: self.model_dir(snapshot.step), bytes, secs: start.elapsed().as_secs_f64() })
    }

    fn write<T: Serialize>(&self, snapshot: &Snapshot<'_, T>, name: &str) -> Result<u64> {
        self.remove_temporary()?;
        let temporary = format!("{TEMPORARY}{name}");
        let model_dir = self.run_dir().join(&temporary);
        self.disk.create_dir(&model_dir)?;
        let model = self.disk.write(&model_dir.join(weights::WEIGHTS_FILE), || {
            weights::save(&model_dir, snapshot.config, snapshot.layout, snapshot.params)
        })?;
        self.disk.sync_dir(&model_dir)?;

        let state_dir = self.state_dir().join(&temporary);
        self.disk.create_dir(&state_dir)?;
        let file = |name: &'static str, fill: &dyn Fn(&mut HashedWriter) -> Result<()>| -> Result<(&str, FileSum)> {
            let path = state_dir.join(name);
            self.disk.write(&path, || {
                let mut writer = HashedWriter::create(&path)?;
                fill(&mut writer)?;
                Ok((name, writer.finish()?))
            })
        };
        let moments = file(MOMENTS_FILE, &|writer| {
            writer.write_bytes(&moments_header(snapshot.moments.iter().map(|(name, values)| (*name, values.len()))))?;
            snapshot.moments.iter().try_for_each(|(_, values)| writer.write_floats(values))
        })?;
        let state = file(STATE_FILE, &|writer| writer.write_bytes(&serde_json::to_vec_pretty(snapshot.state)?))?;
        let manifest = Manifest::new(snapshot.step, model, vec![moments, state]);
        file(MANIFEST_FILE, &|writer| writer.write_bytes(&serde_json::to_vec_pretty(&manifest)?))?;
        self.disk.sync_dir(&state_dir)?;

        self.set_aside(snapshot.step)?;
        self.disk.rename(&state_dir, &state_path(self.run_dir(), snapshot.step))?;
        self.disk.sync_dir(&self.state_dir())?;
        self.disk.rename(&model_dir, &self.model_dir(snapshot.step))?;
        self.disk.sync_dir(self.run_dir())?;
        self.set_link(LATEST, snapshot.step)?;
        self.remove_replaced()?;
        Ok(manifest.bytes())
    }

    /// Moves a checkpoint of this step, or what there is of one, out of the way of a new one.
    fn set_aside(&self, step: u64) -> Result<()> {
        let name = step_name(step);
        if self.latest() == Some(step)
            && let Some(&other) = self.steps()?.iter().rev().find(|other| **other != step)
        {
            self.set_link(LATEST, other)?;
        }
        if !state_path(self.run_dir(), step).exists() {
            // A model without state is no checkpoint: nothing could come back.
            return if self.model_dir(step).exists() { self.discard(&self.model_dir(step)) } else { Ok(()) };
        }
        // The model first: its new name is what tells that the pair is being replaced.
        for parent in [self.run_dir().to_owned(), self.state_dir()] {
            if parent.join(&name).symlink_metadata().is_ok() {
                self.disk.rename(&parent.join(&name), &parent.join(format!("{REPLACED}{name}")))?;
                self.disk.sync_dir(&parent)?;
            }
        }
        Ok(())
    }

    /// After a killed process: completes or undoes a replacement, and removes temporary folders.
    pub(super) fn finish_interrupted_work(&self) -> Result<()> {
        for name in names_in(self.run_dir())? {
            let Some(step) = name.strip_prefix(REPLACED).and_then(parse_step) else { continue };
            if self.model_dir(step).exists() {
                continue; // The new one is there; the old pair is removed below.
            }
            let (state, old_state) = (state_path(self.run_dir(), step), self.state_dir().join(&name));
            if old_state.exists() {
                if state.exists() {
                    self.discard(&state)?;
                }
                self.disk.rename(&old_state, &state)?;
                self.disk.sync_dir(&self.state_dir())?;
            }
            self.disk.rename(&self.run_dir().join(&name), &self.model_dir(step))?;
            self.disk.sync_dir(self.run_dir())?;
        }
        self.remove_replaced()?;
        self.remove_temporary()?;
        self.restore_links()
    }

    /// Makes links again where copying the run turned them into folders. A folder that is no copy of a step is left.
    fn restore_links(&self) -> Result<()> {
        for link in [LATEST, BEST] {
            let path = self.run_dir().join(link);
            if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                continue;
            }
            let Ok(sum) = HashedReader::open(&path.join(weights::WEIGHTS_FILE)).and_then(HashedReader::finish) else {
                continue;
            };
            let same = |step: &u64| {
                Manifest::read(self.run_dir(), *step)
                    .and_then(|manifest| manifest.check(weights::WEIGHTS_FILE, &sum))
                    .is_ok()
            };
            if let Some(step) = self.steps()?.into_iter().rev().find(same) {
                self.set_link(link, step)?;
            }
        }
        Ok(())
    }

    fn remove_replaced(&self) -> Result<()> {
        self.remove_all(REPLACED)
    }

    fn remove_temporary(&self) -> Result<()> {
        self.remove_all(TEMPORARY)
    }

    /// Removes everything with a name that starts so. The state first: while the model is under its `.old-` name, it
    /// tells that the state may be removed.
    fn remove_all(&self, prefix: &str) -> Result<()> {
        for parent in [self.state_dir(), self.run_dir().to_owned()] {
            self.disk.remove_all(&parent, prefix)?;
        }
        Ok(())
    }

    /// Removes a folder so that no part of it keeps its name.
    fn discard(&self, path: &Path) -> Result<()> {
        let name = path.file_name().context("a folder below the run has a name")?.to_string_lossy();
        let temporary = path.with_file_name(format!("{TEMPORARY}gone-{name}"));
        self.disk.rename(path, &temporary)?;
        self.disk.remove(&temporary)
    }

    /// Lets `best` name the complete checkpoint of a step.
    pub fn mark_best(&self, step: u64) -> Result<()> {
        let complete = self.steps()?.contains(&step);
        ensure!(complete, "{} is no complete checkpoint and cannot be the best", step_name(step));
        self.set_link(BEST, step)
    }

    pub(super) fn set_link(&self, link: &str, step: u64) -> Result<()> {
        let path = self.run_dir().join(link);
        // A copy of the run may hold a folder where the link was; no link can be renamed onto that.
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            self.discard(&path)?;
        }
        let temporary = self.run_dir().join(format!("{TEMPORARY}{link}"));
        self.disk.symlink(&step_name(step), &temporary)?;
        self.disk.rename(&temporary, &path)?;
        self.disk.sync_dir(self.run_dir())
    }

    /// Deletes checkpoints but for the newest `keep_last` (at least one), those of every `keep_every`-th step (0: none)
    /// and those that `latest` and `best` name. Returns the deleted steps.
    pub fn prune(&self, keep_last: usize, keep_every: u64) -> Result<Vec<u64>> {
        let complete = self.steps()?;
        let Some(&newest) = complete.last() else { return Ok(Vec::new()) };
        let last = &complete[complete.len().saturating_sub(keep_last.max(1))..];
        let keep = |step: u64| {
            last.contains(&step)
                || keep_every > 0 && step.is_multiple_of(keep_every)
                || [self.latest(), self.best()].contains(&Some(step))
                // A damaged one that is newer may be looked at by its owner; it is replaced when the run gets there.
                || step > newest
        };
        let doomed: Vec<u64> = self.claimed_steps()?.into_iter().filter(|step| !keep(*step)).collect();
        self.delete(&doomed)?;
        Ok(doomed)
    }

    /// Deletes all checkpoints: the run starts over.
    pub fn clear(&self) -> Result<()> {
        for link in [LATEST, BEST] {
            if self.run_dir().join(link).symlink_metadata().is_ok() {
                self.disk.remove(&self.run_dir().join(link))?;
            }
        }
        self.delete(&self.claimed_steps()?)
    }

    fn delete(&self, steps: &[u64]) -> Result<()> {
        for &step in steps {
            for path in [self.model_dir(step), state_path(self.run_dir(), step)] {
                if path.symlink_metadata().is_ok() {
                    self.discard(&path)?;
                }
            }
        }
        Ok(())
    }
}

fn gigabytes(bytes: u64) -> String {
    if bytes < 100_000_000 { format!("{:.1} MB", bytes as f64 / 1e6) } else { format!("{:.1} GB", bytes as f64 / 1e9) }
}
