//! What hotkeys have committed, and when they may commit again.

use std::collections::BTreeMap;

use anyhow::Result;
use subxt::ext::scale_decode::DecodeAsType;
use subxt::ext::scale_value::{Composite, Value, ValueDef};
use subxt::tx::{DynamicPayload, dynamic};
use subxt::utils::AccountId32;

use super::epochs::{self, Epochs};
use super::runtime::{Entry, Part, Runtime};
use super::trouble::Attempt;
use super::view::{Answers, Ask, Seen, View};
use crate::chain::account::address;
use crate::chain::{CommitLimit, Commitment, Hotkey};

/// What a hotkey has committed to a subnet.
pub(super) const COMMITMENT_OF: Entry = in_commitments("CommitmentOf");
const LAST_COMMITMENT: Entry = in_commitments("LastCommitment");
const RATE_LIMIT: Entry = in_commitments("RateLimit");
const MAX_SPACE: Entry = in_commitments("MaxSpace");
const USED_SPACE_OF: Entry = in_commitments("UsedSpaceOf");

/// No commitment is longer as it is stored, by far: what is, is not taken apart.
const MAX_STORED_BYTES: usize = 4 << 10;

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

/// What stands committed, from its bytes.
pub(super) fn registration(runtime: &Runtime, bytes: Option<&[u8]>) -> Result<Option<Registration>> {
    /// The rest is skipped.
    #[derive(DecodeAsType)]
    #[decode_as_type(crate_path = "subxt::ext::scale_decode")]
    struct Dated {
        block: u64,
    }
    if bytes.is_none_or(|bytes| bytes.len() <= MAX_STORED_BYTES) {
        return runtime.decode(COMMITMENT_OF, bytes);
    }
    let dated: Option<Dated> = runtime.decode(COMMITMENT_OF, bytes)?;
    Ok(dated.map(|dated| Registration { block: dated.block, info: Info { fields: Vec::new() } }))
}

/// The commitments of those hotkeys that were asked for.
pub(super) fn each(answers: &Answers) -> Result<Vec<Option<Registration>>> {
    answers.bytes(COMMITMENT_OF).map(|bytes| registration(&answers.runtime, bytes)).collect()
}

/// The commitment of the one hotkey that was asked for.
pub(super) fn one(answers: &Answers) -> Result<Option<Registration>> {
    Ok(each(answers)?.into_iter().next().flatten())
}

/// The call that commits bytes, at most [`MAX_COMMITMENT_BYTES`](crate::hub::model_id::MAX_COMMITMENT_BYTES).
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
        if let Some(registration) = registration(&view.runtime, Some(&value))? {
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
    asks.extend(epochs::asks(netuid));
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

/// The first block that may hold a hotkey's next commitment, of so many bytes; 0 means that any may.
pub(super) fn next_block(seen: &Seen, netuid: u16, num_bytes: usize) -> Result<u64> {
    let Seen { view, answers, .. } = seen;
    match limit(&view.runtime, answers)? {
        CommitLimit::Blocks(limit) => {
            let last = match answers.one::<u64>(LAST_COMMITMENT)? {
                Some(last) => Some(last),
                None => one(answers)?.map(|registration| registration.block),
            };
            Ok(last.map_or(0, |last| last.saturating_add(limit)))
        }
        CommitLimit::Bytes(space) => {
            let used = answers.one::<UsedSpace>(USED_SPACE_OF)?;
            let (epoch, next) = Epochs::read(answers, netuid)?.of_block_after(view.number);
            Ok(used.filter(|used| !used.leaves(space, epoch, num_bytes)).map_or(0, |_| next))
        }
    }
}

impl UsedSpace {
    /// Whether there is space for a commitment in an epoch: what was used of an earlier one does not count.
    fn leaves(&self, space: u64, epoch: u64, num_bytes: usize) -> bool {
        let needed = MIN_SPACE.max(num_bytes as u64);
        self.last_epoch != epoch || self.used_space.saturating_add(needed) <= space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_used_up_in_an_epoch_by_a_hundred_bytes_at_least_each_time() {
        let leaves = |used_space, num_bytes| UsedSpace { last_epoch: 4, used_space }.leaves(3_100, 4, num_bytes);
        assert!(leaves(3_000, 1) && leaves(3_000, 100) && leaves(2_972, 128));
        assert!(!leaves(3_001, 1) && !leaves(3_000, 101) && !leaves(u64::MAX, 128));
        assert!(UsedSpace { last_epoch: 3, used_space: 3_100 }.leaves(3_100, 4, 128));
    }
}
