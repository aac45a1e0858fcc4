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
use crate::error::input;
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
        return Err(input("data.source: tokens is prepared already; name a recipe of the text itself"));
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {shown}"))?;
    let _lock = lock::take(&dir.join(".lock"), |holder| format!("{shown} is being written by {holder}"))?;
    let mut state = read_state(dir, &text)?;
    state.text = text;
    let max_document_tokens = data.reading.packing.max_document_tokens.map_or(0, |max| max as u32);
    let before = state.tokens;
    if !dir.join(HELD_OUT).exists() {
        write_held_out(data, dir, max_document_tokens)?;
    }
    let stop = Stop::default();
    let _stop = StopOnDrop(stop.clone());
    let mut stream = data.training.stream(&data.reading, state.cursor.clone(), stop)?;
    while state.tokens < wanted.num_tokens {
        let want = wanted.shard_tokens.min(wanted.num_tokens - state.tokens);
        let path = dir.join(format!("train-{:06}.bin", state.shards));
        let mut shard = ShardWriter::create(&path, max_document_tokens)?;
        let ended = fill(&mut stream, &mut shard, want, &mut |written| {
            tell(Progress { tokens: state.tokens + written, before, shards: state.shards + 1 });
        });
        let interrupted = match ended {
            Ok(()) => None,
            Err(error) if interrupt::requested() => Some(error),
            // What was read before is sound, and worth its download.
            Err(error) => {
                keep(shard, &mut state, &stream, dir)?;
                return Err(error);
            }
        };
        keep(shard, &mut state, &stream, dir)?;
        if let Some(error) = interrupted {
            return Err(error);
        }
    }
    Ok(Progress { tokens: state.tokens, before, shards: state.shards })
}

/// Takes a shard's tokens from the stream.
fn fill(stream: &mut TokenStream, shard: &mut ShardWriter, want: u64, tell: &mut dyn FnMut(u64)) -> Result<()> {
    let mut tokens = Vec::with_capacity(SLICE);
    while shard.num_tokens < want {
        if interrupt::requested() {
            return Err(crate::error::Failure::Interrupted("interrupted: what was read is written".to_owned()).into());
        }
        let count = usize::try_from(want - shard.num_tokens).unwrap_or(SLICE).min(SLICE);
        tokens.clear();
        stream.take(count, &mut tokens)?;
        shard.write(&tokens)?;
        tell(shard.num_tokens);
    }
    Ok(())
}

/// Puts a shard in its place, and writes down that it is there; an empty one is dropped.
fn keep(shard: ShardWriter, state: &mut State, stream: &TokenStream, dir: &Path) -> Result<()> {
    let num_tokens = shard.num_tokens;
    if num_tokens == 0 {
        return Ok(());
    }
    shard.finish()?;
    *state =
        State { shards: state.shards + 1, tokens: state.tokens + num_tokens, cursor: stream.cursor(), ..state.clone() };
    let bytes = serde_json::to_vec_pretty(state).expect("a state is JSON");
    whole_file::write(&dir.join(STATE), &bytes)
}

/// The record of the text that a folder holds the tokens of, if it holds some.
pub fn known_record(dir: &Path) -> Option<Map<String, Value>> {
    let state: State = serde_json::from_slice(&fs::read(dir.join(STATE)).ok()?).ok()?;
    state.text.get(RECORD)?.as_object().cloned()
}

fn read_state(dir: &Path, text: &Map<String, Value>) -> Result<State> {
    let path = dir.join(STATE);
    let shown = path.display();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let others = super::find(dir, &mut Vec::new()).is_ok();
            return match others {
                false => Ok(State::default()),
                true if dir.join(HELD_OUT).exists() && !dir.join("train-000000.bin").exists() => Ok(State::default()),
                true => Err(input(format!(
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
        None => Ok(state),
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
    data.held_out.each_document(&data.reading, data.reading.packing.max_document_tokens, |document, _| {
        written = shard.write(document);
        num_documents += 1;
        match written.is_err() || num_documents == HELD_OUT_DOCUMENTS || interrupt::requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    written?;
    if interrupt::requested() {
        return Err(crate::error::Failure::Interrupted("interrupted before anything was written".to_owned()).into());
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
        self.sum.update(&bytes);
        self.num_tokens += tokens.len() as u64;
        self.file.write_all(&bytes).with_context(|| format!("cannot write {}", self.part.display()))
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
