//! The ledger's SQLite file: how it is made, opened and locked, and what its failures mean to the user.
//!
//! The file is in SQLite's WAL mode: readers and one writer do not wait for each other, and a killed process leaves what
//! was last committed. It is made under another name and appears complete or not at all.
//!
//! Nothing here opens the file but SQLite: closing any other handle of it would give up SQLite's locks of this process.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use tempfile::TempPath;

use crate::error::{Failure, input};
use crate::figures;

/// Marks an SQLite file as a ledger: "assy".
const APPLICATION_ID: i32 = 0x6173_7379;

/// Counts up with every change of the tables.
const SCHEMA_VERSION: i32 = 3;

/// The one before, which lacks a table.
const WITHOUT_NONCES: i32 = 2;

const NONCES: &str = "
    CREATE TABLE nonces (
        account BLOB PRIMARY KEY,
        nonce INTEGER NOT NULL
    ) STRICT;
";

const SCHEMA: &str = "
    CREATE TABLE settings (
        genesis_block INTEGER NOT NULL,
        first_unix_ms INTEGER NOT NULL,
        block_ms INTEGER NOT NULL,
        tempo INTEGER NOT NULL,
        immunity_period INTEGER NOT NULL,
        activity_cutoff INTEGER NOT NULL,
        commit_rate_limit INTEGER NOT NULL,
        weights_rate_limit INTEGER NOT NULL,
        max_uids INTEGER NOT NULL,
        kappa INTEGER NOT NULL,
        bonds_moving_average INTEGER NOT NULL,
        max_validators INTEGER NOT NULL,
        emission INTEGER NOT NULL,
        highest_block INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE neurons (
        uid INTEGER PRIMARY KEY,
        hotkey TEXT NOT NULL UNIQUE,
        registered_at INTEGER NOT NULL,
        stake INTEGER NOT NULL,
        incentive INTEGER NOT NULL,
        validator_permit INTEGER NOT NULL,
        last_update INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE commitments (
        id INTEGER PRIMARY KEY,
        hotkey TEXT NOT NULL,
        block INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE INDEX commitments_of ON commitments (hotkey, block);
    CREATE TABLE weights (
        validator_uid INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        weight INTEGER NOT NULL,
        PRIMARY KEY (validator_uid, uid)
    ) STRICT;
    CREATE TABLE bonds (
        validator_uid INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        bond INTEGER NOT NULL,
        PRIMARY KEY (validator_uid, uid)
    ) STRICT;
";

/// An open ledger file.
pub(super) struct LedgerFile {
    /// The path as the user wrote it, for messages.
    path: PathBuf,
    connection: Mutex<Connection>,
    patience: Duration,
}

impl LedgerFile {
    /// Opens the file and returns its canonical path as well.
    pub(super) fn open(path: &Path, patience: Duration) -> Result<(Self, PathBuf)> {
        let canonical = path.canonicalize().map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                input(format!("there is no ledger at {}: `assay local init --local DIR` makes one", path.display()))
            }
            _ => Error::new(error).context(format!("cannot open the ledger {}", path.display())),
        })?;
        if !canonical.is_file() {
            return Err(input(format!("{} is no ledger: it is not a regular file", path.display())));
        }
        let connection = connect(&canonical, patience).map_err(|error| explain(path, patience, error.into()))?;
        let file = Self { path: path.to_owned(), connection: Mutex::new(connection), patience };
        let version = file.check_version()?;
        if version == WITHOUT_NONCES {
            file.add_nonces()?;
        }
        Ok((file, canonical))
    }

    /// The version of a ledger that can be read.
    fn check_version(&self) -> Result<i32> {
        self.transact(TransactionBehavior::Deferred, |transaction| {
            let pragma = |name| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
            if pragma("application_id")? != APPLICATION_ID {
                return Err(input(format!("{} is an SQLite file, but no ledger of assay's", self.path.display())));
            }
            let version = pragma("user_version")?;
            if ![WITHOUT_NONCES, SCHEMA_VERSION].contains(&version) {
                return Err(input(format!(
                    "{} is of version {version} of the ledger's format, and this assay reads version {SCHEMA_VERSION}: use \
                     the assay that made it, or move it away and make a new one with `assay local init`",
                    self.describe()
                )));
            }
            Ok(version)
        })
    }

    /// Brings a ledger of the version before to this one, unless another process just did.
    fn add_nonces(&self) -> Result<()> {
        self.transact(TransactionBehavior::Immediate, |transaction| {
            let version: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if version == WITHOUT_NONCES {
                transaction.execute_batch(NONCES)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            Ok(())
        })
    }

    /// Makes a file with empty tables under a temporary name beside `path`.
    pub(super) fn draft(path: &Path, patience: Duration) -> Result<(Self, TempPath)> {
        let context = || format!("cannot make the ledger {}", path.display());
        let dir = folder_of(path);
        fs::create_dir_all(dir).with_context(context)?;
        if path.symlink_metadata().is_ok() {
            return Err(there_already(path));
        }
        let log = log_of(path);
        if log.exists() {
            // SQLite would write its contents into the new file.
            return Err(input(format!(
                "{} is left of a ledger that is gone: delete it before a new one is made",
                log.display()
            )));
        }
        let temporary = tempfile::Builder::new()
            .prefix(".ledger-")
            .permissions(Permissions::from_mode(0o666)) // less the user's umask, as of any other file
            .tempfile_in(dir)
            .with_context(context)?
            .into_temp_path();
        let connection = connect(&temporary, patience).map_err(|error| explain(path, patience, error.into()))?;
        let file = Self { path: path.to_owned(), connection: Mutex::new(connection), patience };
        file.transact(TransactionBehavior::Immediate, |transaction| {
            transaction.execute_batch(SCHEMA)?;
            transaction.execute_batch(NONCES)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            Ok(())
        })?;
        Ok((file, temporary))
    }

    /// Closes a draft and gives it its name, unless something has got it meanwhile.
    pub(super) fn place(self, temporary: TempPath) -> Result<()> {
        let Self { path, connection, patience } = self;
        let connection = connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Last of all: nothing of the draft may wait in a log, which would be left behind under the temporary name.
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .and_then(|()| connection.close().map_err(|(_, error)| error))
            .map_err(|error| explain(&path, patience, error.into()))?;
        temporary.persist_noclobber(&path).map_err(|error| match error.error.kind() {
            ErrorKind::AlreadyExists => there_already(&path),
            _ => Error::new(error.error).context(format!("cannot make the ledger {}", path.display())),
        })?;
        let dir = folder_of(&path);
        File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot write {}", dir.display()))
    }

    /// What it is, in messages.
    pub(super) fn describe(&self) -> String {
        format!("the ledger {}", self.path.display())
    }

    /// Runs a function inside a transaction, which an error of it undoes. Errors of SQLite become sentences.
    pub(super) fn transact<R>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> Result<R>,
    ) -> Result<R> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transact = || {
            let transaction = connection.transaction_with_behavior(behavior)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        transact().map_err(|error| explain(&self.path, self.patience, error))
    }
}

