//! Blocks: how they are hashed, what events they hold, and what can be read at them.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use sp_crypto_hashing::blake2_256;
use subxt::ext::codec::{Compact, Encode};

use super::accounts::Account;
use super::program::Program;
use super::state::Entries;
use crate::hex;

/// A hash of 32 bytes.
pub(super) type Hash = [u8; 32];

/// A block that has passed: nothing of it changes any more.
pub(super) struct Block {
    /// Its number.
    pub(super) number: u32,
    /// Its own hash.
    pub(super) hash: Hash,
    /// The hash of the one before.
    pub(super) parent: Hash,
    /// The transactions in it, the timestamp first.
    pub(super) extrinsics: Vec<Vec<u8>>,
    /// The program that ran.
    pub(super) program: Arc<Program>,
    /// What storage holds as at other blocks.
    pub(super) shared: Arc<Entries>,
    /// What it holds at this one alone.
    pub(super) own: Entries,
}

impl Block {
    /// The hash of the transactions, in the header.
    fn extrinsics_root(&self) -> Hash {
        blake2_256(&self.extrinsics.concat())
    }

    /// The hash of the header; clients compute it from the header themselves.
    pub(super) fn hash_of_header(&self) -> Hash {
        let no_logs = Compact(0_u32);
        blake2_256(&(self.parent, Compact(self.number), Hash::default(), self.extrinsics_root(), no_logs).encode())
    }

    /// The header. There is no tree of the state: its root is zeros.
    pub(super) fn header(&self) -> Value {
        json!({
            "parentHash": hex::write(self.parent),
            "number": format!("{:#x}", self.number),
            "stateRoot": hex::write(Hash::default()),
            "extrinsicsRoot": hex::write(self.extrinsics_root()),
            "digest": { "logs": [] },
        })
    }

    /// The header and the transactions.
    pub(super) fn json(&self) -> Value {
        let extrinsics: Vec<String> = self.extrinsics.iter().map(hex::write).collect();
        json!({ "block": { "header": self.header(), "extrinsics": extrinsics }, "justifications": null })
    }

    /// What storage holds under a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.own.get(key).or_else(|| self.shared.get(key)).map(Vec::as_slice)
    }

    /// The first keys that begin with a prefix and come after another key, ascending.
    pub(super) fn keys(&self, prefix: &[u8], count: usize, after: Option<&[u8]>) -> Vec<&[u8]> {
        let start = after.filter(|after| *after >= prefix).map_or(Bound::Included(prefix), Bound::Excluded);
        let mut keys = BTreeSet::new();
        for entries in [&*self.shared, &self.own] {
            let range = entries.range::<[u8], _>((start, Bound::Unbounded)).map(|(key, _)| key.as_slice());
            keys.extend(range.take_while(|key| key.starts_with(prefix)).take(count));
        }
        keys.into_iter().take(count).collect()
    }

    /// The number of transactions that an account had sent.
    pub(super) fn nonce(&self, account: &Account) -> u32 {
        let key = self.program.key("System", "Account", &[account]);
        let value = key.as_deref().and_then(|key| self.get(key));
        value.and_then(|value| value.first_chunk()).map_or(0, |nonce| u32::from_le_bytes(*nonce))
    }
}

/// The timestamp with which every block begins.
pub(super) fn timestamp(program: &Program, unix_ms: u64) -> Vec<u8> {
    let call = program.call("Timestamp", "set").unwrap_or_default();
    let body = (0x04_u8, call, Compact(unix_ms)).encode();
    let mut extrinsic = Compact(body.len() as u32).encode();
    extrinsic.extend(body);
    extrinsic
}

/// How urgent an extrinsic is.
#[derive(Clone, Copy)]
pub(super) enum Class {
    /// As most are.
    Normal = 0,
    /// The chain's own upkeep, which goes first.
    Operational = 1,
    /// What a block cannot do without.
    Mandatory = 2,
}

/// An event of the extrinsic at a place in the block.
pub(super) fn event(place: u32, event: &[u8]) -> Vec<u8> {
    let no_topics = Compact(0_u32);
    let mut bytes = (0x00_u8, place).encode();
    bytes.extend_from_slice(event);
    bytes.extend(no_topics.encode());
    bytes
}

/// That an extrinsic was done.
pub(super) fn success(program: &Program, class: Class) -> Result<Vec<u8>> {
    Ok((program.event("System", "ExtrinsicSuccess")?, dispatch_info(class)).encode())
}

/// That an extrinsic failed with a pallet's error.
pub(super) fn failure(program: &Program, class: Class, error: [u8; 5]) -> Result<Vec<u8>> {
    const MODULE: u8 = 3;
    Ok((program.event("System", "ExtrinsicFailed")?, MODULE, error, dispatch_info(class)).encode())
}

/// That nothing was paid.
pub(super) fn fee(program: &Program, account: &Account) -> Result<Vec<u8>> {
    Ok((program.event("TransactionPayment", "TransactionFeePaid")?, account, 0_u64, 0_u64).encode())
}

/// The time and the size of the proof that it took (those of a commitment), its class, and whether it pays.
fn dispatch_info(class: Class) -> impl Encode {
    const PAYS_NO: u8 = 1;
    (Compact(377_840_000_u64), Compact(6_344_u64), class as u8, PAYS_NO)
}
