//! Yuma Consensus: what an epoch of the chain makes of the validators' weights.
//!
//! Once in so many blocks the chain asks of each miner what weight the validators with a majority of the stake give it
//! at least, clips what is above that, and pays miners by the stake behind the rest; validators are paid by the bonds they
//! hold of the miners that earn, an average over epochs of who supported whom. [`epoch`] is all of it in the chain's own
//! arithmetic (`fixed`); [`incentives`] is the part that decides what miners earn, for those who ask often.
//!
//! The source is subtensor's `pallets/subtensor/src/epoch.rs` of March 2024.

mod fixed;
mod matrix;
#[cfg(test)]
mod tests;

use crate::chain::{ConsensusParams, FULL_SHARE, Snapshot};
use fixed::Fixed;
use matrix::Rows;

/// What an epoch starts from; vectors are by uid, all of one length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Input {
    /// The block of the epoch.
    pub block: u64,
    /// A validator that has not set weights for more blocks than this does not count.
    pub activity_cutoff: u64,
    /// The subnet's parameters.
    pub consensus: ConsensusParams,
    /// Stake in the chain's smallest unit.
    pub stake: Vec<u64>,
    /// Whether its weights count.
    pub validator_permit: Vec<bool>,
    /// Block at which it last set weights.
    pub last_update: Vec<u64>,
    /// Block of its registration: weights that are older do not count for it.
    pub registered_at: Vec<u64>,
    /// What it has set, as (uid, weight).
    pub weights: Vec<Vec<(u16, u16)>>,
    /// What it holds of each miner, as (uid, bond).
    pub bonds: Vec<Vec<(u16, u16)>>,
}

impl Input {
    /// What the next epoch of a subnet would start from.
    pub fn of(snapshot: &Snapshot) -> Self {
        let len = snapshot.neurons.iter().map(|neuron| usize::from(neuron.uid) + 1).max().unwrap_or(0);
        let mut input = Self {
            block: snapshot.block,
            activity_cutoff: snapshot.activity_cutoff,
            consensus: snapshot.consensus,
            stake: vec![0; len],
            validator_permit: vec![false; len],
            last_update: vec![0; len],
            // So no weight counts that is given to a place which nobody holds.
            registered_at: vec![u64::MAX; len],
            weights: vec![Vec::new(); len],
            bonds: vec![Vec::new(); len],
        };
        for neuron in &snapshot.neurons {
            let uid = usize::from(neuron.uid);
            input.stake[uid] = neuron.stake;
            input.validator_permit[uid] = neuron.validator_permit;
            input.last_update[uid] = neuron.last_update;
            input.registered_at[uid] = neuron.registered_at;
            input.weights[uid] = snapshot.weights.get(&neuron.uid).cloned().unwrap_or_default();
            input.bonds[uid] = snapshot.bonds.get(&neuron.uid).cloned().unwrap_or_default();
        }
        input
    }

    /// How many uids there are.
    pub(super) fn len(&self) -> usize {
        self.stake.len()
    }

    /// The validators that count: with a permit, with stake, and with weights set within the activity cutoff.
    pub fn validators(&self) -> impl Iterator<Item = usize> + '_ {
        let counts = |uid: usize| self.validator_permit[uid] && self.stake[uid] > 0;
        (0..self.len()).filter(move |&uid| counts(uid) && self.last_update[uid] > 0 && self.is_active(uid))
    }

    /// What a validator says of other uids, as (uid, weight), without what it said of former holders of their places.
    pub fn current_weights(&self, validator: usize) -> Vec<(u16, u16)> {
        self.weights_of(validator).collect()
    }

    fn is_active(&self, uid: usize) -> bool {
        self.last_update[uid].saturating_add(self.activity_cutoff) >= self.block
    }

    /// Whether what a validator says of a miner was said of the present holder of that place.
    pub(super) fn is_current(&self, validator: usize, miner: u16) -> bool {
        self.last_update[validator] > self.registered_at[usize::from(miner)]
    }

    /// The entries of a validator's row that say something of present holders.
    fn current<'a>(&'a self, validator: usize, row: &'a [(u16, u16)]) -> impl Iterator<Item = (u16, u16)> + Clone + 'a {
        let entries = row.iter().copied().filter(|(uid, _)| usize::from(*uid) < self.len());
        entries.filter(move |(uid, _)| self.is_current(validator, *uid))
    }

    fn weights_of(&self, validator: usize) -> impl Iterator<Item = (u16, u16)> + Clone + '_ {
        self.current(validator, &self.weights[validator]).filter(move |(uid, _)| usize::from(*uid) != validator)
    }

    /// The weights of validators with a permit, to others than themselves; the sum of a row is 1.
    fn weights_that_count(&self) -> Rows {
        let row = |validator: usize| {
            if !self.validator_permit[validator] {
                return Vec::new();
            }
            let entries = self.weights_of(validator);
            let sum: u64 = entries.clone().map(|(_, weight)| u64::from(weight)).sum();
            entries.map(|(uid, weight)| (uid, Fixed::ratio(weight.into(), sum.into()))).collect()
        };
        (0..self.len()).map(row).collect()
    }

    fn bonds_that_count(&self) -> Rows {
        let row = |(validator, row): (usize, &Vec<(u16, u16)>)| {
            self.current(validator, row).map(|(uid, bond)| (uid, Fixed::from_int(bond))).collect()
        };
        self.bonds.iter().enumerate().map(row).collect()
    }
}

