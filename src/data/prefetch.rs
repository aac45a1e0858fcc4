//! Shards opened ahead of time on threads of their own, and handed out in order.
//!
//! A thread takes the next place of the order as long as what is ready and under way stays within a bound in bytes; at least
//! one shard is always under way. What goes wrong with a shard is told when its turn comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::source::{Documents, Source};
use super::stages::Stages;
use crate::error::{Failure, failure};
use crate::interrupt::{self, Stop, StopOnDrop};

/// How often a wait looks for an orderly end.
const GLANCE: Duration = Duration::from_millis(50);

/// Before a shard is opened again after its source has given up on the network.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How far ahead shards are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Threads that open shards.
    pub readers: usize,
    /// Bytes of text that may be ready or under way.
    pub bytes: u64,
}

/// A shard to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Which one.
    pub(super) shard: u64,
    /// From which document on.
    pub(super) from: u64,
    /// The order inside.
    pub(super) seed: Option<u64>,
}

/// Shards in the order of an iterator without end.
pub(super) struct Prefetch {
    shared: Arc<Shared>,
    /// The place of the order that is handed out next.
    next: u64,
    _stop: StopOnDrop,
}

struct Shared {
    source: Arc<dyn Source>,
    stages: Arc<Stages>,
    bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    orders: Box<dyn Iterator<Item = Order> + Send>,
    /// The place of the order that is taken next.
    taken: u64,
    /// Bytes of shards that are ready or under way.
    held: u64,
    ready: BTreeMap<u64, (u64, Result<Documents>)>,
    at_work: usize,
    /// Whether a reader has, whose shard will never be ready.
    panicked: bool,
}

