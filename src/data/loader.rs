//! Batches ahead of time: a thread reads, tokenizes and packs while the device computes.
//!
//! Rows are numbered over the whole stream, and rank `r` of `w` gets rows `r`, `r + w`, …: a micro-step of all ranks
//! uses the same rows whatever their number, and every rank knows the cursor after it without asking the others. Each
//! rank reads the whole stream and passes over the others' rows: tokenizing is cheap beside training.
//!
//! The thread owns the stream and speaks through a bounded queue, so it is never far ahead; the cursor that counts is the
//! batch's own. It ends soon after the loader is dropped, and so do those that read for it.
//!
//! Who waits for a batch waits for a stage: the wait is counted for the one that is at work meanwhile, and told where it
//! becomes long.

use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::stages::{Stage, Stages};
use super::{Batch, Corpus, Cursor, Reading, TokenStream};
use crate::dist::World;
use crate::interrupt::{Stop, StopOnDrop};

/// How often a wait looks for Ctrl-C.
const POLL: Duration = Duration::from_millis(50);

/// A longer wait is told, and again after twice as long.
const STALL: Duration = Duration::from_secs(10);

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
    interrupted: fn() -> bool,
    stages: Arc<Stages>,
    waits: Waits,
    /// Is told of long waits.
    tell: Box<dyn FnMut(&str)>,
    /// Not joined: the threads may be waiting for a disk, and hold nothing that anyone else needs.
    _stop: StopOnDrop,
}

/// How long batches were waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// In all.
    pub total: Duration,
    /// Of that for each stage, in the order of [`Stage::ALL`], as far as one was at work.
    pub stages: [Duration; 3],
}

impl Waits {
    /// Since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        let stages = std::array::from_fn(|stage| self.stages[stage].saturating_sub(earlier.stages[stage]));
        Self { total: self.total.saturating_sub(earlier.total), stages }
    }

    /// The stage that was waited for the longest.
    pub fn longest(&self) -> Option<Stage> {
        let longest = Stage::ALL.into_iter().max_by_key(|stage| self.stages[*stage as usize])?;
        (self.stages[longest as usize] > Duration::ZERO).then_some(longest)
    }

    fn add(&mut self, stage: Option<Stage>, time: Duration) {
        self.total += time;
        if let Some(stage) = stage {
            self.stages[stage as usize] += time;
        }
    }
}

impl Loader {
    /// Starts reading at a cursor, the default one for the start. Wrong data and a cursor that does not fit it are
    /// errors of the first [`next_batch`](Self::next_batch).
    pub fn new(corpus: Corpus, reading: Reading, shape: LoaderShape, world: World, cursor: Cursor) -> Result<Self> {
        if shape.row_len == 0 || shape.rows_per_batch == 0 || world.rank >= world.size {
            bail!("no batch has {shape:?} on {world:?}");
        }
        let (stop, stages) = (Stop::default(), Arc::clone(&reading.stages));
        let (sender, batches) = sync_channel(QUEUED_BATCHES);
        let for_thread = stop.clone();
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(move || {
            for_thread.watch();
            if let Err(error) =
                corpus.stream(&reading, cursor, for_thread).and_then(|stream| produce(stream, shape, world, &sender))
            {
                // Nobody listening means that the loader is gone, and the error with it.
                let _ = sender.send(Err(error));
            }
        })?;
        Ok(Self {
            batches,
            thread: Some(thread),
            interrupted: crate::interrupt::requested,
            stages,
            waits: Waits::default(),
            tell: Box::new(|_| {}),
            _stop: StopOnDrop(stop),
        })
    }

    /// Tells long waits, and what is waited for, to a function.
    pub fn on_stall(&mut self, tell: impl FnMut(&str) + 'static) {
        self.tell = Box::new(tell);
    }

