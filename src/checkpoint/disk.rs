//! Every change that checkpoints make to the disk, one method each, so that tests can stop a process after the k-th.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

/// The disk. In tests it can be made to fail, for good, from a given operation on: what a killed process leaves.
#[derive(Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) operations_left: std::cell::Cell<Option<usize>>,
}

impl Disk {
    pub(super) fn create_dir(&self, path: &Path) -> Result<()> {
        self.operation(|| ())?;
        fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))
    }

    /// Runs `write`, which makes the files at `path`; when stopped, a part of one is there.
    pub(super) fn write<R>(&self, path: &Path, write: impl FnOnce() -> Result<R>) -> Result<R> {
        self.operation(|| drop(fs::write(path, "half a fi")))?;
        write()
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.operation(|| ())?;
        fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
    }

    pub(super) fn symlink(&self, target: &str, link: &Path) -> Result<()> {
        self.operation(|| ())?;
        std::os::unix::fs::symlink(target, link).with_context(|| format!("cannot create {}", link.display()))
    }

    /// Removes a file, a link, or a folder with all it holds; when stopped, a part of the folder is gone.
    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        self.operation(|| {
            if !is_dir {
                return;
            }
            if let Some(Ok(entry)) = fs::read_dir(path).ok().and_then(|mut entries| entries.next()) {
                let _ = fs::remove_file(entry.path());
            }
        })?;
        let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Waits until the names in a folder are on disk.
    pub(super) fn sync_dir(&self, path: &Path) -> Result<()> {
        self.operation(|| ())?;
        File::open(path).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot write {}", path.display()))
    }

    #[cfg(not(test))]
    fn operation(&self, _when_stopped: impl FnOnce()) -> Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn operation(&self, when_stopped: impl FnOnce()) -> Result<()> {
        match self.operations_left.get() {
            None => Ok(()),
            Some(0) => {
                // The operation that was under way is done in part, all later ones not at all.
                self.operations_left.set(Some(usize::MAX));
                when_stopped();
                anyhow::bail!("killed")
            }
            Some(usize::MAX) => anyhow::bail!("killed before"),
            Some(left) => {
                self.operations_left.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
