//! State against restarts, damage, strangers' files, kills and a second validator.

#![allow(clippy::unwrap_used)]

use tempfile::TempDir;

use super::*;
use crate::error::exit_code;

const BEGINNING: Beginning<'_> =
    Beginning { network: "a ledger and a hub", block: 3_000_000, version_key: 2021, seed: Some(5), next_cleanup: 9 };

fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn reopen(dir: &Path) -> State {
    Folder::open(dir, BEGINNING).unwrap().1
}

/// A state in which every field differs from a new one's.
fn full() -> State {
    let mut state = State::new("a ledger and a hub", 2021, 5, 77);
    (state.step, state.saved_at, state.epoch_block) = (12, 1_700_000_000_123, Some(2_485_050));
    // Thirds, and the extremes of what weights can be.
    state.judge.weights = vec![0.0, 1.0 / 3.0, f32::MIN_POSITIVE / 8.0, f32::MAX, 0.1];
    // A table that has grown, with another order than that of its uids.
    state.judge.kept = [0, 1, 2, 3].into_iter().collect();
    state.judge.kept.update(&[20, 40, 60, 100, 250].into_iter().collect());
    state.judge.pending.add(9);
    let metadata =
        |text: &str, block| ModelMetadata { id: text.parse().unwrap(), block: NonZeroU64::new(block).unwrap() };
    state.tracker.insert("alice".to_owned(), metadata("a:b:None:h", 3));
    state.tracker.insert("bob".to_owned(), metadata("c:d:0123:None", u64::MAX));
    state.iterator = Some(MinerIterator::new([3, 1, 2], 2));
    state.checked.insert(3, 4);
    state.checked_for_incentive.insert(1, 5);
    state.majority_checked = Some(6);
    state.retried.insert(2, 7);
    state
}

#[test]
fn a_state_comes_back_as_it_was() {
    let dir = scratch();
    let (folder, ..) = Folder::open(dir.path(), BEGINNING).unwrap();
    let state = full();
    folder.save(&state).unwrap();
    let bytes = fs::read(dir.path().join(STATE_FILE)).unwrap();
    drop(folder);
    let back = reopen(dir.path());
    assert_eq!(fs::read(dir.path().join(STATE_FILE)).unwrap(), bytes);
    assert_eq!(back.judge.weights, state.judge.weights);
    assert_eq!((&back.judge.kept, &back.judge.pending), (&state.judge.kept, &state.judge.pending));
    assert_eq!((&back.tracker, &back.iterator), (&state.tracker, &state.iterator));
    assert_eq!(
        (back.step, back.saved_at, back.epoch_block, back.next_cleanup),
        (12, 1_700_000_000_123, Some(2_485_050), 77)
    );
    assert_eq!(
        (&back.checked, &back.checked_for_incentive, &back.retried),
        (&state.checked, &state.checked_for_incentive, &state.retried)
    );
    assert_eq!((back.majority_checked, back.network.as_str()), (Some(6), "a ledger and a hub"));
}

#[test]
fn a_new_version_evaluates_everybody_afresh_and_keeps_weights_and_steps() {
    let dir = scratch();
    let (folder, ..) = Folder::open(dir.path(), BEGINNING).unwrap();
    folder.save(&full()).unwrap();
    drop(folder);
    let (_folder, state, note) = Folder::open(dir.path(), Beginning { version_key: 2022, ..BEGINNING }).unwrap();
    assert!(note.unwrap().contains("2021 and is 2022"));
    assert!(state.judge.kept.is_empty() && state.judge.pending.is_empty() && state.tracker.is_empty());
    assert!(state.checked.is_empty() && state.retried.is_empty() && state.majority_checked.is_none());
    assert_eq!((state.judge.weights, state.step), (full().judge.weights, 12));
}

#[test]
fn what_is_no_state_is_refused_and_left_as_it_is() {
    let dir = scratch();
    let path = dir.path().join(STATE_FILE);
    drop(Folder::open(dir.path(), BEGINNING).unwrap());
    let good = fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let empty_set = "\"kept\": [\n    null,";
    for (bad, reason) in [
        (String::new(), "EOF"),
        ("half a fi".to_owned(), "expected value"),
        (good[..good.len() / 2].to_owned(), "EOF"),
        ("{\"format\":\"a run\"}".to_owned(), "its format is \"a run\""),
        (with("assay validator 2", "assay validator 3"), "assay validator 3"),
        (with("\"seed\"", "\"sead\""), "sead"),
        (with("\"weights\": []", "\"weights\": [0.1]"), "0.1 is no weight"),
        (with("\"weights\": []", "\"weights\": [-0.5]"), "-0.5 is no weight"),
        (with("\"weights\": []", "\"weights\": [1e300]"), "is no weight"),
        (with(empty_set, "\"kept\": ["), "`kept` is no set"),
        (with(empty_set, "\"kept\": [\n    3,"), "`kept` is no set"),
        (with("\"iterator\": null", "\"iterator\": {\"uids\":[2,1],\"index\":0}"), "`iterator`"),
        (with("\"iterator\": null", "\"iterator\": {\"uids\":[1,2],\"index\":2}"), "`iterator`"),
        (with("\"tracker\": {}", "\"tracker\": {\"a\":{\"model\":\"a:b\",\"block\":1}}"), "no model id"),
        (with("\"tracker\": {}", "\"tracker\": {\"a\":{\"model\":\"a:b:c:d\",\"block\":0}}"), "nonzero"),
    ] {
        fs::write(&path, &bad).unwrap();
        let error = Folder::open(dir.path(), BEGINNING).unwrap_err();
        let text = format!("{error:#}");
        assert_eq!(exit_code(&error), 2, "{text}");
        assert!(text.contains(reason) && text.contains("--dir"), "{reason}: {text}");
        assert_eq!(fs::read_to_string(&path).unwrap(), bad);
    }
}

