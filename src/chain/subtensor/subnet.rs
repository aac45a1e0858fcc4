//! A subnet as the pallet SubtensorModule keeps it: who is on it, what it pays, what it asks.

use std::collections::BTreeMap;

use anyhow::Result;
use subxt::utils::AccountId32;

use super::commitments::{self, COMMITMENT_OF};
use super::epochs::{self, Epochs, TEMPO};
use super::runtime::{Entry, Part, of_subnet};
use super::trouble::Attempt;
use super::view::{Answers, Ask, Seen};
use crate::chain::account::address;
use crate::chain::{ConsensusParams, Currency, FULL_SHARE, Neuron, Runtime, Snapshot, Status, WeightsLimits};

/// Whether there is a subnet of a number.
pub(super) const NETWORKS_ADDED: Entry = of_subnet("NetworksAdded");
/// How many places are taken.
pub(super) const SUBNETWORK_N: Entry = of_subnet("SubnetworkN");
/// The uid of a hotkey.
pub(super) const UIDS: Entry = of_subnet("Uids");
/// The validators' permits, by uid.
pub(super) const VALIDATOR_PERMIT: Entry = of_subnet("ValidatorPermit");
/// The blocks at which weights were set last, by uid.
pub(super) const LAST_UPDATE: Entry = of_subnet("LastUpdate");
const IMMUNITY_PERIOD: Entry = of_subnet("ImmunityPeriod");
const ACTIVITY_CUTOFF: Entry = of_subnet("ActivityCutoff");
const ACTIVITY_CUTOFF_FACTOR: Entry = of_subnet("ActivityCutoffFactorMilli");
const INCENTIVE: Entry = of_subnet("Incentive");
const EMISSION: Entry = of_subnet("Emission");
const EMISSION_VALUES: Entry = of_subnet("EmissionValues");
const KAPPA: Entry = of_subnet("Kappa");
const BONDS_MOVING_AVERAGE: Entry = of_subnet("BondsMovingAverage");
const MAX_ALLOWED_VALIDATORS: Entry = of_subnet("MaxAllowedValidators");
const MAX_ALLOWED_UIDS: Entry = of_subnet("MaxAllowedUids");
const BURN: Entry = of_subnet("Burn");
const SUBNET_TAO: Entry = of_subnet("SubnetTAO");
const SUBNET_ALPHA_IN: Entry = of_subnet("SubnetAlphaIn");
const WEIGHTS_SET_RATE_LIMIT: Entry = of_subnet("WeightsSetRateLimit");
const MIN_ALLOWED_WEIGHTS: Entry = of_subnet("MinAllowedWeights");
const MAX_WEIGHTS_LIMIT: Entry = of_subnet("MaxWeightsLimit");
const WEIGHTS_VERSION_KEY: Entry = of_subnet("WeightsVersionKey");
const COMMIT_REVEAL: Entry = of_subnet("CommitRevealWeightsEnabled");
const TAO_WEIGHT: Entry = of_subnet("TaoWeight");
const KEYS: Entry = of_subnet("Keys");
const BLOCK_AT_REGISTRATION: Entry = of_subnet("BlockAtRegistration");
const WEIGHTS: Entry = of_subnet("Weights");
const BONDS: Entry = of_subnet("Bonds");
const OWNER: Entry = of_subnet("Owner");
const TOTAL_HOTKEY_STAKE: Entry = of_subnet("TotalHotkeyStake");
const TOTAL_HOTKEY_ALPHA: Entry = of_subnet("TotalHotkeyAlpha");

/// The subnet whose token is TAO itself.
const ROOT_NETUID: u16 = 0;

fn of_netuid<const N: usize>(entries: [Entry; N], netuid: u16) -> Vec<Ask> {
    entries.map(|entry| Ask::new(entry, [Part::Number(netuid)])).into()
}

