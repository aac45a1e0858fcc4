//! One look at the steps scored so far: what of their mean gain is certain, and whether more steps could change the answer.
//!
//! Looks are few, for every look loads every rival once. The first, after a handful of steps, finds only what is hopeless
//! (and, if the bound is exact, what is beyond doubt); the asymptotic bound says nothing before its burn-in is over.

use crate::recipe::{self, GateRule};
use crate::score::certainty::{asymptotic_bound, asymptotic_upper_bound, burn_in, exact_bound};

/// Steps before the first look, the second, and from there on between two.
const FIRST: usize = 6;
const SECOND: usize = 30;
const BETWEEN: usize = 10;

/// Standard errors that the mean of fewer steps than the asymptotic bound asks for must lie below what is needed to be
/// given up. To stay costs no probability of error, so this may be rough; it must only not cost a good candidate his chance.
const HOPELESS: f64 = 6.0;

/// How many steps to have scored for the next look, after a look at `num_steps` of at most `max_steps`.
pub fn next_look(num_steps: usize, max_steps: usize) -> usize {
    let next = match num_steps {
        0..FIRST => FIRST,
        FIRST..SECOND => SECOND,
        _ => num_steps / BETWEEN * BETWEEN + BETWEEN,
    };
    next.min(max_steps)
}

/// What is known of a mean gain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// What it exceeds, but for the probability of error; `None`: too few steps to say.
    pub lower_bound: Option<f64>,
    /// Whether it is as good as certain that it does not exceed what it must.
    pub hopeless: bool,
}

impl Look {
    /// Looks at the gains of the steps so far, which must exceed `needed` on the mean, but for the probability `alpha`;
    /// valid however often one looks.
    pub fn at(gains: &[f64], needed: f64, alpha: f64, exact: bool) -> Self {
        if exact {
            let mirrored: Vec<f64> = gains.iter().map(|gain| -gain).collect();
            return Self {
                lower_bound: (!gains.is_empty()).then(|| exact_bound(gains, alpha)),
                hopeless: -exact_bound(&mirrored, alpha) <= needed,
            };
        }
        let hopeless = match asymptotic_upper_bound(gains, alpha) {
            Some(bound) => bound <= needed,
            None => gains.len() >= FIRST && rough_upper_bound(gains) <= needed,
        };
        Self { lower_bound: asymptotic_bound(gains, alpha), hopeless }
    }
}

/// Steps without which no look is certain of anything, with `alpha` to spend.
pub fn least_steps(alpha: f64, options: &recipe::Gate) -> usize {
    match (options.rule, options.exact) {
        (GateRule::Pay, false) => burn_in(alpha),
        (GateRule::Pay, true) | (GateRule::BeatsLeader, _) => FIRST,
    }
}

fn rough_upper_bound(gains: &[f64]) -> f64 {
    let num = gains.len() as f64;
    let mean = gains.iter().sum::<f64>() / num;
    let variance = gains.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>() / (num - 1.0);
    mean + HOPELESS * (variance / num).sqrt()
}
