//! Token shards: the stream of a recipe written once (`assay data prepare`), and read at the speed of memory.
//!
//! A folder of them holds the global stream in its order, `train-000000.bin` and so on, and the held-out documents,
//! `held-out.bin`. Files of llm.c and of those who took its format over can be read as well.

mod format;
pub mod prepare;
mod shard;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::cursor::Cursor;
use super::tokenizer::END_OF_TEXT;
use crate::error::input;
pub use format::{HEADER_BYTES, Header};
pub use shard::Shard;

/// Tokens of one shard that `assay data prepare` writes: 200 MB.
pub const SHARD_TOKENS: u64 = 100_000_000;

/// Tokens that are read at once where documents are looked for.
const SLICE: usize = 1 << 16;

/// Shards of tokens in their order.
pub struct TokenShards {
    shards: Vec<Shard>,
    num_tokens: u64,
}

impl TokenShards {
    /// The shards of files, folders and globs: those to train on, and those held out, which have `held-out` or `val` in their
    /// names.
    pub fn open(paths: &[PathBuf]) -> Result<(Self, Self)> {
        let mut files = Vec::new();
        for path in paths {
            find(path, &mut files)?;
        }
        let mut seen = HashSet::new();
        files.retain(|path| seen.insert(std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())));
        paths.iter().try_for_each(|path| check_complete(path, &files))?;
        let (held_out, training): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|path| is_held_out(path));
        if training.is_empty() {
            return Err(input("data.paths: there is no token shard to train on; `assay data prepare` writes them"));
        }
        if held_out.is_empty() {
            return Err(input(
                "data.paths: no file with `held-out` or `val` in its name is among the token shards, and the held-out loss \
                 needs one; `assay data prepare` writes it",
            ));
        }
        Ok((Self::of(&training)?, Self::of(&held_out)?))
    }

    /// Refuses documents that were cut at another length than a recipe says; what other programs wrote tells none.
    pub fn check_cut(&self, max_document_tokens: Option<usize>) -> Result<()> {
        let wanted = max_document_tokens.map_or(0, |max| max as u32);
        let other =
            self.shards.iter().find(|shard| shard.header().own.is_some_and(|own| own.max_document_tokens != wanted));
        match other.and_then(|shard| Some((shard, shard.header().own?))) {
            None => Ok(()),
            Some((shard, own)) => Err(input(format!(
                "{}: its documents are cut at {} tokens (0: nowhere), and data.max_document_tokens is {wanted}: set it to the \
                 same, or prepare the text anew",
                shard.path().display(),
                own.max_document_tokens
            ))),
        }
    }

    /// These files.
    pub fn of(files: &[PathBuf]) -> Result<Self> {
        let shards: Vec<Shard> = files.iter().map(|path| Shard::open(path)).collect::<Result<_>>()?;
        let num_tokens = shards.iter().map(Shard::num_tokens).sum();
        if num_tokens == 0 {
            return Err(input(format!("{}: there is no token in it", files[0].display())));
        }
        Ok(Self { shards, num_tokens })
    }

    /// Tokens of all shards.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// The shards.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// For messages.
    pub fn name(&self) -> String {
        let first = self.shards[0].path().display();
        match self.shards.len() {
            1 => first.to_string(),
            len => format!("{first} and {} other token shards", len - 1),
        }
    }

    /// What a run's records say of them.
    pub fn record(&self) -> Map<String, Value> {
        let sums: Vec<Value> = self.shards.iter().map(|shard| json!(shard.identity())).collect();
        Map::from_iter([
            ("tokens".to_owned(), json!(self.num_tokens)),
            ("shards".to_owned(), json!(self.shards.len())),
            ("identity".to_owned(), json!(crate::hex::digits(digest(&sums)))),
        ])
    }

    /// The documents, each without its end-of-text.
    pub fn documents(&self) -> impl Iterator<Item = Result<Vec<u32>>> + '_ {
        let (mut at, mut tokens, mut used) = (0, Vec::new(), 0);
        std::iter::from_fn(move || {
            let mut document = Vec::new();
            loop {
                if used == tokens.len() {
                    tokens.clear();
                    used = 0;
                    match self.read(at, SLICE, &mut tokens) {
                        Ok(0) => return (!document.is_empty()).then_some(Ok(document)),
                        Ok(read) => at += read as u64,
                        Err(error) => {
                            at = self.num_tokens;
                            tokens.clear();
                            return Some(Err(error));
                        }
                    }
                }
                let token = tokens[used];
                used += 1;
                if token == END_OF_TEXT {
                    return Some(Ok(document));
                }
                document.push(token);
            }
        })
    }

    /// Appends up to `count` tokens from a place on, as many as its shard has; how many.
    fn read(&self, mut at: u64, count: usize, out: &mut Vec<u32>) -> Result<usize> {
        for shard in &self.shards {
            if at < shard.num_tokens() {
                let available = usize::try_from(shard.num_tokens() - at).unwrap_or(usize::MAX).min(count);
                shard.read(at as usize, available, out)?;
                return Ok(available);
            }
            at -= shard.num_tokens();
        }
        Ok(0)
    }
}

