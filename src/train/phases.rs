//! Where a run's time goes: a [`Stopwatch`] that is in one phase at a time, and the [`Times`] that it has seen.
//!
//! It reads the host's clock where the host waits anyway, and makes nothing wait. On a GPU work is queued and the host goes
//! on, so that a phase counts until the host had what it asked for: the passes end with the losses, which come down behind
//! all of forward and backward, and the optimizer ends with the norm and with the update *queued*. That update is waited for
//! by whatever asks the card for something next: the passes of the next step, or what is done between the two.

use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// What a run does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for its next batch.
    Data,
    /// Forward and backward.
    Passes,
    /// Sums gradients and loss over all processes.
    Sum,
    /// Takes the norm and updates the weights.
    Optimizer,
    /// Writes records and checkpoints.
    Saving,
    /// Computes the held-out loss.
    Evaluating,
    /// Judges the model beside the published ones.
    Scoring,
}

impl Phase {
    /// All of them: those of a step in order, then those between steps.
    pub const ALL: [Self; 7] =
        [Self::Data, Self::Passes, Self::Sum, Self::Optimizer, Self::Saving, Self::Evaluating, Self::Scoring];

    /// Whether it is done between steps, and not in each.
    pub fn is_between_steps(self) -> bool {
        matches!(self, Self::Saving | Self::Evaluating | Self::Scoring)
    }

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "waiting for data",
            Self::Passes => "forward and backward",
            Self::Sum => "summing over processes",
            Self::Optimizer => "optimizer",
            Self::Saving => "saving",
            Self::Evaluating => "evaluating",
            Self::Scoring => "scoring",
        }
    }

    /// What its share of the time is called in records.
    pub fn key(self) -> &'static str {
        match self {
            Self::Data => "time_data",
            Self::Passes => "time_forward_backward",
            Self::Sum => "time_sum",
            Self::Optimizer => "time_optimizer",
            Self::Saving => "time_saving",
            Self::Evaluating => "time_evaluating",
            Self::Scoring => "time_scoring",
        }
    }
}

/// The time that went by in each phase. As text: what took how much of it, largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times([Duration; Phase::ALL.len()]);

impl Times {
    /// Adds to one phase.
    pub fn add(&mut self, phase: Phase, time: Duration) {
        self.0[phase as usize] += time;
    }

    /// Of one phase.
    pub fn of(&self, phase: Phase) -> Duration {
        self.0[phase as usize]
    }

    /// Of all phases.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// Of the phases of a step.
    pub fn in_steps(&self) -> Duration {
        Phase::ALL.into_iter().filter(|phase| !phase.is_between_steps()).map(|phase| self.of(phase)).sum()
    }

    /// The part of all time that a phase took, from 0 to 1.
    pub fn share(&self, phase: Phase) -> f64 {
        ratio(self.of(phase), self.total())
    }

    /// The part of the steps' time that one of their phases took, from 0 to 1.
    pub fn share_of_steps(&self, phase: Phase) -> f64 {
        ratio(self.of(phase), self.in_steps())
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        for phase in Phase::ALL {
            self.add(phase, other.of(phase));
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shares = Phase::ALL.map(|phase| (100.0 * self.share(phase), phase.name()));
        shares.sort_by(|a, b| b.0.total_cmp(&a.0));
        // What would read as 0.0 % is left out.
        let shown = shares.iter().filter(|(percent, _)| *percent >= 0.05);
        let words: Vec<String> = shown.map(|(percent, name)| format!("{name} ({percent:.1} %)")).collect();
        f.write_str(&words.join(", "))
    }
}

fn ratio(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { part.as_secs_f64() / whole.as_secs_f64() }
}

/// Splits the time that goes by into phases. What goes by before the first is not counted.
#[derive(Debug, Default)]
pub struct Stopwatch {
    running: Option<(Phase, Instant)>,
    times: Times,
}

impl Stopwatch {
    /// The phase before ends, and this one begins.
    pub fn enter(&mut self, phase: Phase) {
        self.enter_at(phase, Instant::now());
    }

    /// The times of the phases that have ended since this was asked the last time.
    pub fn take(&mut self) -> Times {
        std::mem::take(&mut self.times)
    }

    fn enter_at(&mut self, phase: Phase, now: Instant) {
        if let Some((ended, since)) = self.running.replace((phase, now)) {
            self.times.add(ended, now - since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_belongs_to_one_phase_from_the_first_on() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stopwatch = Stopwatch::default();
        assert_eq!(stopwatch.take(), Times::default());
        let phases = [Phase::Passes, Phase::Data, Phase::Passes, Phase::Optimizer, Phase::Saving];
        for (phase, seconds) in phases.into_iter().zip([10, 11, 14, 20, 21]) {
            stopwatch.enter_at(phase, at(seconds));
        }
        let times = stopwatch.take();
        let seconds = Phase::ALL.map(|phase| times.of(phase).as_secs());
        assert_eq!(seconds, [3, 7, 0, 1, 0, 0, 0]);
        // Saving has not ended yet; it is counted when it has.
        stopwatch.enter_at(Phase::Passes, at(25));
        let times = stopwatch.take();
        assert_eq!((times.of(Phase::Saving).as_secs(), times.total().as_secs()), (4, 4));
    }

    #[test]
    fn shares_are_of_all_time_or_of_that_of_steps() {
        let mut times = Times::default();
        assert_eq!(
            (times.share(Phase::Data), times.share_of_steps(Phase::Data), times.to_string()),
            (0.0, 0.0, "".into())
        );
        for (phase, millis) in [(Phase::Data, 1000), (Phase::Passes, 7000), (Phase::Saving, 1997), (Phase::Sum, 3)] {
            times.add(phase, Duration::from_millis(millis));
        }
        assert_eq!((times.share(Phase::Data), times.share(Phase::Saving)), (0.1, 0.1997));
        assert_eq!(times.share_of_steps(Phase::Data), 1000.0 / 8003.0);
        assert_eq!(times.to_string(), "forward and backward (70.0 %), saving (20.0 %), waiting for data (10.0 %)");
        let sum: f64 = Phase::ALL.into_iter().map(|phase| times.share(phase)).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    }
}
