//! How much lies in the cache: beyond its budget, the models that were not used for longest are deleted, but none that this
//! process has in use, and none that anybody has used within the last five minutes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::cache::{Cache, LOCK_FILE, PART, TEMPORARY};
use super::model_id::ModelId;
use super::names;
use crate::disk::Disk;
use crate::lock;

/// What was used since stays: somebody may be about to read it.
const GRACE: Duration = Duration::from_secs(300);

/// A model in the cache, or a part of one.
struct Held {
    dir: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Cache {
    /// Names the models that this process works with from now on, instead of those before: they are not deleted, even if they
    /// are more than the budget holds.
    pub fn use_only<'a>(&self, ids: impl IntoIterator<Item = &'a ModelId>) {
        let folders = ids.into_iter().filter_map(|id| self.folder(id)).collect();
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = folders;
    }

    /// Deletes models until there is room for so many bytes within the budget, as far as that can be; `locked` is the
    /// repository whose lock the caller holds. That something cannot be deleted is no error: the disk may have room.
    pub(super) fn make_room(&self, needed: u64, locked: &Path) {
        let Some(budget) = self.budget else { return };
        let mut held = held(self.dir());
        let total = held.iter().map(|held| held.bytes).fold(needed, u64::saturating_add);
        let mut excess = total.saturating_sub(budget);
        if excess == 0 {
            return;
        }
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_old = |held: &Held| held.used.elapsed().is_ok_and(|age| age > GRACE);
        held.retain(|held| !in_use.contains(&held.dir) && is_old(held));
        held.sort_by_key(|held| held.used);
        for Held { dir, bytes, .. } in held {
            let Some(repository) = dir.parent() else { continue };
            if excess > 0 && delete(&self.disk, repository, &[&dir], repository == locked).unwrap_or(false) {
                excess = excess.saturating_sub(bytes);
            }
        }
    }
}

/// Whether a name below a repository's folder is that of a model, whole, in part or on its way out.
pub(crate) fn is_models_name(name: &str) -> bool {
    names::is_commit(name) || name.starts_with(TEMPORARY) || name.starts_with(PART)
}

/// Deletes folders of models of one repository; whether it did, for somebody who is just bringing a model of the repository
/// is left in peace. `is_locked`: that is the caller himself. What a killed process has left on its way out goes too.
pub(crate) fn delete(disk: &Disk, repository: &Path, dirs: &[&Path], is_locked: bool) -> Result<bool> {
    let lock = match is_locked {
        true => None,
        false => match lock::wait(&repository.join(LOCK_FILE), Duration::ZERO)? {
            None => return Ok(false),
            lock => lock,
        },
    };
    disk.remove_all(repository, TEMPORARY)?;
    let is_there =
        |dir: &&&Path| !dir.file_name().unwrap_or_default().as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
    for (index, dir) in dirs.iter().filter(is_there).enumerate() {
        // Under another name first: a part of a model must not look like one.
        let doomed = repository.join(format!("{TEMPORARY}deleted-{index}"));
        disk.rename(dir, &doomed)?;
        disk.remove(&doomed)?;
    }
    drop(lock);
    Ok(true)
}

/// The folders in a folder, links aside.
pub(crate) fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot list {}", dir.display());
    let mut folders = Vec::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_type().with_context(context)?.is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort_unstable();
    Ok(folders)
}

/// All that lies in a cache.
fn held(cache: &Path) -> Vec<Held> {
    let repositories = folders(cache).unwrap_or_default();
    let dirs = repositories.iter().flat_map(|repository| folders(repository).unwrap_or_default());
    let is_model = |dir: &PathBuf| dir.file_name().and_then(|name| name.to_str()).is_some_and(is_models_name);
    dirs.filter(is_model).filter_map(look_at).collect()
}

/// When a model was used for the last time: the folder is touched then, and its files are written.
pub(crate) fn last_used(dir: &Path) -> Option<SystemTime> {
    look_at(dir.to_owned()).map(|held| held.used)
}

fn look_at(dir: PathBuf) -> Option<Held> {
    let mut used = fs::metadata(&dir).ok()?.modified().ok()?;
    let mut bytes = 0;
    for entry in fs::read_dir(&dir).ok()?.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += metadata.len();
        used = metadata.modified().map_or(used, |modified| used.max(modified));
    }
    Some(Held { dir, bytes, used })
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
