//! Who competes: the models that validators evaluate, or soon will, read from the chain at one block.
//!
//! A model is in if an active validator gives its uid weight, or if its commitment is newer than the oldest weights of
//! an active validator, which may not have met it yet. A validator is active if it has a permit, has given anybody
//! weight, and has done so within the activity cutoff; while there is none, every model is in. An own model that is
//! deployed is listed in any case, but one that no validator evaluates earns nothing and meets nobody.
//!
//! A decision holds for the roster it was made for: [`Roster::fingerprint`] tells whether that has changed since.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::chain::{Hotkey, Neuron, Snapshot};
use crate::hub::model_id::ModelMetadata;

/// A commitment sent now is not included earlier than so many blocks after the newest finalized one.
const BLOCKS_TO_INCLUSION: u64 = 5;

/// A published model among those that compete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its miner's place.
    pub uid: u16,
    /// Its miner's key.
    pub hotkey: Hotkey,
    /// The model, and the block of its commitment.
    pub metadata: ModelMetadata,
    /// Whether the miner is us.
    pub is_own: bool,
    /// Whether validators evaluate it; only an own model is listed without.
    pub evaluated: bool,
}

/// All models that compete at a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// By ascending uid.
    pub entries: Vec<Entry>,
    /// The uid with the highest incentive.
    pub leader: Option<u16>,
}

impl Roster {
    /// The roster of a subnet, with some own hotkeys.
    pub fn of(snapshot: &Snapshot, own: &[Hotkey]) -> Self {
        let active = active_validators(snapshot);
        let oldest_update = active.iter().map(|neuron| neuron.last_update).min();
        let has_weight = |uid: u16| active.iter().any(|validator| weights(snapshot, validator.uid).any(|to| to == uid));
        let entry = |neuron: &Neuron| {
            let metadata = snapshot.metadata(&neuron.hotkey)?;
            let is_new = oldest_update.is_none_or(|block| metadata.block.get() > block);
            let evaluated = is_new || has_weight(neuron.uid);
            let is_own = own.contains(&neuron.hotkey);
            let hotkey = neuron.hotkey.clone();
            (evaluated || is_own).then_some(Entry { uid: neuron.uid, hotkey, metadata, is_own, evaluated })
        };
        let mut entries: Vec<Entry> = snapshot.neurons.iter().filter_map(entry).collect();
        entries.sort_by_key(|entry| entry.uid);
        Self { entries, leader: snapshot.leader().map(|neuron| neuron.uid) }
    }

    /// A text that differs whenever anything in the roster does: uids, hotkeys, models, blocks or the leader. A rival's
    /// commitment changes it; blocks that pass do not.
    pub fn fingerprint(&self) -> String {
        let entries = self.entries.iter().map(|Entry { uid, hotkey, metadata, is_own, evaluated }| {
            let id = &metadata.id;
            let id = (&id.namespace, &id.name, &id.commit, &id.hash);
            (uid, hotkey, id, metadata.block.get(), is_own, evaluated)
        });
        let text = serde_json::json!([entries.collect::<Vec<_>>(), self.leader]).to_string();
        STANDARD.encode(Sha256::digest(text))
    }
}

/// The uids that a uid gives weight.
fn weights(snapshot: &Snapshot, uid: u16) -> impl Iterator<Item = u16> {
    let row = snapshot.weights.get(&uid).into_iter().flatten();
    row.filter(|(_, weight)| *weight > 0).map(|(to, _)| *to)
}

/// The validators whose weights count.
pub(super) fn active_validators(snapshot: &Snapshot) -> Vec<&Neuron> {
    snapshot.neurons.iter().filter(|neuron| is_active(snapshot, neuron)).collect()
}

fn is_active(snapshot: &Snapshot, neuron: &Neuron) -> bool {
    let age = snapshot.block.saturating_sub(neuron.last_update);
    neuron.validator_permit && age <= snapshot.activity_cutoff && weights(snapshot, neuron.uid).next().is_some()
}

