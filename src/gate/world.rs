//! What we would be paid if some models, and no others, competed: the validator's arithmetic over several steps.
//!
//! A *world* is a list of competitors, one for each uid. In the world *stay* they are the models that are deployed; in
//! the world *publish* the candidate stands in the place of one own hotkey, at its own later block. Both are judged on
//! the same batches, so that their difference owes nothing to luck in drawing them.
//!
//! As in the reference, a world with more models than the validator keeps loses the worst by win rate after each step;
//! all of them, and so the candidate, get the first one. Ties at the cut go to the lower uid: the reference has the
//! order of a Python set there. (The version of June 2024 keeps by weight first; that is not modelled.)

use std::iter;

use super::{Inputs, Model, OwnHotkey};
use crate::rules::Rules;
use crate::score::duel::{self, Contender};
use crate::score::weights;

/// A model in a world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Competitor<'a> {
    /// Its place.
    pub(super) uid: u16,
    /// Block of its commitment.
    pub(super) block: u64,
    /// Its losses, per step and batch; `None`: all infinite.
    pub(super) losses: Option<&'a [Vec<f64>]>,
    /// Whether its share is ours.
    pub(super) pays_us: bool,
}

/// The world in which nothing is published. An own model that cannot be read is met by the others and pays nothing.
pub(super) fn stay<'a>(inputs: &'a Inputs<'_>) -> Vec<Competitor<'a>> {
    let deployed = |Model { entry, losses }: &'a Model| Competitor {
        uid: entry.uid,
        block: entry.metadata.block.get(),
        losses: losses.as_deref().ok(),
        pays_us: entry.is_own && losses.is_ok(),
    };
    let mut world: Vec<_> = inputs.models.iter().filter(|model| model.entry.evaluated).map(deployed).collect();
    world.sort_by_key(|competitor| competitor.uid);
    world
}

/// The world in which the candidate takes the place of an own hotkey.
pub(super) fn publish<'a>(inputs: &'a Inputs<'_>, own: &OwnHotkey) -> Vec<Competitor<'a>> {
    let losses = Some(inputs.candidate.losses.as_slice());
    let candidate = Competitor { uid: own.uid, block: own.candidate_block, losses, pays_us: true };
    let others = stay(inputs).into_iter().filter(|competitor| competitor.uid != own.uid);
    let mut world: Vec<_> = others.chain(iter::once(candidate)).collect();
    world.sort_by_key(|competitor| competitor.uid);
    world
}

/// Our share of the step's weights, for each step with a batch; one without fails in the reference, and changes nothing.
pub(super) fn own_shares(rules: &Rules, world: &[Competitor<'_>], num_batches: &[usize]) -> Vec<f64> {
    let infinite = vec![f64::INFINITY; num_batches.iter().copied().max().unwrap_or(0)];
    let steps = num_batches.iter().enumerate().filter(|(_, num_batches)| **num_batches > 0);
    let mut kept = world.to_vec();
    let share = |(step, &num_batches): (usize, &usize)| {
        let contender = |&Competitor { block, losses, .. }| Contender {
            block: Some(block),
            losses: losses.map_or(infinite.as_slice(), |losses| &losses[step]),
        };
        let contenders: Vec<Contender<'_>> = kept.iter().map(contender).collect();
        let tallies = duel::tallies(&contenders, num_batches, rules.epsilon);
        let win_rates: Vec<f64> = tallies.iter().map(|tally| tally.win_rate).collect();
        let share = paid_part(&kept, &weights::softmax(&win_rates, rules.validator.temperature));
        keep_best(&mut kept, &win_rates, rules.validator.sample_min);
        share
    };
    steps.map(share).collect()
}

/// Our part of the weights: exactly 1 if all of them are ours, whatever the rounding of the softmax.
fn paid_part(world: &[Competitor<'_>], weights: &[f32]) -> f64 {
    let weights = || iter::zip(world, weights).map(|(competitor, &weight)| (competitor.pays_us, f64::from(weight)));
    let own: f64 = weights().filter(|(pays_us, _)| *pays_us).map(|(_, weight)| weight).sum();
    let all: f64 = weights().map(|(_, weight)| weight).sum();
    // The empty sum of floats is -0: nobody should read that we are paid less than nothing.
    if own > 0.0 { own / all } else { 0.0 }
}

/// Keeps the `num_kept` models with the highest win rates, the lower uid of equals, by ascending uid.
fn keep_best(world: &mut Vec<Competitor<'_>>, win_rates: &[f64], num_kept: usize) {
    let mut ranked: Vec<_> = iter::zip(world.drain(..), win_rates).collect();
    ranked.sort_by(|(_, rate), (_, other)| other.total_cmp(rate));
    ranked.truncate(num_kept);
    world.extend(ranked.into_iter().map(|(competitor, _)| competitor));
    world.sort_by_key(|competitor| competitor.uid);
}
