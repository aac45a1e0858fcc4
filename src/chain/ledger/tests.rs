#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Instant;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::chain::Neuron;
use crate::error::exit_code;

const HOUR_MS: u64 = 3_600_000;

/// A ledger at block 1,500, half an hour before block 1,501.
fn slow() -> Settings {
    Settings::new(1_000, SystemClock.unix_ms() - 500 * HOUR_MS - HOUR_MS / 2, HOUR_MS)
}

fn make(settings: &Settings) -> (TempDir, PathBuf, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = Ledger::create(&path, settings).unwrap();
    (dir, path, ledger)
}

#[track_caller]
pub(super) fn assert_says<T>(result: Result<T>, code: u8, sentence: &str) {
    let error = result.err().expect("this is an error");
    let text = format!("{error:#}");
    assert_eq!(exit_code(&error), code, "{text}");
    assert!(text.contains(sentence), "{text}");
}

#[test]
fn a_snapshot_holds_all_that_was_written_and_a_second_process_sees_it() {
    let (_dir, path, ledger) = make(&slow());
    for (uid, hotkey) in ["validator", "rival", "own.key_2"].into_iter().enumerate() {
        assert_eq!(usize::from(ledger.register(hotkey).unwrap()), uid);
    }
    assert_eq!(ledger.register("rival").unwrap(), 1);
    ledger.set_stake(0, 1_000_000_000_000).unwrap();
    ledger.set_permit(0, true).unwrap();
    ledger.set_incentives(&[(1, 65_535), (2, 7)]).unwrap();
    ledger.put_weights(0, &[(2, 5), (1, 9)]).unwrap();
    ledger.put_weights(0, &[(1, 65_535), (0, 3)]).unwrap();
    ledger.commit_at("rival", b"later", 1_400).unwrap();
    ledger.commit_at("rival", b"earlier", 1_300).unwrap();
    assert_eq!(ledger.commit("own.key_2", &[0, 255]).unwrap(), 1_500);

    let commitment = |block, bytes: &[u8]| Commitment { block, bytes: bytes.to_vec() };
    let neuron = |uid, hotkey: &str, stake, incentive, validator_permit, last_update| Neuron {
        uid,
        hotkey: hotkey.to_owned(),
        registered_at: 1_500,
        stake,
        incentive,
        validator_permit,
        last_update,
        // Half of 11.25 TAO is the miners', the rest the only validator's.
        emission: 5_625_000_000 * u64::from(incentive) / 65_535 + 5_625_000_000 * u64::from(validator_permit),
    };
    let expected = Snapshot {
        block: 1_500,
        tempo: 360,
        immunity_period: 4096,
        activity_cutoff: 5000,
        neurons: vec![
            neuron(0, "validator", 1_000_000_000_000, 0, true, 1_500),
            neuron(1, "rival", 0, 65_535, false, 0),
            neuron(2, "own.key_2", 0, 7, false, 0),
        ],
        commitments: BTreeMap::from([
            ("own.key_2".to_owned(), commitment(1_500, &[0, 255])),
            ("rival".to_owned(), commitment(1_400, b"later")),
        ]),
        weights: BTreeMap::from([(0, vec![(0, 3), (1, 65_535)])]),
        ..Snapshot::default()
    };
    assert_eq!(ledger.snapshot().unwrap(), expected);
    let other = Ledger::open(&path).unwrap();
    assert_eq!(other.snapshot().unwrap(), expected);
    assert_eq!(other.commitments_of("rival").unwrap(), [commitment(1_300, b"earlier"), commitment(1_400, b"later")]);
    assert_eq!(other.commitment("rival").unwrap(), Some(commitment(1_400, b"later")));
    assert_eq!(other.commitment("nobody").unwrap(), None);
}

/// Time that passes when a test lets it.
pub(crate) struct TestClock(pub(crate) AtomicU64);

