//! Epochs of the embedded chain, and the weights they are made of, on a subnet whose time passes when a test lets it.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use tempfile::TempDir;

use super::tests::{TestClock, assert_says};
use super::*;
use crate::chain::{ConsensusParams, FULL_SHARE};
use crate::golden;

/// A subnet with an epoch at every hundredth block less 11, blocks of a second that pass when a test lets them, two
/// validators (uids 0 and 1, who hold 60 and 40 of 100 TAO) and two miners (2 and 3).
struct Subnet {
    dir: TempDir,
    clock: Arc<TestClock>,
    ledger: Ledger,
}

impl Subnet {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let clock = Arc::new(TestClock(AtomicU64::new(5_000)));
        let mut settings = Settings { tempo: 99, ..Settings::new(1_000, 5_000, 1_000) };
        change(&mut settings);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let ledger = Ledger::create_with_clock(&path, &settings, clock.clone(), |ledger| {
            for (uid, stake) in [(0, 60_000_000_000), (1, 40_000_000_000), (2, 0), (3, 0)] {
                assert_eq!(ledger.register(&format!("key-{uid}"))?, uid);
                ledger.set_stake(uid, stake)?;
                ledger.set_permit(uid, stake > 0)?;
            }
            Ok(())
        });
        // Weights of the very block of a registration are not given to its holder.
        clock.pass(Duration::from_secs(1));
        Self { dir, clock, ledger: ledger.unwrap() }
    }

    fn go_to(&self, block: u64) {
        let seconds = block - self.ledger.block().unwrap();
        self.clock.pass(Duration::from_secs(seconds));
        assert_eq!(self.ledger.block().unwrap(), block);
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ledger.sqlite")
    }

    fn set_weights(&self, validator: u16, weights: &[(u16, u16)]) {
        self.ledger.set_weights(&format!("key-{validator}"), weights, 0).unwrap();
    }

    fn incentives(&self) -> Vec<u16> {
        self.ledger.snapshot().unwrap().neurons.iter().map(|neuron| neuron.incentive).collect()
    }
}

#[test]
fn weights_become_pay_permits_and_bonds_at_the_next_epoch() {
    let subnet = Subnet::new(|settings| settings.consensus.max_validators = 2);
    subnet.go_to(1_010);
    subnet.set_weights(0, &[(2, 30), (3, 10)]);
    subnet.set_weights(1, &[(2, 30), (3, 10)]);
    subnet.ledger.set_stake(2, 50_000_000_000).unwrap();
    subnet.go_to(1_088);
    assert_eq!(subnet.incentives(), [0; 4]);
    assert!(subnet.ledger.snapshot().unwrap().bonds.is_empty());
    subnet.go_to(1_089);
    // Shares of the chain are rounded down.
    assert_eq!(subnet.incentives(), [0, 0, 49_151, 16_383]);
    let snapshot = Ledger::open_with_clock(&subnet.path(), subnet.clock.clone()).unwrap().snapshot().unwrap();
    let permits: Vec<bool> = snapshot.neurons.iter().map(|neuron| neuron.validator_permit).collect();
    assert_eq!(permits, [true, false, true, false], "those with the most stake");
    let bonds = &snapshot.bonds;
    assert_eq!(bonds.keys().collect::<Vec<_>>(), [&0], "who loses the permit loses the bonds");
    assert_eq!(bonds[&0], [(2, FULL_SHARE), (3, FULL_SHARE)]);
    assert_eq!(snapshot.consensus, ConsensusParams { max_validators: 2, ..ConsensusParams::default() });
}

#[test]
fn an_epoch_that_nobody_saw_is_run_with_the_subnet_as_it_stood() {
    let subnet = Subnet::new(|_| ());
    subnet.set_weights(0, &[(2, 1)]);
    // The epoch of block 1,089 passes unseen; the writes after it come too late for it.
    subnet.go_to(1_120);
    subnet.set_weights(0, &[(3, 1)]);
    assert_eq!(subnet.incentives(), [0, 0, FULL_SHARE, 0]);
    subnet.go_to(1_188);
    assert_eq!(subnet.incentives(), [0, 0, FULL_SHARE, 0]);
    subnet.go_to(1_189);
    // A refused write undoes the epoch with itself; the next one runs it again.
    assert_says(subnet.ledger.set_weights("key-9", &[(3, 1)], 0), 2, "not registered");
    subnet.ledger.register("late").unwrap();
    assert_eq!(subnet.incentives(), [0, 0, 0, FULL_SHARE, 0]);
}

