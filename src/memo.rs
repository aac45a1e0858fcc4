//! Small values that were worked out once, kept on disk for every process of this machine: what is behind the cache of
//! losses and the memory of file hashes.
//!
//! An SQLite file in WAL mode, so that readers and one writer do not wait for each other. Nothing depends on it: where it
//! cannot be opened, read or written (a damaged file, a full disk, a folder that may only be read, a process that holds it
//! for long), it is not used any more by this process, and [`Memo::trouble`] says so once. Each value carries a part of a
//! hash of itself and its key, so that a bit that fell over is no value. When the file has grown beyond its limit, the older
//! half goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};
use sha2::{Digest, Sha256};

/// What a value is found by: a hash of everything that it depends on.
pub(crate) type Key = [u8; 32];

/// Marks an SQLite file as a memo: "assm".
const APPLICATION_ID: i32 = 0x6173_736d;
/// Counts up with every change of the table.
const SCHEMA_VERSION: i32 = 1;
/// The file grows to about this size.
const LIMIT_BYTES: u64 = 1 << 30;
/// How long another process that writes is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the hash that is kept beside a value.
const CHECK_BYTES: usize = 8;
/// Entries that are dropped in one transaction: its log stays small.
const DROPPED_AT_ONCE: i64 = 50_000;

/// Values by key, on disk or nowhere.
#[derive(Debug)]
pub(crate) struct Memo {
    path: PathBuf,
    limit_bytes: u64,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Not needed so far.
    Closed,
    Open(Connection),
    /// Not used any more. What it was that went wrong, until that is told.
    Off(Option<String>),
}

impl Default for Memo {
    /// One that knows nothing and keeps nothing.
    fn default() -> Self {
        Self { state: Mutex::new(State::Off(None)), ..Self::at(Path::new("")) }
    }
}

impl Memo {
    /// The memo in a file, which is made, with its folder, when the first value is asked for.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), limit_bytes: LIMIT_BYTES, patience: PATIENCE, state: Mutex::new(State::Closed) }
    }

    /// The values of some keys, as far as they are known.
    pub(crate) fn get(&self, keys: &[Key]) -> Vec<Option<Vec<u8>>> {
        if keys.is_empty() {
            return Vec::new();
        }
        self.attempt(|connection| read(connection, keys)).unwrap_or_else(|| vec![None; keys.len()])
    }

    /// Keeps values; one that its key has already is replaced.
    pub(crate) fn put(&self, entries: &[(Key, Vec<u8>)]) {
        if !entries.is_empty() {
            self.attempt(|connection| {
                write(connection, entries)?;
                drop_older_half(connection, self.limit_bytes)
            });
        }
    }

    /// Whether values may be known or kept: not once something went wrong.
    pub(crate) fn is_used(&self) -> bool {
        !matches!(*self.state(), State::Off(_))
    }

    /// Why nothing is known or kept any more, in a sentence; told once.
    pub(crate) fn trouble(&self) -> Option<String> {
        match &mut *self.state() {
            State::Off(trouble) => trouble.take(),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file if need be, and works with it; after a failure it is closed for good.
    fn attempt<R>(&self, work: impl FnOnce(&mut Connection) -> Result<R>) -> Option<R> {
        let mut state = self.state();
        let result = match &mut *state {
            State::Off(_) => return None,
            State::Open(connection) => work(connection),
            State::Closed => open(&self.path, self.patience).and_then(|connection| {
                *state = State::Open(connection);
                let State::Open(connection) = &mut *state else { unreachable!("it was just opened") };
                work(connection)
            }),
        };
        result
            .inspect_err(|error| {
                *state = State::Off(Some(format!(
                    "{} is not used, and what it holds is computed again: {error:#}. If this persists, delete the file",
                    self.path.display()
                )));
            })
            .ok()
    }
}

/// Opens a file, and makes it where there is none. Several processes may do so at once: what SQLite then calls busy without
/// having waited is tried again.
fn open(path: &Path, patience: Duration) -> Result<Connection> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    }
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        bail!("it is not a regular file");
    }
    let started = Instant::now();
    loop {
        let error = match try_open(path, patience) {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let code = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
        if !matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) || started.elapsed() >= patience {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn try_open(path: &Path, patience: Duration) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(patience)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // After a loss of power the last values may be gone; the file is whole.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let pragma = |name| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION_ID, SCHEMA_VERSION) => {}
        (0, 0) => {
            // Of any other program's file this fails, for there is no table of that name or another.
            let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            ensure!(tables == 0, "it is a file of another program");
            transaction.execute_batch(
                "CREATE TABLE entries (number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL) STRICT",
            )?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        (APPLICATION_ID, version) => {
            bail!("it is of version {version} of its format, and this assay knows {SCHEMA_VERSION}")
        }
        _ => bail!("it is a file of another program"),
    }
    transaction.commit()?;
    Ok(connection)
}

fn read(connection: &mut Connection, keys: &[Key]) -> Result<Vec<Option<Vec<u8>>>> {
    let transaction = connection.transaction()?;
    let mut select = transaction.prepare("SELECT value FROM entries WHERE key = ?1")?;
    let value = |key: &Key| -> Result<Option<Vec<u8>>> {
        let stored: Option<Vec<u8>> = select.query_row([key.as_slice()], |row| row.get(0)).optional()?;
        let Some(mut value) = stored else { return Ok(None) };
        let check = value.split_off(value.len().saturating_sub(CHECK_BYTES));
        ensure!(check == check_of(key, &value), "it is damaged: a value is not the one that was written");
        Ok(Some(value))
    };
    keys.iter().map(value).collect()
}

fn write(connection: &mut Connection, entries: &[(Key, Vec<u8>)]) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut insert = transaction.prepare("INSERT OR REPLACE INTO entries (key, value) VALUES (?1, ?2)")?;
        for (key, value) in entries {
            insert.execute((key.as_slice(), [value.as_slice(), &check_of(key, value)].concat()))?;
        }
    }
    Ok(transaction.commit()?)
}

/// Part of a hash of a value and its key.
fn check_of(key: &Key, value: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::new().chain_update(key).chain_update(value).finalize();
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&digest[..CHECK_BYTES]);
    check
}

/// Drops the older half of the entries where they take more than the limit. Their pages are used again; the file does not
/// shrink.
fn drop_older_half(connection: &mut Connection, limit_bytes: u64) -> Result<()> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let num_pages = pragma("page_count")? - pragma("freelist_count")?;
    if num_pages.saturating_mul(pragma("page_size")?) <= i64::try_from(limit_bytes)? {
        return Ok(());
    }
    let ends = "SELECT min(number), max(number) FROM entries";
    let (first, last): (Option<i64>, Option<i64>) =
        connection.query_row(ends, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(mut first), Some(last)) = (first, last) else { return Ok(()) };
    let middle = first + (last - first) / 2;
    while first <= middle {
        let end = middle.min(first.saturating_add(DROPPED_AT_ONCE));
        connection.execute("DELETE FROM entries WHERE number <= ?1", [end])?;
        first = end + 1;
    }
    Ok(())
}

#[cfg(test)]
#[path = "memo_tests.rs"]
mod tests;
