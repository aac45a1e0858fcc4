//! Yuma Consensus: what an epoch of the chain makes of the validators' weights.

use crate::chain::{ConsensusParams, Snapshot};

/// What an epoch starts from; vectors are by uid.
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
            registered_at: vec![0; len],
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
}

/// Each uid's share of the miners' incentive after the next epoch: they sum to 1, or are all 0.
pub fn incentives(input: &Input) -> Vec<f64> {
    let mut shares = vec![0.0; input.stake.len()];
    for (row, &stake) in std::iter::zip(&input.weights, &input.stake) {
        let sum: f64 = row.iter().map(|(_, weight)| f64::from(*weight)).sum();
        for &(uid, weight) in row {
            shares[usize::from(uid)] += stake as f64 * f64::from(weight) / sum;
        }
    }
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}