/// What an epoch leaves; vectors are by uid, shares out of [`FULL_SHARE`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// Whether it has set weights within the activity cutoff.
    pub active: Vec<bool>,
    /// Share of the weights after clipping.
    pub rank: Vec<u16>,
    /// The part of the weights it was given that clipping left.
    pub trust: Vec<u16>,
    /// The weight that validators with a majority of the stake reach: what is above it is clipped.
    pub consensus: Vec<u16>,
    /// Share of the miners' pay.
    pub incentive: Vec<u16>,
    /// Share of the validators' pay.
    pub dividends: Vec<u16>,
    /// The part of the weights it has set that clipping left.
    pub validator_trust: Vec<u16>,
    /// What it earns, where the best earner has the full share: the lowest is replaced first.
    pub pruning_scores: Vec<u16>,
    /// Pay as a miner, in the chain's smallest unit.
    pub server_emission: Vec<u64>,
    /// Pay as a validator, in the chain's smallest unit.
    pub validator_emission: Vec<u64>,
    /// Both, as the chain records it: for its rounding, off the sum by a unit or so.
    pub emission: Vec<u64>,
    /// Whether its weights count in the next epoch: those with the most stake have the permit, of equals the later uid.
    pub validator_permit: Vec<bool>,
    /// What it holds of each miner, as (uid, bond), where the validator that holds most has the full share.
    pub bonds: Vec<Vec<(u16, u16)>>,
}

/// The epoch of a subnet as subtensor computes it in March 2024 (runtime 143; bonds without "liquid alpha").
///
/// Entries of weights and bonds for a uid that is not there are left out.
pub fn epoch(input: &Input) -> Epoch {
    let len = input.len();
    let ranking = Ranking::of(input);
    let Ranking { active, stake, active_stake, weights, consensus, ranks, .. } = &ranking;

    let mut incentive = ranks.clone();
    matrix::normalize(&mut incentive);
    let trust = std::iter::zip(ranks, &ranking.ranks_before_clipping).map(|(&after, &before)| after / before);

    let mut old_bonds = input.bonds_that_count();
    matrix::normalize_columns(&mut old_bonds, len);
    let mut new_bonds = weights.clone();
    for (row, &stake) in std::iter::zip(&mut new_bonds, active_stake) {
        row.iter_mut().for_each(|(_, value)| *value = *value * stake);
    }
    matrix::normalize_columns(&mut new_bonds, len);
    let stays = Fixed::ratio(input.consensus.bonds_moving_average, 1_000_000);
    let mut bonds = matrix::moving_average(&old_bonds, &new_bonds, stays, len);
    matrix::normalize_columns(&mut bonds, len);
    let mut dividends = matrix::weighted_row_sums(&bonds, &incentive);
    matrix::normalize(&mut dividends);

    let mut combined: Vec<Fixed> = std::iter::zip(&incentive, &dividends).map(|(&a, &b)| a + b).collect();
    let total: Fixed = combined.iter().copied().sum();
    let (mut to_servers, mut to_validators) = (incentive.clone(), dividends.clone());
    matrix::divide(&mut to_servers, total);
    matrix::divide(&mut to_validators, total);
    matrix::normalize(&mut combined);
    if total == Fixed::ZERO {
        // Nobody has weights that count: all goes to the validators by stake, to the active ones if there are any.
        let has_active = active_stake.iter().any(|&stake| stake != Fixed::ZERO);
        to_validators = if has_active { active_stake.clone() } else { stake.clone() };
        combined = to_validators.clone();
    }

    let validator_permit = largest(stake, input.consensus.max_validators.into());
    let pruning_scores = upscale(&combined);
    let shares = |values: &[Fixed]| values.iter().map(|value| value.to_share()).collect();
    let pay = |parts: &[Fixed]| parts.iter().map(|part| part.of(input.consensus.emission)).collect();
    Epoch {
        active: active.clone(),
        rank: shares(&incentive),
        trust: trust.map(Fixed::to_share).collect(),
        consensus: shares(consensus),
        incentive: shares(&incentive),
        dividends: shares(&dividends),
        validator_trust: weights
            .iter()
            .map(|row| row.iter().map(|(_, value)| *value).sum::<Fixed>().to_share())
            .collect(),
        pruning_scores,
        server_emission: pay(&to_servers),
        validator_emission: pay(&to_validators),
        emission: pay(&combined),
        bonds: stored_bonds(input, bonds, &validator_permit),
        validator_permit,
    }
}