impl TestClock {
    pub(crate) fn pass(&self, duration: Duration) {
        self.0.fetch_add(duration.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn sleep(&self, duration: Duration) {
        self.pass(duration);
    }
}

#[test]
fn a_place_is_freed_and_given_again_and_a_full_subnet_refuses() {
    let (_dir, _, ledger) = make(&Settings { max_uids: 3, ..slow() });
    for hotkey in ["a", "b", "c"] {
        ledger.register_at(hotkey, 1_000).unwrap();
    }
    assert_says(ledger.register("d"), 2, "is full: all of its 3 places are taken");
    ledger.put_weights(1, &[(0, 1)]).unwrap();
    ledger.commit_at("b", b"kept", 1_200).unwrap();
    ledger.deregister("b").unwrap();
    assert_says(ledger.deregister("b"), 2, "the hotkey `b` is not registered on the ledger");
    let snapshot = ledger.snapshot().unwrap();
    assert_eq!(snapshot.neurons.iter().map(|neuron| neuron.uid).collect::<Vec<_>>(), [0, 2]);
    assert!(snapshot.weights.is_empty() && snapshot.commitments.is_empty());
    assert_eq!(ledger.register("d").unwrap(), 1);
    assert_eq!(ledger.snapshot().unwrap().neuron("d").unwrap().registered_at, 1_500);
    assert_eq!(ledger.commitment("b").unwrap().unwrap().bytes, b"kept");
}

#[test]
fn the_rate_limit_ends_100_blocks_after_the_last_commitment() {
    let (_dir, _, ledger) = make(&slow());
    ledger.register("miner").unwrap();
    assert_eq!(ledger.next_commit_block("miner").unwrap(), 0);
    ledger.commit_at("miner", b"first", 1_401).unwrap();
    assert_eq!(ledger.next_commit_block("miner").unwrap(), 1_501);
    let sentence = "the hotkey `miner` cannot commit at block 1500: the rate limit of 100 blocks lets it commit again at \
                    block 1501, in about 1 h 0 min";
    assert_says(ledger.commit("miner", b"99 blocks later"), 4, sentence);
    assert_eq!(ledger.commitments_of("miner").unwrap().len(), 1);

    let (_dir, _, ledger) = make(&slow());
    ledger.register("miner").unwrap();
    ledger.commit_at("miner", b"first", 1_400).unwrap();
    assert_eq!(ledger.commit("miner", b"100 blocks later").unwrap(), 1_500);
    assert_eq!(ledger.next_commit_block("miner").unwrap(), 1_600);
    assert_says(ledger.commit("miner", b"at once"), 4, "again at block 1600, in about 4 days");
    assert_eq!(ledger.commitments_of("miner").unwrap().len(), 2);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (_dir, path, ledger) = make(&slow());
    ledger.register("miner").unwrap();
    let before = ledger.snapshot().unwrap();
    assert_says(ledger.commit("stranger", b"x"), 2, "`stranger` is not registered");
    assert_says(ledger.commit_at("stranger", b"x", 1_000), 2, "`stranger` is not registered");
    assert_says(ledger.commit("miner", &[b'x'; 129]), 2, "has 129 bytes, and the chain takes 128");
    assert_says(ledger.commit_at("miner", &[b'x'; 129], 1_000), 2, "has 129 bytes");
    assert_says(ledger.commit_at("miner", b"x", 1_501), 2, "block 1501 has not come on the ledger");
    assert_says(ledger.register_at("late", 1_501), 2, "block 1501 has not come");
    for name in ["", "a b", "a/b", "a:b", "Ä", "a\n", &"a".repeat(65)] {
        assert_says(ledger.register(name), 2, "is no name of a hotkey");
    }
    assert_says(ledger.set_incentives(&[(0, 9), (1, 9)]), 2, "no hotkey is registered as uid 1");
    assert_says(ledger.set_stake(1, 9), 2, "no hotkey is registered as uid 1");
    assert_says(ledger.set_stake(0, u64::MAX), 2, "cannot hold a number above 9223372036854775807");
    assert_says(ledger.set_permit(1, true), 2, "no hotkey is registered as uid 1");
    assert_says(ledger.put_weights(1, &[(0, 9)]), 2, "no hotkey is registered as uid 1");
    assert_says(ledger.put_weights(0, &[(0, 9), (1, 9)]), 2, "no hotkey is registered as uid 1");
    assert_says(ledger.put_weights(0, &[(0, 9), (0, 9)]), 2, "uid 0 is given two weights");
    assert_eq!(ledger.snapshot().unwrap(), before);
    ledger.register(&"a".repeat(64)).unwrap();
    ledger.commit("miner", &[b'x'; 128]).unwrap();
    assert_says(Ledger::create(&path, &slow()), 2, "is there already");
    assert_eq!(ledger.snapshot().unwrap().neurons.len(), 2);
    assert_says(Ledger::create(&path.with_extension("other"), &Settings { block_ms: 0, ..slow() }), 2, "at least 1 ms");
}

#[test]
fn blocks_pass_with_time_and_do_not_go_back_when_the_clock_does() {
    let (_dir, path, ledger) = make(&Settings::new(1_000, SystemClock.unix_ms(), 10));
    let start = Instant::now();
    let first = ledger.block().unwrap();
    while ledger.block().unwrap() < first + 20 {
        assert!(start.elapsed() < Duration::from_secs(5));
        thread::sleep(Duration::from_millis(1));
    }
    assert!(start.elapsed() >= Duration::from_millis(190), "{:?}", start.elapsed());
    assert_eq!(ledger.seconds_per_block(), 0.01);
    drop(ledger);

    // For a process that starts later, a clock set back by an hour is a ledger whose first block lies an hour later.
    let move_first_block = |ms: i64| {
        let connection = Connection::open(&path).unwrap();
        connection.execute("UPDATE settings SET first_unix_ms = first_unix_ms + ?1", [ms]).unwrap();
    };
    let ledger = Ledger::open(&path).unwrap();
    ledger.register("miner").unwrap();
    let written = ledger.snapshot().unwrap().neurons[0].registered_at;
    drop(ledger);
    move_first_block(HOUR_MS as i64);
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!(ledger.block().unwrap(), written);
    assert_eq!(ledger.commit("miner", b"while the clock is wrong").unwrap(), written);
    assert_eq!(ledger.block().unwrap(), written);
    drop(ledger);
    move_first_block(-(HOUR_MS as i64));
    thread::sleep(Duration::from_millis(20)); // two blocks
    assert!(Ledger::open(&path).unwrap().block().unwrap() > written);
}

#[test]
fn many_threads_and_a_second_process_commit_without_an_error() {
    const PER_THREAD: usize = 40;
    const OTHER: &str = "ASSAY_TEST_LEDGER_OF_ANOTHER_PROCESS";
    let commit = |path: &Path, hotkey: &str| {
        let ledger = Ledger::open(path).unwrap();
        for number in 0..PER_THREAD {
            ledger.commit(hotkey, format!("{hotkey} {number}").as_bytes()).unwrap();
            assert_eq!(ledger.commitments_of(hotkey).unwrap().len(), number + 1);
        }
    };
    if let Some(path) = std::env::var_os(OTHER) {
        return commit(Path::new(&path), "process");
    }
    let (_dir, path, ledger) = make(&Settings { commit_rate_limit: 0, ..slow() });
    let threads: Vec<String> = (0..8).map(|thread| format!("thread-{thread}")).collect();
    for hotkey in threads.iter().map(String::as_str).chain(["process", "shared"]) {
        ledger.register(hotkey).unwrap();
    }
    let this_test = "chain::ledger::tests::many_threads_and_a_second_process_commit_without_an_error";
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([this_test, "--exact", "--test-threads=1"])
        .env(OTHER, &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    thread::scope(|scope| {
        for hotkey in &threads {
            scope.spawn(|| commit(&path, hotkey));
        }
        // One connection in several threads as well.
        for _ in 0..2 {
            scope.spawn(|| (0..PER_THREAD).for_each(|_| assert!(ledger.commit("shared", b"x").unwrap() > 0)));
        }
    });
    assert!(process.wait().unwrap().success());
    for hotkey in threads.iter().map(String::as_str).chain(["process"]) {
        let texts: Vec<Vec<u8>> = ledger.commitments_of(hotkey).unwrap().into_iter().map(|kept| kept.bytes).collect();
        let expected: Vec<Vec<u8>> = (0..PER_THREAD).map(|number| format!("{hotkey} {number}").into_bytes()).collect();
        assert_eq!(texts, expected);
    }
    assert_eq!(ledger.commitments_of("shared").unwrap().len(), 2 * PER_THREAD);
}

#[test]
fn a_ledger_that_stays_locked_is_unreachable_and_named() {
    let (_dir, path, ledger) = make(&slow());
    ledger.register("miner").unwrap();
    let expected = format!("the ledger {} has been locked by another process for more than 0.3 s", path.display());
    let patient = Ledger::open_within(&path, Arc::new(SystemClock), Duration::from_millis(300)).unwrap();
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let start = Instant::now();
    assert_says(patient.commit("miner", b"x"), 3, &expected);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(250) && waited < Duration::from_secs(3), "{waited:?}");
    assert_eq!(patient.snapshot().unwrap().neurons.len(), 1, "a writer keeps nobody from reading");
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(400));
            holder.execute_batch("COMMIT").unwrap();
        });
        assert_eq!(ledger.commit("miner", b"waits its turn").unwrap(), 1_500);
    });
    assert_eq!(PATIENCE, Duration::from_secs(5));
    drop((patient, ledger));

    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    assert_says(Ledger::open_within(&path, Arc::new(SystemClock), Duration::from_millis(300)), 3, &expected);
}