#[test]
fn another_seed_and_steps_without_a_state_are_refused() {
    let dir = scratch();
    drop(Folder::open(dir.path(), BEGINNING).unwrap());
    let error = Folder::open(dir.path(), Beginning { seed: Some(6), ..BEGINNING }).unwrap_err();
    assert!(error.to_string().contains("by the seed 5"), "{error}");
    assert_eq!(exit_code(&error), 2);
    assert_eq!(Folder::open(dir.path(), Beginning { seed: None, ..BEGINNING }).unwrap().1.seed, 5);
    fs::remove_file(dir.path().join(STATE_FILE)).unwrap();
    fs::write(dir.path().join(STEPS_FILE), "{\"step\":1}\n").unwrap();
    let error = Folder::open(dir.path(), BEGINNING).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(!dir.path().join(STATE_FILE).exists());
    assert_eq!(fs::read_to_string(dir.path().join(STEPS_FILE)).unwrap(), "{\"step\":1}\n");
}

#[test]
fn a_folder_is_of_one_network() {
    let dir = scratch();
    let (folder, ..) = Folder::open(dir.path(), BEGINNING).unwrap();
    folder.save(&full()).unwrap();
    drop(folder);
    let bytes = fs::read(dir.path().join(STATE_FILE)).unwrap();
    let other = Beginning { network: "a ledger and another hub", ..BEGINNING };
    let anew = Beginning { block: 2_485_049, ..BEGINNING };
    for (beginning, reason) in [
        (other, "is one of a ledger and a hub, and not of a ledger and another hub"),
        (anew, "is at block 2,485,049 now"),
    ] {
        let error = Folder::open(dir.path(), beginning).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains(reason) && error.to_string().contains("--dir"), "{error}");
        assert_eq!(fs::read(dir.path().join(STATE_FILE)).unwrap(), bytes);
    }
    Folder::open(dir.path(), Beginning { block: 2_485_050, ..BEGINNING }).unwrap();
}

#[test]
fn a_folder_that_holds_something_else_is_left_as_it_is() {
    let dir = scratch();
    fs::write(dir.path().join(".tmp-notes"), "mine").unwrap();
    let error = Folder::open(dir.path(), BEGINNING).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("holds .tmp-notes and no state.json"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // What a first start that was killed has left, is no hindrance.
    fs::remove_file(dir.path().join(".tmp-notes")).unwrap();
    for name in [LOCK_FILE, TEMPORARY] {
        fs::write(dir.path().join(name), "half").unwrap();
    }
    drop(Folder::open(dir.path(), BEGINNING).unwrap());
    assert!(!dir.path().join(TEMPORARY).exists());
    // And of others' files in its own folder it removes none.
    fs::write(dir.path().join(".tmp-notes"), "mine").unwrap();
    reopen(dir.path());
    assert!(dir.path().join(".tmp-notes").exists());
}

#[test]
fn two_validators_do_not_share_a_folder() {
    let dir = scratch();
    let first = Folder::open(dir.path(), BEGINNING).unwrap();
    let error = Folder::open(dir.path(), BEGINNING).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().starts_with(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    Folder::open(dir.path(), BEGINNING).unwrap();
}

#[test]
fn rows_of_steps_that_the_state_does_not_know_are_cut_off() {
    let dir = scratch();
    let (folder, mut state, _) = Folder::open(dir.path(), BEGINNING).unwrap();
    for step in 1..=3 {
        folder.record(&format!("{{\"step\":{step}}}")).unwrap();
    }
    // The second step failed: it has no row.
    state.step = 2;
    folder.save(&state).unwrap();
    drop(folder);
    reopen(dir.path());
    assert_eq!(fs::read_to_string(dir.path().join(STEPS_FILE)).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
}

#[test]
fn a_kill_within_any_write_leaves_the_old_state_or_the_new_one() {
    for num_operations in 0.. {
        let dir = scratch();
        let disk = Disk::default();
        let (folder, old, _) = Folder::open_on(dir.path(), BEGINNING, disk.clone()).unwrap();
        disk.kill_after(num_operations);
        let new = State { step: 1, ..full() };
        let outcome = folder.record("{\"step\":1}").and_then(|()| folder.save(&new));
        drop(folder);
        let back = reopen(dir.path());
        let rows = fs::read_to_string(dir.path().join(STEPS_FILE)).unwrap_or_default();
        match back.step {
            0 => assert_eq!((back.judge.weights, rows.as_str()), (old.judge.weights, "")),
            _ => assert_eq!((back.judge.weights, rows.as_str()), (new.judge.weights, "{\"step\":1}\n")),
        }
        let leftovers = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(leftovers.into_iter().all(|name| !name.to_str().unwrap().starts_with(TEMPORARY)));
        if outcome.is_ok() {
            assert_eq!(num_operations, 4);
            break;
        }
    }
}

#[test]
fn a_full_disk_tears_neither_rows_nor_state() {
    let dir = scratch();
    let disk = Disk::default();
    let (folder, state, _) = Folder::open_on(dir.path(), BEGINNING, disk.clone()).unwrap();
    folder.record("{\"step\":0}").unwrap();
    disk.set_full(true);
    assert!(folder.record("{\"step\":1}").is_err() && folder.save(&full()).is_err());
    disk.set_full(false);
    folder.record("{\"step\":2}").unwrap();
    assert_eq!(fs::read_to_string(dir.path().join(STEPS_FILE)).unwrap(), "{\"step\":0}\n{\"step\":2}\n");
    drop(folder);
    assert_eq!(reopen(dir.path()).step, state.step);
}
