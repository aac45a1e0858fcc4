//! What the chain's storage holds at a block: the ledger's subnet under the keys and in the encoding of the chain.
//!
//! What changes at every block is kept apart from the rest, which blocks share as long as the ledger stays as it is.

use std::collections::BTreeMap;

use subxt::ext::codec::{Compact, Encode};

use super::accounts::Account;
use super::program::{NAME, Program};
use crate::chain::ledger::Settings;
use crate::chain::{Commitment, FULL_SHARE, Neuron, Snapshot};
use crate::hub::model_id::MAX_COMMITMENT_BYTES;
use crate::rules::NETUID;

/// Storage: key and value.
pub(super) type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

const SUBNET: &str = "SubtensorModule";

/// All that storage is made of, whatever the block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The subnet; its block says nothing here.
    pub(super) snapshot: Snapshot,
    /// The account of each neuron, in their order.
    pub(super) accounts: Vec<Account>,
    /// All that stands committed.
    pub(super) commitments: BTreeMap<Account, Commitment>,
    /// How many transactions each account has sent.
    pub(super) nonces: BTreeMap<Account, u32>,
}

/// What a block adds.
pub(super) struct Moment<'a> {
    /// Its number.
    pub(super) number: u32,
    /// When it was, in milliseconds of Unix time.
    pub(super) unix_ms: u64,
    /// The hash of the block before it.
    pub(super) parent: [u8; 32],
    /// Its events.
    pub(super) events: &'a [Vec<u8>],
}

struct Writer<'a> {
    program: &'a Program,
    entries: Entries,
}

impl Writer<'_> {
    /// Writes an entry, if the program has it.
    fn put(&mut self, pallet: &str, entry: &str, keys: &[&[u8]], value: impl Encode) {
        if let Some(key) = self.program.key(pallet, entry, keys) {
            self.entries.insert(key, value.encode());
        }
    }

    /// Writes an entry of the subnet.
    fn subnet(&mut self, entry: &str, value: impl Encode) {
        self.put(SUBNET, entry, &[&NETUID.to_le_bytes()], value);
    }
}

/// What blocks share.
pub(super) fn shared(program: &Program, settings: &Settings, coldkey: &Account, facts: &Facts) -> Entries {
    let mut writer = Writer { program, entries: Entries::new() };
    parameters(&mut writer, settings, facts);
    neurons(&mut writer, coldkey, facts);
    vectors(&mut writer, facts);
    let netuid = NETUID.to_le_bytes();
    for (entry, matrix) in [("Weights", &facts.snapshot.weights), ("Bonds", &facts.snapshot.bonds)] {
        for (uid, row) in matrix {
            writer.put(SUBNET, entry, &[&netuid, &uid.to_le_bytes()], row);
        }
    }
    for (account, commitment) in &facts.commitments {
        let block = u32::try_from(commitment.block).unwrap_or(u32::MAX);
        writer.put("Commitments", "CommitmentOf", &[&netuid, account], Registration(commitment));
        writer.put("Commitments", "LastCommitment", &[&netuid, account], block);
    }
    for (account, nonce) in &facts.nonces {
        let mut value = program.default_of("System", "Account").unwrap_or_default().to_vec();
        if let Some(place) = value.first_chunk_mut() {
            *place = nonce.to_le_bytes();
        }
        if let Some(key) = program.key("System", "Account", &[account]).filter(|_| *nonce > 0) {
            writer.entries.insert(key, value);
        }
    }
    writer.put("System", "LastRuntimeUpgrade", &[], (Compact(program.version()), NAME));
    writer.entries
}

/// What one block alone has.
pub(super) fn own(program: &Program, facts: &Facts, moment: &Moment<'_>) -> Entries {
    let mut writer = Writer { program, entries: Entries::new() };
    let number = u64::from(moment.number);
    writer.put("System", "Number", &[], moment.number);
    writer.put("System", "ParentHash", &[], moment.parent);
    writer.put("System", "BlockHash", &[&moment.number.saturating_sub(1).to_le_bytes()], moment.parent);
    writer.put("System", "EventCount", &[], moment.events.len() as u32);
    writer.put("Timestamp", "Now", &[], moment.unix_ms);
    let mut events = Compact(moment.events.len() as u32).encode();
    events.extend(moment.events.concat());
    if let Some(key) = program.key("System", "Events", &[]) {
        writer.entries.insert(key, events);
    }
    let cutoff = facts.snapshot.activity_cutoff;
    writer.subnet("Active", vector(facts, |neuron| last_update(neuron).saturating_add(cutoff) >= number));
    // An epoch runs where (block + netuid + 1) % (tempo + 1) == tempo.
    if let Some(period) = facts.snapshot.tempo.checked_add(1) {
        let since = number.saturating_add(u64::from(NETUID) + 2) % period;
        writer.subnet("BlocksSinceLastStep", since);
        writer.subnet("LastMechansimStepBlock", number.saturating_sub(since));
    }
    writer.entries
}