/// What [`snapshot`] needs to be asked at the view's beginning.
pub(super) fn snapshot_asks(netuid: u16) -> Vec<Ask> {
    let mut asks = of_netuid(
        [
            NETWORKS_ADDED,
            SUBNETWORK_N,
            IMMUNITY_PERIOD,
            ACTIVITY_CUTOFF,
            ACTIVITY_CUTOFF_FACTOR,
            INCENTIVE,
            EMISSION,
            EMISSION_VALUES,
            LAST_UPDATE,
            VALIDATOR_PERMIT,
            KAPPA,
            BONDS_MOVING_AVERAGE,
            MAX_ALLOWED_VALIDATORS,
        ],
        netuid,
    );
    asks.extend(epochs::asks(netuid));
    asks.push(Ask::new(TAO_WEIGHT, []));
    asks
}

/// The whole subnet: two waits after the view's. `None` if there is none of that number.
pub(super) async fn snapshot(seen: &Seen, netuid: u16) -> Attempt<Option<Snapshot>> {
    let Seen { view, answers, .. } = seen;
    if !answers.needed(NETWORKS_ADDED)?.unwrap_or(false) {
        return Ok(None);
    }
    let of_uid = [KEYS, BLOCK_AT_REGISTRATION, WEIGHTS, BONDS];
    let num_uids = num_uids(seen)?;
    let by_uid = view.read(&asks_by_uid(&of_uid, netuid, num_uids)).await?;
    let places = places(&by_uid)?;
    let accounts: Vec<AccountId32> = places.iter().map(|&(_, account)| account).collect();
    let by_account = view.read(&asks_by_account(netuid, &accounts)).await?;

    let tempo: u16 = answers.needed(TEMPO)?.unwrap_or(0);
    let emission: Vec<u64> = answers.needed(EMISSION)?.unwrap_or_default();
    let stakes = stakes(seen, &by_account, accounts.len())?;
    let registered = by_uid.each::<u64>(BLOCK_AT_REGISTRATION)?;
    let incentive: Vec<u16> = answers.one_or(INCENTIVE, Vec::new())?;
    let permits: Vec<bool> = answers.one_or(VALIDATOR_PERMIT, Vec::new())?;
    let updates: Vec<u64> = answers.one_or(LAST_UPDATE, Vec::new())?;
    let neurons = places.iter().zip(stakes).map(|(&(uid, account), stake)| Neuron {
        uid,
        hotkey: address(&account),
        registered_at: registered.get(usize::from(uid)).copied().flatten().unwrap_or(0),
        stake,
        incentive: at(&incentive, uid),
        validator_permit: at(&permits, uid),
        last_update: at(&updates, uid),
        emission: at(&emission, uid),
    });
    let neurons: Vec<Neuron> = neurons.collect();
    let commitments = commitments::each(&by_account)?.into_iter().zip(&neurons);
    let commitments = commitments.filter_map(|(found, neuron)| Some((neuron.hotkey.clone(), found?.into()))).collect();
    let paid = emission.iter().fold(0_u64, |sum, &pay| sum.saturating_add(pay));
    let per_block: u64 = answers.one_or(EMISSION_VALUES, 0)?;
    Ok(Some(Snapshot {
        block: view.number,
        tempo: tempo.into(),
        next_epoch: Epochs::read(answers, netuid)?.noted_next(),
        immunity_period: answers.needed(IMMUNITY_PERIOD)?.unwrap_or(0),
        activity_cutoff: activity_cutoff(answers, tempo)?,
        neurons,
        commitments,
        weights: rows(&by_uid, WEIGHTS)?,
        bonds: rows(&by_uid, BONDS)?,
        consensus: ConsensusParams {
            kappa: answers.one_or(KAPPA, ConsensusParams::default().kappa)?,
            bonds_moving_average: answers.one_or(BONDS_MOVING_AVERAGE, 0)?,
            max_validators: answers.one_or(MAX_ALLOWED_VALIDATORS, 0)?,
            // Before the first epoch nobody was paid; what the subnet gets in the blocks of one is the best guess.
            emission: if paid > 0 { paid } else { per_block.saturating_mul(u64::from(tempo) + 1) },
        },
    }))
}

/// Blocks after which a validator that sets no weights does not count: today a part of the tempo.
fn activity_cutoff(answers: &Answers, tempo: u16) -> Result<u64> {
    match answers.one::<u64>(ACTIVITY_CUTOFF_FACTOR)? {
        Some(thousandths) => Ok((thousandths.saturating_mul(tempo.into()) / 1000).max(1)),
        None => Ok(answers.needed(ACTIVITY_CUTOFF)?.unwrap_or(0)),
    }
}