    /// The next batch; `None` if the user asked for an end while it was being waited for. After an error there is no
    /// other batch.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let (start, mut since, mut told_at) = (Instant::now(), Instant::now(), STALL);
        // Whether one lies ready is looked at first: what is not waited for is no stage's doing.
        let (mut stage, mut poll) = (None, Duration::ZERO);
        loop {
            let next = self.batches.recv_timeout(poll);
            let now = Instant::now();
            self.waits.add(stage, now - since);
            since = now;
            match next {
                // What the end of the program does to those who read is no fault of the data.
                Ok(Err(_)) if (self.interrupted)() => break Ok(None),
                Ok(batch) => break batch.map(Some),
                Err(RecvTimeoutError::Timeout) if (self.interrupted)() => break Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Err(self.how_it_ended()),
            }
            (stage, poll) = (self.stages.starving(), POLL);
            if start.elapsed() >= told_at {
                told_at *= 2;
                let text = self.stages.stall(start.elapsed());
                (self.tell)(&text);
            }
        }
    }

    /// How long [`next_batch`](Self::next_batch) has waited so far.
    pub fn waits(&self) -> Waits {
        self.waits
    }

    /// What those who read have done so far.
    pub fn stages(&self) -> &Arc<Stages> {
        &self.stages
    }

    fn how_it_ended(&mut self) -> anyhow::Error {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => anyhow!("the thread that reads data panicked: {}", panic_message(panic.as_ref())),
            _ => anyhow!("the thread that reads data has ended, because of the error that was reported before"),
        }
    }
}

/// Sends batches until the receiver is gone.
fn produce(
    mut stream: TokenStream,
    shape: LoaderShape,
    world: World,
    sender: &SyncSender<Result<Batch>>,
) -> Result<()> {
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

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::OpenShard;
    use super::super::packing::Packing;
    use super::super::source::{Documents, Source};
    use super::super::stream::Stream;
    use super::super::stream::tests::{Fixed, random_source, reading};
    use super::*;
    use crate::error::{exit_code, input};

    const PACKING: Packing = Packing { max_document_tokens: Some(50), shuffle_seed: Some(9), interleave: 2 };

    fn loader(source: Arc<dyn Source>, shape: (usize, usize), world: (usize, usize), cursor: Cursor) -> Loader {
        let shape = LoaderShape { row_len: shape.0, rows_per_batch: shape.1 };
        let world = World { rank: world.0, size: world.1 };
        Loader::new(Corpus::Text(source), reading(PACKING), shape, world, cursor).unwrap()
    }

    fn batches(loader: &mut Loader, count: usize) -> Vec<Batch> {
        (0..count).map(|_| loader.next_batch().unwrap().unwrap()).collect()
    }

    #[test]
    fn any_number_of_ranks_shares_the_same_global_rows() {
        let source = random_source(1, 7);
        let row_len = 13;
        let mut expected = Vec::new();
        let mut stream = Stream::new(source.clone(), &reading(PACKING), Cursor::default(), Stop::default()).unwrap();
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
            let cursor = whole[cut].cursor_after.clone();
            let next = batches(&mut loader(source.clone(), (17, 6), (0, 1), cursor.clone()), 1);
            assert_eq!(next[0], whole[cut + 1]);
            let halves: Vec<Batch> = (0..2)
                .map(|rank| batches(&mut loader(source.clone(), (17, 3), (rank, 2), cursor.clone()), 1).remove(0))
                .collect();
            assert!(halves.iter().all(|half| half.cursor_after == whole[cut + 1].cursor_after));
            assert_eq!(halves[1].tokens[..17], whole[cut + 1].tokens[17..34]);
        }
    }

    #[test]
    fn data_shorter_than_a_row_is_repeated() {
        let source: Arc<dyn Source> = Arc::new(Fixed(vec![vec!["a".to_owned()]], false));
        let batch = batches(&mut loader(source, (7, 1), (0, 1), Cursor::default()), 1).remove(0);
        assert_eq!(batch.tokens, [64, 50_256, 64, 50_256, 64, 50_256, 64]);
        assert_eq!(
            batch.cursor_after,
            Cursor { next: 4, open: vec![OpenShard { position: 3, document: 0 }], turn: 0, token: 1 }
        );
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
        let error = loader.next_batch().unwrap_err();
        assert_eq!(format!("{error}"), "a thread that reads or tokenizes data has panicked");
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
        assert!(loader.waits().total.as_secs_f64() > 0.3, "{:?}", loader.waits());
    }

    #[test]
    fn dropping_the_loader_ends_its_thread_whether_it_waits_or_works() {
        let source = random_source(3, 4);
        let num_owners = Arc::strong_count(&source);
        // The first one's queue is full; the second passes over the rows of other ranks for ever.
        for world in [(0, 1), (1 << 40, (1 << 40) + 1)] {
            let loader = loader(source.clone(), (5, 1), world, Cursor::default());
            std::thread::sleep(Duration::from_millis(20));
            assert!(Arc::strong_count(&source) > num_owners);
            drop(loader);
            let start = Instant::now();
            while Arc::strong_count(&source) > num_owners {
                assert!(start.elapsed() < Duration::from_secs(5), "the thread is still alive");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