/// The block that a model committed now would stand at: not before the chain can include it, not before the hotkey's
/// rate limit ends, and later than every commitment there is.
pub fn candidate_block(snapshot: &Snapshot, next_commit_block: u64) -> u64 {
    let newest = snapshot.commitments.values().map(|commitment| commitment.block).max().unwrap_or(0);
    let included = snapshot.block.saturating_add(BLOCKS_TO_INCLUSION);
    included.max(next_commit_block).max(newest.saturating_add(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chain::Commitment;
    use crate::gate::OwnHotkey;

    fn commitment(block: u64, name: &str) -> Commitment {
        let bytes = format!("miner:{name}:{}:hash", "0".repeat(40)).into_bytes();
        Commitment { block, bytes }
    }

    /// Two validators (uids 0 and 1) that last set weights at blocks 900 and 950, and miners with commitments: 2 and 3
    /// with weight, 4 newer than the weights of block 900, 5 older and without weight.
    fn snapshot() -> Snapshot {
        let neuron = |uid: u16| Neuron {
            uid,
            hotkey: format!("key-{uid}"),
            registered_at: 10,
            stake: 0,
            incentive: if uid == 3 { 40_000 } else { 0 },
            validator_permit: uid < 2,
            last_update: [900, 950].get(usize::from(uid)).copied().unwrap_or(0),
            emission: 0,
        };
        let commitments = [(2, 100), (3, 200), (4, 901), (5, 900)];
        Snapshot {
            block: 1_000,
            tempo: 360,
            immunity_period: 7_200,
            activity_cutoff: 5_000,
            neurons: (0..6).map(neuron).collect(),
            commitments: commitments.map(|(uid, block)| (format!("key-{uid}"), commitment(block, "model"))).into(),
            weights: [(0, vec![(2, 9), (5, 0)]), (1, vec![(3, 9)]), (4, vec![(5, 9)])].into(),
            ..Snapshot::default()
        }
    }

    fn uids(snapshot: &Snapshot) -> Vec<u16> {
        Roster::of(snapshot, &[]).entries.iter().map(|entry| entry.uid).collect()
    }

    #[test]
    fn models_with_weight_and_models_newer_than_the_oldest_weights_compete() {
        // Uid 5 has but a weight of 0, and one by uid 4, who is no validator.
        assert_eq!(uids(&snapshot()), [2, 3, 4]);
        assert_eq!(Roster::of(&snapshot(), &[]).leader, Some(3));
        let mut later = snapshot();
        later.neurons[0].last_update = 901;
        assert_eq!(uids(&later), [2, 3]);
    }

    #[test]
    fn a_validator_without_permit_or_weights_or_out_of_date_does_not_count() {
        let mut without_permit = snapshot();
        without_permit.neurons[0].validator_permit = false;
        assert_eq!(uids(&without_permit), [3]);
        let mut without_weights = snapshot();
        without_weights.weights.remove(&0);
        assert_eq!(uids(&without_weights), [3]);
        let mut out_of_date = snapshot();
        out_of_date.activity_cutoff = 99;
        assert_eq!(uids(&out_of_date), [3]);
        out_of_date.activity_cutoff = 100;
        assert_eq!(uids(&out_of_date), [2, 3, 4]);
        // Nobody has spoken yet: everybody competes.
        assert_eq!(uids(&Snapshot { weights: [].into(), ..snapshot() }), [2, 3, 4, 5]);
    }

    #[test]
    fn an_own_model_is_listed_even_if_no_validator_evaluates_it() {
        let own = ["key-5".to_owned(), "key-2".to_owned(), "key-0".to_owned()];
        let roster = Roster::of(&snapshot(), &own);
        let listed: Vec<_> = roster.entries.iter().map(|entry| (entry.uid, entry.is_own, entry.evaluated)).collect();
        assert_eq!(listed, [(2, true, true), (3, false, true), (4, false, true), (5, true, false)]);
    }

    #[test]
    fn a_commitment_that_names_no_model_does_not_compete() {
        let mut snapshot = snapshot();
        for (uid, bytes) in [(2, b"\xff:\xff:\xff:\xff".to_vec()), (3, b"hello".to_vec())] {
            snapshot.commitments.get_mut(&format!("key-{uid}")).unwrap().bytes = bytes;
        }
        assert_eq!(uids(&snapshot), [4]);
    }

    #[test]
    fn a_rivals_commitment_between_decision_and_inclusion_changes_the_fingerprint_and_passing_blocks_do_not() {
        let own = ["key-5".to_owned()];
        let fingerprint = |snapshot: &Snapshot| Roster::of(snapshot, &own).fingerprint();
        let decided = fingerprint(&snapshot());
        let mut later = snapshot();
        later.block += 20;
        later.neurons[1].last_update = 1_010;
        later.neurons[2].stake = 7;
        assert_eq!(fingerprint(&later), decided);

        type Change = fn(&mut Snapshot);
        let changes: [Change; 6] = [
            |snapshot| drop(snapshot.commitments.insert("key-1".to_owned(), commitment(1_001, "model"))),
            |snapshot| drop(snapshot.commitments.insert("key-2".to_owned(), commitment(1_001, "model"))),
            |snapshot| drop(snapshot.commitments.insert("key-2".to_owned(), commitment(100, "other"))),
            |snapshot| drop(snapshot.commitments.remove("key-3")),
            |snapshot| snapshot.neurons[2].incentive = 50_000,
            |snapshot| snapshot.weights.get_mut(&0).unwrap().push((5, 1)),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut changed = snapshot();
            change(&mut changed);
            assert_ne!(fingerprint(&changed), decided, "change {index}");
        }
    }

    #[test]
    fn a_candidate_stands_later_than_the_chain_allows_and_than_every_commitment() {
        let mut snapshot = snapshot();
        assert_eq!(candidate_block(&snapshot, 0), 1_005);
        assert_eq!(candidate_block(&snapshot, 1_100), 1_100);
        snapshot.commitments.insert("key-1".to_owned(), commitment(1_200, "model"));
        assert_eq!(candidate_block(&snapshot, 1_100), 1_201);
        let own = OwnHotkey::of(&snapshot, "key-5", 1_300).unwrap();
        assert_eq!((own.uid, own.candidate_block, own.immune_until), (5, 1_300, 7_210));
        assert_eq!(OwnHotkey::of(&snapshot, "key-9", 0), None);
    }
}