#[test]
fn while_no_validator_is_active_everybody_earns_what_he_last_did() {
    let subnet = Subnet::new(|settings| settings.activity_cutoff = 150);
    subnet.ledger.set_incentives(&[(3, 7)]).unwrap();
    subnet.go_to(1_200);
    assert_eq!(subnet.incentives(), [0, 0, 0, 7], "nobody has ever set weights");
    subnet.set_weights(1, &[(2, 1)]);
    subnet.go_to(1_289);
    assert_eq!(subnet.incentives(), [0, 0, FULL_SHARE, 0]);
    subnet.ledger.set_incentives(&[(3, 7)]).unwrap();
    let before = subnet.ledger.snapshot().unwrap();
    subnet.go_to(1_389); // 189 blocks after the weights
    assert_eq!(subnet.ledger.snapshot().unwrap(), Snapshot { block: 1_389, ..before });
    // Weights that no longer count pay nobody, however active the validator is.
    subnet.ledger.deregister("key-2").unwrap();
    subnet.ledger.register("new").unwrap();
    subnet.set_weights(0, &[(0, 1)]);
    subnet.go_to(1_489);
    assert_eq!(subnet.incentives(), [0; 4]);
}

#[test]
fn many_missed_epochs_come_to_what_they_would_have_come_to_one_by_one() {
    // Uid 1 begins alone and falls asleep after block 2,001, uid 0 after block 2,101.
    let (seen, unseen) = [(); 2].map(|()| Subnet::new(|settings| settings.activity_cutoff = 1_000)).into();
    for subnet in [&seen, &unseen] {
        subnet.set_weights(1, &[(2, 50), (3, 50)]);
        subnet.go_to(1_101);
        subnet.set_weights(0, &[(2, 60), (3, 20)]);
    }
    let state = |subnet: &Subnet| {
        let Snapshot { neurons, bonds, .. } = subnet.ledger.snapshot().unwrap();
        (neurons, bonds)
    };
    let mut states = Vec::new();
    for block in (1_189..2_400).step_by(100) {
        seen.go_to(block);
        states.push(state(&seen));
    }
    states.dedup();
    assert!(states.len() > 8, "bonds move: {states:?}");
    unseen.go_to(2_400);
    assert_eq!(state(&unseen), *states.last().unwrap());
    let lone: Vec<u16> = states.last().unwrap().0.iter().map(|neuron| neuron.incentive).collect();
    assert_eq!(lone, [0, 0, 49_151, 16_383], "at the end uid 0 decides alone");
}

#[test]
fn years_of_missed_epochs_take_no_time() {
    let subnet = Subnet::new(|settings| {
        (settings.tempo, settings.block_ms, settings.activity_cutoff) = (0, 1, i64::MAX as u64);
    });
    subnet.set_weights(0, &[(2, 1), (3, 3)]);
    subnet.set_weights(1, &[(2, 3), (3, 1)]);
    let start = Instant::now();
    subnet.clock.pass(Duration::from_secs(10 * 365 * 86_400)); // 3e11 epochs
    let settled = subnet.ledger.snapshot().unwrap();
    assert!(settled.neurons[2].incentive > 0 && settled.bonds.len() == 2);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // As far as shares of 16 bits tell, they had settled.
    subnet.clock.pass(Duration::from_millis(300));
    let later = subnet.ledger.snapshot().unwrap();
    for (before, after) in std::iter::zip(settled.bonds.values().flatten(), later.bonds.values().flatten()) {
        assert!(before.0 == after.0 && before.1.abs_diff(after.1) <= 10, "{before:?} {after:?}");
    }
}

