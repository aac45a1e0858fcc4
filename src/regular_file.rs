//! Opening files of a folder that somebody else filled: only regular ones, for a named pipe would block for ever and a
//! device may never end.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::error::Failure;

/// Opens a regular file to read it. The error of anything else is the user's input's, inside an [`io::Error`].
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other(Failure::Input(format!("{} is not a regular file", path.display()))));
    }
    File::open(path)
}
