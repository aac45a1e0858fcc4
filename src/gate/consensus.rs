//! What the chain would pay: the validators' weights drawn anew many times, and Yuma Consensus over each draw.
//!
//! Every active validator meets pages of its own, so each resamples some steps of those that were scored, the same ones in
//! both worlds, mixes them as it does from step to step, and sets weights as it would. The rows of all others stay as they
//! are on the chain. A validator whose row lies too far from what we foretell does something that we do not understand (an
//! old version, another subnet's weights, a cache): it is *frozen*, that is, taken to stay as it is whatever we publish.
//!
//! A validator cannot know who was registered or what was committed after it last set weights, so its row is compared over
//! the other uids alone, with or without a model; likewise the chain's incentives, by the validator that is oldest in that.
//! Models that cannot be read are left out as well, for validators that hold a copy still pay them. One that so pays an own
//! model goes on with that if nothing is published, and meets what is published in its place.

use std::iter;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::world::World;
use super::{Inputs, roster};
use crate::chain::{Neuron, Snapshot};
use crate::ops::random::{derive, derive_named, uniform};
use crate::score::{weights, yuma};

/// How often everything is drawn.
const NUM_REPLICATES: u64 = 200;
/// Steps that each validator draws.
const STEPS_PER_VALIDATOR: u64 = 8;
/// Distance in total variation beyond which a validator is frozen.
const FROZEN_BEYOND: f64 = 0.5;
/// Miners that the backtest compares, those with the highest incentive.
const NUM_BACKTESTED: usize = 5;

/// The network as far as it takes part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Network {
    /// The active validators, by ascending uid.
    pub validators: Vec<ValidatorRecord>,
    /// How often their weights were drawn.
    pub num_replicates: u64,
    /// Steps that each of them drew each time.
    pub steps_per_validator: u64,
}

/// An active validator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValidatorRecord {
    /// Its place.
    pub uid: u16,
    /// Its stake in the chain's smallest unit.
    pub stake: u64,
    /// Distance in total variation between its row and what we foretell; `None`: they have nothing in common to compare.
    pub distance: Option<f64>,
    /// Whether its row is taken to stay as it is.
    pub is_frozen: bool,
    /// Whether it pays an own model that cannot be read any more: its row stays as it is if nothing is published.
    pub holds_copy: bool,
}

/// What the incentives of the chain say of our picture of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backtest {
    /// The best miners, by descending incentive.
    pub miners: Vec<Backtested>,
    /// The largest difference.
    pub difference: f64,
    /// How large it may be: `gate.tolerance`.
    pub tolerance: f64,
    /// Whether it is not larger.
    pub holds: bool,
}

/// A miner's share of the incentive, among those that all active validators can know.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backtested {
    /// Its place.
    pub uid: u16,
    /// What we foretell if nothing is published.
    pub foretold: f64,
    /// What the chain says.
    pub on_chain: f64,
}

/// What publishing changes in our incentive by the chain's reckoning, over all draws.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChainGain {
    /// Half of the draws give less.
    pub median: f64,
    /// One draw in twenty gives less.
    pub fifth_percentile: f64,
}

/// The consensus of one snapshot, ready to be asked about worlds.
pub(super) struct Consensus<'a> {
    snapshot: &'a Snapshot,
    input: yuma::Input,
    seed: u64,
    alpha: f64,
    own: Vec<u16>,
    /// The uids that the validator with the oldest weights can know.
    known_to_all: Vec<u16>,
    pub(super) network: Network,
    /// Everybody's incentive if nothing is published, by draw and uid.
    stay: Vec<Vec<f64>>,
}

