//! One file of tokens, mapped into memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::format::{HEADER_BYTES, Header};
use crate::data::tokenizer::VOCAB_SIZE;
use crate::error::input;
use crate::figures::count;

/// A file of tokens.
pub struct Shard {
    path: PathBuf,
    header: Header,
    map: Mmap,
}

impl Shard {
    /// Maps a file, whose header and length must agree. Its tokens are looked at when they are read.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let wrong = |reason: String| input(format!("{shown} is no token shard: {reason}"));
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let bytes = file.metadata().with_context(|| format!("cannot look at {shown}"))?.len();
        if bytes < HEADER_BYTES as u64 {
            return Err(wrong(format!("it has {} bytes, fewer than a header", count(bytes))));
        }
        // SAFETY: the map is read only as bytes, whatever they are, and each token is checked when it is read. Whoever cuts the
        // file while a run reads it ends that run; nothing is written through the map.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {shown} into memory"))?;
        let first = map.first_chunk().ok_or_else(|| wrong("it became shorter while it was opened".to_owned()))?;
        let header = Header::read(first).map_err(wrong)?;
        let expected = HEADER_BYTES as u64 + 2 * u64::from(header.num_tokens);
        if map.len() as u64 != expected {
            let tokens = count(u64::from(header.num_tokens));
            return Err(wrong(format!(
                "{} bytes, where {tokens} tokens take {}: it was cut, or is still being written",
                count(map.len() as u64),
                count(expected)
            )));
        }
        Ok(Self { path: path.to_owned(), header, map })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens in it.
    pub fn num_tokens(&self) -> u64 {
        u64::from(self.header.num_tokens)
    }

    /// What its header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What tells it from other shards: the sum of its tokens, or, where its header has none, their number and the file's name.
    pub fn identity(&self) -> String {
        match self.header.own {
            Some(own) => crate::hex::digits(own.tokens_sum),
            None => format!("{} {}", self.path.file_name().unwrap_or_default().display(), self.header.num_tokens),
        }
    }

    /// Whether its tokens are those that were written; `None` if nobody can tell.
    pub fn is_intact(&self) -> Option<bool> {
        self.header.own.map(|own| own.tokens_sum[..] == Sha256::digest(&self.map[HEADER_BYTES..])[..])
    }

    /// Appends `len` tokens from `start` on, which it has.
    pub(super) fn read(&self, start: usize, len: usize, out: &mut Vec<u32>) -> Result<()> {
        let bytes = &self.map[HEADER_BYTES + 2 * start..HEADER_BYTES + 2 * (start + len)];
        let before = out.len();
        out.extend(bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))));
        // Of a whole slice: the maximum is found faster than each token is asked.
        let largest = out[before..].iter().copied().max().unwrap_or_default();
        if largest as usize >= VOCAB_SIZE {
            let at = out[before..].iter().position(|&token| token as usize >= VOCAB_SIZE).unwrap_or_default();
            let path = self.path.display();
            return Err(input(format!(
                "{path}: token {} is {largest}, which GPT-2's vocabulary does not have: the file is damaged, or of another \
                 tokenizer",
                count((start + at) as u64)
            )));
        }
        Ok(())
    }
}
