//! The embedded chain: a subnet in one SQLite file that several processes may use at once.
//!
//! Blocks pass with time: the file says when its first block was and how long each takes. A clock that is set back does
//! not take blocks back: every write leaves the highest block so far. What the chain does on its own accord is done here
//! by whoever comes next: the epochs, which turn weights into pay. What it refuses to a miner is refused here as well:
//! a hotkey that is not registered, a text that is too long, a second commitment or other weights within their rate limit,
//! weights without a permit. What the owner of an embedded chain may do besides is in `setup`.

#[cfg(test)]
mod epoch_tests;
mod epochs;
mod file;
mod nonces;
mod refusal;
mod settings;
mod setup;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};

pub use self::refusal::Refusal;
pub use self::settings::Settings;
use super::{Chain, CommitLimit, Commitment, Currency, FULL_SHARE, Hotkey, Snapshot, Status, WeightsLimits};
use crate::clock::{Clock, SystemClock};
use crate::error::input;
use crate::hub::model_id::MAX_COMMITMENT_BYTES;
use crate::rules::NETUID;
use crate::score::yuma;
use file::LedgerFile;

/// How long to wait for a lock that another process holds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Oldest first; the last is the one that counts.
const COMMITMENTS: &str = "SELECT block, bytes FROM commitments WHERE hotkey = ?1 ORDER BY block, id";

/// A subnet in a file.
pub struct Ledger {
    file: LedgerFile,
    settings: Settings,
    clock: Arc<dyn Clock>,
    journal_dir: PathBuf,
    /// The highest block that this process has seen, for the time between two writes.
    highest_block: AtomicU64,
}

impl Ledger {
    /// Makes an empty ledger; the user's error if there is something at `path`.
    pub fn create(path: &Path, settings: &Settings) -> Result<Self> {
        Self::create_filled(path, settings, |_| Ok(()))
    }

    /// Makes a ledger and lets `fill` write to it before it appears at `path`, all at once.
    pub fn create_filled(path: &Path, settings: &Settings, fill: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        Self::create_with_clock(path, settings, Arc::new(SystemClock), fill)
    }

    /// Makes a ledger whose blocks pass by a clock of one's own.
    pub fn create_with_clock(
        path: &Path,
        settings: &Settings,
        clock: Arc<dyn Clock>,
        fill: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        settings.check()?;
        let (file, temporary) = LedgerFile::draft(path, PATIENCE)?;
        file.transact(TransactionBehavior::Immediate, |transaction| settings.write(transaction))?;
        let draft = Self::of(file, settings.clone(), Arc::clone(&clock), PathBuf::new());
        fill(&draft)?;
        draft.file.place(temporary)?;
        Self::open_with_clock(path, clock)
    }

