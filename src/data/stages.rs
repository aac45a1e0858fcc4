//! How the stages of reading are doing: what each one has done so far, and which one everybody waits for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
