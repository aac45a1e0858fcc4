//! How a miner stands on a subnet: whether its place can be taken, what it is paid, and who gives it weight.
//!
//! When a subnet is full, a newcomer gets the place of the hotkey that earns least among those whose immunity has ended,
//! of equals that of the one that was registered first; where all are immune, of all. (In 2024 it was the last uid of
//! equals. Today a subnet's owner keeps some hotkeys of its own for ever, which is not seen here.)

use super::{Currency, Neuron, Snapshot, Status, UNITS_PER_TAO};
use crate::chain::tempo::{next_epoch, next_epoch_from, per_day, seconds_per_epoch};
use crate::figures::{count, duration};
use crate::score::yuma::Input;

/// A registered hotkey among the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing<'a> {
    /// The hotkey.
    pub neuron: &'a Neuron,
    /// The first block at which it can be replaced.
    pub immunity_ends: u64,
    /// Blocks until then; 0: it can be replaced.
    pub immunity_left: u64,
    /// Its turn among those that can be replaced, where 1 is next, and how many they are; `None`: it is immune.
    pub rank: Option<(usize, usize)>,
    /// While there are free places, nobody is replaced.
    pub free_places: u16,
    /// The validators that give it weight, those with most stake first.
    pub backers: Vec<Backer<'a>>,
}

/// A validator that gives a miner weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Backer<'a> {
    /// The validator.
    pub neuron: &'a Neuron,
    /// The miner's part of the weights that it gives.
    pub weight_share: f64,
    /// Its part of the stake of all validators that count.
    pub stake_share: f64,
}

impl<'a> Standing<'a> {
    /// How a hotkey stands; `None` if it is not registered. Only validators are told that count: with a permit, with stake,
    /// and with weights set within the activity cutoff and after the miner's registration.
    pub fn of(snapshot: &'a Snapshot, status: &Status, hotkey: &str) -> Option<Self> {
        let neuron = snapshot.neuron(hotkey)?;
        let immunity_ends = ends(snapshot, neuron);
        let turns = turns(snapshot);
        let turn = turns.iter().position(|other| other.uid == neuron.uid);
        Some(Self {
            neuron,
            immunity_ends,
            immunity_left: immunity_ends.saturating_sub(snapshot.block),
            rank: turn.map(|turn| (turn + 1, turns.len())),
            free_places: status.max_uids.saturating_sub(status.num_uids),
            backers: backers(snapshot, neuron.uid),
        })
    }
}

/// The first block at which a hotkey can be replaced; `None` if it is not registered.
pub fn immunity_ends(snapshot: &Snapshot, hotkey: &str) -> Option<u64> {
    snapshot.neuron(hotkey).map(|neuron| ends(snapshot, neuron))
}

fn ends(snapshot: &Snapshot, neuron: &Neuron) -> u64 {
    neuron.registered_at.saturating_add(snapshot.immunity_period)
}

/// Those who can be replaced, in that order.
fn turns(snapshot: &Snapshot) -> Vec<&Neuron> {
    let mut turns: Vec<&Neuron> =
        snapshot.neurons.iter().filter(|neuron| ends(snapshot, neuron) <= snapshot.block).collect();
    if turns.is_empty() {
        turns.extend(&snapshot.neurons);
    }
    turns.sort_by_key(|neuron| (neuron.emission, neuron.registered_at, neuron.uid));
    turns
}

fn backers(snapshot: &Snapshot, miner: u16) -> Vec<Backer<'_>> {
    let input = Input::of(snapshot);
    let all_stake: f64 = input.validators().map(|validator| input.stake[validator] as f64).sum();
    let backer = |neuron: &'_ Neuron| {
        let row = input.current_weights(neuron.uid.into());
        let sum: f64 = row.iter().map(|&(_, weight)| f64::from(weight)).sum();
        let (_, weight) = row.into_iter().find(|&(uid, weight)| uid == miner && weight > 0)?;
        Some((f64::from(weight) / sum, neuron.stake as f64 / all_stake))
    };
    let validators: Vec<usize> = input.validators().collect();
    let counts = |neuron: &&Neuron| validators.contains(&usize::from(neuron.uid));
    let mut backers: Vec<Backer<'_>> = snapshot
        .neurons
        .iter()
        .filter(counts)
        .filter_map(|neuron| {
            let (weight_share, stake_share) = backer(neuron)?;
            Some(Backer { neuron, weight_share, stake_share })
        })
        .collect();
    backers.sort_by_key(|backer| (std::cmp::Reverse(backer.neuron.stake), backer.neuron.uid));
    backers
}

