//! The stream of a recipe's text, written to token shards once.
//!
//! A shard is written beside its place and renamed when it is whole, and what is done is written down after that, with the
//! cursor behind it: a program that is killed goes on after the last whole shard. An orderly end makes a short shard of what
//! is there.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::format::{HEADER_BYTES, Header, Own};
use crate::data::{Corpus, Cursor, Opened, TokenStream};
use crate::error::{Failure, input};
use crate::interrupt::{self, Stop, StopOnDrop};
use crate::{lock, whole_file};

/// Documents that are kept for the held-out loss and for scoring, at most: as many as pages are drawn from.
const HELD_OUT_DOCUMENTS: usize = 10_000;
/// Tokens that are read and written at once.
const SLICE: usize = 1 << 18;
const STATE: &str = "prepare.json";
/// Where [`Corpus::record`] stands in what is said of the text.
pub const RECORD: &str = "record";
const HELD_OUT: &str = "held-out.bin";

/// What is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Tokens in all.
    pub num_tokens: u64,
    /// Tokens of a shard.
    pub shard_tokens: u64,
}

/// What is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// What the text is.
    text: Map<String, Value>,
    /// Whole shards.
    shards: u64,
    /// Tokens in them.
    tokens: u64,
    /// The place behind them.
    cursor: Cursor,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens that lie in whole shards or are on their way there.
    pub tokens: u64,
    /// Tokens that were there when this program began.
    pub before: u64,
    /// Shards begun or written.
    pub shards: u64,
}

/// Writes token shards into a folder, or goes on where it was left, and tells now and then how far it is. `text`: what
/// determines the stream, with which a folder goes on only.
///
/// # Errors
/// The folder holds another text, the disk is full, the text is none. [`Failure::Interrupted`](crate::error::Failure) after an
/// orderly end, when what was read is written.
pub fn run(
    data: &Opened,
    text: Map<String, Value>,
    dir: &Path,
    wanted: Wanted,
    tell: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let shown = dir.display();
    if !matches!(data.training, Corpus::Text(_)) {
        return Err(prepared_already());
    }
    if dir.exists() && !dir.is_dir() {
        return Err(input(format!("--out: {shown} is a file: name a folder")));
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {shown}"))?;
    let _lock = lock::take(&dir.join(".lock"), |holder| format!("{shown} is being written by {holder}"))?;
    let known = read_state(dir, &text)?;
    super::check_complete(dir, &super::files_of(dir))?;
    let max_document_tokens = data.reading.packing.max_document_tokens.map_or(0, |max| max as u32);
    // Without a state a held-out file that is there may be another text's.
    let mut state = match known {
        Some(state) => state,
        None => {
            write_held_out(data, dir, max_document_tokens)?;
            let state = State { text, ..State::default() };
            state.write(dir)?;
            state
        }
    };
    let before = state.tokens;
    let stop = Stop::default();
    let _stop = StopOnDrop(stop.clone());
    let mut stream = data.training.stream(&data.reading, state.cursor.clone(), stop)?;
    while state.tokens < wanted.num_tokens {
        let want = wanted.shard_tokens.min(wanted.num_tokens - state.tokens);
        let path = dir.join(shard_name(state.shards));
        let mut shard = ShardWriter::create(&path, max_document_tokens)?;
        let read = fill(&mut stream, &mut shard, want, &mut |written| {
            tell(Progress { tokens: state.tokens + written, before, shards: state.shards + 1 });
        })?;
        // What was read before an error or an orderly end is sound, and worth its download.
        keep(shard, &mut state, &stream, dir)?;
        read?;
    }
    Ok(Progress { tokens: state.tokens, before, shards: state.shards })
}

/// The error of a recipe whose text is tokens.
pub fn prepared_already() -> anyhow::Error {
    input("data.source: tokens is prepared already; name a recipe of the text itself")
}

/// Takes a shard's tokens from the stream until it has them all, or until no more can be read, and why; every token that the
/// stream gave is written then. An error of the writing is one of the whole.
fn fill(stream: &mut TokenStream, shard: &mut ShardWriter, want: u64, tell: &mut dyn FnMut(u64)) -> Result<Result<()>> {
    let mut tokens = Vec::with_capacity(SLICE);
    while shard.num_tokens < want {
        let interrupted = || Failure::Interrupted("interrupted: what was read is written".to_owned());
        if interrupt::requested() {
            return Ok(Err(interrupted().into()));
        }
        let count = usize::try_from(want - shard.num_tokens).unwrap_or(SLICE).min(SLICE);
        tokens.clear();
        let read = stream.take(count, &mut tokens);
        shard.write(&tokens)?;
        match read {
            Err(_) if interrupt::requested() => return Ok(Err(interrupted().into())),
            Err(error) => return Ok(Err(error)),
            Ok(()) => tell(shard.num_tokens),
        }
    }
    Ok(Ok(()))
}

/// Puts a shard in its place, and writes down that it is there; an empty one is dropped.
fn keep(shard: ShardWriter, state: &mut State, stream: &TokenStream, dir: &Path) -> Result<()> {
    let num_tokens = shard.num_tokens;
    if num_tokens == 0 {
        return fs::remove_file(&shard.part).with_context(|| format!("cannot remove {}", shard.part.display()));
    }
    shard.finish()?;
    state.shards += 1;
    state.tokens += num_tokens;
    state.cursor = stream.cursor();
    state.write(dir)
}

impl State {
    fn write(&self, dir: &Path) -> Result<()> {
        whole_file::write(&dir.join(STATE), &serde_json::to_vec_pretty(self).expect("a state is JSON"))
    }
}

/// What a folder was prepared of, and how much of it is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// What determines the stream.
    pub text: Map<String, Value>,
    /// Shards that are whole.
    pub shards: u64,
    /// Tokens in them.
    pub tokens: u64,
}