#[test]
fn a_ledger_that_somebody_keeps_locked_is_shown_as_it_was_before_the_epoch() {
    let subnet = Subnet::new(|_| ());
    subnet.set_weights(0, &[(2, 1)]);
    let patient = Ledger::open_within(&subnet.path(), subnet.clock.clone(), Duration::from_millis(50)).unwrap();
    let holder = rusqlite::Connection::open(subnet.path()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    subnet.go_to(1_089);
    let snapshot = patient.snapshot().unwrap();
    assert_eq!((snapshot.block, snapshot.neurons[2].incentive), (1_089, 0));
    holder.execute_batch("COMMIT").unwrap();
    assert_eq!(patient.snapshot().unwrap().neurons[2].incentive, FULL_SHARE);
}

#[test]
fn validators_set_weights_as_the_chain_lets_them() {
    let subnet = Subnet::new(|_| ());
    let Subnet { ledger, .. } = &subnet;
    let before = ledger.snapshot().unwrap();
    assert_says(ledger.set_weights("nobody", &[(2, 1)], 0), 2, "the hotkey `nobody` is not registered");
    assert_says(ledger.set_weights("key-2", &[(3, 1)], 0), 2, "`assay local register key-2 --stake TAO` gives it one");
    assert_says(ledger.set_weights("key-2", &[(2, 1), (3, 0)], 0), 2, "has no validator permit");
    assert_says(ledger.set_weights("key-0", &[(2, 1), (9, 1)], 0), 2, "no hotkey is registered as uid 9");
    assert_says(ledger.set_weights("key-0", &[(2, 1), (2, 1)], 0), 2, "uid 2 is given two weights");
    assert_says(ledger.set_weights("key-0", &[], 0), 2, "at least one");
    assert_eq!(ledger.snapshot().unwrap(), before);

    // To itself without a permit; it says who is awake, and no more.
    assert_eq!(ledger.set_weights("key-2", &[(2, 1)], 0).unwrap(), 1_001);
    assert_eq!(ledger.snapshot().unwrap().weights[&2], [(2, FULL_SHARE)]);

    assert_eq!(ledger.set_weights("key-0", &[(2, 0), (3, 5)], 2021).unwrap(), 1_001);
    assert_eq!(ledger.snapshot().unwrap().weights[&0], [(2, 0), (3, FULL_SHARE)]);
    subnet.go_to(1_100);
    let sentence = "the hotkey `key-0` cannot set weights at block 1100: the rate limit of 100 blocks lets it set them again \
                    at block 1101, in about 1.0 s";
    assert_says(ledger.set_weights("key-0", &[(2, 1)], 0), 4, sentence);
    subnet.go_to(1_101);
    assert_eq!(ledger.set_weights("key-0", &[(2, 1)], 0).unwrap(), 1_101);
    let snapshot = ledger.snapshot().unwrap();
    assert_eq!((&snapshot.weights[&0], snapshot.neurons[0].last_update), (&vec![(2, FULL_SHARE)], 1_101));
}

#[test]
fn golden_weights_are_kept_as_the_chain_keeps_them() {
    let [(_, file)] = golden::files("chain/a_set_weights.json", "set_weights").try_into().unwrap();
    let list = |key: &str| serde_json::from_value::<Vec<u16>>(file["set_weights"][key].clone()).unwrap();
    let sent: Vec<(u16, u16)> = std::iter::zip(list("uids"), list("sent")).collect();
    let kept: Vec<(u16, u16)> = serde_json::from_value(file["set_weights"]["decoded"].clone()).unwrap();
    assert_eq!(yuma::upscale_weights(&sent), kept);
    // The way the chain goes above 32,768, and what leaves it nothing to do.
    assert_eq!(yuma::upscale_weights(&[(1, 40_000), (2, 10_000)]), [(1, 65_535), (2, 16_384)]);
    assert_eq!(yuma::upscale_weights(&[(1, 65_535), (2, 3), (3, 0)]), [(1, 65_535), (2, 3), (3, 0)]);
    assert_eq!(yuma::upscale_weights(&[(1, 0)]), [(1, 0)]);
}
