//! Files as streams of blocks that are hashed while they pass.
//!
//! A block is read into, or filled in, one buffer of 8 MiB that is aligned for `f32`; its SHA-256 is computed on one
//! thread while another converts or writes it. So saving 9 GB needs 8 MiB, and nothing is read twice to be hashed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::hex;
use crate::regular_file;

/// Elements of a block.
pub(super) const BLOCK_ELEMENTS: usize = 2 << 20;
const BLOCK_BYTES: usize = BLOCK_ELEMENTS * size_of::<f32>();

/// Size and SHA-256 of a file that passed through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSum {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

fn sum(bytes: u64, digest: Sha256) -> FileSum {
    FileSum { bytes, sha256: hex::digits(digest.finalize()) }
}

/// Writes a new file block by block.
#[derive(Debug)]
pub struct HashedWriter {
    file: File,
    path: PathBuf,
    buffer: Vec<f32>,
    digest: Sha256,
    bytes: u64,
}

impl HashedWriter {
    /// Creates a file that must not exist.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), buffer: Vec::new(), digest: Sha256::new(), bytes: 0 })
    }

    /// Writes bytes as they are.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        for block in bytes.chunks(BLOCK_BYTES) {
            let (file, digest) = (&mut self.file, &mut self.digest);
            let (written, ()) = rayon::join(|| file.write_all(block), || digest.update(block));
            written.with_context(|| format!("cannot write {}", self.path.display()))?;
            self.bytes += block.len() as u64;
        }
        Ok(())
    }

    /// Writes numbers as they lie in memory.
    pub fn write_floats(&mut self, values: &[f32]) -> Result<()> {
        self.write_bytes(bytemuck::cast_slice(values))
    }

    /// Writes numbers that `fill` puts into a block of `len` elements.
    pub(super) fn write_filled(&mut self, len: usize, fill: impl FnOnce(&mut [f32])) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        fill(&mut buffer[..len]);
        let written = self.write_floats(&buffer[..len]);
        self.buffer = buffer;
        written
    }

    /// Waits until the file is on disk.
    pub fn finish(self) -> Result<FileSum> {
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(sum(self.bytes, self.digest))
    }
}

/// Reads a file block by block from its start to its end.
#[derive(Debug)]
pub struct HashedReader {
    file: File,
    path: PathBuf,
    buffer: Vec<f32>,
    digest: Sha256,
    position: u64,
    bytes: u64,
}

impl HashedReader {
    /// Opens a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let file = regular_file::open(path).with_context(context)?;
        let bytes = file.metadata().with_context(context)?.len();
        Ok(Self { file, path: path.to_owned(), buffer: Vec::new(), digest: Sha256::new(), position: 0, bytes })
    }

    /// Size of the file when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that were read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Hands the next `len` bytes to `consume`, in blocks of `unit` bytes or a multiple of them. Each block starts at
    /// an address aligned for `f32`. A file with fewer bytes left is an error, before any memory is taken for them.
    pub(super) fn read(&mut self, len: u64, unit: usize, mut consume: impl FnMut(&[u8]) + Send) -> Result<()> {
        if len > self.bytes.saturating_sub(self.position) {
            bail!("{} ends too early", self.path.display());
        }
        let block_bytes = (BLOCK_BYTES / unit.max(1)).max(1).saturating_mul(unit.max(1));
        let mut left = len;
        while left > 0 {
            let block_len = left.min(block_bytes as u64) as usize;
            let elements = block_len.div_ceil(size_of::<f32>());
            if self.buffer.len() < elements {
                self.buffer.resize(elements, 0.0);
            }
            let block = &mut bytemuck::cast_slice_mut::<f32, u8>(&mut self.buffer)[..block_len];
            self.file.read_exact(block).with_context(|| format!("cannot read {}", self.path.display()))?;
            let (block, digest) = (&*block, &mut self.digest);
            rayon::join(|| consume(block), || digest.update(block));
            left -= block_len as u64;
            self.position += block_len as u64;
        }
        Ok(())
    }

    /// Reads numbers into a slice.
    pub fn read_floats(&mut self, values: &mut [f32]) -> Result<()> {
        for block in values.chunks_mut(BLOCK_ELEMENTS) {
            let len = size_of_val(block) as u64;
            self.read(len, 4, |bytes| block.copy_from_slice(bytemuck::cast_slice(bytes)))?;
        }
        Ok(())
    }

    /// Reads a small number of bytes.
    pub fn read_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        self.read(len, 1, |bytes| all.extend_from_slice(bytes))?;
        Ok(all)
    }

    /// Reads what is left, for the hash alone.
    pub fn finish(mut self) -> Result<FileSum> {
        self.read(self.bytes - self.position, 1, |_| ())?;
        Ok(sum(self.bytes, self.digest))
    }
}
