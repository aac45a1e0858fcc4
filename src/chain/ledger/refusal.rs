//! Why the embedded chain refuses a commitment or weights: as data for whoever answers in another chain's words, and as
//! the sentence that a user reads.

use anyhow::{Error, Result};
use thiserror::Error;

use super::Ledger;
use crate::chain::Chain;
use crate::chain::words;
use crate::error::input;

/// What the chain holds against a commitment, or against weights.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The hotkey holds no place.
    #[error("the hotkey is not registered")]
    NotRegistered,
    /// The commitment has so many bytes, which are too many.
    #[error("a commitment of {0} bytes is too long")]
    TooLong(usize),
    /// The rate limit lets the hotkey commit at `next`, and it is block `block`.
    #[error("block {block} is too early for a commitment, block {next} is not")]
    CommitTooSoon {
        /// The present block.
        block: u64,
        /// The first block at which it may.
        next: u64,
    },
    /// The rate limit lets the hotkey set weights at `next`, and it is block `block`.
    #[error("block {block} is too early for weights, block {next} is not")]
    WeightsTooSoon {
        /// The present block.
        block: u64,
        /// The first block at which it may.
        next: u64,
    },
    /// Weights for others than itself, of a validator without a permit.
    #[error("the hotkey has no validator permit")]
    NoPermit,
    /// No weight at all.
    #[error("no weight is given")]
    NoWeights,
    /// Two weights for one uid.
    #[error("uid {0} is given two weights")]
    DuplicateUid(u16),
    /// A weight for a place that nobody holds.
    #[error("nobody holds uid {0}")]
    UnknownUid(u16),
}

/// Sets a refusal apart from a ledger that does not work.
pub(super) fn apart<T>(result: Result<T>) -> Result<Result<T, Refusal>> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(error) => error.downcast::<Refusal>().map(Err),
    }
}

impl Ledger {
    /// A result whose refusal is a sentence about a hotkey.
    pub(super) fn spoken<T>(&self, hotkey: &str, result: Result<T>) -> Result<T> {
        apart(result)?.map_err(|refusal| self.sentence(hotkey, &refusal))
    }

    /// The sentence for what is held against a hotkey.
    pub(super) fn sentence(&self, hotkey: &str, refusal: &Refusal) -> Error {
        match *refusal {
            Refusal::NotRegistered => self.unregistered(hotkey),
            Refusal::TooLong(len) => words::too_long(len),
            Refusal::CommitTooSoon { block, next } => {
                let limit = self.settings().commit_rate_limit;
                let limit = format!("the rate limit of {limit} blocks lets it commit again");
                words::too_soon(hotkey, "commit", block, &limit, next, self.seconds_per_block())
            }
            Refusal::WeightsTooSoon { block, next } => {
                let limit = self.settings().weights_rate_limit;
                let limit = format!("the rate limit of {limit} blocks lets it set them again");
                words::too_soon(hotkey, "set weights", block, &limit, next, self.seconds_per_block())
            }
            Refusal::NoPermit => input(format!(
                "the hotkey `{hotkey}` has no validator permit on {}: `assay local register {hotkey} --stake TAO` gives it one",
                self.describe()
            )),
            Refusal::NoWeights => input("no weight is given to anybody: the chain takes at least one"),
            Refusal::DuplicateUid(uid) => input(format!("uid {uid} is given two weights")),
            Refusal::UnknownUid(uid) => input(format!("no hotkey is registered as uid {uid} on {}", self.describe())),
        }
    }
}
