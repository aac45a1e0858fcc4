//! What validators would make of the field if some models, and no others, competed: their arithmetic over several steps.
//!
//! A *world* is a list of competitors, one for each uid, and the weights that a validator finds for them in each step. In
//! the world *stay* they are the models that are deployed; in the world *publish* the candidate stands in the place of one
//! own hotkey, at its own later block. Both are judged on the same batches, so that their difference owes nothing to luck in
//! drawing them.
//!
//! As in the reference, a world with more models than the validator keeps loses the worst after each step, by the rule of
//! the validator's version ([`step::kept`]); all of them, and so the candidate, get the first one. As they begin together,
//! both rules keep the same ones. Ties at the cut go to the lower uid: the reference has the order of a Python set there.

use std::iter;

use super::{Inputs, Model, OwnHotkey};
use crate::rules::Rules;
use crate::score::duel::{self, Contender};
use crate::score::step::{self, Fared};
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
    /// Whether its miner is us.
    pub(super) is_own: bool,
}

impl Competitor<'_> {
    /// Whether its share is ours: an own model that cannot be read is met by the others and pays nothing.
    pub(super) fn pays_us(&self) -> bool {
        self.is_own && self.losses.is_some()
    }
}

/// The competitors, and what a validator makes of them.
#[derive(Clone, Debug)]
pub(super) struct World<'a> {
    /// By ascending uid.
    pub(super) competitors: Vec<Competitor<'a>>,
    /// The weight of each competitor in each step that has a batch; 0 for one that is not evaluated any more.
    pub(super) steps: Vec<Vec<f32>>,
}

impl<'a> World<'a> {
    /// The world in which nothing is published.
    pub(super) fn stay(inputs: &'a Inputs<'_>) -> Self {
        Self::judged(inputs, deployed(inputs).collect())
    }

    /// The world in which the candidate takes the place of an own hotkey.
    pub(super) fn publish(inputs: &'a Inputs<'_>, own: &OwnHotkey) -> Self {
        let losses = Some(inputs.candidate.losses.as_slice());
        let candidate = Competitor { uid: own.uid, block: own.candidate_block, losses, is_own: true };
        let others = deployed(inputs).filter(|competitor| competitor.uid != own.uid);
        Self::judged(inputs, others.chain(iter::once(candidate)).collect())
    }

    fn judged(inputs: &Inputs<'_>, mut competitors: Vec<Competitor<'a>>) -> Self {
        competitors.sort_by_key(|competitor| competitor.uid);
        let num_batches: Vec<usize> = inputs.candidate.losses.iter().map(Vec::len).collect();
        let steps = step_weights(inputs.rules, &competitors, &num_batches);
        Self { competitors, steps }
    }

    /// Our share of each step's weights.
    pub(super) fn own_shares(&self) -> Vec<f64> {
        self.steps.iter().map(|weights| paid_part(&self.competitors, weights)).collect()
    }

    /// Each uid's mean weight over the steps.
    pub(super) fn mean_weights(&self) -> Vec<(u16, f64)> {
        let mean = |(index, competitor): (usize, &Competitor<'_>)| {
            let sum: f64 = self.steps.iter().map(|weights| f64::from(weights[index])).sum();
            (competitor.uid, sum / self.steps.len() as f64)
        };
        self.competitors.iter().enumerate().map(mean).collect()
    }
}

fn deployed<'a>(inputs: &'a Inputs<'_>) -> impl Iterator<Item = Competitor<'a>> {
    let models = inputs.models.iter().filter(|model| model.entry.evaluated);
    models.map(|Model { entry, losses }| Competitor {
        uid: entry.uid,
        block: entry.metadata.block.get(),
        losses: losses.as_deref().ok(),
        is_own: entry.is_own,
    })
}

/// The weights of each step with a batch; one without fails in the reference, and changes nothing.
fn step_weights(rules: &Rules, world: &[Competitor<'_>], num_batches: &[usize]) -> Vec<Vec<f32>> {
    let infinite = vec![f64::INFINITY; num_batches.iter().copied().max().unwrap_or(0)];
    let steps = num_batches.iter().enumerate().filter(|(_, num_batches)| **num_batches > 0);
    let mut kept: Vec<u16> = iter::zip(0.., world).map(|(index, _)| index).collect();
    let mut average = vec![0.0; world.len()];
    let weights = |(step, &num_batches): (usize, &usize)| {
        let contender = |&index: &u16| {
            let Competitor { block, losses, .. } = world[usize::from(index)];
            let losses = losses.map_or(infinite.as_slice(), |losses| &losses[step]);
            Contender { block: Some(block), losses }
        };
        let contenders: Vec<Contender<'_>> = kept.iter().map(contender).collect();
        let tallies = duel::tallies(&contenders, num_batches, rules.epsilon);
        let win_rates: Vec<f64> = tallies.iter().map(|tally| tally.win_rate).collect();
        let step_weights = weights::softmax(&win_rates, rules.validator.temperature);
        weights::mix(&mut average, &kept, &step_weights, rules.alpha);
        let mut weights = vec![0.0; world.len()];
        let mut fared = Vec::with_capacity(kept.len());
        for (((&index, weight), win_rate), contender) in kept.iter().zip(step_weights).zip(win_rates).zip(&contenders) {
            weights[usize::from(index)] = weight;
            let is_unreadable = contender.losses[..num_batches].iter().all(|loss| loss.is_infinite());
            fared.push(Fared { weight: average[usize::from(index)], win_rate, is_unreadable });
        }
        kept = step::kept(&fared, &rules.validator).into_iter().map(|index| kept[index]).collect();
        kept.sort_unstable();
        weights
    };
    steps.map(weights).collect()
}

/// Our part of the weights: exactly 1 if all of them are ours, whatever the rounding of the softmax.
fn paid_part(world: &[Competitor<'_>], weights: &[f32]) -> f64 {
    let weights = || iter::zip(world, weights).map(|(competitor, &weight)| (competitor.pays_us(), f64::from(weight)));
    let own: f64 = weights().filter(|(pays_us, _)| *pays_us).map(|(_, weight)| weight).sum();
    let all: f64 = weights().map(|(_, weight)| weight).sum();
    // The empty sum of floats is -0: nobody should read that we are paid less than nothing.
    if own > 0.0 { own / all } else { 0.0 }
}
