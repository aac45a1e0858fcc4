//! What is known of the shards' row groups: learned from their footers, and kept on disk so that it is learned once.
//!
//! The file has a line for each shard, in the order in which they were learned, and is only added to. Each line holds a sum
//! of itself: what a process that died has left of one, and whatever else is no such line, counts as not there. One process
//! of a machine learns at a time; the others wait and read what it has written.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::footer::{self, Footer, Group, TAIL_BYTES};
use super::store::{ShardFile, Store, undamaged};
use crate::error::{Failure, failure};
use crate::figures::count;
use crate::hex;
use crate::hub::progress::Told;
use crate::interrupt::Stop;
use crate::lock;

/// Footers that are read at once.
const FOOTERS_IN_FLIGHT: usize = 8;
/// So much of a shard's end is read first, in the hope that its footer lies in it; later, as much as other footers took.
const FIRST_GUESS_BYTES: u64 = 64 << 10;
const LARGEST_GUESS_BYTES: u64 = 4 << 20;
/// After so long, another process that learns is worth a note.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// How often it is told how many footers have been read.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What is known of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Indexed {
    path: String,
    bytes: u64,
    sum: Option<String>,
    column: String,
    /// Whether rows may be null.
    pub(super) is_nullable: bool,
    pub(super) groups: Vec<Group>,
}

impl Indexed {
    fn new(shard: &ShardFile, column: &str, footer: Footer) -> Self {
        let ShardFile { path, bytes, sum } = shard.clone();
        Self { path, bytes, sum, column: column.to_owned(), is_nullable: footer.is_nullable, groups: footer.groups }
    }

    /// One of these row groups, of a shard of which nothing else matters.
    #[cfg(test)]
    pub(super) fn with_groups(groups: Vec<Group>) -> Self {
        let file = ShardFile { path: String::new(), bytes: 0, sum: None };
        Self::new(&file, "content", Footer { is_nullable: true, groups })
    }

    fn is_of(&self, shard: &ShardFile) -> bool {
        (&self.path, self.bytes, &self.sum) == (&shard.path, shard.bytes, &shard.sum)
    }

    pub(super) fn rows(&self) -> u64 {
        self.groups.iter().map(|group| group.rows).sum()
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    sha256: String,
    shard: Indexed,
}

impl Line {
    fn new(shard: &Indexed) -> Result<Self> {
        Ok(Self { sha256: hex::digits(Sha256::digest(serde_json::to_vec(shard)?)), shard: shard.clone() })
    }

    fn is_whole(&self) -> bool {
        Self::new(&self.shard).is_ok_and(|line| line.sha256 == self.sha256)
    }
}

/// What is known of the first `num_shards` shards of a store, learned where it is not known yet.
pub(super) fn of(store: &dyn Store, column: &str, num_shards: usize, cache: &Path) -> Result<Vec<Indexed>> {
    let mut known: Vec<Option<Indexed>> = vec![None; num_shards];
    let warn = |error: &anyhow::Error| {
        let name = store.name();
        store.tell(Told::Warns(&format!("the footers of {name} are not kept, and will be read again: {error:#}")));
    };
    let mut kept = match store.index_file(cache).map(|path| Kept::open(store, path, column, &mut known)).transpose() {
        Ok(kept) => kept.flatten(),
        Err(error) if matches!(failure(&error), Some(Failure::Interrupted(_))) => return Err(error),
        Err(error) => {
            warn(&error);
            None
        }
    };
    learn(store, column, &mut known, |shard| {
        if let Some(Err(error)) = kept.as_mut().map(|kept| kept.add(shard)) {
            warn(&error);
            kept = None;
        }
    })?;
    Ok(known.into_iter().flatten().collect())
}

/// The file, to which nobody else adds anything.
struct Kept {
    path: PathBuf,
    file: File,
    _lock: File,
}

impl Kept {
    /// Reads what is known; `None`: that is all there is to know.
    fn open(store: &dyn Store, path: PathBuf, column: &str, known: &mut [Option<Indexed>]) -> Result<Option<Self>> {
        let shards = &store.shards()[..known.len()];
        recall(&path, column, shards, known)?;
        if known.iter().all(Option::is_some) {
            return Ok(None);
        }
        let lock = lock(store, &path)?;
        // Another process may have learned it meanwhile.
        recall(&path, column, shards, known)?;
        let file = append(&path)?;
        Ok(Some(Self { path, file, _lock: lock }))
    }

