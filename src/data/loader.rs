//! Batches ahead of time: a thread reads, tokenizes and packs while the device computes.
//!
//! Rows are numbered over the whole stream, and rank `r` of `w` gets rows `r`, `r + w`, …: a micro-step of all ranks
//! uses the same rows whatever their number, and every rank knows the cursor after it without asking the others. Each
//! rank reads the whole stream and passes over the others' rows: tokenizing is cheap beside training.
//!
//! The thread owns the stream and speaks through a bounded queue, so it is never far ahead; the cursor that counts is the
//! batch's own. It ends when the loader is dropped: at the next document, or when it finds nobody to hand a batch to.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::packing::{Packing, Stream};
use super::source::{Documents, Source};
use super::tokenizer::Tokenizer;
use super::{Batch, Cursor};
use crate::dist::World;

/// How often a wait looks for Ctrl-C.
const POLL: Duration = Duration::from_millis(50);

/// Batches that may lie ready: enough to ride over a page that arrives late.
const QUEUED_BATCHES: usize = 8;

/// What a batch looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderShape {
    /// Tokens per row.
    pub row_len: usize,
    /// Rows per rank and micro-step.
    pub rows_per_batch: usize,
}

/// The batches of one rank, in order, without end.
pub struct Loader {
    batches: Receiver<Result<Batch>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    interrupted: fn() -> bool,
    waited: Duration,
}

impl Loader {
    /// Starts reading at a cursor, the default one for the start. Wrong data and a cursor that does not fit it are
    /// errors of the first [`next_batch`](Self::next_batch).
    pub fn new(
        source: Arc<dyn Source>,
        tokenizer: Arc<Tokenizer>,
        packing: Packing,
        shape: LoaderShape,
        world: World,
        cursor: Cursor,
    ) -> Result<Self> {
        if shape.row_len == 0 || shape.rows_per_batch == 0 || world.rank >= world.size {
            bail!("no batch has {shape:?} on {world:?}");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let source: Arc<dyn Source> = Arc::new(Stoppable { source, stop: stop.clone() });
        let (sender, batches) = sync_channel(QUEUED_BATCHES);
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(move || {
            if let Err(error) = Stream::new(source, tokenizer, packing, cursor)
                .and_then(|stream| produce(stream, shape, world, &sender))
            {
                // Nobody listening means that the loader is gone, and the error with it.
                let _ = sender.send(Err(error));
            }
        })?;
        let interrupted = crate::interrupt::requested;
        Ok(Self { batches, thread: Some(thread), stop, interrupted, waited: Duration::ZERO })
    }

    /// The next batch; `None` if the user asked for an end while it was being waited for. After an error there is no
    /// other batch.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let start = Instant::now();
        let next = loop {
            match self.batches.recv_timeout(POLL) {
                Ok(batch) => break batch.map(Some),
                Err(RecvTimeoutError::Timeout) if (self.interrupted)() => break Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Err(self.how_it_ended()),
            }
        };
        self.waited += start.elapsed();
        next
    }

    /// The time that [`next_batch`](Self::next_batch) has waited so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn how_it_ended(&mut self) -> anyhow::Error {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => anyhow!("the thread that reads data panicked: {}", panic_message(panic.as_ref())),
            _ => anyhow!("the thread that reads data has ended, because of the error that was reported before"),
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Not joined: it may be waiting for a disk, and holds nothing that anyone else needs.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends batches until the receiver is gone.
fn produce(mut stream: Stream, shape: LoaderShape, world: World, sender: &SyncSender<Result<Batch>>) -> Result<()> {
    let LoaderShape { row_len, rows_per_batch } = shape;
    loop {
        let mut tokens = Vec::with_capacity(row_len * rows_per_batch);
        for _ in 0..rows_per_batch {
            stream.skip(world.rank * row_len)?;
            stream.take(row_len, &mut tokens)?;
            stream.skip((world.size - 1 - world.rank) * row_len)?;
        }
        let batch = Batch { tokens, num_rows: rows_per_batch, row_len, cursor_after: stream.cursor() };
        if sender.send(Ok(batch)).is_err() {
            return Ok(());
        }
    }
}

/// A source that ends with an error at the next document once it is told to stop.
struct Stoppable {
    source: Arc<dyn Source>,
    stop: Arc<AtomicBool>,
}

impl Source for Stoppable {
    fn name(&self) -> String {
        self.source.name()
    }

    fn num_shards(&self) -> u64 {
        self.source.num_shards()
    }