fn parameters(writer: &mut Writer<'_>, settings: &Settings, facts: &Facts) {
    let short = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    let consensus = settings.consensus;
    writer.put(SUBNET, "TotalNetworks", &[], 1_u16);
    writer.subnet("NetworksAdded", true);
    writer.subnet("NetworkRegistrationAllowed", false);
    writer.subnet("SubnetworkN", num_uids(facts) as u16);
    writer.subnet("MaxAllowedUids", settings.max_uids);
    writer.subnet("Tempo", short(settings.tempo));
    writer.subnet("ImmunityPeriod", short(settings.immunity_period));
    writer.subnet("ActivityCutoff", short(settings.activity_cutoff));
    writer.subnet("Kappa", consensus.kappa);
    writer.subnet("Rho", 10_u16);
    writer.subnet("BondsMovingAverage", consensus.bonds_moving_average);
    writer.subnet("MaxAllowedValidators", consensus.max_validators);
    writer.subnet("MinAllowedWeights", 1_u16);
    writer.subnet("MaxWeightsLimit", FULL_SHARE);
    writer.subnet("WeightsVersionKey", 0_u64);
    writer.subnet("WeightsSetRateLimit", settings.weights_rate_limit);
    writer.subnet("CommitRevealWeightsEnabled", false);
    writer.subnet("PendingEmission", 0_u64);
    // Registering costs nothing: `assay local register` does it.
    writer.subnet("Burn", 0_u64);
    writer.subnet("MinBurn", 0_u64);
    // At each block; an epoch's emission is that of as many blocks as the tempo has.
    writer.subnet("EmissionValues", consensus.emission / settings.tempo.max(1));
}

fn neurons(writer: &mut Writer<'_>, coldkey: &Account, facts: &Facts) {
    let netuid = NETUID.to_le_bytes();
    for (neuron, account) in std::iter::zip(&facts.snapshot.neurons, &facts.accounts) {
        let uid = neuron.uid.to_le_bytes();
        writer.put(SUBNET, "Keys", &[&netuid, &uid], account);
        writer.put(SUBNET, "Uids", &[&netuid, account], neuron.uid);
        writer.put(SUBNET, "IsNetworkMember", &[account, &netuid], true);
        writer.put(SUBNET, "BlockAtRegistration", &[&netuid, &uid], neuron.registered_at);
        writer.put(SUBNET, "Owner", &[account], coldkey);
        writer.put(SUBNET, "TotalHotkeyStake", &[account], neuron.stake);
        writer.put(SUBNET, "Stake", &[account, coldkey], neuron.stake);
    }
    let stake = facts.snapshot.neurons.iter().fold(0_u64, |sum, neuron| sum.saturating_add(neuron.stake));
    writer.put(SUBNET, "TotalStake", &[], stake);
    writer.put(SUBNET, "TotalColdkeyStake", &[coldkey], stake);
    writer.subnet("SubnetOwner", coldkey);
}

/// The ledger keeps no ranks, trust and dividends: they are zeros.
fn vectors(writer: &mut Writer<'_>, facts: &Facts) {
    let most = facts.snapshot.neurons.iter().map(|neuron| neuron.emission).max().unwrap_or(0).max(1);
    let score = |neuron: &Neuron| {
        let share = u128::from(neuron.emission) * u128::from(FULL_SHARE) / u128::from(most);
        u16::try_from(share).unwrap_or(FULL_SHARE)
    };
    for entry in ["Rank", "Trust", "Consensus", "Dividends", "ValidatorTrust"] {
        writer.subnet(entry, vec![0_u16; num_uids(facts)]);
    }
    writer.subnet("Incentive", vector(facts, |neuron| neuron.incentive));
    writer.subnet("Emission", vector(facts, |neuron| neuron.emission));
    writer.subnet("PruningScores", vector(facts, score));
    writer.subnet("ValidatorPermit", vector(facts, |neuron| neuron.validator_permit));
    writer.subnet("LastUpdate", vector(facts, last_update));
}

/// When a neuron last set weights; of one that never did, when it was registered.
pub(super) fn last_update(neuron: &Neuron) -> u64 {
    neuron.last_update.max(neuron.registered_at)
}

/// Places up to the last that is held. One before it that nobody holds, which the chain does not know, has no key and
/// zeros in every vector.
fn num_uids(facts: &Facts) -> usize {
    facts.snapshot.neurons.last().map_or(0, |neuron| usize::from(neuron.uid) + 1)
}

fn vector<T: Clone + Default>(facts: &Facts, of: impl Fn(&Neuron) -> T) -> Vec<T> {
    let mut values = vec![T::default(); num_uids(facts)];
    for neuron in &facts.snapshot.neurons {
        values[usize::from(neuron.uid)] = of(neuron);
    }
    values
}

/// A commitment as the chain keeps it: deposit, block, and a list of one field, whose first byte is one more than its
/// length.
struct Registration<'a>(&'a Commitment);

impl Encode for Registration<'_> {
    fn encode(&self) -> Vec<u8> {
        let Commitment { block, bytes } = self.0;
        let bytes = &bytes[..bytes.len().min(MAX_COMMITMENT_BYTES)];
        let mut value = (0_u64, u32::try_from(*block).unwrap_or(u32::MAX), Compact(1_u32)).encode();
        value.push(bytes.len() as u8 + 1);
        value.extend_from_slice(bytes);
        value
    }
}
