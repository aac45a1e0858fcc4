//! Small files that are there as a whole or not at all, whenever the process dies.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes or replaces a file; it is on disk when this returns.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().with_context(|| format!("{} names no file", path.display()))?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let write = || -> std::io::Result<()> {
        // Readable to whom the umask allows, as any other file.
        let permissions = fs::Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().prefix(".tmp-").permissions(permissions).tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
