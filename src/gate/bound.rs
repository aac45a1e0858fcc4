//! How much of a mean is certain: a one-sided Student-t bound over independent steps.
//!
//! The bound holds for a number of steps that was fixed beforehand, and is exact for normally distributed steps only.
//! Left-skewed ones break it: the rare bad step is missing from most samples. The tests measure by how much: of eight
//! steps with a skewness of -0.1 the error is up to 1.5 times what is allowed, with -0.5 some 2.6 times, with -2 four
//! times. The softmax skews gains so where our share is already near everything. More steps help. What may be looked at
//! after every step takes another bound.

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

/// Below this the distribution's tail drowns in rounding; nothing is certain to such a degree.
const SMALLEST_TAIL: f64 = 1e-12;

/// What the mean behind independent samples exceeds, but for the probability `tail`; never below `least`, under which
/// no sample can fall. A single sample says nothing about its spread, so it bounds nothing; samples that are all equal
/// have none, and are taken at their word.
pub(super) fn lower_bound(samples: &[f64], tail: f64, least: f64) -> f64 {
    let [first, rest @ ..] = samples else { return least };
    if rest.is_empty() {
        return least;
    }
    if rest.iter().all(|sample| sample == first) {
        return *first;
    }
    let mean = mean(samples);
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / rest.len() as f64;
    let margin = student_t_quantile(tail, rest.len() as u32) * (variance / samples.len() as f64).sqrt();
    (mean - margin).max(least)
}

/// The arithmetic mean; not a number without samples.
pub(super) fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// What a Student-t variable of some degrees of freedom exceeds with the probability `tail`, at most one half. Infinite
/// below [`SMALLEST_TAIL`], and where nobody knows the tail.
fn student_t_quantile(tail: f64, degrees: u32) -> f64 {
    if tail.is_nan() || tail < SMALLEST_TAIL {
        return f64::INFINITY;
    }
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            return f64::from(degrees).sqrt() * libm::tan(middle);
        }
        if (1.0 - central_probability(middle, degrees)) / 2.0 > tail {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The probability that a Student-t variable lies between `-t` and `t`, where `angle = atan(t / sqrt(degrees))`: the
/// finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
fn central_probability(angle: f64, degrees: u32) -> f64 {
    let (sin, cos) = (libm::sin(angle), libm::cos(angle));
    let odd = degrees % 2;
    let (mut term, mut series) = (if odd == 1 { cos } else { 1.0 }, 0.0);
    for power in (odd..degrees.saturating_sub(1)).step_by(2) {
        series += term;
        term *= f64::from(power + 1) / f64::from(power + 2) * cos * cos;
    }
    if odd == 1 { FRAC_2_PI * (angle + sin * series) } else { sin * series }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::testing::{normals, uniforms};

    /// Published tables of the t distribution, to their last digit.
    #[test]
    fn quantiles_are_those_of_the_tables() {
        let table = [
            (0.95, 1, 6.313_752),
            (0.975, 1, 12.706_205),
            (0.995, 1, 63.656_741),
            (0.95, 2, 2.919_986),
            (0.999, 2, 22.327_125),
            (0.95, 3, 2.353_363),
            (0.9995, 3, 12.923_979),
            (0.975, 4, 2.776_445),
            (0.95, 7, 1.894_579),
            (0.975, 7, 2.364_624),
            (0.99, 10, 2.763_769),
            (0.99, 29, 2.462_021),
            (0.9995, 30, 3.645_959),
            (0.75, 120, 0.676_540),
            (0.975, 120, 1.979_930),
        ];
        for (probability, degrees, expected) in table {
            let quantile = student_t_quantile(1.0 - probability, degrees);
            assert!((quantile - expected).abs() < 1e-6, "t({probability}, {degrees}) = {quantile}, not {expected}");
        }
        assert!(student_t_quantile(0.5, 7).abs() < 1e-12);
        // The closed form of one degree of freedom, far out.
        let cauchy = 1.0 / libm::tan(std::f64::consts::PI * 1e-8);
        assert!((student_t_quantile(1e-8, 1) / cauchy - 1.0).abs() < 1e-6);
        assert_eq!(student_t_quantile(0.0, 7), f64::INFINITY);
        assert_eq!(student_t_quantile(f64::NAN, 7), f64::INFINITY);
    }

    #[test]
    fn a_bound_is_mean_less_quantile_times_standard_error() {
        // Mean 0.2, deviation 0.1; t(0.95, 2) = 2.919986.
        let bound = lower_bound(&[0.1, 0.2, 0.3], 0.05, -1.0);
        assert!((bound - (0.2 - 2.919_985_580 * 0.1 / 3f64.sqrt())).abs() < 1e-9, "{bound}");
        assert_eq!(lower_bound(&[0.9, -0.9], 0.05, -1.0), -1.0);
        assert_eq!(lower_bound(&[0.3, 0.3, 0.3], 0.0, -1.0), 0.3);
        assert_eq!(lower_bound(&[0.3, 0.3, 0.2], 0.0, -1.0), -1.0);
        assert_eq!(lower_bound(&[0.3], 0.05, -1.0), -1.0);
        assert_eq!(lower_bound(&[], 0.05, 0.0), 0.0);
    }

    /// How often the bound of 8 samples lies above the mean behind them, 0, when it should in 2.5 % of all cases. Of so
    /// many trials the standard error is 0.11 %.
    fn error_rate(sample: impl Fn(u64) -> Vec<f64>) -> f64 {
        let num_trials = 20_000;
        let errs = |&trial: &u64| lower_bound(&sample(trial), 0.025, f64::NEG_INFINITY) > 0.0;
        (0..num_trials).filter(errs).count() as f64 / num_trials as f64
    }

    /// Means of `num` exponential numbers turned round, of mean 0 and skewness -2 / sqrt(num).
    fn left_skewed(trial: u64, num: usize) -> Vec<f64> {
        let numbers: Vec<f64> = uniforms(trial, 8 * num).iter().map(|uniform| 1.0 + (1.0 - uniform).ln()).collect();
        numbers.chunks(num).map(mean).collect()
    }

    #[test]
    fn normal_steps_err_as_often_as_allowed() {
        let rate = error_rate(|trial| normals(trial, 8));
        assert!((rate - 0.025).abs() < 0.003, "{rate}");
    }

    /// Three pages give some 150 batches: what is skewed in a batch is hardly so in the step.
    #[test]
    fn steps_of_many_left_skewed_batches_err_nearly_as_often_as_allowed() {
        let rate = error_rate(|trial| left_skewed(trial, 150));
        assert!((rate - 0.028).abs() < 0.003, "{rate}");
        let rate = error_rate(|trial| left_skewed(trial, 24));
        assert!((rate - 0.0346).abs() < 0.003, "{rate}");
    }

    /// What the head of this file warns of: a step that is an exponential number itself breaks the bound.
    #[test]
    fn steps_that_are_left_skewed_themselves_err_four_times_as_often() {
        let rate = error_rate(|trial| left_skewed(trial, 1));
        assert!((rate - 0.10).abs() < 0.006, "{rate}");
    }
}
