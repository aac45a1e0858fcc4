//! How fast a run is: tokens and floating-point operations per second, also as a part of what the hardware can do (MFU),
//! what takes the time, the time that remains, and the process's peak memory.
//!
//! The arithmetic counted is the model's, not the machine's: 6 per parameter and token for the weight products of a
//! trained token (forward 2, backward 4), an embedding with a table of its own included, and 6 L d T for attention over a row
//! of T tokens: half of what PaLM, appendix B, counts, because a token sees only those before it and nothing else is
//! computed. Scoring is the forward third. Times are handed in, so that tests need no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::phases::{Phase, Times};
use crate::model::arch::Arch;

/// Steps that "now" means: enough to smooth over a slow one, few enough to see a change.
const WINDOW_STEPS: usize = 20;

/// From this part of the time on, what is done beside forward and backward is worth a word.
const SLOW: f64 = 0.05;

/// Floating-point operations to train on one token in rows of `row_len`.
pub fn train_flops_per_token(arch: &Arch, row_len: usize) -> f64 {
    let per_channel = attention_flops_per_channel(arch) as f64;
    let attention = per_channel * arch.layers as f64 * arch.heads as f64 * arch.head_size as f64 * row_len as f64;
    6.0 * arch.num_parameters() as f64 + attention
}

/// Those of attention for a trained token, a layer, a channel and a token of the row.
pub fn attention_flops_per_channel(arch: &Arch) -> u32 {
    if arch.causal { 6 } else { 12 }
}

/// Floating-point operations to score one token in rows of `row_len`.
pub fn score_flops_per_token(arch: &Arch, row_len: usize) -> f64 {
    train_flops_per_token(arch, row_len) / 3.0
}

/// How fast it went over some steps. All zero before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Tokens per second of step time: saving and evaluating not counted.
    pub tokens_per_s: f64,
    /// 10⁹ floating-point operations per second of step time.
    pub gflops: f64,
    /// Model FLOPs utilization: that as a part, from 0 to 1, of what the hardware can do at most, where that is known.
    pub mfu: Option<f64>,
}

/// What one or several steps took.
#[derive(Clone, Copy, Default)]
struct Spent {
    tokens: u64,
    times: Times,
}

/// Measures one process's part of a run.
pub struct Meter {
    flops_per_token: f64,
    peak_gflops: Option<f64>,
    total_steps: u64,
    steps_before: u64,
    started: Instant,
    last_step: Option<(u64, Instant)>,
    window: VecDeque<Spent>,
    overall: Spent,
}

impl Meter {
    /// Starts at `now` with a run that has done `steps_done` of `total_steps`. `peak_gflops`: what all devices together can do
    /// at most, in 10⁹ floating-point operations per second.
    pub fn new(
        flops_per_token: f64,
        peak_gflops: Option<f64>,
        steps_done: u64,
        total_steps: u64,
        now: Instant,
    ) -> Self {
        Self {
            flops_per_token,
            peak_gflops,
            total_steps,
            steps_before: steps_done,
            started: now,
            last_step: None,
            window: VecDeque::with_capacity(WINDOW_STEPS + 1),
            overall: Spent::default(),
        }
    }

    /// Counts a step that ended at `now`, and the `times` of it and of what was done since the step before.
    pub fn step(&mut self, now: Instant, step: u64, tokens: u64, times: Times) {
        let spent = Spent { tokens, times };
        self.last_step = Some((step, now));
        self.overall = sum([self.overall, spent]);
        self.window.push_back(spent);
        if self.window.len() > WINDOW_STEPS {
            self.window.pop_front();
        }
    }

    /// Counts what was done after the last step.
    pub fn after(&mut self, times: Times) {
        self.overall.times += times;
    }

    /// Over the last steps.
    pub fn recent(&self) -> Speed {
        self.speed(sum(self.window.iter().copied()))
    }

    /// Over all steps of this process.
    pub fn overall(&self) -> Speed {
        self.speed(self.overall)
    }

    /// Where all the time of this process has gone.
    pub fn times(&self) -> Times {
        self.overall.times
    }

    /// What takes the most time beside forward and backward, and which part of it, where that is worth a word. Of a step's
    /// phases it is the part of the last steps' time; of what is done now and then between steps, of all time so far, for the
    /// last steps would exaggerate it or miss it.
    pub fn slow(&self) -> Option<(Phase, f64)> {
        let recent = sum(self.window.iter().copied()).times;
        let share = |phase: Phase| match phase.is_between_steps() {
            true => self.overall.times.share(phase),
            false => recent.share_of_steps(phase),
        };
        let beside = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Passes);
        beside.map(|phase| (phase, share(phase))).filter(|(_, share)| *share >= SLOW).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The time until the last step, saving and evaluating included, if all goes on as so far.
    pub fn remaining(&self) -> Option<Duration> {
        let (step, at) = self.last_step?;
        let steps_done = step.checked_sub(self.steps_before).filter(|&steps| steps > 0)?;
        let steps_left = self.total_steps.saturating_sub(step);
        Duration::try_from_secs_f64((at - self.started).as_secs_f64() * steps_left as f64 / steps_done as f64).ok()
    }

    fn speed(&self, spent: Spent) -> Speed {
        let seconds = spent.times.in_steps().as_secs_f64();
        if seconds == 0.0 {
            return Speed::default();
        }
        let tokens_per_s = spent.tokens as f64 / seconds;
        let gflops = tokens_per_s * self.flops_per_token / 1e9;
        Speed { tokens_per_s, gflops, mfu: self.peak_gflops.map(|peak| gflops / peak) }
    }
}

