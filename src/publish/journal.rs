//! What publishing under a hotkey has done so far, on disk, and the right of one process to do it.
//!
//! ```text
//! JOURNALS/HOTKEY.lock   held by the process that may publish under the hotkey, for as long as it may
//! JOURNALS/HOTKEY.json   the newest publish: its model, and each thing that was done with it
//! ```
//! The folder is the chain's ([`Chain::journal_dir`]), so that whatever process publishes to the same chain meets the
//! same lock. Each entry is written, and is on disk, before the thing it announces or right after the thing it tells of.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::chain::Chain;
use crate::chain::account::check_hotkey;
use crate::hub::Hub;
use crate::lock;
use crate::whole_file;

/// What was done with the newest model that was to be published under a hotkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Directory hash of the model.
    pub hash: String,
    /// The repository it goes to.
    pub repo_id: String,
    /// The commit of its upload, once that has ended.
    pub commit: Option<String>,
    /// What is committed to the chain, from right before it is sent.
    pub sent: Option<String>,
    /// The block it was found at when it was read back: the end, unless the repository is still hidden.
    pub block: Option<u64>,
    /// The hub, as it describes itself.
    #[serde(default)]
    pub hub: Option<String>,
    /// Whether the repository is hidden, or about to be, until the model is committed.
    #[serde(default)]
    pub hidden: bool,
    /// Whether it was uploaded for another machine to commit.
    #[serde(default)]
    pub prepared: bool,
}

impl Entry {
    /// A model with which nothing was done yet.
    pub fn of(hash: &str, repo_id: &str, hub: String) -> Self {
        let (hash, repo_id) = (hash.to_owned(), repo_id.to_owned());
        Self { hash, repo_id, commit: None, sent: None, block: None, hub: Some(hub), hidden: false, prepared: false }
    }

    /// Whether it is about a repository of a hub.
    pub fn is_in(&self, repo_id: &str, hub: &dyn Hub) -> bool {
        self.repo_id == repo_id && self.hub.as_ref().is_none_or(|name| *name == hub.describe())
    }

    /// Whether it is about a model in a repository of a hub.
    pub fn is_of(&self, hash: &str, repo_id: &str, hub: &dyn Hub) -> bool {
        self.hash == hash && self.is_in(repo_id, hub)
    }

    /// Whether something is left to do with it.
    pub fn is_open(&self) -> bool {
        self.block.is_none() || self.hidden
    }
}

/// The right to publish under a hotkey: one process of this machine has it at a time, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    /// The hotkey.
    pub hotkey: String,
    path: PathBuf,
    _lock: File,
}

impl Hold {
    /// Takes the right; where another process has it, the error says which.
    pub fn take(chain: &dyn Chain, hotkey: &str) -> Result<Self> {
        // It becomes the name of a file, and may come from another machine.
        check_hotkey(hotkey)?;
        let dir = chain.journal_dir();
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = lock::take(&dir.join(format!("{hotkey}.lock")), |holder| {
            format!(
                "{holder} publishes under the hotkey {hotkey}: two at a time would replace each other's models; wait for it \
                 to end, stop it, or publish under another hotkey"
            )
        })?;
        Ok(Self { hotkey: hotkey.to_owned(), path: dir.join(format!("{hotkey}.json")), _lock: lock })
    }

    /// The newest entry; `None` if nothing was ever published under the hotkey from here.
    pub fn read(&self) -> Result<Option<Entry>> {
        read(&self.path)
    }

    /// Replaces the entry; it is on disk when this returns.
    pub fn write(&self, entry: &Entry) -> Result<()> {
        whole_file::write(&self.path, &serde_json::to_vec_pretty(entry)?)
    }
}

/// The newest entry of a hotkey, without the right to publish under it.
pub fn newest(chain: &dyn Chain, hotkey: &str) -> Result<Option<Entry>> {
    check_hotkey(hotkey)?;
    read(&chain.journal_dir().join(format!("{hotkey}.json")))
}

fn read(path: &Path) -> Result<Option<Entry>> {
    let shown = path.display();
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{shown} is damaged; look at the hub and the chain, then delete it"))
            .map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {shown}")),
    }
}
