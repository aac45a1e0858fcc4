//! One pass over the miners that are due: whose commitment names a model that is not known yet has it fetched, and the
//! model waits for the next step. Whatever goes wrong, the model that was known stays known, and is evaluated on.

use std::sync::PoisonError;

use anyhow::Result;

use super::iterator::majority_miners;
use super::{About, Event, Observer, Outcome, Told, Validator};
use crate::chain::Hotkey;
use crate::field::fetch_for;
use crate::hub::fetch::Unreadable;
use crate::hub::model_id::ModelMetadata;
use crate::score::uid_set::UidSet;

/// How long before a time that was noted; 0 if the clock was set back since, so that nobody waits for it to catch up.
fn is_due(noted: Option<&u64>, now: u64, seconds: u64) -> bool {
    noted.is_none_or(|&noted| now < noted || now - noted >= seconds.saturating_mul(1000))
}

impl Validator<'_> {
    /// Looks at every miner that is due, as long as there is room for more models.
    pub(super) fn update(&mut self, observe: Observer<'_>) -> Result<()> {
        self.bring_back_majority_miners(observe)?;
        // Fetching takes time, in which the first miners become due again: one round is enough.
        let num_uids = self.snapshot.neurons.len();
        let mut num_in_turn = 0;
        while !self.is_full() && !crate::interrupt::requested() {
            if let Some(uid) = self.next_for_incentive() {
                self.state.checked_for_incentive.insert(uid, self.now());
                self.check(uid, false, observe)?;
                continue;
            }
            if num_in_turn == num_uids {
                break;
            }
            let Some(uid) = self.next_in_turn() else { break };
            num_in_turn += 1;
            // Noted before, so that what fails is not tried again at once.
            self.state.checked.insert(uid, self.now());
            self.check(uid, false, observe)?;
        }
        Ok(())
    }

    /// Whether so many models wait or are kept that no further one is fetched. A uid that is both counts twice, as in the
    /// reference.
    fn is_full(&self) -> bool {
        let judge = &self.state.judge;
        judge.pending.len() + judge.kept.len() >= self.options.rules.validator.sample_max
    }

    /// The miner whose turn it is, unless he was looked at not long ago.
    fn next_in_turn(&mut self) -> Option<u16> {
        let (now, seconds) = (self.now(), self.options.rules.validator.seconds_between_checks);
        let iterator = self.state.iterator.as_mut()?;
        let uid = iterator.peek()?;
        if !is_due(self.state.checked.get(&uid), now, seconds) {
            return None;
        }
        iterator.advance();
        Some(uid)
    }

    /// The first miner who earns enough to be looked at before his turn and is due.
    fn next_for_incentive(&self) -> Option<u16> {
        let validator = &self.options.rules.validator;
        let least = validator.incentive_first?;
        let now = self.now();
        let is_next = |uid: u16, incentive: u16| {
            f64::from(incentive) / f64::from(crate::chain::FULL_SHARE) >= least
                && is_due(self.state.checked_for_incentive.get(&uid), now, validator.seconds_between_checks)
        };
        let mut neurons = self.snapshot.neurons.iter();
        neurons.find(|neuron| is_next(neuron.uid, neuron.incentive)).map(|neuron| neuron.uid)
    }

    /// Has dropped models evaluated again which large validators give most of their weight; full or not.
    fn bring_back_majority_miners(&mut self, observe: Observer<'_>) -> Result<()> {
        let validator = &self.options.rules.validator;
        let (Some(seconds), cadence) = (validator.seconds_between_retries, validator.seconds_between_checks) else {
            return Ok(());
        };
        if !is_due(self.state.majority_checked.as_ref(), self.now(), cadence) {
            return Ok(());
        }
        self.state.majority_checked = Some(self.now());
        let judge = &self.state.judge;
        let miners = majority_miners(&self.snapshot);
        // The difference of sets is a set again.
        let dropped: UidSet =
            miners.iter().filter(|&uid| !judge.kept.contains(uid) && !judge.pending.contains(uid)).collect();
        for uid in dropped.iter() {
            if is_due(self.state.retried.get(&uid), self.now(), seconds) {
                self.state.retried.insert(uid, self.now());
                // Whether it can be fetched again or not: what is known of it is evaluated.
                self.state.judge.pending.add(uid);
                self.check(uid, true, observe)?;
            }
        }
        Ok(())
    }

    /// Looks at a miner's commitment. `anew`: fetches the model even if it is the known one.
    fn check(&mut self, uid: u16, anew: bool, observe: Observer<'_>) -> Result<()> {
        let outcome = self.sync(uid, anew);
        if outcome == Outcome::Updated {
            self.state.judge.pending.add(uid);
        }
        observe(&Event::Checked { uid, outcome })
    }

    fn sync(&mut self, uid: u16, anew: bool) -> Outcome {
        let Some(hotkey) = self.hotkey(uid).map(str::to_owned) else { return Outcome::NoModel };
        let Some(metadata) = self.snapshot.metadata(&hotkey) else { return Outcome::NoModel };
        if !anew && self.state.tracker.get(&hotkey) == Some(&metadata) {
            return Outcome::Unchanged;
        }
        let place = format!("uid {uid} ({}, block {})", metadata.id.repo_id(), metadata.block);
        let told = |about| Told::new(&hotkey, &metadata, about);
        match fetch_for(self.seams.hub, self.seams.cache, &self.options.rules, &metadata, &hotkey) {
            Ok(Ok(_)) => self.told.retain(|told| told.hotkey != hotkey),
            // Validators would know and evaluate it.
            Ok(Err(Unreadable::NotImplemented(reason))) => self.tell_once(
                told(About::NotImplemented),
                &format!("{place}: validators may well score this model; here its losses count as infinite. {reason}"),
            ),
            Ok(Err(Unreadable::Refused(reason))) => {
                self.tell_once(told(About::NotTaken), &format!("{place}: not taken. {reason}"));
                self.fetch_no_more(hotkey, metadata);
                return Outcome::Failed;
            }
            Err(error) => {
                let sentence = format!("{place}: could not be fetched and is tried again later: {error:#}");
                self.tell_once(told(About::NotFetched), &sentence);
                self.fetch_no_more(hotkey, metadata);
                return Outcome::Failed;
            }
        }
        self.state.tracker.insert(hotkey, metadata);
        Outcome::Updated
    }

    /// Leaves a model to the passes of updates.
    fn fetch_no_more(&self, hotkey: Hotkey, metadata: ModelMetadata) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert((hotkey, metadata));
    }

    /// Warns of a hotkey's model, unless the like was said of it before.
    pub(super) fn tell_once(&mut self, told: Told, text: &str) {
        if self.told.insert(told) {
            self.seams.printer.warn(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_due_after_its_seconds_and_when_the_clock_was_set_back() {
        assert!(is_due(None, 0, 300));
        assert!(!is_due(Some(&1_000), 300_999, 300));
        assert!(is_due(Some(&1_000), 301_000, 300));
        assert!(!is_due(Some(&1_000), 1_000, 300));
        assert!(is_due(Some(&1_000), 999, 300));
    }
}
