//! The ledger's tables as the plain data of a [`Snapshot`], and what epochs write back.

use std::collections::BTreeMap;

use anyhow::Result;
use rusqlite::{Row, Transaction, params};

use super::epochs::Outcome;
use super::settings::Settings;
use crate::chain::{Commitment, FULL_SHARE, Hotkey, Neuron, Snapshot};

/// The block of the last write.
pub(super) fn highest_block(transaction: &Transaction<'_>) -> Result<u64> {
    Ok(transaction.query_row("SELECT highest_block FROM settings", [], |row| row.get(0))?)
}

/// The subnet as the tables have it.
pub(super) fn snapshot(transaction: &Transaction<'_>, settings: &Settings, block: u64) -> Result<Snapshot> {
    let mut statement = transaction.prepare("SELECT * FROM neurons ORDER BY uid")?;
    let mut neurons = statement.query_map([], |row| neuron(row, settings))?.collect::<rusqlite::Result<Vec<_>>>()?;
    pay_validators(&mut neurons, settings);
    let mut statement = transaction
        .prepare("SELECT block, bytes, hotkey FROM commitments JOIN neurons USING (hotkey) ORDER BY block, id")?;
    // A later commitment of the same hotkey takes the place of the earlier one.
    let commitments =
        statement.query_map([], |row| Ok((row.get("hotkey")?, commitment(row)?)))?.collect::<rusqlite::Result<_>>()?;
    Ok(Snapshot {
        block,
        tempo: settings.tempo,
        next_epoch: None,
        immunity_period: settings.immunity_period,
        activity_cutoff: settings.activity_cutoff,
        neurons,
        commitments,
        weights: rows(transaction, "SELECT validator_uid, uid, weight FROM weights ORDER BY validator_uid, uid")?,
        bonds: rows(transaction, "SELECT validator_uid, uid, bond FROM bonds ORDER BY validator_uid, uid")?,
        consensus: settings.consensus,
    })
}

/// A matrix by validator, of a query for (validator, miner, number).
fn rows(transaction: &Transaction<'_>, query: &str) -> Result<BTreeMap<u16, Vec<(u16, u16)>>> {
    let mut rows = BTreeMap::<u16, Vec<(u16, u16)>>::new();
    let mut statement = transaction.prepare(query)?;
    for entry in statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))? {
        let (validator_uid, entry) = entry?;
        rows.entry(validator_uid).or_default().push(entry);
    }
    Ok(rows)
}

/// Writes what epochs came to.
pub(super) fn write_outcome(transaction: &Transaction<'_>, outcome: &Outcome) -> Result<()> {
    let mut update = transaction.prepare("UPDATE neurons SET incentive = ?2, validator_permit = ?3 WHERE uid = ?1")?;
    for &(uid, incentive, has_permit) in &outcome.neurons {
        update.execute(params![uid, incentive, has_permit])?;
    }
    transaction.execute("DELETE FROM bonds", [])?;
    let mut insert = transaction.prepare("INSERT INTO bonds VALUES (?1, ?2, ?3)")?;
    for (&validator_uid, row) in &outcome.bonds {
        for &(uid, bond) in row {
            insert.execute([validator_uid, uid, bond])?;
        }
    }
    Ok(())
}

pub(super) fn commitment(row: &Row<'_>) -> rusqlite::Result<Commitment> {
    Ok(Commitment { block: row.get("block")?, bytes: row.get("bytes")? })
}

/// The ledger keeps no dividends: what validators are paid is taken to follow their stake.
fn pay_validators(neurons: &mut [Neuron], settings: &Settings) {
    let all_stake: u128 =
        neurons.iter().filter(|neuron| neuron.validator_permit).map(|neuron| u128::from(neuron.stake)).sum();
    let emission = u128::from(settings.consensus.emission - settings.consensus.emission / 2);
    for neuron in neurons.iter_mut().filter(|neuron| neuron.validator_permit) {
        let part = (emission * u128::from(neuron.stake)).checked_div(all_stake).unwrap_or(0);
        neuron.emission = neuron.emission.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
    }
}

/// A neuron with what it is paid as a miner.
fn neuron(row: &Row<'_>, settings: &Settings) -> rusqlite::Result<Neuron> {
    let incentive: u16 = row.get("incentive")?;
    let emission_to_miners = u128::from(settings.consensus.emission / 2);
    let emission = emission_to_miners * u128::from(incentive) / u128::from(FULL_SHARE);
    Ok(Neuron {
        uid: row.get("uid")?,
        hotkey: row.get::<_, Hotkey>("hotkey")?,
        registered_at: row.get("registered_at")?,
        stake: row.get("stake")?,
        incentive,
        validator_permit: row.get("validator_permit")?,
        last_update: row.get("last_update")?,
        emission: u64::try_from(emission).unwrap_or(u64::MAX),
    })
}
