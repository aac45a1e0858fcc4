//! Setting a validator's weights.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use anyhow::Result;
use subxt::ext::scale_value::Value;
use subxt::tx::{DynamicPayload, dynamic};

use super::Subtensor;
use super::order::{Call, Fate, Order};
use super::runtime::Part;
use super::subnet::{
    LAST_UPDATE, NETWORKS_ADDED, SUBNETWORK_N, UIDS, VALIDATOR_PERMIT, registration_asks, weights_asks, weights_limits,
};
use super::view::{Ask, Seen};
use crate::chain::words;
use crate::chain::{Chain, FULL_SHARE, account};
use crate::error::{Failure, input};
use crate::figures::count;

impl Subtensor {
    /// Sets weights, and returns their block.
    pub(super) fn send_weights(&self, hotkey: &str, weights: &[(u16, u16)], version_key: u64) -> Result<u64> {
        let account = account::parse(hotkey).map_err(input)?;
        let signer = self.keyring.signer(hotkey)?;
        let _one_at_a_time = self.one_at_a_time();
        let mut asks = registration_asks(self.netuid, account);
        asks.extend(weights_asks(self.netuid));
        asks.extend([VALIDATOR_PERMIT, LAST_UPDATE].map(|entry| Ask::new(entry, [Part::Number(self.netuid)])));
        let order = Order { what: "weights", asks, account, signer: &signer };
        let fate = self.give(&order, |seen| {
            self.check_weights(hotkey, weights, version_key, seen)?;
            let call = weights_call(self.netuid, weights, version_key);
            Ok(ControlFlow::Continue(Call { call, kept_under: None }))
        })?;
        match fate {
            Fate::Stands(block) => Ok(block),
            Fate::Included(included) => match &included.failure {
                None => Ok(included.block),
                Some(failure) => Err(self.weights_failure(hotkey, included.block, failure)),
            },
            Fate::Not(why) => Err(Failure::Unreachable(format!(
                "the weights of the hotkey `{hotkey}` were not included: {why}; those before stand, set them again"
            ))
            .into()),
        }
    }

    /// Refuses what the chain would refuse.
    fn check_weights(&self, hotkey: &str, weights: &[(u16, u16)], version_key: u64, seen: &Seen) -> Result<()> {
        let Seen { view, answers, .. } = seen;
        let is_there = answers.needed(NETWORKS_ADDED)?.unwrap_or(false);
        let uid = answers.needed::<u16>(UIDS)?.filter(|_| is_there);
        let Some(uid) = uid else { return Err(self.unregistered(hotkey)) };
        let at = |list: Vec<bool>| list.get(usize::from(uid)).copied().unwrap_or_default();
        let limits = weights_limits(answers)?;
        let subnet = self.describe();
        if limits.commit_reveal {
            return Err(input(format!(
                "{subnet} takes weights only if they are committed first and revealed later, which assay does not do: no \
                 weights were set"
            )));
        }
        if version_key < limits.version_key {
            return Err(input(format!(
                "{subnet} takes weights of version {} of the validator's program or later, and these are of version \
                 {version_key}: use rules of that version",
                limits.version_key
            )));
        }
        let updates: Vec<u64> = answers.one_or(LAST_UPDATE, Vec::new())?;
        let last = updates.get(usize::from(uid)).copied().unwrap_or_default();
        let next = if last == 0 { 0 } else { last.saturating_add(limits.rate_limit) };
        // They are included a block later at the earliest.
        if view.number + 1 < next {
            let limit = format!("the rate limit of {} blocks lets it set them again", limits.rate_limit);
            return Err(words::too_soon(hotkey, "set weights", view.number, &limit, next, self.seconds_per_block()));
        }
        check_uids(weights, answers.one_or(SUBNETWORK_N, 0)?).map_err(input)?;
        // Whoever wants may give weight to himself, where it does not count.
        if matches!(weights, [(to, _)] if *to == uid) {
            return Ok(());
        }
        if !at(answers.one_or(VALIDATOR_PERMIT, Vec::new())?) {
            return Err(input(format!(
                "the hotkey `{hotkey}` has no validator permit on {subnet}: those with the most stake get one at the next epoch"
            )));
        }
        check_shares(weights, limits.min_allowed, limits.max_share, answers.one_or(SUBNETWORK_N, 0)?)
            .map_err(|sentence| input(format!("{sentence} on {subnet}")))
    }

    /// Why the chain did not take weights, by the name that it gave.
    pub(super) fn weights_failure(&self, hotkey: &str, block: u64, failure: &str) -> anyhow::Error {
        let name = failure.rsplit('.').next().unwrap_or_default();
        let refused = format!("the chain refused the weights of the hotkey `{hotkey}` in block {}", count(block));
        match name {
            "NotRegistered" | "HotKeyNotRegisteredInSubNet" | "HotKeyNotRegisteredInNetwork" => {
                self.unregistered(hotkey).context(refused)
            }
            "SettingWeightsTooFast" => Failure::No(format!("{refused}: those before are too young ({failure})")).into(),
            "NoValidatorPermit" | "NeuronNoValidatorPermit" => {
                input(format!("{refused}: it lost its validator permit ({failure})"))
            }
            "NotEnoughStakeToSetWeights" => {
                input(format!("{refused}: it has less stake than the chain demands of validators ({failure})"))
            }
            "CommitRevealEnabled" => input(format!(
                "{refused}: they must be committed first and revealed later, which assay does not do ({failure})"
            )),
            _ => input(format!("{refused}: {failure}")),
        }
    }
}

/// The call that sets weights.
pub(super) fn weights_call(netuid: u16, weights: &[(u16, u16)], version_key: u64) -> DynamicPayload<Vec<Value>> {
    let list = |numbers: Vec<u16>| Value::unnamed_composite(numbers.into_iter().map(Value::from));
    let (uids, values) = weights.iter().copied().unzip();
    dynamic(
        "SubtensorModule",
        "set_weights",
        vec![Value::from(netuid), list(uids), list(values), Value::from(version_key)],
    )
}

fn check_uids(weights: &[(u16, u16)], num_uids: u16) -> Result<(), String> {
    if weights.iter().all(|&(_, weight)| weight == 0) {
        return Err("no weight is given to anybody: the chain takes at least one".to_owned());
    }
    let mut named = BTreeSet::new();
    for &(uid, _) in weights {
        if uid >= num_uids {
            return Err(format!("there is no uid {uid}: the subnet has {num_uids}"));
        }
        if !named.insert(uid) {
            return Err(format!("uid {uid} is given two weights"));
        }
    }
    Ok(())
}

fn check_shares(weights: &[(u16, u16)], min_allowed: u16, max_share: u16, num_uids: u16) -> Result<(), String> {
    let needed = min_allowed.min(num_uids);
    if weights.len() < usize::from(needed) {
        return Err(format!("{} uids are given weight, and at least {needed} must be", weights.len()));
    }
    let sum: u64 = weights.iter().map(|&(_, weight)| u64::from(weight)).sum();
    let too_large =
        weights.iter().find(|&&(_, weight)| u64::from(weight) * u64::from(FULL_SHARE) > u64::from(max_share) * sum);
    match too_large {
        Some((uid, weight)) => Err(format!(
            "uid {uid} is given {:.2} % of the weight, and nobody may get more than {:.2} %",
            100.0 * f64::from(*weight) / sum as f64,
            100.0 * f64::from(max_share) / f64::from(FULL_SHARE)
        )),
        None => Ok(()),
    }
}