    /// Opens a ledger; the user's error if there is none.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with_clock(path, Arc::new(SystemClock))
    }

    /// Opens a ledger whose blocks pass by a clock of one's own.
    pub fn open_with_clock(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_within(path, clock, PATIENCE)
    }

    fn open_within(path: &Path, clock: Arc<dyn Clock>, patience: Duration) -> Result<Self> {
        let (file, canonical) = LedgerFile::open(path, patience)?;
        let settings = file.transact(TransactionBehavior::Deferred, Settings::read)?;
        Ok(Self::of(file, settings, clock, canonical.with_file_name("publish")))
    }

    fn of(file: LedgerFile, settings: Settings, clock: Arc<dyn Clock>, journal_dir: PathBuf) -> Self {
        Self { file, settings, clock, journal_dir, highest_block: AtomicU64::new(0) }
    }

    /// All that a hotkey has ever committed, oldest first.
    pub fn commitments_of(&self, hotkey: &str) -> Result<Vec<Commitment>> {
        self.read(|transaction, _| {
            let mut statement = transaction.prepare(COMMITMENTS)?;
            Ok(statement.query_map([hotkey], state::commitment)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Commits bytes at the present block, which it returns, unless the chain refuses.
    pub fn try_commit(&self, hotkey: &str, bytes: &[u8]) -> Result<Result<u64, Refusal>> {
        refusal::apart(self.write(|transaction, block| {
            check_length(bytes)?;
            self.registered(transaction, hotkey)?;
            let next = next_commit_block(transaction, hotkey, &self.settings)?;
            if block < next {
                bail!(Refusal::CommitTooSoon { block, next });
            }
            insert_commitment(transaction, hotkey, block, bytes)?;
            Ok(block)
        }))
    }

    /// Replaces the weights that a validator has set, at the present block, which it returns, unless the chain refuses. As
    /// the chain keeps them, the largest is the full one afterwards. Every version of the validator's program is let in.
    pub fn try_set_weights(&self, hotkey: &str, weights: &[(u16, u16)]) -> Result<Result<u64, Refusal>> {
        refusal::apart(self.write(|transaction, block| {
            let uid = self.registered(transaction, hotkey)?;
            self.check_weights(transaction, uid, weights, block)?;
            self.replace_weights(transaction, uid, &yuma::upscale_weights(weights), block)?;
            Ok(block)
        }))
    }

    /// Runs a function on the subnet as it is at one block.
    fn read<R>(&self, read: impl FnOnce(&Transaction<'_>, u64) -> Result<R>) -> Result<R> {
        self.file.transact(TransactionBehavior::Deferred, |transaction| {
            let block = self.present_block(transaction)?;
            read(transaction, block)
        })
    }

    /// Lets a function change the subnet at the present block, after the epochs that have come due; an error of it changes
    /// nothing.
    fn write<R>(&self, write: impl FnOnce(&Transaction<'_>, u64) -> Result<R>) -> Result<R> {
        self.file.transact(TransactionBehavior::Immediate, |transaction| {
            let block = self.present_block(transaction)?;
            if let Some(outcome) = self.epochs_due(transaction, block)? {
                state::write_outcome(transaction, &outcome)?;
            }
            let result = write(transaction, block)?;
            transaction.execute("UPDATE settings SET highest_block = ?1", [block])?;
            Ok(result)
        })
    }

    /// What the epochs between the last write and a block come to; `None` if they change nothing.
    fn epochs_due(&self, transaction: &Transaction<'_>, block: u64) -> Result<Option<epochs::Outcome>> {
        let last_look = state::highest_block(transaction)?;
        if epochs::next(self.settings.tempo, last_look.saturating_add(1)).is_none_or(|first| first > block) {
            return Ok(None);
        }
        Ok(epochs::run(&state::snapshot(transaction, &self.settings, block)?, last_look))
    }

    /// The clock is read after the file: so no block that the file names is above the present one.
    fn present_block(&self, transaction: &Transaction<'_>) -> Result<u64> {
        let written = state::highest_block(transaction)?;
        let passed = self.clock.unix_ms().saturating_sub(self.settings.first_unix_ms) / self.settings.block_ms.max(1);
        let block = self.settings.genesis_block.saturating_add(passed).max(written);
        Ok(self.highest_block.fetch_max(block, Ordering::Relaxed).max(block))
    }

    /// Refuses weights that the chain would refuse.
    fn check_weights(&self, transaction: &Transaction<'_>, uid: u16, weights: &[(u16, u16)], block: u64) -> Result<()> {
        let (last_update, has_permit): (u64, bool) = transaction.query_row(
            "SELECT last_update, validator_permit FROM neurons WHERE uid = ?1",
            [uid],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let next = if last_update == 0 { 0 } else { last_update.saturating_add(self.settings.weights_rate_limit) };
        if block < next {
            bail!(Refusal::WeightsTooSoon { block, next });
        }
        // Whoever wants may give weight to himself, where it does not count.
        let is_to_itself = matches!(weights, [(to, _)] if *to == uid);
        if !has_permit && !is_to_itself {
            bail!(Refusal::NoPermit);
        }
        if weights.is_empty() {
            bail!(Refusal::NoWeights);
        }
        Ok(())
    }

    fn replace_weights(
        &self,
        transaction: &Transaction<'_>,
        validator_uid: u16,
        weights: &[(u16, u16)],
        block: u64,
    ) -> Result<()> {
        let changed =
            transaction.execute("UPDATE neurons SET last_update = ?2 WHERE uid = ?1", params![validator_uid, block])?;
        self.found(validator_uid, changed)?;
        transaction.execute("DELETE FROM weights WHERE validator_uid = ?1", [validator_uid])?;
        let mut named = BTreeSet::new();
        // A weight on a place that nobody holds is refused, as on the chain.
        let mut insert = transaction.prepare("INSERT INTO weights SELECT ?1, uid, ?3 FROM neurons WHERE uid = ?2")?;
        for &(uid, weight) in weights {
            if !named.insert(uid) {
                bail!(Refusal::DuplicateUid(uid));
            }
            if insert.execute([validator_uid, uid, weight])? == 0 {
                bail!(Refusal::UnknownUid(uid));
            }
        }
        Ok(())
    }

    /// The uid of a hotkey, or the refusal of one that has none.
    fn registered(&self, transaction: &Transaction<'_>, hotkey: &str) -> Result<u16> {
        Ok(uid_of(transaction, hotkey)?.ok_or(Refusal::NotRegistered)?)
    }

    fn found(&self, uid: u16, changed: usize) -> Result<()> {
        if changed == 0 {
            return Err(input(format!("no hotkey is registered as uid {uid} on {}", self.describe())));
        }
        Ok(())
    }
}

impl Chain for Ledger {
    fn describe(&self) -> String {
        self.file.describe()
    }

    fn is_real(&self) -> bool {
        false
    }

    fn seconds_per_block(&self) -> f64 {
        self.settings.block_ms as f64 / 1000.0
    }

    fn journal_dir(&self) -> &Path {
        &self.journal_dir
    }

    fn block(&self) -> Result<u64> {
        self.read(|_, block| Ok(block))
    }

    /// At a place that cannot be written, or that somebody else keeps locked, it is the subnet before the epochs that have
    /// come due meanwhile.
    fn snapshot(&self) -> Result<Snapshot> {
        let read = || {
            self.read(|transaction, block| {
                let is_due = self.epochs_due(transaction, block)?.is_some();
                Ok((state::snapshot(transaction, &self.settings, block)?, is_due))
            })
        };
        let (snapshot, is_due) = read()?;
        if !is_due || self.write(|_, _| Ok(())).is_err() {
            return Ok(snapshot);
        }
        Ok(read()?.0)
    }

    fn status(&self) -> Result<Status> {
        self.read(|transaction, block| {
            let num_uids = transaction.query_row("SELECT COUNT(*) FROM neurons", [], |row| row.get(0))?;
            Ok(Status {
                block,
                runtime: None,
                netuid: NETUID,
                tempo: self.settings.tempo,
                immunity_period: self.settings.immunity_period,
                num_uids,
                max_uids: self.settings.max_uids,
                registration_cost: None,
                currency: Currency::Tao,
                commit_limit: CommitLimit::Blocks(self.settings.commit_rate_limit),
                weights: WeightsLimits {
                    rate_limit: self.settings.weights_rate_limit,
                    min_allowed: 1,
                    max_share: FULL_SHARE,
                    version_key: 0,
                    commit_reveal: false,
                },
            })
        })
    }

    fn all_commitments(&self) -> Result<BTreeMap<Hotkey, Commitment>> {
        self.read(|transaction, _| {
            let mut statement =
                transaction.prepare("SELECT block, bytes, hotkey FROM commitments ORDER BY block, id")?;
            let all = statement.query_map([], |row| Ok((row.get("hotkey")?, state::commitment(row)?)))?;
            Ok(all.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn unregistered(&self, hotkey: &str) -> anyhow::Error {
        input(format!(
            "the hotkey `{hotkey}` is not registered on {}: `assay local register {hotkey}` registers it",
            self.describe()
        ))
    }

    fn commitment(&self, hotkey: &str) -> Result<Option<Commitment>> {
        Ok(self.commitments_of(hotkey)?.pop())
    }

    fn next_commit_block(&self, hotkey: &str) -> Result<u64> {
        self.read(|transaction, _| next_commit_block(transaction, hotkey, &self.settings))
    }

    fn commit(&self, hotkey: &str, bytes: &[u8]) -> Result<u64> {
        self.try_commit(hotkey, bytes)?.map_err(|refusal| self.sentence(hotkey, &refusal))
    }

    fn set_weights(&self, hotkey: &str, weights: &[(u16, u16)], _version_key: u64) -> Result<u64> {
        self.try_set_weights(hotkey, weights)?.map_err(|refusal| self.sentence(hotkey, &refusal))
    }
}

fn check_length(bytes: &[u8]) -> Result<(), Refusal> {
    if bytes.len() > MAX_COMMITMENT_BYTES {
        return Err(Refusal::TooLong(bytes.len()));
    }
    Ok(())
}

fn uid_of(transaction: &Transaction<'_>, hotkey: &str) -> Result<Option<u16>> {
    Ok(transaction.query_row("SELECT uid FROM neurons WHERE hotkey = ?1", [hotkey], |row| row.get(0)).optional()?)
}

fn next_commit_block(transaction: &Transaction<'_>, hotkey: &str, settings: &Settings) -> Result<u64> {
    let last = transaction.query_row("SELECT max(block) FROM commitments WHERE hotkey = ?1", [hotkey], |row| {
        row.get::<_, Option<u64>>(0)
    })?;
    Ok(last.map_or(0, |last| last.saturating_add(settings.commit_rate_limit)))
}

fn insert_commitment(transaction: &Transaction<'_>, hotkey: &str, block: u64, bytes: &[u8]) -> Result<()> {
    transaction
        .execute("INSERT INTO commitments (hotkey, block, bytes) VALUES (?1, ?2, ?3)", params![hotkey, block, bytes])?;
    Ok(())
}
