//! What hotkeys have committed, and when they may commit again.

use std::collections::BTreeMap;

use anyhow::Result;
use subxt::ext::scale_decode::DecodeAsType;
use subxt::ext::scale_value::{Composite, Value, ValueDef};
use subxt::tx::{DynamicPayload, dynamic};
use subxt::utils::AccountId32;

use super::runtime::{Entry, Part, Runtime};
use super::trouble::Attempt;
use super::view::{Answers, Ask, View};
use crate::chain::account::address;
use crate::chain::{CommitLimit, Commitment, Hotkey};
use crate::hub::model_id::MAX_COMMITMENT_BYTES;

/// What a hotkey has committed to a subnet.
pub(super) const COMMITMENT_OF: Entry = in_commitments("CommitmentOf");
const LAST_COMMITMENT: Entry = in_commitments("LastCommitment");
const RATE_LIMIT: Entry = in_commitments("RateLimit");
const MAX_SPACE: Entry = in_commitments("MaxSpace");
const USED_SPACE_OF: Entry = in_commitments("UsedSpaceOf");
const TEMPO: Entry = Entry { pallet: "SubtensorModule", name: "Tempo" };

/// What a commitment takes of the space of an epoch at least.
const MIN_SPACE: u64 = 100;

const fn in_commitments(name: &'static str) -> Entry {
    Entry { pallet: "Commitments", name }
}

/// A commitment as it is stored; further fields are skipped.
#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
pub(super) struct Registration {
    block: u64,
    info: Info,
}

#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
struct Info {
    fields: Vec<Value>,
}

impl Registration {
    /// The block it was included in.
    pub(super) fn block(&self) -> u64 {
        self.block
    }

    /// Its bytes; `None` if it is no plain bytes, but nothing, a hash, several things, or something of a later time.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        let [Value { value: ValueDef::Variant(data), .. }] = self.info.fields.as_slice() else { return None };
        let len: usize = data.name.strip_prefix("Raw")?.parse().ok()?;
        let [field] = data.values.values().collect::<Vec<_>>()[..] else { return None };
        let ValueDef::Composite(Composite::Unnamed(bytes)) = &field.value else { return None };
        let bytes: Option<Vec<u8>> = bytes.iter().map(|byte| byte.as_u128()?.try_into().ok()).collect();
        bytes.filter(|bytes| bytes.len() == len)
    }
}

impl From<Registration> for Commitment {
    fn from(registration: Registration) -> Self {
        Self { block: registration.block, bytes: registration.bytes().unwrap_or_default() }
    }
}

/// The call that commits bytes, at most [`MAX_COMMITMENT_BYTES`].
pub(super) fn commit_call(netuid: u16, bytes: &[u8]) -> DynamicPayload<Vec<Value>> {
    let data = Value::unnamed_variant(format!("Raw{}", bytes.len()), [Value::from_bytes(bytes)]);
    let info = Value::named_composite([("fields", Value::unnamed_composite([data]))]);
    dynamic("Commitments", "set_commitment", vec![Value::from(netuid), info])
}

/// All that stands committed on a subnet.
pub(super) async fn all(view: &View, netuid: u16) -> Attempt<BTreeMap<Hotkey, Commitment>> {
    let Some(prefix) = view.runtime.key(COMMITMENT_OF, &[Part::Number(netuid)])? else { return Ok(BTreeMap::new()) };
    let mut found = BTreeMap::new();
    for (key, value) in view.scan(&prefix).await? {
        // Whatever the hash before it, the account ends the key.
        let Some(account) = key.last_chunk::<32>() else { continue };
        let registration: Option<Registration> = view.runtime.decode(COMMITMENT_OF, Some(&value))?;
        if let Some(registration) = registration {
            found.insert(address(&AccountId32(*account)), registration.into());
        }
    }
    Ok(found)
}

