//! The learning rate as a function of the step alone.
//!
//! Steps count from 0. During the warm-up the rate rises linearly and the last warm-up step has the peak; afterwards
//! comes half a cosine, a plateau with a linear end, or a constant. Being a pure function, a resumed run needs no state
//! for it.

use crate::recipe::{Schedule, ScheduleKind};

/// The learning rate of a step (from 0) of `total_steps`; the end value for later steps.
pub fn learning_rate(schedule: &Schedule, peak: f64, step: usize, total_steps: usize) -> f64 {
    let warmup = schedule.warmup_steps;
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let end = schedule.end_factor;
    match schedule.kind {
        ScheduleKind::Constant => peak,
        _ if step >= total_steps => peak * end,
        ScheduleKind::Cosine => {
            let angle = std::f64::consts::PI * (step - warmup) as f64 / (total_steps - warmup) as f64;
            peak * (end + (1.0 - end) * 0.5 * (1.0 + angle.cos()))
        }
        ScheduleKind::Wsd => {
            let decay_start = total_steps.saturating_sub(schedule.decay_steps).max(warmup);
            if step < decay_start {
                return peak;
            }
            let done = (step - decay_start + 1) as f64 / (total_steps - decay_start) as f64;
            peak * (1.0 - (1.0 - end) * done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::model::golden_tests::number;

    #[test]
    fn golden_cosine_with_warmup() {
        let schedule = Schedule { warmup_steps: 5, ..Schedule::default() };
        for (path, file) in golden::files("training", "log") {
            let log = file["log"].as_array().expect("a list of steps");
            for (step, line) in log.iter().enumerate() {
                let expected = number(&line["lr"]);
                let computed = learning_rate(&schedule, 1e-3, step, log.len());
                let place = path.display();
                assert!((computed - expected).abs() <= 1e-15 * expected, "{place}, step {step}: {computed} {expected}");
            }
        }
    }

    #[test]
    fn plateau_ends_linearly_at_the_end_value() {
        let schedule = Schedule { kind: ScheduleKind::Wsd, warmup_steps: 2, decay_steps: 4, end_factor: 0.2 };
        let rates: Vec<f64> = (0..12).map(|step| learning_rate(&schedule, 1.0, step, 10)).collect();
        let expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2];
        assert!(rates.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-15), "{rates:?}");
    }

    #[test]
    fn every_kind_is_finite_and_at_most_the_peak_however_short_the_run() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Wsd, ScheduleKind::Constant] {
            for (warmup_steps, decay_steps, total_steps) in [(0, 0, 1), (3, 0, 3), (5, 9, 3), (0, 9, 3), (2, 2, 4)] {
                let schedule = Schedule { kind, warmup_steps, decay_steps, end_factor: 0.0 };
                for step in 0..8 {
                    let rate = learning_rate(&schedule, 2.0, step, total_steps);
                    assert!((0.0..=2.0).contains(&rate), "{kind:?} {warmup_steps} {decay_steps} {total_steps}: {rate}");
                }
            }
        }
        let constant = Schedule { kind: ScheduleKind::Constant, warmup_steps: 2, ..Schedule::default() };
        let rates: Vec<f64> = (0..4).map(|step| learning_rate(&constant, 2.0, step, 4)).collect();
        assert_eq!(rates, [1.0, 2.0, 2.0, 2.0]);
    }
}
