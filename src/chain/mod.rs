//! Where miners' metadata, weights and incentives live: the seam [`Chain`], and what is read through it.
//!
//! Everything a decision needs is read at one finalized block as a [`Snapshot`]; what was read is plain data. The embedded
//! chain is the [`ledger`], an SQLite file; the real one is [`subtensor`], whose keys lie in a [`wallet`].

pub mod account;
pub mod ledger;
pub mod places;
pub mod standing;
pub mod subtensor;
pub mod tempo;
pub mod wallet;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::hub::model_id::ModelMetadata;

/// A miner's key, as the chain spells it: an account's address on subtensor, a short name on the ledger.
pub type Hotkey = String;

/// The full share of the incentive, and the largest weight: shares are `u16` on the chain.
pub const FULL_SHARE: u16 = u16::MAX;

/// The chain's smallest units that make 1 TAO.
pub const UNITS_PER_TAO: u64 = 1_000_000_000;

/// A registered hotkey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neuron {
    /// Its place on the subnet.
    pub uid: u16,
    /// The key that holds the place now.
    pub hotkey: Hotkey,
    /// Block of its registration.
    pub registered_at: u64,
    /// Stake in the chain's smallest unit.
    pub stake: u64,
    /// Share of the miners' incentive, out of [`FULL_SHARE`].
    pub incentive: u16,
    /// Whether its weights count.
    pub validator_permit: bool,
    /// Block at which it last set weights; 0: never.
    pub last_update: u64,
    /// What the last epoch paid it, as miner and as validator, in the chain's smallest unit. The places of those who earn
    /// least are given to newcomers first.
    pub emission: u64,
}

/// What a hotkey has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commitment {
    /// The block it was included in.
    pub block: u64,
    /// Its bytes, whatever they are: they come from strangers.
    pub bytes: Vec<u8>,
}

impl Commitment {
    /// The model it names; `None` if it names none, or stands at block 0 (as the reference).
    pub fn metadata(&self) -> Option<ModelMetadata> {
        let id = std::str::from_utf8(&self.bytes).ok()?.parse().ok()?;
        Some(ModelMetadata { id, block: self.block.try_into().ok()? })
    }
}

/// The subnet's parameters of Yuma Consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsensusParams {
    /// Part of the stake that must support a weight, out of [`FULL_SHARE`].
    pub kappa: u16,
    /// Part of the old bonds that stays at each epoch, out of 1,000,000.
    pub bonds_moving_average: u64,
    /// How many validators may hold a permit.
    pub max_validators: u16,
    /// What an epoch distributes to miners and validators, in the chain's smallest unit.
    pub emission: u64,
}

impl Default for ConsensusParams {
    /// Those of subnet 9 in March 2024; an epoch's emission is that of a subnet that gets the 32nd part of a block's 1 TAO.
    fn default() -> Self {
        Self { kappa: 32_767, bonds_moving_average: 900_000, max_validators: 64, emission: 360 * 1_000_000_000 / 32 }
    }
}

/// A subnet at one finalized block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The block.
    pub block: u64,
    /// Blocks between two epochs: pay changes once in so many.
    pub tempo: u64,
    /// The block of the next epoch, where the chain keeps it: then they run a tempo after each other. `None`: where
    /// [`tempo::next_epoch`] says.
    pub next_epoch: Option<u64>,
    /// A new registration cannot be replaced for so many blocks.
    pub immunity_period: u64,
    /// A validator that has not set weights for more blocks than this does not count.
    pub activity_cutoff: u64,
    /// The registered hotkeys, by ascending uid.
    pub neurons: Vec<Neuron>,
    /// What registered hotkeys have committed.
    pub commitments: BTreeMap<Hotkey, Commitment>,
    /// The weights that each uid has set, as (uid, weight).
    pub weights: BTreeMap<u16, Vec<(u16, u16)>>,
    /// The bonds of each validator to miners after the last epoch, as (uid, bond).
    pub bonds: BTreeMap<u16, Vec<(u16, u16)>>,
    /// What Yuma Consensus is computed with.
    pub consensus: ConsensusParams,
}

impl Snapshot {
    /// The neuron of a hotkey; `None` if it is not registered.
    pub fn neuron(&self, hotkey: &str) -> Option<&Neuron> {
        self.neurons.iter().find(|neuron| neuron.hotkey == hotkey)
    }

    /// The neuron with the highest incentive, the lowest uid of equals; `None` if nobody earns anything.
    pub fn leader(&self) -> Option<&Neuron> {
        let best = self.neurons.iter().map(|neuron| neuron.incentive).max().filter(|&incentive| incentive > 0)?;
        self.neurons.iter().find(|neuron| neuron.incentive == best)
    }

