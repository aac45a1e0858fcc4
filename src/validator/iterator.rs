//! In which order miners are looked at: round and round through their uids, as the reference's `MinerIterator`; and, for
//! the version of June 2024, whose dropped models are to be looked at again ([`majority_miners`]).

use serde::{Deserialize, Serialize};

use crate::chain::{Neuron, Snapshot};
use crate::score::uid_set::UidSet;

/// Goes round the uids in ascending order, for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MinerIterator {
    uids: Vec<u16>,
    index: usize,
}

impl MinerIterator {
    /// Begins at an index into the sorted uids; one that is too large is taken for the first.
    ///
    /// In the reference such an index (the version of 21 March 2024 begins at 200) is an error for good, which a subnet of
    /// 256 uids never sees.
    pub fn new(uids: impl IntoIterator<Item = u16>, index: usize) -> Self {
        let mut uids: Vec<u16> = uids.into_iter().collect();
        uids.sort_unstable();
        let index = if index < uids.len() { index } else { 0 };
        Self { uids, index }
    }

    /// The uid whose turn it is; `None` if there are none.
    pub fn peek(&self) -> Option<u16> {
        self.uids.get(self.index).copied()
    }

    /// Passes to the next uid.
    pub fn advance(&mut self) {
        self.index += 1;
        if self.index >= self.uids.len() {
            self.index = 0;
        }
    }

    /// The uids of one round, from the one whose turn it is.
    pub fn round(&self) -> impl Iterator<Item = u16> {
        let (passed, to_come) = self.uids.split_at(self.index.min(self.uids.len()));
        to_come.iter().chain(passed).copied()
    }

    /// Replaces the uids; goes on with the first that is not below the one whose turn it is.
    pub fn set_uids(&mut self, uids: impl IntoIterator<Item = u16>) {
        let next = self.peek().unwrap_or(0);
        *self = Self::new(uids, 0);
        let index = self.uids.partition_point(|&uid| uid < next);
        self.index = if index < self.uids.len() { index } else { 0 };
    }

    /// Whether it is one that the other functions make.
    pub(super) fn is_sound(&self) -> bool {
        self.uids.is_sorted_by(|one, other| one <= other) && (self.index < self.uids.len() || self.index == 0)
    }
}

/// How many validators, the largest by stake, are asked for a model that most of their weight goes to.
const LARGEST_VALIDATORS: usize = 10;

/// The permitted validators with the most stake, that with the higher uid first of equals.
fn largest_validators(snapshot: &Snapshot, num: usize) -> Vec<u16> {
    let mut validators: Vec<&Neuron> = snapshot.neurons.iter().filter(|neuron| neuron.validator_permit).collect();
    validators.sort_by_key(|neuron| std::cmp::Reverse((neuron.stake, neuron.uid)));
    validators.into_iter().take(num).map(|neuron| neuron.uid).collect()
}

/// The miners to whom one of the ten largest validators gives more than half of its weight.
pub fn majority_miners(snapshot: &Snapshot) -> UidSet {
    let mut miners = UidSet::default();
    for validator in largest_validators(snapshot, LARGEST_VALIDATORS) {
        let weights = snapshot.weights.get(&validator).map_or(&[][..], Vec::as_slice);
        let total: u64 = weights.iter().map(|&(_, weight)| u64::from(weight)).sum();
        if let Some(&(uid, _)) = weights.iter().find(|&&(_, weight)| 2 * u64::from(weight) > total) {
            miners.add(uid);
        }
    }
    miners
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;
    use crate::golden;

    fn uids(value: &Value) -> Vec<u16> {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn golden_rounds_go_on_where_they_were_when_uids_change() {
        let mut num_steps = 0;
        for case in golden::cases("validation/miner_iterator.json", "cases") {
            let mut iterator = MinerIterator::new(uids(&case["uids"]), case["start_index"].as_u64().unwrap() as usize);
            for step in case["ops"].as_array().unwrap() {
                match step[0].as_str().unwrap() {
                    "set" => iterator.set_uids(uids(&step[1])),
                    "next" => {
                        assert_eq!(iterator.peek().map(u64::from), step[1].as_u64(), "{case}");
                        assert_eq!(iterator.round().next(), iterator.peek());
                        iterator.advance();
                        num_steps += 1;
                    }
                    other => panic!("unknown operation {other}"),
                }
                assert!(iterator.is_sound());
            }
        }
        assert!(num_steps > 50, "{num_steps}");
    }

    #[test]
    fn golden_validators_by_stake_and_miners_with_most_of_their_weight() {
        for case in golden::cases("validation/head_extra.json", "top_miners") {
            let stakes: Vec<u64> = serde_json::from_value(case["stake"].clone()).unwrap();
            let permits: Vec<bool> = serde_json::from_value(case["validator_permit"].clone()).unwrap();
            let weights: Vec<Vec<(u16, u16)>> = serde_json::from_value(case["weights"].clone()).unwrap();
            let neuron = |(uid, (&stake, &validator_permit))| Neuron {
                uid: u16::try_from(uid).unwrap(),
                hotkey: format!("hotkey-{uid}"),
                registered_at: 0,
                stake,
                incentive: 0,
                validator_permit,
                last_update: 0,
                emission: 0,
            };
            let neurons = std::iter::zip(&stakes, &permits).enumerate().map(neuron).collect();
            let weights = std::iter::zip(0.., weights).collect();
            let snapshot = Snapshot { neurons, weights, ..Snapshot::default() };
            assert_eq!(largest_validators(&snapshot, 3), uids(&case["get_top_valis_3"]), "{case}");
            let mut miners: Vec<u16> = majority_miners(&snapshot).iter().collect();
            miners.sort_unstable();
            assert_eq!(miners, uids(&case["list_top_miners_sorted"]), "{case}");
        }
    }

    #[test]
    fn an_index_beyond_the_uids_is_the_first_and_no_uid_is_nobodys_turn() {
        assert_eq!(MinerIterator::new([4, 3], 200).peek(), Some(3));
        let mut nobody = MinerIterator::new([], 0);
        nobody.advance();
        assert_eq!((nobody.peek(), nobody.round().count()), (None, 0));
        nobody.set_uids([7]);
        assert_eq!(nobody.peek(), Some(7));
    }

    #[test]
    fn a_round_begins_with_the_next_uid() {
        let mut iterator = MinerIterator::new([1, 2, 5], 1);
        assert_eq!(iterator.round().collect::<Vec<_>>(), [2, 5, 1]);
        iterator.advance();
        assert_eq!(iterator.round().collect::<Vec<_>>(), [5, 1, 2]);
    }
}