/// What a neuron is paid, as it was by the last epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pay {
    /// A day, in what the subnet pays in.
    pub per_day: f64,
    /// The same in TAO, by the present price.
    pub tao_per_day: f64,
    /// Days after which it has paid for a registration at the present cost; `None`: never at this pay, or it costs nothing.
    pub break_even_days: Option<f64>,
}

impl Pay {
    /// The pay of a neuron.
    pub fn of(neuron: &Neuron, status: &Status, seconds_per_block: f64) -> Self {
        let per_day =
            per_day(neuron.emission as f64, seconds_per_epoch(status.tempo, seconds_per_block)) / UNITS_PER_TAO as f64;
        let tao_per_day = match status.currency {
            Currency::Tao => per_day,
            Currency::Alpha { price } => per_day * price,
        };
        let cost = status.registration_cost.map(|cost| cost as f64 / UNITS_PER_TAO as f64);
        let break_even_days = cost.filter(|_| tao_per_day > 0.0).map(|cost| cost / tao_per_day);
        Self { per_day, tao_per_day, break_even_days }
    }
}

/// The first block whose epoch may pay a model that is committed at a block; `None` if there is none. Validators look at a
/// new commitment and set weights again, which their rate limit lets them do several times in a tempo: so it is the first
/// epoch a tempo later.
pub fn adopted_at(snapshot: &Snapshot, netuid: u16, committed_at: u64) -> Option<u64> {
    let looked_at = committed_at.checked_add(snapshot.tempo)?;
    match snapshot.next_epoch {
        Some(next) => next_epoch_from(next, snapshot.tempo, looked_at),
        None => next_epoch(netuid, snapshot.tempo, looked_at),
    }
}

/// Whether a model that a hotkey commits at a block can be paid before the hotkey's immunity ends; `None` if the hotkey is
/// not registered.
pub fn is_adopted_in_time(snapshot: &Snapshot, netuid: u16, hotkey: &str, committed_at: u64) -> Option<bool> {
    let ends = immunity_ends(snapshot, hotkey)?;
    Some(adopted_at(snapshot, netuid, committed_at).is_some_and(|adopted| adopted < ends))
}

/// A sentence to warn with where a hotkey may be replaced before a model that it commits at a block is paid. None where
/// places are free, nor for one that has outlived its immunity because it earns.
pub fn warning(
    snapshot: &Snapshot,
    status: &Status,
    seconds_per_block: f64,
    hotkey: &str,
    committed_at: u64,
) -> Option<String> {
    let standing = Standing::of(snapshot, status, hotkey)?;
    if standing.free_places > 0 || is_adopted_in_time(snapshot, status.netuid, hotkey, committed_at)? {
        return None;
    }
    let uid = standing.neuron.uid;
    let adopted = match adopted_at(snapshot, status.netuid, committed_at) {
        Some(block) => format!("at block {} at the earliest", count(block)),
        None => "never".to_owned(),
    };
    match standing.rank {
        // Even if a newcomer could get its place now, for all are immune.
        _ if standing.immunity_left > 0 => Some(format!(
            "the immunity of {hotkey} (uid {uid}) ends at block {}, in about {}, but a model that is committed at block {} is \
             paid {adopted}: a newcomer may get the place before that",
            count(standing.immunity_ends),
            duration(standing.immunity_left as f64 * seconds_per_block),
            count(committed_at)
        )),
        Some((rank, of)) if standing.neuron.emission == 0 => Some(format!(
            "{hotkey} (uid {uid}) earns nothing and is no longer immune: of the {of} hotkeys that newcomers can replace it is \
             number {rank}, and a model that is committed at block {} is paid {adopted}",
            count(committed_at)
        )),
        _ => None,
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
