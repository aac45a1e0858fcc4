//! A file as a lock that one process of this machine holds at a time, and that the system frees when it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::error::{Failure, input};
use crate::interrupt;

/// How often a lock that is held is tried again.
const PERIOD: Duration = Duration::from_millis(20);

/// Takes the lock at `path`, whose folder must be there; it is held until the file is dropped. Where another process
/// holds it, the error is what `busy` says of that process ("process 123").
pub(crate) fn take(path: &Path, busy: impl FnOnce(&str) -> String) -> Result<File> {
    let mut file = open(path)?;
    if !wait_for(&file, path, Duration::ZERO)? {
        let mut holder = String::new();
        let _ = file.take(32).read_to_string(&mut holder); // Only to help; the message stands without it.
        let holder = if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") };
        return Err(input(busy(&holder)));
    }
    // Only for the message above: a full disk must not keep anyone from working.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// Waits for the lock at `path`; it is held until the file is dropped. `None` if someone else still holds it after
/// `patience`.
pub(crate) fn wait(path: &Path, patience: Duration) -> Result<Option<File>> {
    let file = open(path)?;
    Ok(wait_for(&file, path, patience)?.then_some(file))
}

/// Opens the file, which is made if need be and is no link.
fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options.open(path).with_context(|| format!("cannot lock {}", path.display()))
}

fn wait_for(file: &File, path: &Path, patience: Duration) -> Result<bool> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            // Some network file systems know no locks; work must still be possible there.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => return Ok(true),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            Err(TryLockError::WouldBlock) if start.elapsed() >= patience => return Ok(false),
            Err(TryLockError::WouldBlock) if interrupt::requested() => {
                let sentence = format!("Interrupted while waiting for the lock {}.", path.display());
                return Err(Failure::Interrupted(sentence).into());
            }
            Err(TryLockError::WouldBlock) => thread::sleep(PERIOD),
        }
    }
}
