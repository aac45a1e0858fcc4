//! Deletes models that nobody evaluates any more from the validator's own folder: an hour after the start for the first
//! time, then every five minutes. A model that came or was used within the last five minutes stays: it may be about to be
//! evaluated.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::{Event, Observer, Validator};
use crate::disk::Disk;
use crate::hub::room::{self, folders, is_models_name};

/// How long after the start models are first deleted.
pub const FIRST_AFTER: Duration = Duration::from_secs(3600);
/// How often models are deleted.
const EVERY: Duration = Duration::from_secs(300);
/// A model that was used since stays.
const GRACE_MS: u64 = 300_000;

impl Validator<'_> {
    /// Deletes models, if it is time. That some cannot be deleted is told.
    pub(super) fn clean(&mut self, observe: Observer<'_>) -> Result<()> {
        let now = self.now();
        if now < self.state.next_cleanup {
            return Ok(());
        }
        let judge = &self.state.judge;
        let hotkeys = judge.kept.iter().chain(judge.pending.iter()).filter_map(|uid| self.hotkey(uid));
        let known = hotkeys.filter_map(|hotkey| self.state.tracker.get(hotkey));
        let keep = known.filter_map(|metadata| self.seams.cache.folder(&metadata.id)).collect();
        let (num_models, faults) = delete_all_but(&keep, self.seams.cache.dir(), now, self.folder.disk());
        for fault in faults {
            self.seams.printer.warn(&format!("a model that nobody evaluates could not be deleted: {fault:#}"));
        }
        self.state.next_cleanup = now.saturating_add(EVERY.as_millis() as u64);
        observe(&Event::Cleaned { num_models })
    }
}

/// Deletes all models in a cache but those in the folders to keep and those that were used within the grace
/// period. What goes wrong with one does not stop the others.
fn delete_all_but(keep: &BTreeSet<PathBuf>, cache: &Path, now: u64, disk: &Disk) -> (usize, Vec<anyhow::Error>) {
    let (mut num_models, mut faults) = (0, Vec::new());
    // No folder: nothing was fetched yet.
    for repository in folders(cache).unwrap_or_default() {
        match delete_in(&repository, keep, now, disk) {
            Ok(num) => num_models += num,
            Err(error) => faults.push(error),
        }
    }
    (num_models, faults)
}

fn delete_in(repository: &Path, keep: &BTreeSet<PathBuf>, now: u64, disk: &Disk) -> Result<usize> {
    let is_model = |dir: &Path| dir.file_name().and_then(|name| name.to_str()).is_some_and(is_models_name);
    let mut stale = folders(repository)?;
    stale.retain(|dir| is_model(dir) && !keep.contains(dir) && is_old(dir, now));
    let stale: Vec<&Path> = stale.iter().map(PathBuf::as_path).collect();
    let is_deleted = !stale.is_empty() && room::delete(disk, repository, &stale, false)?;
    Ok(if is_deleted { stale.len() } else { 0 })
}

/// Whether a model was not used within the grace period.
fn is_old(dir: &Path, now: u64) -> bool {
    let since = room::last_used(dir).and_then(|used| used.duration_since(SystemTime::UNIX_EPOCH).ok());
    let used = since.and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or(u64::MAX);
    used.saturating_add(GRACE_MS) < now
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::{self, File};

    use super::*;
    use crate::hub::cache::{LOCK_FILE, PART, TEMPORARY};
    use crate::lock;

    const NOW: u64 = 1_710_000_000_000;

    /// A model that came so long ago, and was used so long ago.
    fn make(dir: &Path, came_ms: u64, used_ms: u64) {
        fs::create_dir_all(dir).unwrap();
        let file = File::create(dir.join("file")).unwrap();
        for (file, age_ms) in [(file, came_ms), (File::open(dir).unwrap(), used_ms)] {
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(NOW - age_ms)).unwrap();
        }
    }

    #[test]
    fn old_models_go_unless_they_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |repository: &str, digit: &str| dir.path().join(repository).join(digit.repeat(40));
        let (kept, old, young) = (path("a--b", "1"), path("a--b", "2"), path("a--b", "3"));
        let (used, elsewhere) = (path("c--d", "4"), dir.path().join("c--d/notes"));
        let torn = dir.path().join("c--d").join(format!("{TEMPORARY}deleted-0"));
        let part = dir.path().join("c--d").join(format!("{PART}{}", "5".repeat(40)));
        let writing = dir.path().join("e--f").join(format!("{PART}{}", "6".repeat(40)));
        for (dir, came_ms, used_ms) in [
            (&kept, 900_000, 900_000),
            (&old, 300_001, 300_001),
            (&young, 300_000, 300_000),
            (&used, 900_000, 300_000),
            (&elsewhere, 900_000, 900_000),
            (&torn, 900_000, 900_000),
            (&part, 900_000, 900_000),
            (&writing, 300_000, 900_000),
        ] {
            make(dir, came_ms, used_ms);
        }
        let keep = [kept.clone()].into();
        let (num_models, faults) = delete_all_but(&keep, dir.path(), NOW, &Disk::default());
        assert_eq!((num_models, faults.len()), (3, 0));
        let is_there = [&kept, &old, &young, &used, &elsewhere, &torn, &part, &writing].map(|dir| dir.exists());
        assert_eq!(is_there, [true, false, true, true, true, false, false, true]);
        assert_eq!(delete_all_but(&keep, dir.path(), NOW, &Disk::default()).0, 0);
    }

    #[test]
    fn a_repository_that_somebody_works_on_is_left_in_peace() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("a--b").join("1".repeat(40));
        make(&model, 900_000, 900_000);
        let lock = lock::wait(&dir.path().join("a--b").join(LOCK_FILE), Duration::ZERO).unwrap();
        assert_eq!(delete_all_but(&BTreeSet::new(), dir.path(), NOW, &Disk::default()).0, 0);
        assert!(model.exists());
        drop(lock);
        assert_eq!(delete_all_but(&BTreeSet::new(), dir.path(), NOW, &Disk::default()).0, 1);
    }

    #[test]
    fn a_kill_leaves_a_model_whole_or_out_of_the_way() {
        for num_operations in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let model = dir.path().join("a--b").join("1".repeat(40));
            make(&model, 900_000, 900_000);
            let disk = Disk::default();
            disk.kill_after(num_operations);
            let (_, faults) = delete_all_but(&BTreeSet::new(), dir.path(), NOW, &disk);
            assert_eq!(faults.len(), usize::from(num_operations < 2));
            assert_eq!(model.join("file").exists(), num_operations == 0);
            assert_eq!(model.exists(), num_operations == 0);
            // Renamed and not removed yet, which has touched it: a later round does it.
            delete_all_but(&BTreeSet::new(), dir.path(), u64::MAX, &Disk::default());
            assert_eq!(folders(&dir.path().join("a--b")).unwrap(), Vec::<PathBuf>::new());
        }
    }
}
