//! How the stages of reading are doing: what each one has done so far, and which one everybody waits for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::figures::bytes;

/// A stage on the way from the data set to tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bytes come over the network, or from the disk.
    Network,
    /// Bytes become documents.
    Decode,
    /// Documents become tokens.
    Tokenize,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Network, Self::Decode, Self::Tokenize];

    /// Its name, in records and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Decode => "decode",
            Self::Tokenize => "tokenize",
        }
    }
}

/// What a stage has done.
#[derive(Debug, Default)]
struct Counter {
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    at_work: AtomicUsize,
}

/// Shared by all who read for one loader.
#[derive(Debug, Default)]
pub struct Stages {
    counters: [Counter; 3],
    documents: AtomicU64,
    skipped: AtomicU64,
    /// Why nothing comes, where somebody waits before he asks again.
    fault: Mutex<Option<String>>,
}

/// What a stage has done, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Done {
    /// The time that threads have spent in it, all together.
    pub busy: Duration,
    /// Bytes that it has let through: of the network as they came, else of text.
    pub bytes: u64,
    /// Threads that are in it now.
    pub at_work: usize,
}

impl Stages {
    /// Counts the time until the guard is dropped.
    pub fn enter(&self, stage: Stage) -> Busy<'_> {
        let counter = &self.counters[stage as usize];
        counter.at_work.fetch_add(1, Ordering::Relaxed);
        Busy { counter, since: Instant::now() }
    }

    /// Counts bytes that a stage has let through.
    pub fn add_bytes(&self, stage: Stage, bytes: u64) {
        self.counters[stage as usize].bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts documents.
    pub fn add_documents(&self, count: u64) {
        self.documents.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts rows of the data set that are no text: null, or not UTF-8.
    pub fn skip(&self, count: u64) {
        self.skipped.fetch_add(count, Ordering::Relaxed);
    }

    /// What a stage has done so far.
    pub fn done(&self, stage: Stage) -> Done {
        let Counter { nanoseconds, bytes, at_work } = &self.counters[stage as usize];
        Done {
            busy: Duration::from_nanos(nanoseconds.load(Ordering::Relaxed)),
            bytes: bytes.load(Ordering::Relaxed),
            at_work: at_work.load(Ordering::Relaxed),
        }
    }

    /// The stage that the others wait for: the last one at which somebody is at work, for whoever has nothing to do waits for
    /// those before.
    pub fn starving(&self) -> Option<Stage> {
        let at_work = Stage::ALL.into_iter().rev().find(|stage| self.done(*stage).at_work > 0);
        at_work.or_else(|| self.fault().is_some().then_some(Stage::Network))
    }

    /// Keeps why nothing comes, or forgets it.
    pub(super) fn set_fault(&self, fault: Option<&anyhow::Error>) {
        *self.fault() = fault.map(|fault| format!("{fault:#}"));
    }

    fn fault(&self) -> MutexGuard<'_, Option<String>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is said of a wait for data that has become long.
    pub fn stall(&self, waited: Duration) -> String {
        let seconds = waited.as_secs();
        if let Some(fault) = &*self.fault() {
            return format!("no data for {seconds} s, and it is asked for again and again: {fault}");
        }
        match self.starving() {
            Some(Stage::Network) => format!(
                "no data for {seconds} s: the network starves training ({} requests under way, {} so far)",
                self.done(Stage::Network).at_work,
                bytes(self.done(Stage::Network).bytes)
            ),
            Some(Stage::Decode) => format!("no data for {seconds} s: decoding shards starves training"),
            Some(Stage::Tokenize) => {
                format!("no data for {seconds} s: tokenizing starves training; give it more data.tokenizer_threads")
            }
            None => format!("no data for {seconds} s: the text is waited for"),
        }
    }

    /// Documents so far.
    pub fn documents(&self) -> u64 {
        self.documents.load(Ordering::Relaxed)
    }

    /// Rows that were no text so far.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

/// A thread is at work in a stage.
pub struct Busy<'a> {
    counter: &'a Counter,
    since: Instant,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.counter.at_work.fetch_sub(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counter.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}
