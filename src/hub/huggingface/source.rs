//! The files of an upload: what they hash to, and that they stay what they were while they go up.
//!
//! A file is read once to be hashed, unless its hash is remembered, and once to be sent. While it is sent it is hashed
//! again, and its last block is kept back until that hash is the first one: what was changed in between never becomes a
//! file of the hub. Of a file of any size, a few blocks are in memory.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use reqwest::Body;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::error::input;
use crate::hex;
use crate::hub::file_hashes::{FileHashes, Stamp};
use crate::hub::hash::git_blob;
use crate::hub::{Checksum, RemoteFile, Sha256Sum};
use crate::model::weights::is_plain_name;
use crate::regular_file;

const BLOCK_BYTES: usize = 1 << 19;
/// Blocks that are read before the network takes them.
const BLOCKS_AHEAD: usize = 8;
/// The beginning of a file, by which hubs tell text from what is none.
const SAMPLE_BYTES: u64 = 512;

/// What went wrong with a file while it was sent.
pub(super) type Trouble = Arc<Mutex<Option<anyhow::Error>>>;

/// A file that is to be uploaded.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// What it hashes to, as large files are named: in 64 hexadecimal digits.
    pub(super) oid: String,
    sha256: Sha256Sum,
    path: PathBuf,
    stamp: Stamp,
}

impl Source {
    /// The files of a folder with these names, sorted.
    pub(super) fn all(dir: &Path, names: &[&str], hashes: &FileHashes) -> Result<Vec<Self>> {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| Self::new(dir, name, hashes)).collect()
    }

    fn new(dir: &Path, name: &str, hashes: &FileHashes) -> Result<Self> {
        let path = dir.join(name);
        if !is_plain_name(name) || !path.is_file() {
            return Err(input(format!("{name:?} is no file of {}.", dir.display())));
        }
        let stamp = Stamp::of(&path)?;
        let hash = STANDARD.decode(hashes.file_hash(&path)?).context("a hash is no base64")?;
        let sha256: Sha256Sum = hash.try_into().map_err(|_| anyhow::anyhow!("a hash has another length"))?;
        let oid = hex::digits(sha256);
        let source = Self { name: name.to_owned(), bytes: stamp.bytes(), oid, sha256, path, stamp };
        source.check_unchanged()?;
        Ok(source)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// It has been written to since it was hashed.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        match Stamp::of(&self.path) {
            Ok(stamp) if stamp == self.stamp => Ok(()),
            _ => Err(self.changed()),
        }
    }

    /// Whether a file of the hub holds the same. Where the hub tells nothing of its content, it may hold anything.
    pub(super) fn is_at(&self, remote: &RemoteFile) -> Result<bool> {
        if remote.path != self.name || remote.bytes != self.bytes {
            return Ok(false);
        }
        Ok(match remote.sum {
            Some(Checksum::Sha256(sum)) => sum == self.sha256,
            Some(Checksum::GitBlob(sum)) => sum == git_blob(&self.path)?,
            None => false,
        })
    }

    /// Its first bytes.
    pub(super) fn sample(&self) -> Result<Vec<u8>> {
        let mut sample = Vec::new();
        self.open()?.take(SAMPLE_BYTES).read_to_end(&mut sample).with_context(|| self.cannot_read())?;
        Ok(sample)
    }

    /// All its bytes; for small files.
    pub(super) fn read(&self) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open()?.take(self.bytes + 1).read_to_end(&mut content).with_context(|| self.cannot_read())?;
        if Sha256Sum::from(Sha256::digest(&content)) != self.sha256 {
            return Err(self.changed());
        }
        Ok(content)
    }

    /// Its bytes as they are read from disk, within a runtime. `taken` is told of the bytes of each block that the network
    /// takes; what goes wrong with the file is left in `trouble`.
    pub(super) fn body(&self, mut taken: impl FnMut(u64) + Send + Sync + 'static, trouble: &Trouble) -> Body {
        let (sender, mut blocks) = mpsc::channel::<io::Result<Bytes>>(BLOCKS_AHEAD);
        let (source, trouble) = (self.clone(), Arc::clone(trouble));
        tokio::task::spawn_blocking(move || {
            if let Err(error) = source.send_blocks(&sender) {
                *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                let _ = sender.blocking_send(Err(io::Error::other("the file cannot be sent")));
            }
        });
        Body::wrap_stream(stream::poll_fn(move |context| {
            let block = ready!(blocks.poll_recv(context));
            if let Some(Ok(block)) = &block {
                taken(block.len() as u64);
            }
            Poll::Ready(block)
        }))
    }

    /// Reads the file, the last block only after what it hashes to is known to be right.
    fn send_blocks(&self, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
        let mut file = self.open()?;
        let mut digest = Sha256::new();
        let mut left = self.bytes;
        while left > 0 {
            let mut block = vec![0; left.min(BLOCK_BYTES as u64) as usize];
            match file.read_exact(&mut block) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(self.changed()),
                read => read.with_context(|| self.cannot_read())?,
            }
            digest.update(&block);
            left -= block.len() as u64;
            if left == 0 && Sha256Sum::from(digest.finalize_reset()) != self.sha256 {
                return Err(self.changed());
            }
            if to.blocking_send(Ok(block.into())).is_err() {
                return Ok(()); // The request has ended, which its sender knows better.
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<File> {
        regular_file::open(&self.path).with_context(|| self.cannot_read())
    }

    fn cannot_read(&self) -> String {
        format!("cannot read {}", self.path.display())
    }

    fn changed(&self) -> anyhow::Error {
        let path = self.path.display();
        input(format!("{path} was changed while it was uploaded; upload it again when it is done."))
    }
}
