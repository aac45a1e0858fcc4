//! Where shards lie: the seam between a folder or a hub and what is read of it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::input;
use crate::hub::progress::Told;

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShardFile {
    /// Its path inside the data set, with `/`.
    pub(super) path: String,
    /// Its size in bytes.
    pub(super) bytes: u64,
    /// What tells its content, as the hub writes it.
    pub(super) sum: Option<String>,
}

/// Shards, and how they are read.
pub(super) trait Store: Send + Sync {
    /// What it is, in messages: "tiiuae/falcon-refinedweb".
    fn name(&self) -> String;

    /// The same in a run's records.
    fn record(&self) -> Map<String, Value>;

    /// All shards, in the order of their rows.
    fn shards(&self) -> &[ShardFile];

    /// Bytes of a shard: all of the range, which lies inside it. `what` is what they are, in messages.
    fn read(&self, shard: usize, range: Range<u64>, what: &str) -> Result<Bytes>;

    /// Waits before something of a shard is read again that was damaged (`reason`) so many times.
    ///
    /// # Errors
    /// The damage, where reading again would not mend it, and what else may happen while it waits.
    fn rest(&self, shard: usize, tries: u32, what: &str, reason: &str) -> Result<()>;

    /// The file in which to keep what is known of the shards' row groups; `None`: it is learned soon enough each time.
    fn index_file(&self, cache: &Path) -> Option<PathBuf>;

    /// Tells whoever listens.
    fn tell(&self, told: Told<'_>);
}

/// Why something could not be read.
#[derive(Debug)]
pub(super) enum Trouble {
    /// What came is not what was written; this is wrong with it.
    Damaged(String),
    /// What came is well, or not what was written; if it is well, it is of a kind that is not read: this one.
    Unsupported(String),
    /// Anything else.
    Other(anyhow::Error),
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Reads something of a shard as often as the store lets damage be hoped to mend.
pub(super) fn undamaged<T>(
    store: &dyn Store,
    shard: usize,
    what: &str,
    mut read: impl FnMut() -> Result<T, Trouble>,
) -> Result<T> {
    let mut tries = 1;
    loop {
        match read() {
            Ok(value) => return Ok(value),
            Err(Trouble::Other(error)) => return Err(error),
            // A flipped bit may look so, but not twice.
            Err(Trouble::Unsupported(reason)) if tries > 1 => {
                return Err(input(format!("{what} cannot be read: {reason}. Leave that file out by data.shards.")));
            }
            Err(Trouble::Damaged(reason) | Trouble::Unsupported(reason)) => store.rest(shard, tries, what, &reason)?,
        }
        tries += 1;
    }
}
