//! A file that is being downloaded: what has come of it is hashed once and written at its end, or, where a process before us
//! has left it, read again.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::{Context, Result};
use bytes::Bytes;
use rustix::fs::OFlags;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Receiver;

use crate::error::Failure;
use crate::hub::hash::git_blob_digest;
use crate::hub::{Checksum, RemoteFile, Sha256Sum};
use crate::interrupt;

const BUFFER_BYTES: usize = 1 << 20;
/// Parts that are written and not hashed yet.
const PARTS_BEHIND: usize = 16;

/// Hears how many bytes of a file are here.
pub(super) type Tell<'a> = &'a dyn Fn(u64);

/// A file of which the first bytes are here.
pub(super) struct Part<'a> {
    path: PathBuf,
    file: File,
    wanted: &'a RemoteFile,
    sha256: Sha256,
    /// Only where it is held against that sum.
    git_blob: Option<Sha1>,
    len: u64,
}

impl<'a> Part<'a> {
    /// Opens what is there of a file, or makes an empty one. Nothing else than a regular file of one name is written to.
    pub(super) fn open(path: PathBuf, wanted: &'a RemoteFile) -> Result<Self> {
        let file = open(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut part = Self { path, file, wanted, sha256: Sha256::new(), git_blob: None, len: 0 };
        part.begin();
        part.take_over()?;
        Ok(part)
    }

    /// How many bytes are here.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many are not.
    pub(super) fn missing(&self) -> u64 {
        self.wanted.bytes - self.len
    }

    /// Writes what comes, until nothing more does; meanwhile another thread hashes it.
    pub(super) fn take(&mut self, mut parts: Receiver<Bytes>, tell: Tell<'_>) -> Result<()> {
        let Self { file, sha256, git_blob, len, .. } = self;
        let taken = thread::scope(|scope| {
            let (written, to_hash) = sync_channel::<Bytes>(PARTS_BEHIND);
            scope.spawn(move || to_hash.iter().for_each(|bytes| hash(sha256, git_blob, &bytes)));
            let mut write = |bytes: Bytes| -> io::Result<()> {
                file.write_all(&bytes)?;
                *len += bytes.len() as u64;
                tell(*len);
                written.send(bytes).expect("it is hashed as long as something is written");
                Ok(())
            };
            std::iter::from_fn(|| parts.blocking_recv()).try_for_each(&mut write)
        });
        taken.with_context(|| self.cannot_write())
    }

    /// Drops what is here.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).with_context(|| self.cannot_write())?;
        self.begin();
        Ok(())
    }

    /// What it hashes to; `None` if that is not what the hub says.
    pub(super) fn sum(&self) -> Option<Sha256Sum> {
        let sum: Sha256Sum = self.sha256.clone().finalize().into();
        let is_right = match self.wanted.sum {
            Some(Checksum::Sha256(wanted)) => sum == wanted,
            Some(Checksum::GitBlob(wanted)) => {
                self.git_blob.clone().is_some_and(|digest| <[u8; 20]>::from(digest.finalize()) == wanted)
            }
            None => true,
        };
        is_right.then_some(sum)
    }

    /// Removes the file.
    pub(super) fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }

    fn begin(&mut self) {
        self.len = 0;
        self.sha256 = Sha256::new();
        self.git_blob =
            matches!(self.wanted.sum, Some(Checksum::GitBlob(_))).then(|| git_blob_digest(self.wanted.bytes));
    }

    /// Reads what an earlier process has left. It is gone on with only where a sum will tell whether it is right.
    fn take_over(&mut self) -> Result<()> {
        let context = || format!("cannot read {}", self.path.display());
        let there = self.file.metadata().with_context(context)?.len();
        if there > self.wanted.bytes || self.wanted.sum.is_none() {
            return self.restart();
        }
        let mut buffer = vec![0; BUFFER_BYTES.min(there as usize)];
        while self.len < there {
            if interrupt::requested() {
                let sentence = format!("Interrupted while what is there of {} was read.", self.path.display());
                return Err(Failure::Interrupted(sentence).into());
            }
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    let len = len.min((there - self.len) as usize);
                    hash(&mut self.sha256, &mut self.git_blob, &buffer[..len]);
                    self.len += len as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
            }
        }
        self.file.seek(SeekFrom::Start(self.len)).with_context(|| self.cannot_write()).map(drop)
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

fn hash(sha256: &mut Sha256, git_blob: &mut Option<Sha1>, bytes: &[u8]) {
    sha256.update(bytes);
    git_blob.iter_mut().for_each(|git_blob| git_blob.update(bytes));
}

/// Opens a file to read and write it, which is made if need be. A link, or a file that has another name elsewhere, makes
/// room for a new one.
fn open(path: &Path) -> io::Result<File> {
    let is_ours = |metadata: &Metadata| metadata.is_file() && metadata.nlink() == 1;
    if fs::symlink_metadata(path).is_ok_and(|metadata| !is_ours(&metadata)) {
        fs::remove_file(path)?;
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags.bits() as i32).open(path)
}