fn digest(values: &[Value]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(Value::from(values.to_vec()).to_string()).into()
}

fn is_held_out(path: &Path) -> bool {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    name.contains("held-out") || name.split(['_', '-', '.']).any(|word| word == "val")
}

/// Refuses a prepared folder of which a shard is gone: training would pass over it without a word.
fn check_complete(path: &Path, files: &[PathBuf]) -> Result<()> {
    let Some(prepared) = prepare::known(path) else { return Ok(()) };
    let missing = (0..prepared.shards).map(prepare::shard_name).find(|name| !files.contains(&path.join(name)));
    match missing {
        None => Ok(()),
        Some(name) => Err(input(format!(
            "{}: the token shard {name} is missing, one of {}: bring it back, or prepare the text anew in another folder",
            path.display(),
            prepared.shards
        ))),
    }
}

fn is_shard(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "bin") && path.is_file()
}

/// The shards in a folder.
fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    // None is no error here.
    find(dir, &mut files).ok();
    files
}

/// The shards that a path names, sorted.
fn find(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let shown = path.display();
    let name = path.to_string_lossy();
    let mut found: Vec<PathBuf> = if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read the folder {shown}"))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>();
        paths
            .with_context(|| format!("cannot read the folder {shown}"))?
            .into_iter()
            .filter(|path| is_shard(path))
            .collect()
    } else if path.is_file() {
        vec![path.to_owned()]
    } else if name.contains(['*', '?', '[']) {
        let matches =
            glob::glob(&name).map_err(|error| input(format!("data.paths: {shown} is not a valid glob: {error}")))?;
        matches.filter_map(Result::ok).filter(|path| is_shard(path)).collect()
    } else {
        return Err(input(format!("data.paths: {shown} does not exist")));
    };
    if found.is_empty() {
        return Err(input(format!("data.paths: there is no token shard (.bin) in {shown}")));
    }
    found.sort_unstable();
    files.append(&mut found);
    Ok(())
}

/// The stream of token shards, from a place on, without end: after the last token comes the first.
pub struct TokenReader {
    shards: Arc<TokenShards>,
    /// Counted over all passes.
    at: u64,
}

impl TokenReader {
    /// At a cursor.
    pub(super) fn new(shards: Arc<TokenShards>, cursor: Cursor) -> Result<Self> {
        if !cursor.open.is_empty() {
            return Err(input(
                "the checkpoint was trained on text, and data.source: tokens has no such place; name the same source, or \
                 begin anew with --fresh",
            ));
        }
        Ok(Self { shards, at: cursor.token })
    }

    /// The first token that is not used yet.
    pub(super) fn cursor(&self) -> Cursor {
        Cursor { token: self.at, ..Cursor::default() }
    }

    /// Appends the next `count` tokens.
    pub fn take(&mut self, mut count: usize, out: &mut Vec<u32>) -> Result<()> {
        out.reserve(count);
        while count > 0 {
            let read = self.shards.read(self.at % self.shards.num_tokens(), count, out)?;
            self.at += read as u64;
            count -= read;
        }
        Ok(())
    }

    /// Passes over the next `count` tokens.
    pub fn skip(&mut self, count: usize) {
        self.at += count as u64;
    }
}

#[cfg(test)]
mod tests;