impl<'a> Consensus<'a> {
    /// `None` without an active validator or a scored step.
    pub(super) fn of(inputs: &Inputs<'a>, stay: &World<'_>) -> Option<Self> {
        let snapshot = inputs.snapshot;
        let active = roster::active_validators(snapshot);
        let oldest_update = active.iter().map(|validator| validator.last_update).min()?;
        if stay.steps.is_empty() {
            return None;
        }
        let foretold = stay.mean_weights();
        let mut validators: Vec<ValidatorRecord> = (active.iter())
            .map(|validator| {
                let row = snapshot.weights.get(&validator.uid).into_iter().flatten();
                let row: Vec<(u16, f64)> = row.map(|(uid, weight)| (*uid, f64::from(*weight))).collect();
                let known = known_uids(inputs, validator.last_update);
                let distance = distance(&row, &foretold, &known);
                let is_frozen = distance.is_some_and(|distance| distance > FROZEN_BEYOND);
                let is_lost = |uid: u16| {
                    let mut lost = inputs.models.iter().filter(|model| model.entry.is_own && model.losses.is_err());
                    lost.any(|model| model.entry.uid == uid)
                };
                let holds_copy = row.iter().any(|&(uid, weight)| weight > 0.0 && is_lost(uid));
                ValidatorRecord { uid: validator.uid, stake: validator.stake, distance, is_frozen, holds_copy }
            })
            .collect();
        validators.sort_by_key(|validator| validator.uid);
        let network = Network { validators, num_replicates: NUM_REPLICATES, steps_per_validator: STEPS_PER_VALIDATOR };
        let deployed = inputs.models.iter().filter(|model| model.entry.is_own).map(|model| model.entry.uid);
        let mut own: Vec<u16> = deployed.chain(inputs.own.iter().map(|own| own.uid)).collect();
        own.sort_unstable();
        own.dedup();
        let mut consensus = Self {
            snapshot,
            input: yuma::Input::of(snapshot),
            seed: seed(inputs),
            alpha: inputs.rules.alpha,
            own,
            known_to_all: known_uids(inputs, oldest_update),
            network,
            stay: Vec::new(),
        };
        consensus.stay = consensus.incentives(stay, |validator| validator.is_frozen || validator.holds_copy);
        Some(consensus)
    }

    /// What a world in which something is published changes in our incentive.
    pub(super) fn gain(&self, publish: &World<'_>) -> ChainGain {
        let own = |incentives: &Vec<f64>| self.own.iter().map(|uid| at(incentives, *uid)).sum::<f64>();
        let mut gains: Vec<f64> = iter::zip(&self.incentives(publish, |validator| validator.is_frozen), &self.stay)
            .map(|(publish, stay)| own(publish) - own(stay))
            .collect();
        gains.sort_by(f64::total_cmp);
        let middle = gains.len() / 2;
        ChainGain { median: (gains[middle - 1] + gains[middle]) / 2.0, fifth_percentile: gains[gains.len() / 20 - 1] }
    }

    /// What we foretell against what is; `None` if there is nothing that all validators can know, or nobody is paid.
    pub(super) fn backtest(&self, tolerance: f64) -> Option<Backtest> {
        let known = &self.known_to_all;
        let mean =
            |uid: u16| self.stay.iter().map(|incentives| at(incentives, uid)).sum::<f64>() / self.stay.len() as f64;
        let mut miners: Vec<Backtested> = (self.snapshot.neurons.iter())
            .filter(|neuron| known.contains(&neuron.uid))
            .map(|neuron| Backtested { uid: neuron.uid, foretold: mean(neuron.uid), on_chain: neuron.incentive.into() })
            .collect();
        let foretold: f64 = miners.iter().map(|miner| miner.foretold).sum();
        let on_chain: f64 = miners.iter().map(|miner| miner.on_chain).sum();
        if on_chain <= 0.0 {
            return None;
        }
        for miner in &mut miners {
            // Where we foretell nothing of what the chain pays, our picture is wrong altogether.
            miner.foretold = if foretold > 0.0 { miner.foretold / foretold } else { 0.0 };
            miner.on_chain /= on_chain;
        }
        miners.sort_by(|one, other| other.on_chain.total_cmp(&one.on_chain).then(one.uid.cmp(&other.uid)));
        miners.retain(|miner| miner.on_chain > 0.0 || miner.foretold > 0.0);
        miners.truncate(NUM_BACKTESTED);
        let difference = miners.iter().map(|miner| (miner.foretold - miner.on_chain).abs()).fold(0.0, f64::max);
        Some(Backtest { miners, difference, tolerance, holds: difference <= tolerance })
    }