#[test]
fn what_is_no_ledger_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let refused = |sentence: &str| assert_says(Ledger::open(&path), 2, sentence);
    refused("there is no ledger at ");
    refused("ledger.sqlite: `assay local init --local DIR` makes one");
    assert!(!path.exists(), "opening must not make a file");
    fs::write(&path, "not a database, but long enough to be looked at as if it were one: ".repeat(40)).unwrap();
    refused("is not an SQLite file");
    fs::write(&path, "").unwrap();
    refused("is an SQLite file, but no ledger");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("is not a regular file");
    fs::remove_dir(&path).unwrap();

    let log = dir.path().join("ledger.sqlite-wal");
    fs::write(&log, "left over").unwrap();
    assert_says(Ledger::create(&path, &slow()), 2, "ledger.sqlite-wal is left of a ledger that is gone");
    fs::remove_file(&log).unwrap();

    let damage = |sql: &str, sentence: &str| {
        let path = dir.path().join("damaged.sqlite");
        let _ = fs::remove_file(&path);
        drop(Ledger::create(&path, &slow()).unwrap());
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        assert_says(Ledger::open(&path).and_then(|ledger| ledger.snapshot()), 2, sentence);
    };
    damage("PRAGMA user_version = 1", "is of version 1 of the ledger's format, and this assay reads version 3");
    damage("DROP TABLE bonds", "is damaged (no such table: bonds");
    damage("PRAGMA application_id = 7", "but no ledger of assay's");
    damage("DROP TABLE neurons", "is damaged (no such table: neurons");
    damage("DELETE FROM settings", "is damaged");
    damage("UPDATE settings SET tempo = -1", "is damaged");
    damage("INSERT INTO neurons VALUES (70000, 'x', 1, 1, 1, 1, 1)", "is damaged");
    let path = dir.path().join("damaged.sqlite");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_says(Ledger::open(&path).and_then(|ledger| ledger.snapshot()), 2, "is damaged");
}

