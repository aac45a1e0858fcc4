#![allow(clippy::unwrap_used)]

mod client;
mod golden;
mod hostile;
mod limits;

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::{Devnet, Spec};
use crate::chain::ledger::tests::TestClock;
use crate::chain::ledger::{Ledger, Settings};
use crate::clock::{Clock, SystemClock};

const SPECS: [Spec; 2] = [Spec::V143, Spec::V185];

/// A ledger with a validator //Alice, a miner //Eve, and a miner by the address of //Bob, whose blocks take so long. Time
/// stands still until the test lets it pass.
struct World {
    _dir: TempDir,
    clock: Arc<TestClock>,
    ledger: Arc<Ledger>,
}

/// When the tests begin, in milliseconds of Unix time.
const START_MS: u64 = 1_710_000_000_000;

const BOB: &str = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";

impl World {
    fn new(block_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(START_MS.into()));
        let settings = Settings::new(1_000, START_MS - 500 * block_ms, block_ms);
        let path = dir.path().join("ledger.sqlite");
        let ledger = Ledger::create_with_clock(&path, &settings, clock.clone(), |_| Ok(())).unwrap();
        for (uid, hotkey) in ["Alice", "Eve", BOB].into_iter().enumerate() {
            assert_eq!(usize::from(ledger.register_at(hotkey, 1_000).unwrap()), uid);
        }
        ledger.set_stake(0, 50_000_000_000_000).unwrap();
        ledger.set_permit(0, true).unwrap();
        Self { _dir: dir, clock, ledger: Arc::new(ledger) }
    }

    fn serve(&self, spec: Spec) -> Devnet {
        Devnet::start(Arc::clone(&self.ledger), 0, spec).unwrap()
    }

    /// Lets so many blocks pass, and a node see it.
    fn pass_blocks(&self, devnet: &Devnet, number: u32) {
        self.clock.pass(Duration::from_millis(u64::from(number) * self.ledger.settings().block_ms));
        drop(devnet.node.chain().unwrap());
    }
}

/// Code, message and data of the answer to a transaction that the pool does not take.
fn invalid(data: &str) -> Option<(i32, String, String)> {
    Some((1010, "Invalid Transaction".to_owned(), data.to_owned()))
}

#[test]
fn a_program_is_named_by_its_version() {
    assert_eq!(SPECS.map(|spec| Spec::of(spec.version()).unwrap()), SPECS);
    let error = Spec::of(150).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(error.to_string().contains("no program of version 150 to serve: give --spec 143 or 185"), "{error}");
}