    /// Adds what was learned of a shard.
    fn add(&mut self, shard: &Indexed) -> Result<()> {
        let mut line = serde_json::to_vec(&Line::new(shard)?)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Reads what the file knows of shards.
fn recall(path: &Path, column: &str, shards: &[ShardFile], known: &mut [Option<Indexed>]) -> Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let numbers: HashMap<&str, usize> =
        shards.iter().enumerate().map(|(number, shard)| (&*shard.path, number)).collect();
    let (mut reader, mut bytes) = (BufReader::new(file), Vec::new());
    while reader.read_until(b'\n', &mut bytes).with_context(|| format!("cannot read {}", path.display()))? > 0 {
        let line = serde_json::from_slice::<Line>(&bytes).ok().filter(|line| line.shard.column == column);
        bytes.clear();
        let Some(line) = line else { continue };
        let Some(&number) = numbers.get(&*line.shard.path) else { continue };
        if line.shard.is_of(&shards[number]) && line.is_whole() {
            known[number] = Some(line.shard);
        }
    }
    Ok(())
}

/// Waits until no other process learns the same.
fn lock(store: &dyn Store, path: &Path) -> Result<File> {
    let folder = path.parent().context("an index lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let path = path.with_extension("lock");
    if let Some(lock) = lock::wait(&path, SHORT_WAIT)? {
        return Ok(lock);
    }
    let waiting = format!("waiting for another process that reads the footers of {}", store.name());
    store.tell(Told::Waits(&waiting));
    lock::wait(&path, Duration::MAX)?.with_context(|| format!("cannot lock {}", path.display()))
}

/// Opens the file to add lines to it.
fn append(path: &Path) -> Result<File> {
    let context = || format!("cannot write {}", path.display());
    let mut file = OpenOptions::new().append(true).create(true).open(path).with_context(context)?;
    // Ends what may be left of a line.
    file.write_all(b"\n").with_context(context)?;
    Ok(file)
}

/// Learns what is not known, several shards at once, and hands each to `keep`.
fn learn(store: &dyn Store, column: &str, known: &mut [Option<Indexed>], mut keep: impl FnMut(&Indexed)) -> Result<()> {
    let missing: Vec<usize> = (0..known.len()).filter(|&number| known[number].is_none()).collect();
    let mut told = Instant::now();
    let (next, guess, stop) = (AtomicUsize::new(0), AtomicU64::new(FIRST_GUESS_BYTES), Stop::of_this_thread());
    let mut failed = None;
    thread::scope(|scope| {
        let (learned, to_keep) = mpsc::sync_channel(FOOTERS_IN_FLIGHT);
        for _ in 0..FOOTERS_IN_FLIGHT.min(missing.len()) {
            let (learned, stop, missing, next, guess) = (learned.clone(), stop.clone(), &missing, &next, &guess);
            scope.spawn(move || {
                stop.watch();
                while let Some(&number) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if learned.send((number, learn_one(store, number, column, guess))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(learned);
        for ((number, shard), num_done) in to_keep.into_iter().zip(1_u64..) {
            match shard {
                Ok(shard) => {
                    keep(&shard);
                    known[number] = Some(shard);
                }
                Err(error) => {
                    // What is on its way is still kept.
                    next.store(missing.len(), Ordering::Relaxed);
                    failed.get_or_insert(error);
                }
            }
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                let (done, all) = (count(num_done), count(missing.len() as u64));
                store.tell(Told::Waits(&format!("reading the footers of {}: {done} of {all} shards", store.name())));
            }
        }
    });
    failed.map_or(Ok(()), Err)
}

/// Reads the footer of a shard.
fn learn_one(store: &dyn Store, number: usize, column: &str, guess: &AtomicU64) -> Result<Indexed> {
    let shard = &store.shards()[number];
    let what = format!("{} of {}", shard.path, store.name());
    let footer = undamaged(store, number, &what, || {
        let guessed = guess.load(Ordering::Relaxed).min(shard.bytes);
        if guessed < TAIL_BYTES {
            return Err("it is no parquet file".to_owned().into());
        }
        let mut end = store.read(number, shard.bytes - guessed..shard.bytes, &what)?;
        let tail = end.split_off(end.len() - TAIL_BYTES as usize);
        let len = footer::len(&tail, shard.bytes, &what)?;
        guess.fetch_max((len + TAIL_BYTES).min(LARGEST_GUESS_BYTES), Ordering::Relaxed);
        let bytes = match end.len().checked_sub(len as usize) {
            Some(start) => end.slice(start..),
            None => store.read(number, shard.bytes - TAIL_BYTES - len..shard.bytes - TAIL_BYTES, &what)?,
        };
        footer::read(&bytes, column, shard.bytes, &what)
    })?;
    Ok(Indexed::new(shard, column, footer))
}