/// Each uid's share of the miners' incentive after the next epoch: they sum to 1, or are all 0.
pub fn incentives(input: &Input) -> Vec<f64> {
    let ranks = Ranking::of(input).ranks;
    let sum = ranks.iter().copied().sum::<Fixed>().to_f64();
    ranks.into_iter().map(|rank| if sum > 0.0 { rank.to_f64() / sum } else { 0.0 }).collect()
}

/// Those with the largest values; of equals the later ones.
fn largest(values: &[Fixed], count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|&index| values[index]);
    let mut is_among = vec![true; values.len()];
    for &index in &order[..values.len().saturating_sub(count)] {
        is_among[index] = false;
    }
    is_among
}

/// Shares of the largest value.
fn upscale(values: &[Fixed]) -> Vec<u16> {
    let largest = values.iter().copied().max().unwrap_or_default();
    values.iter().map(|value| value.to_share_of(largest)).collect()
}

/// Weights as the chain keeps them: the largest is the full one.
pub fn upscale_weights(weights: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let largest = weights.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
    weights.iter().map(|&(uid, weight)| (uid, fixed::upscale(weight, largest))).collect()
}

/// The bonds that the chain keeps: nobody's who loses the permit; those who had none before keep what they had.
fn stored_bonds(input: &Input, mut bonds: Rows, new_permit: &[bool]) -> Vec<Vec<(u16, u16)>> {
    matrix::upscale_columns(&mut bonds, input.len());
    let row = |(uid, row): (usize, Vec<(u16, Fixed)>)| match (new_permit[uid], input.validator_permit[uid]) {
        (true, _) => row.into_iter().map(|(miner, bond)| (miner, bond.to_share())).collect(),
        (false, true) => Vec::new(),
        (false, false) => input.bonds[uid].clone(),
    };
    bonds.into_iter().enumerate().map(row).collect()
}

/// The part of an epoch that decides the miners' shares.
struct Ranking {
    active: Vec<bool>,
    /// Shares of all stake.
    stake: Vec<Fixed>,
    /// Shares of the stake of active validators with a permit.
    active_stake: Vec<Fixed>,
    /// The weights that count, a row's sum 1 before they were clipped at the consensus.
    weights: Rows,
    consensus: Vec<Fixed>,
    ranks_before_clipping: Vec<Fixed>,
    ranks: Vec<Fixed>,
}

impl Ranking {
    fn of(input: &Input) -> Self {
        let len = input.len();
        let active: Vec<bool> = (0..len).map(|uid| input.is_active(uid)).collect();
        let total: u128 = input.stake.iter().copied().map(u128::from).sum();
        let stake: Vec<Fixed> = input.stake.iter().map(|&stake| Fixed::ratio(stake, total)).collect();
        let counts = |uid: usize| active[uid] && input.validator_permit[uid];
        let mut active_stake: Vec<Fixed> =
            stake.iter().enumerate().map(|(uid, &stake)| if counts(uid) { stake } else { Fixed::ZERO }).collect();
        matrix::normalize(&mut active_stake);

        let mut weights = input.weights_that_count();
        let ranks_before_clipping = matrix::weighted_column_sums(&weights, &active_stake, len);
        let kappa = Fixed::ratio(input.consensus.kappa.into(), FULL_SHARE.into());
        let consensus = matrix::weighted_medians(&weights, &active_stake, kappa, len);
        for row in &mut weights {
            for (uid, value) in row.iter_mut() {
                *value = (*value).min(consensus[usize::from(*uid)]);
            }
        }
        let ranks = matrix::weighted_column_sums(&weights, &active_stake, len);
        Self { active, stake, active_stake, weights, consensus, ranks_before_clipping, ranks }
    }
}
