//! Pages from the viewer, asked for as often as the reference's loader does: up to ten times, five seconds apart, whatever
//! the reason, unless the viewer asks to wait longer. What it answers with a page of another form is where uses differ.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::cache::Cache;
use super::page::{Garbage, Page, Texts, parse};
use crate::clock::Clock;
use crate::data::stages::{Stage, Stages};
use crate::error::{Failure, failure};
use crate::hub::huggingface::{PAGE_ROWS, Unanswered, Viewer};
use crate::hub::progress::Told;
use crate::interrupt::{self, Stop};

/// A page is asked for so often.
const TRIES: u32 = 10;
/// Before it is asked for again.
const PAUSE: Duration = Duration::from_secs(5);
/// Why nothing moves is told no more often than this, of however many threads.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// What a page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To find out what there is, while the user waits: a no that is meant is one at once.
    Opening,
    /// To train on: its documents are numbered, and so it has all of its rows.
    Training,
    /// As validators do.
    Scoring,
}

/// Why there is no page.
enum Miss {
    Unanswered(Unanswered),
    Garbage(Garbage),
    /// A page of another number of rows than there are.
    WrongRows {
        have: u64,
        want: u64,
    },
}

/// A data set, page by page.
pub(super) struct Reader {
    pub(super) viewer: Viewer,
    /// The column of the text.
    pub(super) column: String,
    /// Rows of the whole data set.
    pub(super) num_rows: u64,
    pub(super) cache: Cache,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stages: Arc<Stages>,
    pub(super) told: Mutex<Option<Instant>>,
    /// Of the text of a page, so far.
    pub(super) largest_page_bytes: AtomicU64,
}

impl Reader {
    /// The texts of the hundred rows from `offset` on, or of as many as there are.
    pub(super) fn texts(&self, offset: u64, purpose: Purpose) -> Result<Texts> {
        let key = self.key(offset);
        let known = {
            let _busy = self.stages.enter(Stage::Network);
            self.cache.get(&key)
        };
        if let Some((texts, bytes)) = known {
            self.stages.add_bytes(Stage::Network, bytes);
            return Ok(texts);
        }
        let texts = self.ask(offset, purpose)?.texts;
        // One that is short, as at a bad moment of the viewer, is not kept.
        if texts.len() as u64 == self.num_rows_at(offset) {
            self.cache.put(&key, &texts);
        }
        Ok(texts)
    }