    /// Everybody's incentive in a world, by draw and uid, where the rows of some validators stay as they are.
    fn incentives(&self, world: &World<'_>, stays: impl Fn(&ValidatorRecord) -> bool + Sync) -> Vec<Vec<f64>> {
        let replicate = |replicate: u64| {
            let mut input = self.input.clone();
            for validator in self.network.validators.iter().filter(|validator| !stays(validator)) {
                let uid = usize::from(validator.uid);
                let key = derive(derive(self.seed, replicate), validator.uid.into());
                input.weights[uid] = self.row(world, key, input.stake.len());
                // Set from now on, so that they count for whoever is registered, if only since this block.
                input.last_update[uid] = input.block.saturating_add(1);
            }
            yuma::incentives(&input)
        };
        (0..NUM_REPLICATES).into_par_iter().map(replicate).collect()
    }

    /// The weights that a validator sets after steps of its own.
    fn row(&self, world: &World<'_>, key: u64, num_uids: usize) -> Vec<(u16, u16)> {
        let positions: Vec<u16> = iter::zip(0.., &world.competitors).map(|(position, _)| position).collect();
        let mut average = vec![0.0; positions.len()];
        for draw in 0..STEPS_PER_VALIDATOR {
            let step = (f64::from(uniform(key, 0, draw)) * world.steps.len() as f64) as usize;
            weights::mix(&mut average, &positions, &world.steps[step], self.alpha);
        }
        // Validators that cannot read an own model do not pay it.
        let paid = iter::zip(&world.competitors, average)
            .filter(|(competitor, _)| !competitor.is_own || competitor.pays_us())
            .filter(|(competitor, _)| usize::from(competitor.uid) < num_uids)
            .map(|(competitor, weight)| (competitor.uid, weight));
        weights::as_sent(paid)
    }
}

/// A uid's part of a vector; 0 beyond its end, and where an epoch without weights leaves no number.
fn at(incentives: &[f64], uid: u16) -> f64 {
    incentives.get(usize::from(uid)).copied().filter(|share| share.is_finite()).unwrap_or(0.0)
}

/// The uids that were registered at a block and have committed nothing since, but for those whose model cannot be read.
fn known_uids(inputs: &Inputs<'_>, block: u64) -> Vec<u16> {
    let snapshot = inputs.snapshot;
    let is_unreadable = |uid: u16| inputs.models.iter().any(|model| model.entry.uid == uid && model.losses.is_err());
    let is_known = |neuron: &&Neuron| {
        let is_newer = snapshot.commitments.get(&neuron.hotkey).is_some_and(|commitment| commitment.block > block);
        neuron.registered_at <= block && !is_newer && !is_unreadable(neuron.uid)
    };
    snapshot.neurons.iter().filter(is_known).map(|neuron| neuron.uid).collect()
}

/// Half of what two vectors differ by over some uids, each divided by its sum over them: 1 if the second has nothing there;
/// `None` if the first has not.
fn distance(one: &[(u16, f64)], other: &[(u16, f64)], uids: &[u16]) -> Option<f64> {
    let part = |vector: &[(u16, f64)], uid: u16| {
        vector.iter().filter(|(to, _)| *to == uid).map(|(_, weight)| weight).sum::<f64>()
    };
    let sum = |vector: &[(u16, f64)]| uids.iter().map(|uid| part(vector, *uid)).sum::<f64>();
    let (sum_of_one, sum_of_other) = (sum(one), sum(other));
    if sum_of_one <= 0.0 {
        return None;
    }
    if sum_of_other <= 0.0 {
        return Some(1.0);
    }
    let difference = |uid: &u16| (part(one, *uid) / sum_of_one - part(other, *uid) / sum_of_other).abs();
    Some(uids.iter().map(difference).sum::<f64>() / 2.0)
}

/// Luck that belongs to the inputs: the same ones give the same draws.
fn seed(inputs: &Inputs<'_>) -> u64 {
    let mut hash = Sha256::new();
    hash.update(inputs.snapshot.block.to_le_bytes());
    hash.update(&inputs.candidate.hash);
    for loss in inputs.candidate.losses.iter().flatten() {
        hash.update(loss.to_bits().to_le_bytes());
    }
    derive_named(0, &STANDARD.encode(hash.finalize()))
}