/// What is asked of a hotkey's commitments.
pub(super) fn asks(netuid: u16, account: AccountId32) -> Vec<Ask> {
    let of_hotkey = [Part::Number(netuid), Part::Account(account)];
    let mut asks: Vec<Ask> =
        [COMMITMENT_OF, LAST_COMMITMENT, USED_SPACE_OF].map(|entry| Ask::new(entry, of_hotkey)).into();
    asks.extend([RATE_LIMIT, MAX_SPACE].map(|entry| Ask::new(entry, [])));
    asks.push(Ask::new(TEMPO, [Part::Number(netuid)]));
    asks
}

/// What is asked of the limits that hold for all.
pub(super) fn limit_asks() -> Vec<Ask> {
    [RATE_LIMIT, MAX_SPACE].map(|entry| Ask::new(entry, [])).into()
}

/// What is held against a hotkey that commits often.
pub(super) fn limit(runtime: &Runtime, answers: &Answers) -> Result<CommitLimit> {
    if let Some(blocks) = runtime.constant::<u64>("Commitments", "RateLimit")? {
        return Ok(CommitLimit::Blocks(blocks));
    }
    if let Some(bytes) = answers.one::<u64>(MAX_SPACE)? {
        return Ok(CommitLimit::Bytes(bytes));
    }
    Ok(CommitLimit::Blocks(answers.one_or(RATE_LIMIT, 0)?))
}

#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
struct UsedSpace {
    last_epoch: u64,
    used_space: u64,
}

/// The first block that may hold a hotkey's next commitment, by what stands at a block; 0 means that any may.
pub(super) fn next_block(runtime: &Runtime, answers: &Answers, netuid: u16, block: u64) -> Result<u64> {
    match limit(runtime, answers)? {
        CommitLimit::Blocks(limit) => {
            let last = match answers.one::<u64>(LAST_COMMITMENT)? {
                Some(last) => Some(last),
                None => answers.one::<Registration>(COMMITMENT_OF)?.map(|registration| registration.block),
            };
            Ok(last.map_or(0, |last| last.saturating_add(limit)))
        }
        CommitLimit::Bytes(space) => {
            let used = answers.one::<UsedSpace>(USED_SPACE_OF)?;
            let tempo: u16 = answers.one_or(TEMPO, 0)?;
            Ok(used.map_or(0, |used| used.next_block(space, tempo, netuid, block)))
        }
    }
}

impl UsedSpace {
    /// The first block at which there is space for a commitment of any length, looked for at a block: 0 if there is now.
    /// The space is for an epoch of the subnet, and what was used of an earlier one does not count.
    fn next_block(&self, space: u64, tempo: u16, netuid: u16, block: u64) -> u64 {
        let (epoch_blocks, shift) = (u64::from(tempo) + 1, u64::from(netuid) + 1);
        // The commitment comes a block later at the earliest.
        let epoch = block.saturating_add(1 + shift) / epoch_blocks;
        let needed = MIN_SPACE.max(MAX_COMMITMENT_BYTES as u64);
        if self.last_epoch != epoch || self.used_space.saturating_add(needed) <= space {
            return 0;
        }
        (epoch + 1).saturating_mul(epoch_blocks).saturating_sub(shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_that_is_used_up_is_there_again_in_the_next_epoch() {
        // Epoch 4 of a tempo of 99 on subnet 9 is of the blocks from 390 to 489.
        let used = |last_epoch, used_space| UsedSpace { last_epoch, used_space }.next_block(3_100, 99, 9, 400);
        assert_eq!(used(4, 3_000), 490);
        assert_eq!(used(4, 2_972), 0);
        assert_eq!(used(3, 3_000), 0);
        assert_eq!(UsedSpace { last_epoch: 4, used_space: 3_000 }.next_block(3_100, 99, 9, 488), 490);
        assert_eq!(UsedSpace { last_epoch: 4, used_space: 3_000 }.next_block(3_100, 99, 9, 489), 0);
    }
}