    /// Works on pages, several at once, and returns what came of them in the order of their offsets.
    ///
    /// # Errors
    /// The first page's, in that order, that there was no page or that the work failed. No further page is begun then.
    pub(super) fn each<T: Send>(
        &self,
        offsets: &[u64],
        at_once: usize,
        work: impl Fn(u64, Texts) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let stop = Stop::of_this_thread();
        let run = || {
            let mut done = Vec::new();
            while !has_failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&offset) = offsets.get(index) else { break };
                let result = self.texts(offset, Purpose::Scoring).and_then(|texts| work(offset, texts));
                has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                done.push((index, result));
            }
            done
        };
        let mut done: Vec<(usize, Result<T>)> = thread::scope(|scope| {
            let spawn = |_| {
                scope.spawn(|| {
                    stop.watch();
                    run()
                })
            };
            let threads: Vec<_> = (0..at_once.clamp(1, offsets.len().max(1))).map(spawn).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a page's thread does not panic")).collect()
        });
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }

    /// Asks until there is an answer, or there will be none.
    pub(super) fn ask(&self, offset: u64, purpose: Purpose) -> Result<Page> {
        for tries in 1.. {
            if interrupt::requested() {
                break;
            }
            let miss = match self.ask_once(offset, purpose) {
                Ok(page) => return Ok(page),
                Err(miss) => miss,
            };
            if tries == TRIES || !miss.may_pass(purpose) {
                return Err(self.error(miss, offset, tries, purpose));
            }
            let pause = miss.asked_pause().min(self.viewer.longest_pause()).max(PAUSE);
            let _busy = self.stages.enter(Stage::Network);
            self.tell(&self.error(miss, offset, 1, purpose), pause);
            self.clock.sleep(pause);
        }
        Err(Failure::Interrupted(format!("interrupted while rows of {} were read", self.viewer.dataset())).into())
    }

    fn ask_once(&self, offset: u64, purpose: Purpose) -> Result<Page, Miss> {
        let body = {
            let _busy = self.stages.enter(Stage::Network);
            self.viewer.ask(offset).map_err(Miss::Unanswered)?
        };
        self.stages.add_bytes(Stage::Network, body.len() as u64);
        let _busy = self.stages.enter(Stage::Decode);
        let page = parse(&body, &self.column).map_err(Miss::Garbage)?;
        let (have, want) = (page.texts.len() as u64, self.num_rows_at(offset));
        if purpose == Purpose::Training && have != want {
            return Err(Miss::WrongRows { have, want });
        }
        Ok(page)
    }

    /// How many rows there are from `offset` on, a page's at most.
    fn num_rows_at(&self, offset: u64) -> u64 {
        self.num_rows.saturating_sub(offset).min(PAGE_ROWS)
    }

    /// All that the texts of a page depend on. A data set that has grown is another.
    fn key(&self, offset: u64) -> String {
        let Self { viewer, column, num_rows, .. } = self;
        format!("{}\n{}\n{column}\n{num_rows}\n{offset}", viewer.endpoint(), viewer.dataset())
    }

    fn tell(&self, error: &anyhow::Error, pause: Duration) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            *told = Some(Instant::now());
            self.viewer.tell(Told::Waits(&format!("{error}; trying again in {} s", pause.as_secs())));
        }
    }

    /// What is told after so many tries. To train on, an outage is waited out for as long as it lasts; so what would stay is
    /// none.
    fn error(&self, miss: Miss, offset: u64, tries: u32, purpose: Purpose) -> anyhow::Error {
        let endpoint = self.viewer.endpoint();
        let cannot = format!("the rows of {} from {offset} on could not be read", self.viewer.dataset());
        let (kind, text): (fn(String) -> Failure, _) = match miss {
            Miss::Unanswered(unanswered) if unanswered.is_interrupt() || !unanswered.may_pass(purpose) => {
                return unanswered.error;
            }
            Miss::Unanswered(Unanswered { error, is_final, .. }) => {
                let kind = match failure(&error) {
                    _ if purpose != Purpose::Training || !is_final => Failure::Unreachable,
                    Some(Failure::Input(_)) => Failure::Input,
                    _ => Failure::No,
                };
                (kind, error.to_string())
            }
            Miss::Garbage(Garbage::NotJson(reason)) => {
                (Failure::Unreachable, format!("{cannot}: {endpoint} answers with no JSON ({reason})"))
            }
            Miss::Garbage(Garbage::NoPage(reason)) => {
                (Failure::Unreachable, format!("{cannot}: the answer of {endpoint} is no page of rows ({reason})"))
            }
            Miss::WrongRows { have, want } => {
                let remedy = "read its shards instead, by data.source: refinedweb-parquet";
                (Failure::Input, format!("{cannot}: {endpoint} gives {have} rows, where there are {want}; {remedy}"))
            }
        };
        let tried = if tries > 1 { format!("; it was asked {tries} times") } else { String::new() };
        kind(text + &tried).into()
    }
}

impl Unanswered {
    /// Whether another try may bring an answer, or is made all the same.
    fn may_pass(&self, purpose: Purpose) -> bool {
        !self.is_interrupt() && (purpose != Purpose::Opening || !self.is_final)
    }
}

impl Miss {
    fn may_pass(&self, purpose: Purpose) -> bool {
        match self {
            Self::Unanswered(unanswered) => unanswered.may_pass(purpose),
            Self::Garbage(Garbage::NotJson(_)) | Self::WrongRows { .. } => true,
            // Where the reference's loader fails at once; a training run would rather go on.
            Self::Garbage(Garbage::NoPage(_)) => purpose == Purpose::Training,
        }
    }

    fn asked_pause(&self) -> Duration {
        match self {
            Self::Unanswered(unanswered) => unanswered.asked_pause.unwrap_or_default(),
            Self::Garbage(_) | Self::WrongRows { .. } => Duration::ZERO,
        }
    }
}