    /// The model that a hotkey has committed, if its commitment names one.
    pub fn metadata(&self, hotkey: &str) -> Option<ModelMetadata> {
        self.commitments.get(hotkey)?.metadata()
    }
}

/// The chain and the subnet as they are now, but for who is on it: what holds for everybody.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The newest finalized block.
    pub block: u64,
    /// The program that the chain runs; `None` on the ledger.
    pub runtime: Option<Runtime>,
    /// The subnet.
    pub netuid: u16,
    /// Blocks between two epochs.
    pub tempo: u64,
    /// A new registration cannot be replaced for so many blocks.
    pub immunity_period: u64,
    /// Places that are taken.
    pub num_uids: u16,
    /// Places that there are.
    pub max_uids: u16,
    /// What a registration costs now, in the chain's smallest unit of TAO; `None` where it costs nothing.
    pub registration_cost: Option<u64>,
    /// What the subnet pays in.
    pub currency: Currency,
    /// What is held against a hotkey that commits often.
    pub commit_limit: CommitLimit,
    /// What weights must be.
    pub weights: WeightsLimits,
}

/// The program that a chain runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Its name: "node-subtensor".
    pub name: String,
    /// Its version.
    pub version: u32,
    /// The hash of the chain's first block, in hexadecimal after 0x.
    pub genesis: String,
}

/// What a subnet pays in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Currency {
    /// TAO.
    Tao,
    /// The subnet's own token.
    Alpha {
        /// TAO that one of it is worth, by the subnet's pool.
        price: f64,
    },
}

/// How often a hotkey may commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitLimit {
    /// Once in so many blocks.
    Blocks(u64),
    /// So many bytes in an epoch.
    Bytes(u64),
}

/// What a chain asks of the weights that a validator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightsLimits {
    /// A validator may set weights again so many blocks after it last did.
    pub rate_limit: u64,
    /// At least so many uids.
    pub min_allowed: u16,
    /// No weight's share of the sum may be larger, out of [`FULL_SHARE`].
    pub max_share: u16,
    /// Of an earlier version of the validator's program the chain takes none.
    pub version_key: u64,
    /// Whether they must first be committed and revealed later, which assay does not.
    pub commit_reveal: bool,
}

/// A chain that holds the subnet.
///
/// Errors are those of [`crate::error::Failure`] where the kind matters: `Unreachable` when the chain would not answer
/// (a lock held by another process for too long, a node that is down), `Input` when the user must mend something (no
/// such chain, a hotkey that is not registered, a text that is too long), `No` when the chain refuses for now (the rate
/// limit is not over).
pub trait Chain: Send + Sync {
    /// What it is, in messages: "the ledger checkpoints/local/ledger.sqlite".
    fn describe(&self) -> String;

    /// Whether it costs and pays real money.
    fn is_real(&self) -> bool;

    /// Seconds from one block to the next.
    fn seconds_per_block(&self) -> f64;

    /// Makes sure that it can sign for a hotkey, as long as somebody is there who can give a password.
    fn unlock(&self, _hotkey: &str) -> Result<()> {
        Ok(())
    }

    /// Where the locks and journals of publishing to this chain lie: the same folder for every process of this machine.
    fn journal_dir(&self) -> &Path;

    /// The newest finalized block.
    fn block(&self) -> Result<u64>;

    /// The whole subnet at the newest finalized block.
    fn snapshot(&self) -> Result<Snapshot>;

    /// What holds for everybody on the subnet.
    fn status(&self) -> Result<Status>;

    /// All that stands committed on the subnet, by whoever, registered or not.
    fn all_commitments(&self) -> Result<BTreeMap<Hotkey, Commitment>>;

    /// Why a hotkey that holds no place cannot publish, and what to do: not registered, no hotkey but a coldkey, no such
    /// subnet.
    fn unregistered(&self, hotkey: &str) -> anyhow::Error;

    /// What a hotkey has committed.
    fn commitment(&self, hotkey: &str) -> Result<Option<Commitment>>;

    /// The first block at which the rate limit lets a hotkey commit; a block that has come means now.
    fn next_commit_block(&self, hotkey: &str) -> Result<u64>;

    /// Commits bytes, waits until they are finalized, and returns their block. At most
    /// [`MAX_COMMITMENT_BYTES`](crate::hub::model_id::MAX_COMMITMENT_BYTES).
    fn commit(&self, hotkey: &str, bytes: &[u8]) -> Result<u64>;

    /// Replaces the weights that a validator has set, as (uid, weight), and returns the block. `version_key` says by which
    /// version of the validator's program. Others than itself take weight only of a validator with a permit.
    fn set_weights(&self, hotkey: &str, weights: &[(u16, u16)], version_key: u64) -> Result<u64>;
}