#[test]
fn a_ledger_appears_complete_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new folder/ledger.sqlite");
    let names = || {
        let entries = fs::read_dir(path.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let failed = Ledger::create_filled(&path, &slow(), |ledger| {
        ledger.register("miner")?;
        anyhow::bail!("no")
    });
    assert_says(failed, 1, "no");
    assert_eq!(names(), [""; 0]);
    let ledger = Ledger::create_filled(&path, &slow(), |draft| {
        assert!(!path.exists());
        assert_eq!(draft.describe(), format!("the ledger {}", path.display()));
        draft.register("miner").map(drop)
    });
    let ledger = ledger.unwrap();
    assert_eq!(ledger.snapshot().unwrap().neurons[0].hotkey, "miner");
    let journal_dir = path.canonicalize().unwrap().with_file_name("publish");
    assert_eq!((ledger.journal_dir(), journal_dir.exists()), (journal_dir.as_path(), false));
    drop(ledger);
    assert_eq!(names(), ["ledger.sqlite"], "a closed ledger is one file");

    let raced = Ledger::create_filled(&path.with_file_name("raced"), &slow(), |_| {
        fs::write(path.with_file_name("raced"), "made meanwhile").map_err(Into::into)
    });
    assert_says(raced, 2, "is there already");
    assert_eq!(fs::read(path.with_file_name("raced")).unwrap(), b"made meanwhile");
}

#[test]
fn a_ledger_whose_folder_cannot_be_written_can_be_read_and_says_so_when_it_is_to_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("100% of it?#.sqlite");
    let ledger = Ledger::create(&path, &slow()).unwrap();
    for (uid, hotkey) in ["validator", "miner"].into_iter().enumerate() {
        assert_eq!(usize::from(ledger.register_at(hotkey, 1_000).unwrap()), uid);
    }
    ledger.set_stake(0, 9).unwrap();
    ledger.set_permit(0, true).unwrap();
    ledger.put_weights(0, &[(1, 9)]).unwrap();
    drop(ledger);
    // Root may write where others may not; but SQLite follows no link to the file that belongs to its log.
    std::os::unix::fs::symlink("nowhere", dir.path().join("100% of it?#.sqlite-shm")).unwrap();
    let allow = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    allow(0o555);
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!(ledger.snapshot().unwrap().neuron("miner").unwrap().registered_at, 1_000);
    assert_says(
        ledger.commit("miner", b"x"),
        2,
        "100% of it?#.sqlite cannot be changed: the file or its folder may only be",
    );
    drop(ledger);
    // An epoch has come due that cannot be written: the subnet is shown as it was before.
    let later = Arc::new(TestClock(AtomicU64::new(SystemClock.unix_ms() + 400 * HOUR_MS)));
    let snapshot = Ledger::open_with_clock(&path, later).unwrap().snapshot().unwrap();
    assert_eq!((snapshot.block, snapshot.neuron("miner").unwrap().incentive), (1_900, 0));
    drop(snapshot);
    allow(0o755);
    // With a log that cannot be read, what is in the file is not all there is.
    fs::write(dir.path().join("100% of it?#.sqlite-wal"), "commitments").unwrap();
    assert_says(Ledger::open(&path), 2, "cannot be opened");
}
