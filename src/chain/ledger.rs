//! The embedded chain: a subnet in one SQLite file that several processes may use at once.
//!
//! Blocks pass with time: the file says when its first block was and how long each takes. A clock that is set back does
//! not take blocks back: every write leaves the highest block so far. What the chain does on its own accord (it pays, it
//! replaces neurons) is done here by whoever asks for it; what it refuses to a miner is refused here as well: a hotkey
//! that is not registered, a text that is too long, a second commitment within the rate limit.

mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rusqlite::{OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{Chain, Commitment, ConsensusParams, Hotkey, Neuron, Snapshot};
use crate::clock::{Clock, SystemClock};
use crate::error::{Failure, input};
use crate::figures;
use crate::hub::model_id::MAX_COMMITMENT_BYTES;
use file::LedgerFile;

/// How long to wait for a lock that another process holds.
const PATIENCE: Duration = Duration::from_secs(5);

const MAX_HOTKEY_BYTES: usize = 64;

/// Oldest first; the last is the one that counts.
const COMMITMENTS: &str = "SELECT block, bytes FROM commitments WHERE hotkey = ?1 ORDER BY block, id";

/// What a ledger is made with, and keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first block.
    pub genesis_block: u64,
    /// When it was, in milliseconds of Unix time.
    pub first_unix_ms: u64,
    /// Milliseconds from one block to the next; at least 1.
    pub block_ms: u64,
    /// Blocks between two epochs.
    pub tempo: u64,
    /// A new registration cannot be replaced for so many blocks.
    pub immunity_period: u64,
    /// A validator that has not set weights for more blocks than this does not count.
    pub activity_cutoff: u64,
    /// A hotkey may commit again so many blocks after it last did.
    pub commit_rate_limit: u64,
    /// Places on the subnet.
    pub max_uids: u16,
}

impl Settings {
    /// The constants of subnet 9 in March 2024.
    pub fn new(genesis_block: u64, first_unix_ms: u64, block_ms: u64) -> Self {
        Self {
            genesis_block,
            first_unix_ms,
            block_ms,
            tempo: 360,
            immunity_period: 4096,
            activity_cutoff: 5000,
            commit_rate_limit: 100,
            max_uids: 256,
        }
    }

    fn read(transaction: &Transaction<'_>) -> Result<Self> {
        Ok(transaction.query_row("SELECT * FROM settings", [], |row| {
            Ok(Self {
                genesis_block: row.get("genesis_block")?,
                first_unix_ms: row.get("first_unix_ms")?,
                block_ms: row.get("block_ms")?,
                tempo: row.get("tempo")?,
                immunity_period: row.get("immunity_period")?,
                activity_cutoff: row.get("activity_cutoff")?,
                commit_rate_limit: row.get("commit_rate_limit")?,
                max_uids: row.get("max_uids")?,
            })
        })?)
    }
}

/// A subnet in a file.
pub struct Ledger {
    file: LedgerFile,
    settings: Settings,
    journal_dir: PathBuf,
    /// The highest block that this process has seen, for the time between two writes.
    highest_block: AtomicU64,
    clock: Arc<dyn Clock>,
}

impl Ledger {
    /// Makes an empty ledger; the user's error if there is something at `path`.
    pub fn create(path: &Path, settings: &Settings) -> Result<Self> {
        Self::create_filled(path, settings, |_| Ok(()))
    }

    /// Makes a ledger and lets `fill` write to it before it appears at `path`, all at once.
    pub fn create_filled(path: &Path, settings: &Settings, fill: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        if settings.block_ms == 0 {
            return Err(input("a block must last for at least 1 ms"));
        }
        let (file, temporary) = LedgerFile::draft(path, PATIENCE)?;
        file.transact(TransactionBehavior::Immediate, |transaction| {
            let Settings { genesis_block, first_unix_ms, block_ms, tempo, .. } = settings;
            let Settings { immunity_period, activity_cutoff, commit_rate_limit, max_uids, .. } = settings;
            transaction.execute(
                "INSERT INTO settings VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?1)",
                params![
                    genesis_block,
                    first_unix_ms,
                    block_ms,
                    tempo,
                    immunity_period,
                    activity_cutoff,
                    commit_rate_limit,
                    max_uids
                ],
            )?;
            Ok(())
        })?;
        let draft = Self::of(file, settings.clone(), PathBuf::new());
        fill(&draft)?;
        draft.file.place(temporary)?;
        Self::open(path)
    }

