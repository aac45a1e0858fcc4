//! A ledger with the hotkeys of a validator and a miner, served as a node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use subxt::utils::AccountId32;
use subxt_signer::sr25519::Keypair;
use tempfile::TempDir;

use crate::chain::account::address;
use crate::chain::ledger::{Ledger, Settings};
use crate::chain::subtensor::patience::Patience;
use crate::chain::subtensor::{Options, Subtensor};
use crate::chain::wallet::Keyring;
use crate::chain::{Chain, Hotkey};
use crate::clock::{Clock, SystemClock};
use crate::hex;
use crate::local::rpc::{Devnet, Spec};

/// Enough for what is repaired, little enough for what is not.
pub(super) const PATIENCE: Patience = Patience {
    dial: Duration::from_secs(2),
    request: Duration::from_millis(500),
    start: Duration::from_millis(300),
    operation: Duration::from_millis(1_500),
    news: Duration::from_millis(900),
};

/// A subnet on a ledger.
pub(super) struct World {
    dir: TempDir,
    pub(super) ledger: Arc<Ledger>,
}

/// The hotkey with uid 0, which has stake and a permit.
pub(super) const VALIDATOR: u8 = 1;
/// The hotkey with uid 1.
pub(super) const MINER: u8 = 2;
/// A hotkey that is not registered.
pub(super) const STRANGER: u8 = 9;

impl World {
    /// One whose blocks take so long.
    pub(super) fn new(block_ms: u64) -> Self {
        Self::with(block_ms, |_| ())
    }

    /// One with other settings.
    pub(super) fn with(block_ms: u64, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::new(1_000, SystemClock.unix_ms() - 500 * block_ms, block_ms);
        change(&mut settings);
        let ledger = Ledger::create(&dir.path().join("ledger.sqlite"), &settings).unwrap();
        for seed in [VALIDATOR, MINER] {
            ledger.register_at(&hotkey(seed), 1_000).unwrap();
        }
        ledger.set_stake(0, 50_000_000_000_000).unwrap();
        ledger.set_permit(0, true).unwrap();
        Self { dir, ledger: Arc::new(ledger) }
    }

    /// One with 256 places, all of them taken and, but for the first two, with a commitment.
    pub(super) fn full(block_ms: u64) -> Self {
        let world = Self::with(block_ms, |settings| settings.max_uids = 256);
        for uid in 2..=u8::MAX {
            let mut account = [uid; 32];
            account[31] = 7;
            let hotkey = address(&AccountId32(account));
            world.ledger.register_at(&hotkey, 1_000).unwrap();
            world.ledger.commit_at(&hotkey, &[b'x'; 106], 1_100).unwrap();
        }
        world
    }

    /// Serves it; returns when there are two blocks, by which clients see how fast they are.
    pub(super) fn serve(&self, spec: Spec) -> Devnet {
        let devnet = Devnet::start(Arc::clone(&self.ledger), 0, spec).unwrap();
        self.pass_blocks(2);
        devnet
    }

    /// Waits for so many blocks.
    pub(super) fn pass_blocks(&self, number: u64) {
        let until = self.ledger.block().unwrap() + number;
        while self.ledger.block().unwrap() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where clients keep their notes.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A client with the keys of some hotkeys.
    pub(super) fn client(&self, urls: &[String], seeds: &[u8]) -> anyhow::Result<Subtensor> {
        let options = Options { network: None, endpoints: urls.to_vec(), netuid: 9, state_dir: self.state_dir() };
        Subtensor::connect_within(options, keyring(self.dir.path(), seeds), PATIENCE)
    }
}

/// The key of a seed of equal bytes.
fn key(seed: u8) -> Keypair {
    Keypair::from_secret_key([seed; 32]).unwrap()
}

/// Its address.
pub(super) fn hotkey(seed: u8) -> Hotkey {
    address(&key(seed).public_key().to_account_id())
}

/// A keyring with the keys of seeds, from key files.
pub(super) fn keyring(dir: &Path, seeds: &[u8]) -> Keyring {
    let mut keyring = Keyring::default();
    for &seed in seeds {
        let path = dir.join(format!("key{seed}"));
        let account = hex::write(key(seed).public_key().0);
        let file = json!({
            "accountId": account,
            "publicKey": account,
            "secretSeed": hex::write([seed; 32]),
            "ss58Address": hotkey(seed),
        });
        crate::whole_file::write(&path, file.to_string().as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(keyring.add_file(&path).unwrap(), hotkey(seed));
    }
    keyring
}
