//! Committing bytes under a hotkey.

use std::ops::ControlFlow;

use anyhow::{Result, bail};

use super::Subtensor;
use super::commitments::{self, COMMITMENT_OF, Registration, commit_call};
use super::order::{Call, Fate, Order};
use super::runtime::Part;
use super::subnet::{NETWORKS_ADDED, UIDS, registration_asks};
use super::trouble::quoted;
use super::view::Seen;
use crate::chain::words;
use crate::chain::{Chain, CommitLimit, account};
use crate::error::{Failure, input};
use crate::figures::count;
use crate::hex;
use crate::hub::model_id::MAX_COMMITMENT_BYTES;

impl Subtensor {
    /// Commits bytes, and returns the block in which they stand. What stands there already is not sent again.
    pub(super) fn commit_bytes(&self, hotkey: &str, bytes: &[u8]) -> Result<u64> {
        if bytes.len() > MAX_COMMITMENT_BYTES {
            return Err(words::too_long(bytes.len()));
        }
        let account = account::parse(hotkey).map_err(input)?;
        let signer = self.keyring.signer(hotkey)?;
        let _one_at_a_time = self.one_at_a_time();
        let mut asks = registration_asks(self.netuid, account);
        asks.extend(commitments::asks(self.netuid, account));
        let order = Order { what: "commitment", asks, account, signer: &signer };
        let fate = self.give(&order, |seen| {
            if let Some(block) = standing(seen, bytes)? {
                return Ok(ControlFlow::Break(block));
            }
            self.check_may_commit(hotkey, bytes.len(), seen)?;
            let kept_under = Some((COMMITMENT_OF, vec![Part::Number(self.netuid), Part::Account(account)]));
            Ok(ControlFlow::Continue(Call { call: commit_call(self.netuid, bytes), kept_under }))
        })?;
        let included = match fate {
            Fate::Stands(block) => return Ok(block),
            Fate::Included(included) => included,
            Fate::Not(why) => {
                // What is looked for is the commitment, by whatever way it came.
                let seen = self.wait(self.node.see(&order.asks, None))?;
                if let Some(block) = standing(&seen, bytes)? {
                    return Ok(block);
                }
                let stands = match commitments::one(&seen.answers)? {
                    Some(other) => format!("what stands on the chain is {}", shown(&other)),
                    None => "nothing stands on the chain".to_owned(),
                };
                return Err(Failure::Unreachable(format!(
                    "the commitment of the hotkey `{hotkey}` was not included: {why}; {stands}, commit again"
                ))
                .into());
            }
        };
        if let Some(failure) = &included.failure {
            return Err(self.commit_failure(hotkey, included.block, failure));
        }
        let kept = included.kept.as_deref();
        let kept = kept.map(|kept| commitments::registration(&included.runtime, Some(kept)));
        match kept.transpose()?.flatten() {
            Some(kept) if kept.bytes().as_deref() == Some(bytes) => Ok(kept.block()),
            _ => bail!(
                "the commitment of the hotkey `{hotkey}` was included in block {}, but the chain keeps other bytes there: \
                 look at what stands committed now before committing again",
                count(included.block)
            ),
        }
    }

    fn check_may_commit(&self, hotkey: &str, num_bytes: usize, seen: &Seen) -> Result<()> {
        let Seen { view, answers, .. } = seen;
        if !answers.needed(NETWORKS_ADDED)?.unwrap_or(false) || answers.needed::<u16>(UIDS)?.is_none() {
            return Err(self.unregistered(hotkey));
        }
        let next = commitments::next_block(seen, self.netuid, num_bytes)?;
        // It is included a block later at the earliest.
        if view.number + 1 >= next {
            return Ok(());
        }
        let limit = match commitments::limit(&view.runtime, answers)? {
            CommitLimit::Blocks(blocks) => format!("the rate limit of {} blocks lets it commit again", count(blocks)),
            CommitLimit::Bytes(bytes) => {
                format!("its {} bytes of this epoch are used up, and it can commit again", count(bytes))
            }
        };
        Err(words::too_soon(hotkey, "commit", view.number, &limit, next, self.seconds_per_block()))
    }

    /// Why the chain did not take a commitment, by the name that it gave.
    pub(super) fn commit_failure(&self, hotkey: &str, block: u64, failure: &str) -> anyhow::Error {
        let name = failure.rsplit('.').next().unwrap_or_default();
        let refused = format!("the chain refused the commitment of the hotkey `{hotkey}` in block {}", count(block));
        match name {
            "CannotCommit" | "AccountNotAllowedCommit" => self.unregistered(hotkey).context(refused),
            "RateLimitExceeded" | "CommitmentSetRateLimitExceeded" => Failure::No(format!(
                "{refused}: its last commitment is too young; `assay chain status` shows the rate limit ({failure})"
            ))
            .into(),
            "SpaceLimitExceeded" => Failure::No(format!(
                "{refused}: the bytes that it may commit in an epoch are used up; commit again in the next ({failure})"
            ))
            .into(),
            _ => input(format!("{refused}: {failure}")),
        }
    }
}

/// The block of a commitment of these very bytes.
fn standing(seen: &Seen, bytes: &[u8]) -> Result<Option<u64>> {
    let same = commitments::one(&seen.answers)?.filter(|registration| registration.bytes().as_deref() == Some(bytes));
    Ok(same.map(|registration| registration.block()))
}

/// A commitment, in a message.
fn shown(registration: &Registration) -> String {
    let text = match registration.bytes().map(String::from_utf8) {
        Some(Ok(text)) => format!("`{}`", quoted(&text)),
        Some(Err(error)) => hex::write(error.as_bytes()),
        None => "no text".to_owned(),
    };
    format!("{text} of block {}", count(registration.block()))
}
