//! Tokens that were made before, from the page cache.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::speed::{Speed, reading};
use crate::data::tokens::{Header, TokenShards};
use crate::data::{Corpus, Cursor};
use crate::interrupt::Stop;

/// Tokens of the shard: 100 MB, more than a processor's caches hold.
const NUM_TOKENS: u32 = 50_000_000;
/// Tokens that are taken at once, as for a step.
const SLICE: usize = 1 << 19;
/// Bytes of a token on disk.
const TOKEN_BYTES: usize = 2;

/// Bytes of token shards a second, on one core, from a file that is made in a folder.
pub(super) fn measure(dir: &Path) -> Result<Speed> {
    let path = dir.join("tokens.bin");
    write(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let corpus = Corpus::Tokens(Arc::new(TokenShards::of(&[path])?));
    let mut stream = corpus.stream(&reading()?, Cursor::default(), Stop::default())?;
    let mut tokens = Vec::with_capacity(SLICE);
    Speed::measure(|| {
        // The whole file at once: its pages are first touched in the part that is not counted.
        for _ in 0..NUM_TOKENS as usize / SLICE {
            tokens.clear();
            stream.take(SLICE, &mut tokens)?;
        }
        Ok((NUM_TOKENS as usize / SLICE * SLICE * TOKEN_BYTES) as u64)
    })
}

/// Tokens of no meaning.
fn write(path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&Header { num_tokens: NUM_TOKENS, own: None }.to_bytes())?;
    for number in 0..NUM_TOKENS {
        let token = number.wrapping_mul(2_654_435_761) >> 17;
        file.write_all(&(token as u16).to_le_bytes())?;
    }
    file.flush()
}
