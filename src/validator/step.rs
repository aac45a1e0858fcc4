//! One step: everybody who is kept or waits is scored on fresh pages, and wins, weights and whom to keep follow.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::report::{Perf, Report, Row};
use super::{About, Entry, Event, Observer, Told, Validator, warm};
use crate::chain::Hotkey;
use crate::error::{Failure, failure};
use crate::hub::model_id::ModelMetadata;
use crate::ops::random;
use crate::score::step::Entrant;

/// What came of a step.
pub(super) enum Stepped {
    /// Nobody is to be evaluated.
    Nobody,
    /// It failed: nothing has changed but that those who waited have joined those who were kept.
    Failed(anyhow::Error),
    /// It was weighed.
    Weighed(Report),
}

/// A model that is known of a uid.
struct Known {
    hotkey: Hotkey,
    metadata: ModelMetadata,
    /// `None`: its names are none of a folder, and it was never fetched.
    dir: Option<PathBuf>,
}

impl Validator<'_> {
    /// Evaluates those who are kept and those who wait.
    ///
    /// # Errors
    /// An orderly end was asked for, or the observer wants one. What else goes wrong is [`Stepped::Failed`].
    pub(super) fn step(&mut self, observe: Observer<'_>) -> Result<Stepped> {
        let uids = self.state.judge.begin();
        if uids.is_empty() {
            return Ok(Stepped::Nobody);
        }
        let seed = random::derive(self.state.seed, self.state.step);
        let draw = match self.seams.examiner.draw(self.options.num_pages, seed) {
            Ok(draw) => draw,
            Err(error) => return Ok(Stepped::Failed(error.context("no pages could be drawn"))),
        };
        // The key that holds the uid now decides; a place that has changed hands has no model until its new one is known.
        let known: Vec<Option<Known>> = uids.iter().map(|&uid| self.known(uid)).collect();
        let (mut entrants, mut perf, mut reasons) = (Vec::with_capacity(uids.len()), Perf::default(), Vec::new());
        let stop = AtomicBool::new(false);
        let this = &*self;
        let examined = thread::scope(|scope| {
            if this.options.warms {
                let order: Vec<u16> = this.state.iterator.iter().flat_map(|iterator| iterator.round()).collect();
                let (seams, rules, tracker) = (&this.seams, &this.options.rules, &this.state.tracker);
                let room = rules.validator.sample_max.saturating_sub(rules.validator.sample_min.min(uids.len()));
                let (failed, stop) = (&this.failed, &stop);
                scope.spawn(move || warm::warm(seams, rules, tracker, failed, &order, room, stop));
            }
            let examined = std::iter::zip(&uids, &known).try_for_each(|(&uid, known)| {
                let entrant = this.examine(uid, known.as_ref(), &draw.rows, seed, &mut perf, &mut reasons)?;
                entrants.push(entrant);
                observe(&Event::Evaluated { uid })
            });
            stop.store(true, Ordering::Relaxed);
            examined
        });
        examined?;
        for (told, reason) in reasons {
            self.tell_once(told, &reason);
        }
        // In the reference a uid beyond the subnet that it first saw makes every step fail.
        let most = uids.iter().map(|&uid| usize::from(uid) + 1).max().unwrap_or(0);
        self.grow(most);
        let tallies = match self.state.judge.finish(&entrants, draw.rows.len(), &self.options.rules) {
            Ok(tallies) => tallies,
            Err(error) => return Ok(Stepped::Failed(error)),
        };
        self.state.step += 1;
        let weights = &self.state.judge.weights;
        let rows = std::iter::zip(&entrants, &tallies).map(|(entrant, tally)| Row {
            uid: entrant.uid,
            block: entrant.block,
            average_loss: entrant.losses.iter().sum::<f64>() / draw.rows.len() as f64,
            win_rate: tally.win_rate,
            wins: tally.wins,
            weight: weights[usize::from(entrant.uid)],
        });
        let report = Report {
            step: self.state.step,
            unix_ms: self.now(),
            block: self.snapshot.block,
            pages: draw.offsets,
            rows: rows.collect(),
            perf,
        };
        observe(&Event::Weighed)?;
        Ok(Stepped::Weighed(report))
    }

    /// Makes room for so many uids.
    pub(super) fn grow(&mut self, num_uids: usize) {
        let weights = &mut self.state.judge.weights;
        if weights.len() < num_uids {
            weights.resize(num_uids, 0.0);
        }
    }

    fn known(&self, uid: u16) -> Option<Known> {
        let hotkey = self.hotkey(uid)?;
        let metadata = self.state.tracker.get(hotkey)?.clone();
        let dir = self.seams.cache.folder(&metadata.id);
        Some(Known { hotkey: hotkey.to_owned(), metadata, dir })
    }

    /// The losses of a uid's model; all infinite if it has none or cannot be scored. Adds why to `reasons`. An error only where
    /// an orderly end was asked for.
    fn examine(
        &self,
        uid: u16,
        known: Option<&Known>,
        rows: &[Vec<u32>],
        seed: u64,
        perf: &mut Perf,
        reasons: &mut Vec<(Told, String)>,
    ) -> Result<Entrant> {
        let none = vec![f64::INFINITY; rows.len()];
        let Some(Known { hotkey, metadata, dir }) = known else {
            return Ok(Entrant { uid, block: None, losses: none });
        };
        let told = |about| Told::new(hotkey, metadata, about);
        let block = Some(metadata.block.get());
        let started = Instant::now();
        let dir = dir.as_ref().filter(|dir| dir.is_dir());
        perf.find.push(started.elapsed());
        let Some(dir) = dir else {
            reasons.push((
                told(About::Gone),
                format!("uid {uid}: the model {} is not here any more.", metadata.id.repo_id()),
            ));
            return Ok(Entrant { uid, block, losses: none });
        };
        let (started, began) = (Instant::now(), self.now());
        let entry = Entry { uid, hotkey, metadata, dir };
        let losses = match self.seams.examiner.losses(&entry, rows, random::derive(seed, u64::from(uid))) {
            Ok(Some(losses)) => losses.map_err(|reason| (About::NoLosses, reason)),
            Ok(None) => {
                let sentence = "Interrupted in a step, which is done anew next time.".to_owned();
                return Err(Failure::Interrupted(sentence).into());
            }
            // Ours: memory that is short here, files that somebody changed. As in the reference it is the model that loses
            // the step; else one model would make every step fail.
            Err(error) if !matches!(failure(&error), Some(Failure::Interrupted(_))) => {
                Err((About::NotScored, format!("{error:#}")))
            }
            Err(error) => return Err(error),
        };
        perf.compute.push(started.elapsed());
        let took_ms = self.now().saturating_sub(began);
        let late = self.options.seconds_per_model.filter(|seconds| took_ms > seconds.saturating_mul(1000));
        let losses = match (losses, late) {
            (Ok(losses), None) => losses,
            (Ok(_), Some(seconds)) => {
                let repo_id = metadata.id.repo_id();
                reasons.push((told(About::Late), format!("uid {uid}: {repo_id} took more than {seconds} s.")));
                none
            }
            (Err((about, reason)), _) => {
                reasons.push((told(about), format!("uid {uid}: all its losses are infinite. {reason}")));
                none
            }
        };
        Ok(Entrant { uid, block, losses })
    }
}
