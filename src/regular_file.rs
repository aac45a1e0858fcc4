//! Opening files of a folder that somebody else filled: only regular ones, for a named pipe would block for ever and a
//! device may never end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::Failure;

/// Opens a regular file to read it. The error of anything else is the user's input's, inside an [`io::Error`].
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other(Failure::Input(format!("{} is not a regular file", path.display()))));
    }
    File::open(path)
}

/// Opens a regular file to read it, but no link to one; `None` where none is.
pub(crate) fn open_no_link(path: &Path) -> io::Result<Option<File>> {
    // Should a pipe take the file's place after it was looked at, opening must not block.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map(Some)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(None),
    }
}
