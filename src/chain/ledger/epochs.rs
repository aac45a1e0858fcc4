//! When the embedded chain runs its epochs, and what those come to that nobody was there to see.
//!
//! Once every `tempo + 1` blocks, as on the chain, weights become incentives, bonds and permits. Nobody runs a ledger
//! between two calls, so the epochs that have come due are run by the next one that writes or wants a snapshot, with the
//! subnet as it stood, which nothing has changed meanwhile.
//!
//! An epoch at which no validator is active changes nothing. On the chain incentives would go to 0; an embedded subnet
//! whose only validator sleeps goes on paying as it last did, or every break of a day would end with nobody to compare
//! with. What is paid is not added to anybody's stake.

use std::collections::BTreeMap;

use crate::chain::Snapshot;
use crate::chain::tempo::next_epoch;
use crate::rules::NETUID;
use crate::score::yuma::{self, Input};

/// As long as validators neither come nor go, epochs differ by their moving average of bonds alone. After so many of them
/// what is left of the first bonds cannot be told from nothing (0.9 to that power is 1e-6), whatever the rounding does.
const MAX_ALIKE: usize = 128;

/// What epochs came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Uid, incentive, permit.
    pub(super) neurons: Vec<(u16, u16, bool)>,
    /// By validator, as (uid, bond).
    pub(super) bonds: BTreeMap<u16, Vec<(u16, u16)>>,
}

/// The first block from `block` on at which an epoch runs; `None` if there is none.
pub(super) fn next(tempo: u64, block: u64) -> Option<u64> {
    next_epoch(NETUID, tempo, block)
}

/// Runs the epochs after the block `last_look`, up to that of the snapshot; `None` if they change nothing.
pub(super) fn run(snapshot: &Snapshot, last_look: u64) -> Option<Outcome> {
    let mut input = Input::of(snapshot);
    let mut incentive = None;
    let (mut num_alike, mut alike_until) = (0, None);
    let mut due = next(snapshot.tempo, last_look.checked_add(1)?);
    while let Some(block) = due.filter(|&block| block <= snapshot.block) {
        input.block = block;
        let Some(last_alike) = first_to_fall_asleep(&input) else { break };
        let epoch = yuma::epoch(&input);
        let is_steady = incentive.as_ref() == Some(&epoch.incentive)
            && input.bonds == epoch.bonds
            && input.validator_permit == epoch.validator_permit;
        incentive = Some(epoch.incentive);
        (input.bonds, input.validator_permit) = (epoch.bonds, epoch.validator_permit);
        // Other validators than before count from anew.
        if alike_until.replace(last_alike) != Some(last_alike) {
            num_alike = 0;
        }
        num_alike += 1;
        // The last block that this epoch stands for.
        let mut settled = block;
        if is_steady || num_alike == MAX_ALIKE {
            num_alike = 0;
            settled = last_alike.max(block);
        }
        due = settled.checked_add(1).and_then(|after| next(snapshot.tempo, after));
    }
    let outcome = outcome(snapshot, &input, &incentive?);
    let is_news = outcome.bonds != snapshot.bonds
        || std::iter::zip(&snapshot.neurons, &outcome.neurons)
            .any(|(old, new)| (old.uid, old.incentive, old.validator_permit) != *new);
    is_news.then_some(outcome)
}

fn outcome(snapshot: &Snapshot, input: &Input, incentive: &[u16]) -> Outcome {
    let uids = || snapshot.neurons.iter().map(|neuron| neuron.uid);
    let of = |uid: u16| (uid, incentive[usize::from(uid)], input.validator_permit[usize::from(uid)]);
    let row = |uid: u16| (uid, input.bonds[usize::from(uid)].clone());
    Outcome { neurons: uids().map(of).collect(), bonds: uids().map(row).filter(|(_, row)| !row.is_empty()).collect() }
}

/// The last block up to which all validators stay active that are so now; `None` if there are none.
fn first_to_fall_asleep(input: &Input) -> Option<u64> {
    input.validators().map(|uid| input.last_update[uid].saturating_add(input.activity_cutoff)).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::golden;

    #[test]
    fn epochs_run_at_the_blocks_at_which_the_chain_runs_them() {
        for tempo in [0, 1, 99, 360] {
            let runs = |block: &u64| (block + 9 + 1) % (tempo + 1) == tempo;
            let expected: Vec<u64> = (0..3_000).filter(runs).collect();
            let found = std::iter::successors(next(tempo, 0), |&block| next(tempo, block + 1));
            assert_eq!(found.take(expected.len()).collect::<Vec<_>>(), expected, "tempo {tempo}");
        }
        for case in golden::cases("chain/a_yuma.json", "scenarios") {
            let (block, tempo) = (case["block"].as_u64().unwrap(), case["input"]["tempo"].as_u64().unwrap());
            assert_eq!((next(tempo, block), next(tempo, block + 1)), (Some(block), Some(block + tempo + 1)));
        }
        assert_eq!((next(u64::MAX, 5), next(360, u64::MAX)), (None, None));
    }
}
