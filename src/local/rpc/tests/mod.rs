#![allow(clippy::unwrap_used)]

mod client;
mod golden;
mod hostile;

use std::sync::Arc;

use tempfile::TempDir;

use super::{Devnet, Spec};
use crate::chain::ledger::{Ledger, Settings};
use crate::clock::{Clock, SystemClock};

const SPECS: [Spec; 2] = [Spec::V143, Spec::V185];

/// A ledger with a validator //Alice, a miner //Eve, and a miner by the address of //Bob, whose blocks take so long.
struct World {
    _dir: TempDir,
    ledger: Arc<Ledger>,
}

const BOB: &str = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";

impl World {
    fn new(block_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::new(1_000, SystemClock.unix_ms() - 500 * block_ms, block_ms);
        let ledger = Ledger::create(&dir.path().join("ledger.sqlite"), &settings).unwrap();
        for (uid, hotkey) in ["Alice", "Eve", BOB].into_iter().enumerate() {
            assert_eq!(usize::from(ledger.register_at(hotkey, 1_000).unwrap()), uid);
        }
        ledger.set_stake(0, 50_000_000_000_000).unwrap();
        ledger.set_permit(0, true).unwrap();
        Self { _dir: dir, ledger: Arc::new(ledger) }
    }

    fn serve(&self, spec: Spec) -> Devnet {
        Devnet::start(Arc::clone(&self.ledger), 0, spec).unwrap()
    }
}

#[test]
fn a_program_is_named_by_its_version() {
    assert_eq!(SPECS.map(|spec| Spec::of(spec.version()).unwrap()), SPECS);
    let error = Spec::of(150).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(error.to_string().contains("no program of version 150 to serve: give --spec 143 or 185"), "{error}");
}