/// How many places there are to ask for.
fn num_uids(seen: &Seen) -> Result<u16> {
    // The chain never lets a subnet have more.
    const MOST: u16 = 4096;
    let num_uids: u16 = seen.answers.needed(SUBNETWORK_N)?.unwrap_or(0);
    seen.view.runtime.require(KEYS)?;
    if num_uids > MOST {
        return Err(seen.view.runtime.strange(&format!("the subnet is said to have {num_uids} places")));
    }
    Ok(num_uids)
}

fn asks_by_uid(entries: &[Entry], netuid: u16, num_uids: u16) -> Vec<Ask> {
    let of_entry =
        |&entry: &Entry| (0..num_uids).map(move |uid| Ask::new(entry, [Part::Number(netuid), Part::Number(uid)]));
    entries.iter().flat_map(of_entry).collect()
}

/// Older versions keep one stake of a hotkey, later ones that of each subnet, and both is asked for: what a version lacks
/// costs nothing.
fn asks_by_account(netuid: u16, accounts: &[AccountId32]) -> Vec<Ask> {
    let of_account = |entry: Entry, parts: &dyn Fn(Part) -> Vec<Part>| -> Vec<Ask> {
        accounts.iter().map(|&account| Ask::new(entry, parts(Part::Account(account)))).collect()
    };
    let mut asks = of_account(COMMITMENT_OF, &|account| vec![Part::Number(netuid), account]);
    asks.extend(of_account(TOTAL_HOTKEY_STAKE, &|account| vec![account]));
    for netuid in [netuid, ROOT_NETUID] {
        asks.extend(of_account(TOTAL_HOTKEY_ALPHA, &|account| vec![account, Part::Number(netuid)]));
    }
    asks
}

/// The places that are held, with who holds them. Where nobody does, the chain gives the account of zeros.
fn places(by_uid: &Answers) -> Result<Vec<(u16, AccountId32)>> {
    let keys = (0..=u16::MAX).zip(by_uid.each::<AccountId32>(KEYS)?);
    Ok(keys.filter_map(|(uid, key)| Some((uid, key.filter(|key| key.0 != [0; 32])?))).collect())
}

/// The stake of each account. Of the later versions it is the subnet's own token, and the TAO that is staked to the hotkey,
/// at the weight that the chain gives to it. What those versions let a hotkey lend to others, its child keys, counts for
/// the lender here and not for them, and their threshold below which stake does not count is not seen: the chain keeps
/// the stake after both as shares only.
fn stakes(seen: &Seen, by_account: &Answers, num_accounts: usize) -> Result<Vec<u64>> {
    if seen.view.runtime.has(TOTAL_HOTKEY_STAKE) {
        let stakes = by_account.each::<u64>(TOTAL_HOTKEY_STAKE)?;
        return Ok(stakes.into_iter().map(Option::unwrap_or_default).collect());
    }
    seen.view.runtime.require(TOTAL_HOTKEY_ALPHA)?;
    let tao_weight: u64 = seen.answers.one_or(TAO_WEIGHT, 0)?;
    let alpha = by_account.each::<u64>(TOTAL_HOTKEY_ALPHA)?;
    let (own, root) = alpha.split_at_checked(num_accounts).unwrap_or_default();
    let stake = |(own, root): (&Option<u64>, &Option<u64>)| {
        let weighted = (u128::from(root.unwrap_or(0)) * u128::from(tao_weight)) >> 64;
        own.unwrap_or(0).saturating_add(u64::try_from(weighted).unwrap_or(u64::MAX))
    };
    Ok(own.iter().zip(root).map(stake).collect())
}

/// The rows of those uids that have any.
fn rows(by_uid: &Answers, entry: Entry) -> Result<BTreeMap<u16, Vec<(u16, u16)>>> {
    let rows = (0..=u16::MAX).zip(by_uid.each::<Vec<(u16, u16)>>(entry)?);
    Ok(rows.filter_map(|(uid, row)| Some((uid, row.filter(|row| !row.is_empty())?))).collect())
}

/// The place of a uid in a list that the chain may not have lengthened yet.
fn at<T: Copy + Default>(list: &[T], uid: u16) -> T {
    list.get(usize::from(uid)).copied().unwrap_or_default()
}