fn sum(parts: impl IntoIterator<Item = Spent>) -> Spent {
    parts.into_iter().fold(Spent::default(), |mut sum, part| {
        sum.tokens += part.tokens;
        sum.times += part.times;
        sum
    })
}

/// The most memory this process ever had resident, in MiB, where the system tells (Linux).
pub fn peak_memory_mib() -> Option<f64> {
    parse_peak_mib(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_peak_mib(status: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn counts_the_arithmetic_of_gpt2() {
        let gpt2 = Arch::gpt2(50_257, 1024, 768, 12, 12);
        assert_eq!(train_flops_per_token(&gpt2, 1024), 6.0 * 124_439_808.0 + 6.0 * 12.0 * 768.0 * 1024.0);
        assert_eq!(score_flops_per_token(&gpt2, 1024), 2.0 * 124_439_808.0 + 2.0 * 12.0 * 768.0 * 1024.0);
        let both_ways = Arch { causal: false, ..gpt2 };
        assert_eq!(train_flops_per_token(&both_ways, 1024), 6.0 * 124_439_808.0 + 12.0 * 12.0 * 768.0 * 1024.0);
    }

    /// Times in seconds.
    fn times<const N: usize>(parts: [(Phase, u64); N]) -> Times {
        let mut times = Times::default();
        for (phase, seconds) in parts {
            times.add(phase, Duration::from_secs(seconds));
        }
        times
    }

    #[test]
    fn recent_speed_follows_a_change_and_overall_speed_remembers() {
        let start = Instant::now();
        let mut meter = Meter::new(2e9, None, 0, 100, start);
        assert_eq!((meter.recent(), meter.overall(), meter.slow()), (Speed::default(), Speed::default(), None));
        for step in 1..=20 {
            meter.step(start, step, 1000, times([(Phase::Passes, 1), (Phase::Data, 1)]));
        }
        assert_eq!(meter.slow(), Some((Phase::Data, 0.5)));
        for step in 21..=40 {
            meter.step(start, step, 1000, times([(Phase::Passes, 1)]));
        }
        assert_eq!(meter.recent(), Speed { tokens_per_s: 1000.0, gflops: 2000.0, mfu: None });
        assert_eq!(meter.overall().tokens_per_s, 40_000.0 / 60.0);
        assert_eq!(meter.slow(), None);
        assert_eq!(meter.times(), times([(Phase::Passes, 40), (Phase::Data, 20)]));
    }

    #[test]
    fn utilization_is_the_part_of_the_peak_that_the_models_arithmetic_is() {
        let start = Instant::now();
        // 1,000 tokens of 2 GFLOP in 4 s of a step are 500 GFLOP/s; the 6 s between steps do not count.
        let mut meter = Meter::new(2e9, Some(2000.0), 0, 100, start);
        meter.step(start, 1, 1000, times([(Phase::Passes, 3), (Phase::Optimizer, 1), (Phase::Saving, 6)]));
        let expected = Speed { tokens_per_s: 250.0, gflops: 500.0, mfu: Some(0.25) };
        assert_eq!((meter.recent(), meter.overall()), (expected, expected));
    }

    #[test]
    fn what_is_done_between_steps_is_slow_by_its_part_of_the_whole_run() {
        let start = Instant::now();
        let mut meter = Meter::new(1.0, None, 0, 1000, start);
        for step in 1..=99 {
            meter.step(start, step, 1, times([(Phase::Passes, 19), (Phase::Optimizer, 1)]));
        }
        assert_eq!(meter.slow(), Some((Phase::Optimizer, 0.05)), "5 % is worth a word");
        // A save of 100 s is a fifth of the last 20 steps' time, but 4.8 % of the run's.
        meter.step(start, 100, 1, times([(Phase::Passes, 20), (Phase::Saving, 100)]));
        assert_eq!(meter.slow(), None);
        meter.after(times([(Phase::Scoring, 400)]));
        assert_eq!(meter.slow(), Some((Phase::Scoring, 400.0 / 2500.0)));
    }

    #[test]
    fn a_resumed_run_estimates_from_its_own_steps_with_saving_and_evaluating_included() {
        let start = Instant::now();
        let mut meter = Meter::new(1.0, None, 90, 100, start);
        assert_eq!(meter.remaining(), None);
        // Four steps of 1 s, and 4 s of saving in between.
        meter.step(start + Duration::from_secs(8), 94, 1, times([(Phase::Passes, 1)]));
        assert_eq!(meter.remaining(), Some(Duration::from_secs(12)));
        meter.step(start + Duration::from_secs(20), 100, 1, times([(Phase::Passes, 1)]));
        assert_eq!(meter.remaining(), Some(Duration::ZERO));
    }

    #[test]
    fn reads_the_peak_memory_from_the_kernels_status() {
        assert_eq!(parse_peak_mib("Name:\tassay\nVmPeak:\t  9 kB\nVmHWM:\t    5632 kB\nVmRSS:\t 1 kB\n"), Some(5.5));
        assert_eq!(parse_peak_mib("Name:\tassay\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn peak_memory_counts_what_this_process_has_touched() {
        let before = peak_memory_mib().unwrap();
        let touched = std::hint::black_box(vec![1_u8; 512 << 20]);
        assert!(peak_memory_mib().unwrap() >= 512.0_f64.max(before));
        drop(touched);
    }
}