    /// Opens a ledger; the user's error if there is none.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_within(path, PATIENCE)
    }

    /// Opens a ledger whose blocks pass by another clock than the machine's.
    pub fn open_with_clock(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self { clock, ..Self::open(path)? })
    }

    fn open_within(path: &Path, patience: Duration) -> Result<Self> {
        let (file, canonical) = LedgerFile::open(path, patience)?;
        let settings = file.transact(TransactionBehavior::Deferred, Settings::read)?;
        Ok(Self::of(file, settings, canonical.with_file_name("publish")))
    }

    fn of(file: LedgerFile, settings: Settings, journal_dir: PathBuf) -> Self {
        Self { file, settings, journal_dir, highest_block: AtomicU64::new(0), clock: Arc::new(SystemClock) }
    }

    /// Gives a hotkey the lowest free uid; one that is registered keeps its own.
    pub fn register(&self, hotkey: &str) -> Result<u16> {
        self.register_by(hotkey, None)
    }

    /// Registers a hotkey as if at an earlier block.
    pub fn register_at(&self, hotkey: &str, block: u64) -> Result<u16> {
        self.register_by(hotkey, Some(block))
    }

    fn register_by(&self, hotkey: &str, at: Option<u64>) -> Result<u16> {
        check_hotkey(hotkey)?;
        self.write(|transaction, block| {
            if let Some(uid) = uid_of(transaction, hotkey)? {
                return Ok(uid);
            }
            let at = self.not_in_the_future(at.unwrap_or(block), block)?;
            let mut statement = transaction.prepare("SELECT uid FROM neurons ORDER BY uid")?;
            let taken = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<u16>>>()?;
            let max_uids = self.settings.max_uids;
            let uid = (0..max_uids)
                .find(|&uid| taken.get(usize::from(uid)) != Some(&uid))
                .ok_or_else(|| input(format!("{} is full: all of its {max_uids} places are taken", self.describe())))?;
            transaction.execute("INSERT INTO neurons VALUES (?1, ?2, ?3, 0, 0, FALSE, 0)", params![uid, hotkey, at])?;
            Ok(uid)
        })
    }

    /// Frees the place of a hotkey, with the weights it has set; as on the chain, what it has committed stays.
    pub fn deregister(&self, hotkey: &str) -> Result<()> {
        self.write(|transaction, _| {
            let uid = self.registered(transaction, hotkey)?;
            transaction.execute("DELETE FROM neurons WHERE uid = ?1", [uid])?;
            transaction.execute("DELETE FROM weights WHERE validator_uid = ?1", [uid])?;
            Ok(())
        })
    }

    /// Sets shares of the incentive; uids that are not named keep theirs.
    pub fn set_incentives(&self, incentives: &[(u16, u16)]) -> Result<()> {
        self.write(|transaction, _| {
            incentives.iter().try_for_each(|&(uid, incentive)| {
                let changed =
                    transaction.execute("UPDATE neurons SET incentive = ?2 WHERE uid = ?1", [uid, incentive])?;
                self.found(uid, changed)
            })
        })
    }

    /// Sets the stake of a uid.
    pub fn set_stake(&self, uid: u16, stake: u64) -> Result<()> {
        self.write(|transaction, _| {
            let changed = transaction.execute("UPDATE neurons SET stake = ?2 WHERE uid = ?1", params![uid, stake])?;
            self.found(uid, changed)
        })
    }

    /// Sets whether a uid's weights count.
    pub fn set_permit(&self, uid: u16, permit: bool) -> Result<()> {
        self.write(|transaction, _| {
            let changed =
                transaction.execute("UPDATE neurons SET validator_permit = ?2 WHERE uid = ?1", params![uid, permit])?;
            self.found(uid, changed)
        })
    }

    /// Replaces the weights that a validator has set, as (uid, weight).
    pub fn set_weights(&self, validator_uid: u16, weights: &[(u16, u16)]) -> Result<()> {
        self.write(|transaction, block| {
            let changed = transaction
                .execute("UPDATE neurons SET last_update = ?2 WHERE uid = ?1", params![validator_uid, block])?;
            self.found(validator_uid, changed)?;
            transaction.execute("DELETE FROM weights WHERE validator_uid = ?1", [validator_uid])?;
            for (index, &(uid, weight)) in weights.iter().enumerate() {
                if weights[..index].iter().any(|(earlier, _)| *earlier == uid) {
                    return Err(input(format!("uid {uid} is given two weights")));
                }
                // A weight on a place that nobody holds is refused, as on the chain.
                let changed = transaction.execute(
                    "INSERT INTO weights SELECT ?1, uid, ?3 FROM neurons WHERE uid = ?2",
                    [validator_uid, uid, weight],
                )?;
                self.found(uid, changed)?;
            }
            Ok(())
        })
    }

    /// Commits bytes as if at an earlier block, without regard to the rate limit.
    pub fn commit_at(&self, hotkey: &str, bytes: &[u8], at: u64) -> Result<()> {
        check_length(bytes)?;
        self.write(|transaction, block| {
            self.registered(transaction, hotkey)?;
            insert_commitment(transaction, hotkey, self.not_in_the_future(at, block)?, bytes)
        })
    }

    /// All that a hotkey has ever committed, oldest first.
    pub fn commitments_of(&self, hotkey: &str) -> Result<Vec<Commitment>> {
        self.read(|transaction, _| {
            let mut statement = transaction.prepare(COMMITMENTS)?;
            Ok(statement.query_map([hotkey], commitment)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Runs a function on the subnet as it is at one block.
    fn read<R>(&self, read: impl FnOnce(&Transaction<'_>, u64) -> Result<R>) -> Result<R> {
        self.file.transact(TransactionBehavior::Deferred, |transaction| {
            let block = self.present_block(transaction)?;
            read(transaction, block)
        })
    }

    /// Lets a function change the subnet at the present block; an error of it changes nothing.
    fn write<R>(&self, write: impl FnOnce(&Transaction<'_>, u64) -> Result<R>) -> Result<R> {
        self.file.transact(TransactionBehavior::Immediate, |transaction| {
            let block = self.present_block(transaction)?;
            let result = write(transaction, block)?;
            transaction.execute("UPDATE settings SET highest_block = ?1", [block])?;
            Ok(result)
        })
    }

    /// The clock is read after the file: so no block that the file names is above the present one.
    fn present_block(&self, transaction: &Transaction<'_>) -> Result<u64> {
        let written: u64 = transaction.query_row("SELECT highest_block FROM settings", [], |row| row.get(0))?;
        let passed = self.clock.unix_ms().saturating_sub(self.settings.first_unix_ms) / self.settings.block_ms.max(1);
        let block = self.settings.genesis_block.saturating_add(passed).max(written);
        Ok(self.highest_block.fetch_max(block, Ordering::Relaxed).max(block))
    }

    fn registered(&self, transaction: &Transaction<'_>, hotkey: &str) -> Result<u16> {
        uid_of(transaction, hotkey)?.ok_or_else(|| {
            input(format!(
                "the hotkey `{hotkey}` is not registered on {}: `assay local register {hotkey}` registers it",
                self.describe()
            ))
        })
    }

    fn found(&self, uid: u16, changed: usize) -> Result<()> {
        if changed == 0 {
            return Err(input(format!("no hotkey is registered as uid {uid} on {}", self.describe())));
        }
        Ok(())
    }

    fn not_in_the_future(&self, at: u64, block: u64) -> Result<u64> {
        if at > block {
            return Err(input(format!("block {at} has not come on {}, which is at block {block}", self.describe())));
        }
        Ok(at)
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

    fn snapshot(&self) -> Result<Snapshot> {
        self.read(|transaction, block| {
            let mut statement = transaction.prepare("SELECT * FROM neurons ORDER BY uid")?;
            let neurons = statement.query_map([], neuron)?.collect::<rusqlite::Result<_>>()?;
            let mut statement = transaction.prepare(
                "SELECT block, bytes, hotkey FROM commitments JOIN neurons USING (hotkey) ORDER BY block, id",
            )?;
            // A later commitment of the same hotkey takes the place of the earlier one.
            let commitments = statement
                .query_map([], |row| Ok((row.get("hotkey")?, commitment(row)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut weights = BTreeMap::<u16, Vec<(u16, u16)>>::new();
            let mut statement = transaction.prepare("SELECT * FROM weights ORDER BY validator_uid, uid")?;
            for weight in statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))? {
                let (validator_uid, weight) = weight?;
                weights.entry(validator_uid).or_default().push(weight);
            }
            let Settings { tempo, immunity_period, activity_cutoff, .. } = self.settings;
            Ok(Snapshot {
                block,
                tempo,
                immunity_period,
                activity_cutoff,
                neurons,
                commitments,
                weights,
                bonds: BTreeMap::new(),
                consensus: ConsensusParams::default(),
            })
        })
    }

    fn commitment(&self, hotkey: &str) -> Result<Option<Commitment>> {
        Ok(self.commitments_of(hotkey)?.pop())
    }

    fn next_commit_block(&self, hotkey: &str) -> Result<u64> {
        self.read(|transaction, _| next_commit_block(transaction, hotkey, &self.settings))
    }

    fn commit(&self, hotkey: &str, bytes: &[u8]) -> Result<u64> {
        check_length(bytes)?;
        self.write(|transaction, block| {
            self.registered(transaction, hotkey)?;
            let next = next_commit_block(transaction, hotkey, &self.settings)?;
            if block < next {
                let wait = figures::duration((next - block) as f64 * self.seconds_per_block());
                return Err(Failure::No(format!(
                    "the hotkey `{hotkey}` cannot commit at block {block}: the rate limit of {} blocks lets it commit again \
                     at block {next}, in about {wait}",
                    self.settings.commit_rate_limit
                ))
                .into());
            }
            insert_commitment(transaction, hotkey, block, bytes)?;
            Ok(block)
        })
    }

    fn set_weights(&self, hotkey: &str, weights: &[(u16, u16)], _version_key: u64) -> Result<u64> {
        let uid = self.read(|transaction, _| self.registered(transaction, hotkey))?;
        Self::set_weights(self, uid, weights)?;
        self.block()
    }
}

/// Milliseconds of Unix time; 0 where the clock stands before 1970.
pub(crate) fn unix_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Refuses what cannot be a hotkey's name on a ledger.
pub(crate) fn check_hotkey(hotkey: &str) -> Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if hotkey.is_empty() || hotkey.len() > MAX_HOTKEY_BYTES || !hotkey.bytes().all(is_allowed) {
        return Err(input(format!(
            "`{}` is no name of a hotkey: it must be of 1 to {MAX_HOTKEY_BYTES} letters (a to z), digits, dots, hyphens and \
             underscores",
            hotkey.escape_debug()
        )));
    }
    Ok(())
}

fn check_length(bytes: &[u8]) -> Result<()> {
    if bytes.len() > MAX_COMMITMENT_BYTES {
        return Err(input(format!(
            "the commitment has {} bytes, and the chain takes {MAX_COMMITMENT_BYTES}: give the repository a shorter name",
            bytes.len()
        )));
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

fn commitment(row: &Row<'_>) -> rusqlite::Result<Commitment> {
    Ok(Commitment { block: row.get("block")?, bytes: row.get("bytes")? })
}

fn neuron(row: &Row<'_>) -> rusqlite::Result<Neuron> {
    Ok(Neuron {
        uid: row.get("uid")?,
        hotkey: row.get::<_, Hotkey>("hotkey")?,
        registered_at: row.get("registered_at")?,
        stake: row.get("stake")?,
        incentive: row.get("incentive")?,
        validator_permit: row.get("validator_permit")?,
        last_update: row.get("last_update")?,
    })
}
