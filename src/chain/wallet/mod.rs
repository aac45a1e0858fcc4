//! Bittensor's key files, and the keys in them: `WALLETS/NAME/hotkeys/HOTKEY`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use subxt_signer::sr25519::Keypair;

use crate::chain::Hotkey;

/// A hotkey that can sign. What it holds is secret: it is shown nowhere.
pub struct Signer {
    address: Hotkey,
    keypair: Keypair,
}

impl Signer {
    /// The hotkey's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What signs.
    pub(crate) fn keypair(&self) -> &Keypair {
        &self.keypair
    }
}

/// How key files are opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Take a key file that others may read.
    pub allow_readable_by_others: bool,
}

/// The keys that may sign in this process, by address.
#[derive(Default)]
pub struct Keyring {
    access: Access,
}

impl Keyring {
    /// One that opens key files so.
    pub fn new(access: Access) -> Self {
        Self { access }
    }

    /// Adds a hotkey: an address, which can be watched but not sign, or the name of one in a wallet's folder
    /// (`WALLETS/NAME`). No password is asked for yet.
    pub fn add(&mut self, wallet: &Path, name_or_address: &str) -> Result<Hotkey> {
        let _ = (&self.access, wallet, name_or_address);
        bail!("not there yet")
    }

    /// Adds the hotkey of a key file.
    pub fn add_file(&mut self, path: &Path) -> Result<Hotkey> {
        let _ = path;
        bail!("not there yet")
    }

    /// The key of a hotkey; the first time it may ask for a password.
    pub fn signer(&self, hotkey: &str) -> Result<Arc<Signer>> {
        let _ = hotkey;
        bail!("not there yet")
    }
}

/// Where Bittensor keeps its wallets: `~/.bittensor/wallets`.
pub fn default_dir() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(".bittensor/wallets")
}