/// What is known of a folder, if it was prepared here.
pub fn known(dir: &Path) -> Option<Prepared> {
    let State { text, shards, tokens, .. } = serde_json::from_slice(&fs::read(dir.join(STATE)).ok()?).ok()?;
    Some(Prepared { text, shards, tokens })
}

/// The name of a shard by its number.
pub(super) fn shard_name(number: u64) -> String {
    format!("train-{number:06}.bin")
}

fn read_state(dir: &Path, text: &Map<String, Value>) -> Result<Option<State>> {
    let path = dir.join(STATE);
    let shown = path.display();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // The held-out file is written first, and may be all there is.
            return match super::files_of(dir).iter().all(|path| path.ends_with(HELD_OUT)) {
                true => Ok(None),
                false => Err(input(format!(
                    "{}: there are token shards, but no {STATE} that says what they are of: name another folder",
                    dir.display()
                ))),
            };
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    let state: State = serde_json::from_slice(&bytes)
        .map_err(|error| input(format!("{shown} is damaged ({error}); name another folder")))?;
    let differs = text.iter().find(|(key, value)| state.text.get(*key) != Some(value));
    match differs {
        None => Ok(Some(state)),
        Some((key, value)) => Err(input(format!(
            "{} holds the tokens of another text: its {key} is {}, not {value}: name another folder",
            dir.display(),
            state.text.get(key).unwrap_or(&Value::Null)
        ))),
    }
}

fn write_held_out(data: &Opened, dir: &Path, max_document_tokens: u32) -> Result<()> {
    let mut shard = ShardWriter::create(&dir.join(HELD_OUT), max_document_tokens)?;
    let (mut num_documents, mut written) = (0, Ok(()));
    data.held_out.each_document(&data.reading, data.reading.packing.max_document_tokens, |document| {
        written = shard.write(document.tokens);
        num_documents += 1;
        match written.is_err() || num_documents == HELD_OUT_DOCUMENTS || interrupt::requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    written?;
    if interrupt::requested() {
        return Err(Failure::Interrupted("interrupted before anything was written".to_owned()).into());
    }
    shard.finish()
}

/// A shard on its way to its place.
struct ShardWriter {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    sum: Sha256,
    num_tokens: u64,
    max_document_tokens: u32,
}

impl ShardWriter {
    fn create(path: &Path, max_document_tokens: u32) -> Result<Self> {
        let part = path.with_extension("bin.part");
        let shown = part.display();
        let file = File::create(&part).with_context(|| format!("cannot make {shown}"))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&[0; HEADER_BYTES]).with_context(|| format!("cannot write {shown}"))?;
        Ok(Self { path: path.to_owned(), part, file, sum: Sha256::new(), num_tokens: 0, max_document_tokens })
    }

    fn write(&mut self, tokens: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect();
        self.file.write_all(&bytes).with_context(|| format!("cannot write {}", self.part.display()))?;
        self.sum.update(&bytes);
        self.num_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Puts it in its place, on disk as a whole.
    fn finish(self) -> Result<()> {
        let Self { path, part, mut file, sum, num_tokens, max_document_tokens } = self;
        let num_tokens = u32::try_from(num_tokens).context("a shard has more tokens than its header can tell")?;
        let own = Own { max_document_tokens, tokens_sum: sum.finalize().into() };
        let header = Header { num_tokens, own: Some(own) }.to_bytes();
        let mut write = || -> std::io::Result<()> {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)?;
            file.flush()?;
            file.get_ref().sync_all()?;
            fs::rename(&part, &path)?;
            File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}