impl Prefetch {
    /// Starts opening.
    pub(super) fn start(
        source: Arc<dyn Source>,
        stages: Arc<Stages>,
        ahead: Ahead,
        orders: impl Iterator<Item = Order> + Send + 'static,
    ) -> Result<Self> {
        let state =
            State { orders: Box::new(orders), taken: 0, held: 0, ready: BTreeMap::new(), at_work: 0, panicked: false };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { source, stages, bytes: ahead.bytes, state, changed });
        let stop = Stop::default();
        let prefetch = Self { shared: Arc::clone(&shared), next: 0, _stop: StopOnDrop(stop.clone()) };
        for _ in 0..ahead.readers.max(1) {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            shared.state().at_work += 1;
            thread::Builder::new().name("reader".to_owned()).spawn(move || {
                stop.watch();
                let _ended = Ended(&shared);
                shared.read();
            })?;
        }
        Ok(prefetch)
    }

    /// The next shard of the order, when it is there.
    pub(super) fn next(&mut self) -> Result<Documents> {
        let mut state = self.shared.state();
        loop {
            if let Some((bytes, documents)) = state.ready.remove(&self.next) {
                state.held -= bytes;
                self.next += 1;
                self.shared.changed.notify_all();
                return documents;
            }
            if state.panicked || state.at_work == 0 {
                return Err(anyhow!("a thread that reads shards has panicked"));
            }
            if interrupt::requested() {
                return Err(interrupted());
            }
            state = self.shared.changed.wait_timeout(state, GLANCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn is_outage(error: &anyhow::Error) -> bool {
    matches!(failure(error), Some(Failure::Unreachable(_)))
}

pub(super) fn interrupted() -> anyhow::Error {
    Failure::Interrupted("reading the data was interrupted".to_owned()).into()
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens shards until the end is asked for or the order has one.
    fn read(&self) {
        while let Some((place, bytes, order)) = self.claim() {
            let documents = self.open(order);
            self.state().ready.insert(place, (bytes, documents));
            self.changed.notify_all();
        }
    }

    /// Opens a shard, however long the network is out: a run is worth more than the hours of a card that wait with it, and
    /// the user is told.
    fn open(&self, Order { shard, from, seed }: Order) -> Result<Documents> {
        let mut pause = FIRST_PAUSE;
        loop {
            let opened = self.source.documents(shard, from, seed);
            match &opened {
                Err(error) if is_outage(error) && !interrupt::requested() => self.stages.set_fault(Some(error)),
                _ => {
                    self.stages.set_fault(None);
                    return opened;
                }
            }
            let until = Instant::now() + pause;
            while Instant::now() < until && !interrupt::requested() {
                thread::sleep(GLANCE);
            }
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    /// The next place of the order, once there is room for it.
    fn claim(&self) -> Option<(u64, u64, Order)> {
        let mut state = self.state();
        let order = loop {
            if interrupt::requested() {
                return None;
            }
            if state.held < self.bytes {
                break state.orders.next()?;
            }
            state = self.changed.wait_timeout(state, GLANCE).unwrap_or_else(PoisonError::into_inner).0;
        };
        let bytes = self.source.held_bytes(order.shard).unwrap_or_default();
        let place = state.taken;
        state.taken += 1;
        state.held += bytes;
        Some((place, bytes, order))
    }
}

/// A reader ends, be it by a panic.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.at_work -= 1;
        state.panicked |= thread::panicking();
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::input;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Shards that take the longer the earlier they come, and count how many have been opened.
    struct Slow {
        opened: Arc<AtomicU64>,
        bad: Option<u64>,
    }

    impl Source for Slow {
        fn name(&self) -> String {
            "slow shards".to_owned()
        }

        fn num_shards(&self) -> u64 {
            1 << 40
        }

        fn documents(&self, shard: u64, from: u64, _: Option<u64>) -> Result<Documents> {
            self.opened.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(7 - shard % 7));
            match self.bad == Some(shard) {
                true => Err(input(format!("shard {shard} is bad"))),
                false => Ok(Box::new((from..2).map(move |document| Ok(format!("{shard}.{document}"))))),
            }
        }

        fn held_bytes(&self, _: u64) -> Option<u64> {
            Some(10)
        }
    }

    fn prefetch(readers: usize, bytes: u64, bad: Option<u64>) -> (Prefetch, Arc<AtomicU64>) {
        let opened = Arc::new(AtomicU64::new(0));
        let source = Arc::new(Slow { opened: Arc::clone(&opened), bad });
        let orders = (0..).map(|shard| Order { shard, from: shard % 2, seed: None });
        (Prefetch::start(source, Arc::default(), Ahead { readers, bytes }, orders).unwrap(), opened)
    }

    #[test]
    fn shards_come_in_order_however_many_read_them() {
        for readers in [1, 3, 8] {
            let (mut prefetch, _) = prefetch(readers, 100, None);
            for shard in 0..40 {
                let texts: Vec<String> = prefetch.next().unwrap().map(Result::unwrap).collect();
                let expected: Vec<String> = (shard % 2..2).map(|document| format!("{shard}.{document}")).collect();
                assert_eq!(texts, expected);
            }
        }
    }

    #[test]
    fn no_more_is_held_than_the_bound_and_one_shard_beyond_it_is_enough() {
        for (bytes, most) in [(55, 6), (1, 1)] {
            let (mut prefetch, opened) = prefetch(4, bytes, None);
            thread::sleep(Duration::from_millis(200));
            assert_eq!(opened.load(Ordering::SeqCst), most);
            drop(prefetch.next().unwrap());
            let start = Instant::now();
            while opened.load(Ordering::SeqCst) == most {
                assert!(start.elapsed() < Duration::from_secs(5), "nothing more is opened");
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Shards of which one cannot be read without a panic.
    struct Broken;

    impl Source for Broken {
        fn name(&self) -> String {
            "broken shards".to_owned()
        }

        fn num_shards(&self) -> u64 {
            10
        }

        fn documents(&self, shard: u64, _: u64, _: Option<u64>) -> Result<Documents> {
            assert_ne!(shard, 2, "this one breaks");
            Ok(Box::new(std::iter::empty()))
        }

        fn held_bytes(&self, _: u64) -> Option<u64> {
            Some(1)
        }
    }

    #[test]
    fn a_readers_panic_is_an_error_and_no_endless_wait() {
        let orders = (0..).map(|shard| Order { shard, from: 0, seed: None });
        let ahead = Ahead { readers: 4, bytes: 3 };
        let mut prefetch = Prefetch::start(Arc::new(Broken), Arc::default(), ahead, orders).unwrap();
        let error = (0..3).find_map(|_| prefetch.next().err()).unwrap();
        assert_eq!(error.to_string(), "a thread that reads shards has panicked");
    }

    /// A shard that cannot be reached at first.
    struct Out(AtomicU64);

    impl Source for Out {
        fn name(&self) -> String {
            "far shards".to_owned()
        }

        fn num_shards(&self) -> u64 {
            1
        }

        fn documents(&self, _: u64, _: u64, _: Option<u64>) -> Result<Documents> {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => Err(Failure::Unreachable("the hub would not answer".to_owned()).into()),
                _ => Ok(Box::new(std::iter::once(Ok("here".to_owned())))),
            }
        }

        fn held_bytes(&self, _: u64) -> Option<u64> {
            Some(1)
        }
    }

    #[test]
    fn an_outage_is_waited_out_and_told() {
        let stages = Arc::<Stages>::default();
        let orders = std::iter::repeat(Order { shard: 0, from: 0, seed: None });
        let ahead = Ahead { readers: 1, bytes: 1 };
        let mut prefetch =
            Prefetch::start(Arc::new(Out(AtomicU64::new(0))), Arc::clone(&stages), ahead, orders).unwrap();
        let start = Instant::now();
        while stages.starving().is_none() || !stages.stall(Duration::ZERO).contains("the hub would not answer") {
            assert!(start.elapsed() < Duration::from_secs(5), "nothing is told");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(prefetch.next().unwrap().next().unwrap().unwrap(), "here");
        assert!(!stages.stall(Duration::ZERO).contains("the hub"), "{}", stages.stall(Duration::ZERO));
    }

    #[test]
    fn an_error_waits_for_its_turn() {
        let (mut prefetch, _) = prefetch(4, 1_000, Some(3));
        for _ in 0..3 {
            drop(prefetch.next().unwrap());
        }
        assert_eq!(prefetch.next().err().unwrap().to_string(), "shard 3 is bad");
        drop(prefetch.next().unwrap());
    }
}
