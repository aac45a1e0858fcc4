//! A file as a lock that one process of this machine holds at a time, and that the system frees when it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::error::input;

/// Takes the lock at `path`, whose folder must be there; it is held until the file is dropped. Where another process
/// holds it, the error is what `busy` says of that process ("process 123").
pub(crate) fn take(path: &Path, busy: impl FnOnce(&str) -> String) -> Result<File> {
    let context = || format!("cannot lock {}", path.display());
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        // Some network file systems know no locks; work must still be possible there.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => return Ok(file),
        Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.take(32).read_to_string(&mut holder); // Only to help; the message stands without it.
            let holder = if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") };
            return Err(input(busy(&holder)));
        }
    }
    // Only for the message above: a full disk must not keep anyone from working.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// Waits for the lock at `path`; it is held until the file is dropped.
pub(crate) fn wait(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("cannot lock {}", path.display()))?;
    match file.lock() {
        Err(error) if error.kind() != ErrorKind::Unsupported => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
        _ => Ok(file),
    }
}
