//! Bittensor's own chain, over JSON-RPC.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use crate::chain::wallet::Keyring;
use crate::chain::{Chain, Commitment, Hotkey, Snapshot, Status};

/// A network with a name, whose first block is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// The hash of its first block.
    pub genesis: &'static str,
    /// Where it is reached.
    pub endpoints: &'static [&'static str],
}

/// Bittensor's main network.
pub const FINNEY: Known = Known {
    name: "finney",
    genesis: "0x2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03",
    endpoints: &["wss://entrypoint-finney.opentensor.ai:443"],
};

/// Its test network.
pub const TEST: Known = Known {
    name: "test",
    genesis: "0x8f9cf856bf558a14440e75569c9e58594757048d7b3a84b5d25f6bd978263105",
    endpoints: &["wss://test.finney.opentensor.ai:443"],
};

/// Which chain and subnet.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network that it must be; `None`: whatever the endpoint is at its first use.
    pub network: Option<Known>,
    /// Where to connect, in the order of preference; empty: those of the network.
    pub endpoints: Vec<String>,
    /// The subnet.
    pub netuid: u16,
    /// Where journals and the first blocks of endpoints are kept.
    pub state_dir: PathBuf,
}

/// A subnet of a chain.
pub struct Subtensor {}

impl Subtensor {
    /// Connects, and checks that it is the right chain.
    pub fn connect(options: Options, keyring: Keyring) -> Result<Self> {
        let _ = (options, keyring);
        bail!("not there yet")
    }
}

impl Chain for Subtensor {
    fn describe(&self) -> String {
        String::new()
    }
    fn is_real(&self) -> bool {
        true
    }
    fn seconds_per_block(&self) -> f64 {
        12.0
    }
    fn journal_dir(&self) -> &Path {
        Path::new("")
    }
    fn block(&self) -> Result<u64> {
        bail!("not there yet")
    }
    fn snapshot(&self) -> Result<Snapshot> {
        bail!("not there yet")
    }
    fn status(&self) -> Result<Status> {
        bail!("not there yet")
    }
    fn all_commitments(&self) -> Result<BTreeMap<Hotkey, Commitment>> {
        bail!("not there yet")
    }
    fn unregistered(&self, _hotkey: &str) -> anyhow::Error {
        anyhow!("not there yet")
    }
    fn commitment(&self, _hotkey: &str) -> Result<Option<Commitment>> {
        bail!("not there yet")
    }
    fn next_commit_block(&self, _hotkey: &str) -> Result<u64> {
        bail!("not there yet")
    }
    fn commit(&self, _hotkey: &str, _bytes: &[u8]) -> Result<u64> {
        bail!("not there yet")
    }
    fn set_weights(&self, _hotkey: &str, _weights: &[(u16, u16)], _version_key: u64) -> Result<u64> {
        bail!("not there yet")
    }
}

/// Where assay keeps what it must remember of real chains: `$ASSAY_HOME`, or `~/.assay`.
pub fn default_state_dir() -> PathBuf {
    std::env::var_os("ASSAY_HOME")
        .map_or_else(|| std::env::home_dir().unwrap_or_default().join(".assay"), PathBuf::from)
}