/// What [`status`] needs to be asked.
pub(super) fn status_asks(netuid: u16) -> Vec<Ask> {
    let mut asks = of_netuid(
        [NETWORKS_ADDED, TEMPO, IMMUNITY_PERIOD, SUBNETWORK_N, MAX_ALLOWED_UIDS, BURN, SUBNET_TAO, SUBNET_ALPHA_IN],
        netuid,
    );
    asks.extend(commitments::limit_asks());
    asks.extend(weights_asks(netuid));
    asks
}

/// What holds for everybody; `None` if there is no subnet of that number.
pub(super) fn status(seen: &Seen, netuid: u16, genesis: String) -> Result<Option<Status>> {
    let Seen { view, answers, .. } = seen;
    if !answers.needed(NETWORKS_ADDED)?.unwrap_or(false) {
        return Ok(None);
    }
    let pool = (answers.one::<u64>(SUBNET_TAO)?, answers.one::<u64>(SUBNET_ALPHA_IN)?);
    let version = &view.runtime.version;
    Ok(Some(Status {
        block: view.number,
        runtime: Some(Runtime { name: super::trouble::quoted(&version.name), version: version.spec, genesis }),
        netuid,
        tempo: answers.needed(TEMPO)?.unwrap_or(0),
        immunity_period: answers.needed(IMMUNITY_PERIOD)?.unwrap_or(0),
        num_uids: answers.needed(SUBNETWORK_N)?.unwrap_or(0),
        max_uids: answers.one_or(MAX_ALLOWED_UIDS, 0)?,
        registration_cost: answers.one(BURN)?,
        currency: match pool {
            (Some(tao), Some(alpha)) if alpha > 0 && netuid != ROOT_NETUID => {
                Currency::Alpha { price: tao as f64 / alpha as f64 }
            }
            _ => Currency::Tao,
        },
        commit_limit: commitments::limit(&view.runtime, answers)?,
        weights: weights_limits(answers)?,
    }))
}

/// What is asked of the limits of weights.
pub(super) fn weights_asks(netuid: u16) -> Vec<Ask> {
    of_netuid(
        [WEIGHTS_SET_RATE_LIMIT, MIN_ALLOWED_WEIGHTS, MAX_WEIGHTS_LIMIT, WEIGHTS_VERSION_KEY, COMMIT_REVEAL],
        netuid,
    )
}

/// What weights must be; what a version does not know it does not ask.
pub(super) fn weights_limits(answers: &Answers) -> Result<WeightsLimits> {
    Ok(WeightsLimits {
        rate_limit: answers.one_or(WEIGHTS_SET_RATE_LIMIT, 0)?,
        min_allowed: answers.one_or(MIN_ALLOWED_WEIGHTS, 0)?,
        max_share: answers.one_or(MAX_WEIGHTS_LIMIT, FULL_SHARE)?,
        version_key: answers.one_or(WEIGHTS_VERSION_KEY, 0)?,
        commit_reveal: answers.one_or(COMMIT_REVEAL, false)?,
    })
}

/// Whether there is the subnet, and the uid of a hotkey on it.
pub(super) fn registration_asks(netuid: u16, account: AccountId32) -> Vec<Ask> {
    let mut asks = of_netuid([NETWORKS_ADDED, SUBNETWORK_N], netuid);
    asks.push(Ask::new(UIDS, [Part::Number(netuid), Part::Account(account)]));
    asks
}

/// A hotkey on the subnet whose coldkey an account is.
pub(super) async fn hotkey_of(seen: &Seen, netuid: u16, coldkey: AccountId32) -> Attempt<Option<AccountId32>> {
    let num_uids = num_uids(seen)?;
    let places = places(&seen.view.read(&asks_by_uid(&[KEYS], netuid, num_uids)).await?)?;
    let asks: Vec<Ask> = places.iter().map(|&(_, hotkey)| Ask::new(OWNER, [Part::Account(hotkey)])).collect();
    let owners = seen.view.read(&asks).await?.each::<AccountId32>(OWNER)?;
    let owned = places.into_iter().zip(owners).find(|(_, owner)| *owner == Some(coldkey));
    Ok(owned.map(|((_, hotkey), _)| hotkey))
}