/// The folder that holds a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn there_already(path: &Path) -> Error {
    input(format!("{} is there already: a ledger is not overwritten", path.display()))
}

/// The log that SQLite keeps beside a file in WAL mode while it is open.
fn log_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}

fn connect(path: &Path, patience: Duration) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(patience)?;
    let tried = connection.pragma_query_value(None, "user_version", |_| Ok(()));
    let is_unwritable = tried
        .is_err_and(|error| matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)));
    let has_log = fs::metadata(log_of(path)).is_ok_and(|metadata| metadata.len() > 0);
    if is_unwritable && !has_log {
        // The log cannot be made, as on a read-only file system. Without one, all there is to read is in the file.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        return Connection::open_with_flags(unchanging(path), flags);
    }
    Ok(connection)
}

/// The URI by which SQLite reads a file without locks and without a log.
fn unchanging(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => uri.push(char::from(byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?immutable=1"
}

/// The sentence for an error of SQLite; other errors are sentences already.
fn explain(path: &Path, patience: Duration, error: Error) -> Error {
    let Some(failure) = error.downcast_ref::<rusqlite::Error>() else { return error };
    let ledger = format!("the ledger {}", path.display());
    if let rusqlite::Error::ToSqlConversionFailure(_) = failure {
        return input(format!("{ledger} cannot hold a number above {}", i64::MAX));
    }
    match failure.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
            Failure::Unreachable(format!(
                "{ledger} has been locked by another process for more than {}: wait for that process to end, or stop it, and \
                 try again",
                figures::duration(patience.as_secs_f64())
            ))
            .into()
        }
        Some(ErrorCode::NotADatabase) => input(format!("{} is no ledger: it is not an SQLite file", path.display())),
        Some(ErrorCode::ReadOnly) => {
            input(format!("{ledger} cannot be changed: the file or its folder may only be read ({failure})"))
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => input(format!(
            "{ledger} cannot be opened ({failure}): the file must be readable, and its folder writable while it is in use"
        )),
        // Tables, columns or values that are not those of a ledger.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::Unknown | ErrorCode::TypeMismatch) | None => input(format!(
            "{ledger} is damaged ({failure}): put back a copy, or move it away and make a new one with `assay local init`"
        )),
        Some(_) => error.context(format!("cannot use {ledger}")),
    }
}