    fn documents(&self, shard: u64, from: u64, seed: Option<u64>) -> Result<Documents> {
        let stop = self.stop.clone();
        let documents = self.source.documents(shard, from, seed)?;
        Ok(Box::new(documents.map(move |document| match stop.load(Ordering::Relaxed) {
            true => Err(anyhow!("nobody needs more data")),
            false => document,
        })))
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::packing::tests::{Fixed, TOKENIZER, random_source};
    use super::*;
    use crate::error::{exit_code, input};

    const PACKING: Packing = Packing { max_document_tokens: Some(50), shuffle_seed: Some(9) };

    fn loader(source: Arc<dyn Source>, shape: (usize, usize), world: (usize, usize), cursor: Cursor) -> Loader {
        let shape = LoaderShape { row_len: shape.0, rows_per_batch: shape.1 };
        let world = World { rank: world.0, size: world.1 };
        Loader::new(source, TOKENIZER.clone(), PACKING, shape, world, cursor).unwrap()
    }

    fn batches(loader: &mut Loader, count: usize) -> Vec<Batch> {
        (0..count).map(|_| loader.next_batch().unwrap().unwrap()).collect()
    }

    #[test]
    fn any_number_of_ranks_shares_the_same_global_rows() {
        let source = random_source(1, 7);
        let row_len = 13;
        let mut expected = Vec::new();
        let mut stream = Stream::new(source.clone(), TOKENIZER.clone(), PACKING, Cursor::default()).unwrap();
        stream.take(row_len * 120, &mut expected).unwrap();
        for (size, rows_per_batch) in [(1, 1), (1, 4), (2, 2), (2, 3), (3, 4), (5, 1)] {
            let count = 120 / (size * rows_per_batch);
            let ranks: Vec<Vec<Batch>> = (0..size)
                .map(|rank| {
                    batches(
                        &mut loader(source.clone(), (row_len, rows_per_batch), (rank, size), Cursor::default()),
                        count,
                    )
                })
                .collect();
            let mut rows = Vec::new();
            for step in 0..count {
                for row in 0..rows_per_batch {
                    for batches in &ranks {
                        rows.extend_from_slice(&batches[step].tokens[row * row_len..][..row_len]);
                    }
                }
                assert!(ranks.iter().all(|batches| batches[step].cursor_after == ranks[0][step].cursor_after));
            }
            assert_eq!(rows, expected[..rows.len()]);
        }
    }

    #[test]
    fn a_loader_started_at_a_batchs_cursor_goes_on_with_the_next_batch_in_any_world() {
        let source = random_source(2, 5);
        let whole = batches(&mut loader(source.clone(), (17, 6), (0, 1), Cursor::default()), 60);
        for cut in (0..59).step_by(7) {
            let cursor = whole[cut].cursor_after;
            let next = batches(&mut loader(source.clone(), (17, 6), (0, 1), cursor), 1);
            assert_eq!(next[0], whole[cut + 1]);
            let halves: Vec<Batch> = (0..2)
                .map(|rank| batches(&mut loader(source.clone(), (17, 3), (rank, 2), cursor), 1).remove(0))
                .collect();
            assert!(halves.iter().all(|half| half.cursor_after == whole[cut + 1].cursor_after));
            assert_eq!(halves[1].tokens[..17], whole[cut + 1].tokens[17..34]);
        }
    }

    #[test]
    fn data_shorter_than_a_row_is_repeated() {
        let source: Arc<dyn Source> = Arc::new(Fixed(vec![vec!["a".to_owned()]]));
        let batch = batches(&mut loader(source, (7, 1), (0, 1), Cursor::default()), 1).remove(0);
        assert_eq!(batch.tokens, [64, 50_256, 64, 50_256, 64, 50_256, 64]);
        assert_eq!(batch.cursor_after, Cursor { epoch: 3, shard: 0, document: 0, token: 1 });
    }

    /// One document, then what the function says.
    struct Then(fn() -> Option<Result<String>>);

    impl Source for Then {
        fn name(&self) -> String {
            "three words".to_owned()
        }

        fn num_shards(&self) -> u64 {
            1
        }

        fn documents(&self, _: u64, _: u64, _: Option<u64>) -> Result<Documents> {
            let then = self.0;
            Ok(Box::new(std::iter::once(Ok("one two three".to_owned())).chain(std::iter::from_fn(then))))
        }
    }

    #[test]
    fn errors_of_the_thread_arrive_in_order_and_keep_their_kind() {
        let source = Arc::new(Then(|| Some(Err(input("a.jsonl, line 2: bad")))));
        let mut loader = loader(source, (2, 1), (0, 1), Cursor::default());
        assert_eq!(batches(&mut loader, 2).len(), 2);
        let error = loader.next_batch().unwrap_err();
        assert_eq!((exit_code(&error), format!("{error}").as_str()), (2, "a.jsonl, line 2: bad"));
        assert!(format!("{}", loader.next_batch().unwrap_err()).contains("was reported before"));
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error() {
        let source = Arc::new(Then(|| panic!("index out of {}", "bounds")));
        let mut loader = loader(source, (4, 1), (0, 1), Cursor::default());
        assert_eq!(batches(&mut loader, 1).len(), 1);
        let error = loader.next_batch().unwrap_err();
        assert_eq!(format!("{error}"), "the thread that reads data panicked: index out of bounds");
    }

    #[test]
    fn an_interrupt_ends_a_wait_within_a_moment_and_loses_nothing() {
        let source = Arc::new(Then(|| {
            std::thread::sleep(Duration::from_millis(400));
            Some(Ok("late".to_owned()))
        }));
        let mut loader = loader(source, (5, 1), (0, 1), Cursor::default());
        loader.interrupted = || true;
        let start = Instant::now();
        assert!(loader.next_batch().unwrap().is_none());
        assert!(start.elapsed() < Duration::from_millis(300));
        loader.interrupted = || false;
        assert_eq!(batches(&mut loader, 1)[0].tokens[4], 17_660);
        assert!(loader.waited().as_secs_f64() > 0.3, "{}", loader.waited().as_secs_f64());
    }

    #[test]
    fn dropping_the_loader_ends_its_thread_whether_it_waits_or_works() {
        let source = random_source(3, 4);
        let num_owners = Arc::strong_count(&source);
        // The first one's queue is full; the second passes over the rows of other ranks for ever.
        for world in [(0, 1), (1 << 40, (1 << 40) + 1)] {
            let loader = loader(source.clone(), (5, 1), world, Cursor::default());
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(Arc::strong_count(&source), num_owners + 1);
            drop(loader);
            let start = Instant::now();
            while Arc::strong_count(&source) > num_owners {
                assert!(start.elapsed() < Duration::from_secs(5), "the thread is still alive");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
