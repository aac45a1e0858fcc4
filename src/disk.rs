//! Every change to the disk that must survive a kill, one method each, so that tests can stop a process after the k-th;
//! and how a full disk is told from other failures.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The disk. In tests it can be made to fail: for good from a given operation on, which is what a killed process
/// leaves, or whenever a file is written, as if it were full.
/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    operations_left: std::sync::Arc<std::sync::Mutex<Option<usize>>>,
    #[cfg(test)]
    is_full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Disk {
    pub(crate) fn create_dir(&self, path: &Path) -> Result<()> {
        self.operation(|| ())?;
        fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))
    }

    /// Runs `write`, which makes the files at `path`; when stopped, a part of one is there.
    pub(crate) fn write<R>(&self, path: &Path, write: impl FnOnce() -> Result<R>) -> Result<R> {
        let write_half = || drop(fs::write(path, "half a fi"));
        self.operation(write_half)?;
        #[cfg(test)]
        if self.is_full.load(std::sync::atomic::Ordering::SeqCst) {
            write_half();
            let error = io::Error::from(io::ErrorKind::StorageFull);
            return Err(error).with_context(|| format!("cannot write {}", path.display()));
        }
        write()
    }

    /// Adds bytes to the end of a file, which is made if need be, and waits until they are on disk; when stopped, a part of
    /// them is there. Where they do not all fit, none of them stays.
    pub(crate) fn append(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let open = || File::options().create(true).append(true).open(path);
        let write_half = || {
            let half = &bytes[..bytes.len() / 2];
            let _ = open().and_then(|mut file| file.write_all(half));
        };
        self.operation(write_half)?;
        let context = || format!("cannot write {}", path.display());
        let mut file = open().with_context(context)?;
        let len = file.metadata().with_context(context)?.len();
        let write = |file: &mut File| {
            #[cfg(test)]
            if self.is_full.load(std::sync::atomic::Ordering::SeqCst) {
                write_half();
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            file.write_all(bytes)
        };
        let written = write(&mut file).and_then(|()| file.sync_data());
        if written.is_err() {
            let _ = file.set_len(len); // What a later start finds torn it cuts off as well.
        }
        written.with_context(context)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.operation(|| ())?;
        fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
    }

    pub(crate) fn symlink(&self, target: &str, link: &Path) -> Result<()> {
        self.operation(|| ())?;
        std::os::unix::fs::symlink(target, link).with_context(|| format!("cannot create {}", link.display()))
    }

    /// Removes a file, a link, or a folder with all it holds; when stopped, a part of the folder is gone.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
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

    /// Removes everything in a folder whose name starts so.
    pub(crate) fn remove_all(&self, dir: &Path, prefix: &str) -> Result<()> {
        let context = || format!("cannot list {}", dir.display());
        for entry in fs::read_dir(dir).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
                self.remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Waits until the names in a folder are on disk.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<()> {
        self.operation(|| ())?;
        File::open(path).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot write {}", path.display()))
    }

    #[cfg(not(test))]
    fn operation(&self, _when_stopped: impl FnOnce()) -> Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn operation(&self, when_stopped: impl FnOnce()) -> Result<()> {
        let mut left = self.operations_left.lock().expect("no test panics while it holds this");
        match *left {
            None => Ok(()),
            Some(0) => {
                // The operation that was under way is done in part, all later ones not at all.
                *left = Some(usize::MAX);
                when_stopped();
                anyhow::bail!("killed")
            }
            Some(usize::MAX) => anyhow::bail!("killed before"),
            Some(count) => {
                *left = Some(count - 1);
                Ok(())
            }
        }
    }

    /// Lets all operations after the next so many fail.
    #[cfg(test)]
    pub(crate) fn kill_after(&self, num_operations: usize) {
        *self.operations_left.lock().expect("no test panics while it holds this") = Some(num_operations);
    }

    /// Lets files be written only in part from now on, or whole again.
    #[cfg(test)]
    pub(crate) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Whether there was no room for what was to be written.
pub(crate) fn is_out_of_space(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}
