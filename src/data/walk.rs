//! Documents in the order of the global stream: shards in a seeded order, some of them open at once, a document of each in
//! turn.

use std::sync::Arc;

use anyhow::Result;

use super::cursor::{Cursor, OpenShard};
use super::order::{self, Permutation};
use super::packing::{Packing, no_text};
use super::prefetch::{Ahead, Order, Prefetch, interrupted};
use super::source::{Documents, Source};
use super::stages::{Stage, Stages};
use crate::interrupt;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A document of the shard whose turn it is.
    Document(String),
    /// That shard has no more; the next one takes its turn.
    ShardEnds,
}

/// The order of the shards.
#[derive(Clone)]
struct Shards {
    num_shards: u64,
    seed: Option<u64>,
    /// The permutation of the epoch that was asked for last.
    epoch: Option<(u64, Permutation)>,
}

impl Shards {
    /// What is to be opened at a position, which counts over all epochs.
    fn order(&mut self, OpenShard { position, document }: OpenShard) -> Order {
        let (epoch, at) = (position / self.num_shards, position % self.num_shards);
        let Some(seed) = self.seed else { return Order { shard: at, from: document, seed: None } };
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.epoch = Some((epoch, Permutation::new(self.num_shards, seed, epoch)));
        }
        let shard = self.epoch.as_ref().map_or(at, |(_, permutation)| permutation.at(at));
        Order { shard, from: document, seed: Some(order::inside(seed, position)) }
    }
}

/// Opens shards when they are needed, or ahead of time.
enum Opener {
    AsNeeded(Arc<dyn Source>, Shards),
    Ahead(Prefetch),
}

impl Opener {
    /// The shard of a position, which is the next one of the order.
    fn open(&mut self, open: OpenShard) -> Result<Documents> {
        match self {
            Self::Ahead(prefetch) => prefetch.next(),
            Self::AsNeeded(source, shards) => {
                let Order { shard, from, seed } = shards.order(open);
                source.documents(shard, from, seed)
            }
        }
    }
}

/// The documents of the stream from a cursor on.
pub(super) struct Walk {
    source: Arc<dyn Source>,
    stages: Arc<Stages>,
    cursor: Cursor,
    /// What is left of the open shards; `None`: to be opened.
    open: Vec<Option<Documents>>,
    opener: Opener,
    /// Shards that ended without a character of text since there last was one.
    barren_shards: u64,
}

impl Walk {
    /// From a cursor on, in which shards are open.
    pub(super) fn new(
        source: Arc<dyn Source>,
        packing: Packing,
        stages: Arc<Stages>,
        ahead: Ahead,
        cursor: Cursor,
    ) -> Result<Self> {
        let mut shards = Shards { num_shards: source.num_shards(), seed: packing.shuffle_seed, epoch: None };
        let opener = match source.held_bytes(0) {
            None => Opener::AsNeeded(Arc::clone(&source), shards),
            Some(_) => {
                let Cursor { next, open, turn, .. } = cursor.clone();
                let first = (0..open.len()).map(move |ahead| open[(turn + ahead) % open.len()]);
                let others = (next..).map(|position| OpenShard { position, document: 0 });
                let orders = first.chain(others).map(move |open| shards.order(open));
                Opener::Ahead(Prefetch::start(Arc::clone(&source), Arc::clone(&stages), ahead, orders)?)
            }
        };
        let open = cursor.open.iter().map(|_| None).collect();
        Ok(Self { source, stages, cursor, open, opener, barren_shards: 0 })
    }

    /// The next document, or that a shard has ended.
    pub(super) fn next(&mut self) -> Result<Event> {
        if interrupt::requested() {
            return Err(interrupted());
        }
        // All at once before the first document: shards come in the order in which they are asked for.
        let (turn, num_slots) = (self.cursor.turn, self.open.len());
        for slot in (0..num_slots).map(|ahead| (turn + ahead) % num_slots) {
            if self.open[slot].is_none() {
                self.open[slot] = Some(self.opener.open(self.cursor.open[slot])?);
            }
        }
        let documents = self.open[turn].as_mut().expect("every slot was opened just now");
        // What was opened ahead is decoded already; else it is done here.
        let decoding = matches!(self.opener, Opener::AsNeeded(..)).then(|| self.stages.enter(Stage::Decode));
        let text = documents.next().transpose()?;
        drop(decoding);
        match text {
            Some(text) => {
                if !text.is_empty() {
                    self.barren_shards = 0;
                }
                self.cursor.end_document();
                Ok(Event::Document(text))
            }
            None => {
                // Twice as many as there are shards: in one epoch the shard with text may be the first, in the next the last.
                self.barren_shards += 1;
                if self.barren_shards > 2 * self.source.num_shards().saturating_add(self.open.len() as u64) {
                    return Err(no_text(&self.source.name()));
                }
                self.open[turn] = None;
                self.cursor.end_shard();
                Ok(Event::ShardEnds)
            }
        }
    }
}
