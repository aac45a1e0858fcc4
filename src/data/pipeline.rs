//! Threads between a source and the stream: one walks over documents, some tokenize, and what they make comes out in order.
//!
//! Documents travel in chunks, so that a queue costs nothing beside tokenizing. The walker hands each chunk to whoever is free,
//! together with where its tokens are to go, and queues the other end of that in order: a bounded queue of promises.

use std::sync::mpsc::{Receiver, RecvError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::packing::Packing;
use super::stages::{Stage, Stages};
use super::tokenizer::Tokenizer;
use super::walk::{Event, Walk};
use crate::interrupt::Stop;

/// A chunk is full at so many bytes of text: milliseconds of tokenizing.
const CHUNK_BYTES: usize = 64 << 10;
/// Or at so many documents and ends of shards.
const CHUNK_EVENTS: usize = 1024;
/// Or when it has waited so long for documents that come slowly.
const CHUNK_TIME: Duration = Duration::from_millis(20);
/// Chunks that may be tokenized or ready, beside those that tokenizers work on.
const QUEUED_CHUNKS: usize = 16;

/// Documents on their way to a tokenizer.
#[derive(Default)]
struct Texts {
    events: Vec<Event>,
    bytes: usize,
}

/// Tokenized documents.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Tokens of all of them.
    pub(super) tokens: Vec<u32>,
    /// Tokens of each document, at least its end-of-text; 0: a shard ends here.
    pub(super) lengths: Vec<u32>,
}

type Promise = Receiver<Result<Chunk>>;
type Job = (Texts, SyncSender<Result<Chunk>>);

/// Chunks in order.
pub(super) struct Pipeline {
    promises: Receiver<Promise>,
}

/// How a pipeline works.
pub(super) struct Means {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) packing: Packing,
    pub(super) stages: Arc<Stages>,
    /// At least one.
    pub(super) tokenizer_threads: usize,
    /// Ends all threads soon.
    pub(super) stop: Stop,
}

impl Pipeline {
    /// Starts the threads. They end when the pipeline is dropped, or by `stop`.
    pub(super) fn start(walk: impl FnOnce() -> Result<Walk> + Send + 'static, means: Means) -> Result<Self> {
        let Means { tokenizer, packing, stages, tokenizer_threads, stop } = means;
        let (promise, promises) = sync_channel::<Promise>(QUEUED_CHUNKS);
        let (job, jobs) = sync_channel::<Job>(tokenizer_threads);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..tokenizer_threads {
            let (jobs, tokenizer, stages) = (Arc::clone(&jobs), Arc::clone(&tokenizer), Arc::clone(&stages));
            thread::Builder::new().name("tokenizer".to_owned()).spawn(move || {
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((texts, done)) = job else { return };
                    // Nobody may wait for it any more.
                    let _ = done.send(Ok(tokenize(&tokenizer, packing, &texts, &stages)));
                }
            })?;
        }
        thread::Builder::new().name("documents".to_owned()).spawn(move || {
            stop.watch();
            hand_out(walk, &job, &promise);
        })?;
        Ok(Self { promises })
    }

    /// The next chunk. After an error there is none.
    pub(super) fn next(&self) -> Result<Chunk> {
        let ended = |_: RecvError| anyhow!("a thread that reads or tokenizes data has panicked");
        self.promises.recv().map_err(ended)?.recv().map_err(ended)?
    }
}

/// Walks until an error, or until nobody wants more.
fn hand_out(walk: impl FnOnce() -> Result<Walk>, job: &SyncSender<Job>, promise: &SyncSender<Promise>) {
    let send = |texts: Texts| {
        let (done, result) = sync_channel(1);
        promise.send(result).is_ok() && job.send((texts, done)).is_ok()
    };
    let fail = |error| {
        let (done, result) = sync_channel(1);
        let _ = done.send(Err(error));
        let _ = promise.send(result);
    };
    let mut walk = match walk() {
        Ok(walk) => walk,
        Err(error) => return fail(error),
    };
    let (mut texts, mut since) = (Texts::default(), Instant::now());
    loop {
        match walk.next() {
            Ok(event) => {
                if let Event::Document(text) = &event {
                    texts.bytes += text.len();
                }
                texts.events.push(event);
            }
            Err(error) => {
                if send(texts) {
                    fail(error);
                }
                return;
            }
        }
        let is_full = texts.bytes >= CHUNK_BYTES || texts.events.len() >= CHUNK_EVENTS;
        if is_full || since.elapsed() >= CHUNK_TIME {
            if !send(std::mem::take(&mut texts)) {
                return;
            }
            since = Instant::now();
        }
    }
}

fn tokenize(tokenizer: &Tokenizer, packing: Packing, texts: &Texts, stages: &Stages) -> Chunk {
    let _busy = stages.enter(Stage::Tokenize);
    let mut chunk = Chunk::default();
    for event in &texts.events {
        let start = chunk.tokens.len();
        if let Event::Document(text) = event {
            packing.pack(tokenizer, text, &mut chunk.tokens);
        }
        chunk.lengths.push((chunk.tokens.len() - start) as u32);
    }
    stages.add_bytes(Stage::Tokenize, texts.bytes as u64);
    chunk
}
