//! The two calls that this node knows, what the ledger makes of them, and what the chain would say of a refusal.

use anyhow::Result;
use subxt::ext::codec::{Compact, Decode, Encode};

use super::block::Class;
use super::program::Program;
use super::refused::Invalid;
use crate::chain::Chain as _;
use crate::chain::ledger::{Ledger, Refusal};
use crate::hub::model_id::MAX_COMMITMENT_BYTES;
use crate::rules::NETUID;

/// What a transaction asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `Commitments.set_commitment`.
    Commit {
        /// The subnet.
        netuid: u16,
        /// The bytes of its raw field; a list without a field counts as one without bytes.
        bytes: Vec<u8>,
    },
    /// `SubtensorModule.set_weights`.
    Weights {
        /// The subnet.
        netuid: u16,
        /// To whom.
        uids: Vec<u16>,
        /// How much.
        weights: Vec<u16>,
        /// By which version of the validator's program; the ledger asks for none.
        version_key: u64,
    },
}

/// What came of a call.
pub(super) enum Outcome {
    /// It was done at a block.
    Done(u64),
    /// The chain includes it as one that failed, with the five bytes of a pallet's error.
    Failed([u8; 5]),
}

impl Call {
    /// Reads a call of a program.
    pub(super) fn read(program: &Program, bytes: &[u8]) -> Result<Self, Invalid> {
        let (index, mut input) = bytes.split_first_chunk::<2>().ok_or(Invalid::Call)?;
        let is = |pallet, name| program.call(pallet, name).as_ref() == Some(index);
        let call = if is("Commitments", "set_commitment") {
            Self::read_commitment(&mut input)
        } else if is("SubtensorModule", "set_weights") {
            Self::read_weights(&mut input)
        } else {
            None
        };
        call.filter(|_| input.is_empty()).ok_or(Invalid::Call)
    }

    fn read_commitment(input: &mut &[u8]) -> Option<Self> {
        let netuid = u16::decode(input).ok()?;
        let bytes = match Compact::<u32>::decode(input).ok()?.0 {
            0 => Vec::new(),
            1 => {
                // One more than the length: 0 is no field, and what follows the longest are hashes.
                let len = usize::from(u8::decode(input).ok()?).checked_sub(1)?;
                let (bytes, rest) = input.split_at_checked(len).filter(|_| len <= MAX_COMMITMENT_BYTES)?;
                *input = rest;
                bytes.to_vec()
            }
            _ => return None,
        };
        Some(Self::Commit { netuid, bytes })
    }

    fn read_weights(input: &mut &[u8]) -> Option<Self> {
        let (netuid, uids, weights, version_key) = Decode::decode(input).ok()?;
        Some(Self::Weights { netuid, uids, weights, version_key })
    }

    /// Does it on the ledger at its present block.
    pub(super) fn run(&self, program: &Program, ledger: &Ledger, hotkey: &str) -> Result<Outcome> {
        let done = match self {
            Self::Commit { netuid, .. } if *netuid != NETUID => Err(Refusal::NotRegistered),
            Self::Commit { bytes, .. } => ledger.try_commit(hotkey, bytes)?,
            Self::Weights { netuid, uids, weights, .. } => {
                if uids.len() != weights.len() {
                    return Ok(Outcome::Failed(program.error("SubtensorModule", &["WeightVecNotEqualSize"])?));
                }
                if *netuid != NETUID {
                    let names = ["NetworkDoesNotExist", "SubNetworkDoesNotExist"];
                    return Ok(Outcome::Failed(program.error("SubtensorModule", &names)?));
                }
                if is_new(ledger, hotkey)? {
                    return Ok(Outcome::Failed(program.error("SubtensorModule", &["SettingWeightsTooFast"])?));
                }
                let weights: Vec<(u16, u16)> =
                    std::iter::zip(uids, weights).map(|(uid, weight)| (*uid, *weight)).collect();
                ledger.try_set_weights(hotkey, &weights)?
            }
        };
        match done {
            Ok(block) => Ok(Outcome::Done(block)),
            Err(refusal) => {
                let (pallet, names) = self.error(&refusal);
                Ok(Outcome::Failed(program.error(pallet, names)?))
            }
        }
    }

    /// The names of an error: in March 2024, and later.
    fn error(&self, refusal: &Refusal) -> (&'static str, &'static [&'static str]) {
        let names: &[&str] = match (self, refusal) {
            (Self::Commit { .. }, Refusal::CommitTooSoon { .. }) => {
                &["RateLimitExceeded", "CommitmentSetRateLimitExceeded"]
            }
            (Self::Commit { .. }, _) => &["CannotCommit", "AccountNotAllowedCommit"],
            (Self::Weights { .. }, Refusal::WeightsTooSoon { .. }) => &["SettingWeightsTooFast"],
            (Self::Weights { .. }, Refusal::NoPermit) => &["NoValidatorPermit", "NeuronNoValidatorPermit"],
            (Self::Weights { .. }, Refusal::NoWeights) => &["NotSettingEnoughWeights", "WeightVecLengthIsLow"],
            (Self::Weights { .. }, Refusal::DuplicateUid(_)) => &["DuplicateUids"],
            (Self::Weights { .. }, Refusal::UnknownUid(_)) => &["InvalidUid", "UidVecContainInvalidOne"],
            (Self::Weights { .. }, _) => &["NotRegistered", "HotKeyNotRegisteredInSubNet"],
        };
        match self {
            Self::Commit { .. } => ("Commitments", names),
            Self::Weights { .. } => ("SubtensorModule", names),
        }
    }

    /// The event that tells of a call that was done, without its place.
    pub(super) fn event(&self, program: &Program, account: &[u8; 32], uid: u16) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Commit { netuid, .. } => (program.event("Commitments", "Commitment")?, netuid, account).encode(),
            Self::Weights { netuid, .. } => (program.event("SubtensorModule", "WeightsSet")?, netuid, uid).encode(),
        })
    }

    /// How urgent it is.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Commit { .. } => Class::Operational,
            Self::Weights { .. } => Class::Normal,
        }
    }
}

/// Whether the rate limit of weights keeps a hotkey from setting any because of its registration, which counts as if it had
/// set some then. The ledger itself lets its newcomers set weights at once.
fn is_new(ledger: &Ledger, hotkey: &str) -> Result<bool> {
    let snapshot = ledger.snapshot()?;
    let registered_at = snapshot.neuron(hotkey).map_or(0, |neuron| neuron.registered_at);
    let next = registered_at.saturating_add(ledger.settings().weights_rate_limit);
    Ok(registered_at > 0 && snapshot.block < next)
}
