//! Checkpoints against damage, kills after every single operation, moves, copies and rivals.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use serde::Deserialize;
use tempfile::TempDir;

use super::*;
use crate::disk::is_out_of_space;
use crate::error::exit_code;
use crate::hub::hash::directory_hash;
use crate::model::arch::Arch;
use crate::model::config::ModelConfig;
use crate::model::weights;

#[derive(Debug, PartialEq, serde::Serialize, Deserialize)]
struct State {
    tag: String,
    loss: f64,
}

fn arch() -> Arch {
    Arch::gpt2(11, 8, 8, 1, 2)
}

/// A folder in memory where there is one: these tests wait for the disk thousands of times.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Numbers that differ between steps, tags and buffers.
fn numbers(step: u64, tag: &str, buffer: usize) -> Vec<f32> {
    let len = Layout::of(&arch()).len();
    let seed = step as usize * 31 + tag.len() * 1009 + buffer * 7;
    (0..len).map(|index| (index * 13 + seed) as f32 / 997.0).collect()
}

fn save(store: &Store, step: u64, tag: &str) -> Result<Saved> {
    let [params, m, v] = [0, 1, 2].map(|buffer| numbers(step, tag, buffer));
    store.save(&Snapshot {
        step,
        config: &ModelConfig::new(arch(), 0.0),
        layout: &Layout::of(&arch()),
        params: &params,
        moments: &[("m", &m), ("v", &v)],
        state: &State { tag: tag.to_owned(), loss: 0.1 + step as f64 },
    })
}

/// Restores, checks that every number is the saved one, and returns step, tag and warnings.
fn restore(store: &Store) -> Result<Option<(u64, String, Vec<String>)>> {
    let (arch, layout) = (arch(), Layout::of(&arch()));
    let [mut params, mut m, mut v] = [0; 3].map(|_| vec![f32::NAN; layout.len()]);
    let mut targets =
        Targets { arch: &arch, layout: &layout, params: &mut params, moments: &mut [("m", &mut m), ("v", &mut v)] };
    let Some(restored) = store.restore_latest::<State>(&mut targets)? else { return Ok(None) };
    let (step, tag) = (restored.step, restored.state.tag);
    assert_eq!(restored.state.loss, 0.1 + step as f64);
    for (buffer, values) in [params, m, v].iter().enumerate() {
        assert!(*values == numbers(step, &tag, buffer), "buffer {buffer} of step {step}");
    }
    assert_eq!(store.latest(), Some(step));
    Ok(Some((step, tag, restored.warnings)))
}

fn run_with(steps: &[u64]) -> TempDir {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    for step in steps {
        save(&store, *step, "a").unwrap();
    }
    dir
}

fn copy(from: &Path, to: &Path, follow_links: bool) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_symlink() && !follow_links {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if entry.path().is_dir() {
            copy(&entry.path(), &target, follow_links);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn leftovers(run_dir: &Path) -> Vec<String> {
    let all = [names_in(run_dir).unwrap(), names_in(&run_dir.join(STATE_DIR)).unwrap()].concat();
    all.into_iter().filter(|name| name.starts_with(TEMPORARY) || name.starts_with(REPLACED)).collect()
}

#[test]
fn a_checkpoint_comes_back_number_by_number_from_a_plain_model_folder() {
    let dir = run_with(&[10, 20]);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(restore(&store).unwrap().unwrap(), (20, "a".to_owned(), vec![]));
    assert_eq!(store.steps().unwrap(), [10, 20]);
    assert_eq!(store.peek_state::<State>().unwrap().unwrap().1.tag, "a");
    let latest = dir.path().join(LATEST);
    assert_eq!(fs::read_link(&latest).unwrap(), Path::new("step-00000020"));
    assert_eq!(names_in(&latest).unwrap(), ["config.json", "generation_config.json", "model.safetensors"]);
    assert!(weights::load(&latest).unwrap().params == numbers(20, "a", 0));
    // What is published is the folder as it lies there.
    assert_eq!(directory_hash(&latest).unwrap(), directory_hash(&store.model_dir(20)).unwrap());
}

#[test]
fn an_empty_run_folder_restores_nothing() {
    let dir = scratch();
    let store = Store::open(&dir.path().join("new/run")).unwrap();
    assert!(restore(&store).unwrap().is_none());
    assert!(store.prune(1, 0).unwrap().is_empty());
}

#[test]
fn any_damaged_file_is_noticed_and_the_checkpoint_before_is_used() {
    let original = run_with(&[10, 20]);
    let files =
        ["step-00000020/config.json", "step-00000020/generation_config.json", "step-00000020/model.safetensors"];
    let state_files = [MOMENTS_FILE, STATE_FILE, MANIFEST_FILE].map(|name| format!("state/step-00000020/{name}"));
    for file in files.into_iter().map(str::to_owned).chain(state_files) {
        let bytes = fs::read(original.path().join(&file)).unwrap();
        let mut variants: Vec<Option<Vec<u8>>> = vec![None, Some(bytes[..bytes.len() - 1].to_vec()), Some(vec![])];
        variants.push(Some([&bytes[..], b" "].concat()).filter(|_| !file.ends_with(MANIFEST_FILE)));
        for position in (0..bytes.len()).step_by((bytes.len() / 9).max(1)) {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            // Blanks between the manifest's words carry nothing.
            variants.push(
                Some(flipped).filter(|_| !(file.ends_with(MANIFEST_FILE) && bytes[position].is_ascii_whitespace())),
            );
        }
        for content in variants {
            let dir = scratch();
            copy(original.path(), dir.path(), false);
            match content {
                Some(content) => fs::write(dir.path().join(&file), content).unwrap(),
                None => fs::remove_file(dir.path().join(&file)).unwrap(),
            }
            let store = Store::open(dir.path()).unwrap();
            let (step, _, warnings) = restore(&store).unwrap().unwrap();
            assert_eq!(step, 10, "{file}");
            assert!(warnings.len() == 1 && warnings[0].contains("step-00000020 is damaged"), "{warnings:?}");
        }
    }
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_does_not_start_from_noise() {
    let dir = run_with(&[10, 20]);
    for step in [10, 20] {
        let path = dir.path().join(step_name(step)).join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 128;
        fs::write(path, bytes).unwrap();
    }
    let error = format!("{:#}", restore(&Store::open(dir.path()).unwrap()).unwrap_err());
    assert!(
        error.contains("no sound checkpoint") && error.contains("step-00000010") && error.contains("--fresh"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_of_another_model_is_refused_as_the_users_mistake() {
    let dir = run_with(&[10]);
    let store = Store::open(dir.path()).unwrap();
    let arch = Arch::gpt2(11, 8, 16, 1, 2);
    let layout = Layout::of(&arch);
    let mut params = vec![0.0; layout.len()];
    let mut targets = Targets { arch: &arch, layout: &layout, params: &mut params, moments: &mut [] };
    let error = store.restore_latest::<State>(&mut targets).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("another shape"), "{error}");
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused_as_the_users_mistake() {
    let dir = run_with(&[10]);
    let store = Store::open(dir.path()).unwrap();
    let (arch, layout) = (arch(), Layout::of(&arch()));
    let [mut params, mut m] = [0; 2].map(|_| vec![0.0; layout.len()]);
    let mut targets =
        Targets { arch: &arch, layout: &layout, params: &mut params, moments: &mut [("momentum", &mut m)] };
    let error = store.restore_latest::<State>(&mut targets).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("another optimizer"), "{error}");
}

/// Its serialisation fails: a save that fails after the model and the moments are written.
struct Unwritable;

impl serde::Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("unwritable"))
    }
}

#[test]
fn a_failed_save_says_that_the_one_before_is_intact_and_leaves_nothing_behind() {
    let dir = run_with(&[10]);
    let store = Store::open(dir.path()).unwrap();
    let params = numbers(20, "a", 0);
    let error = store
        .save(&Snapshot {
            step: 20,
            config: &ModelConfig::new(arch(), 0.0),
            layout: &Layout::of(&arch()),
            params: &params,
            moments: &[],
            state: &Unwritable,
        })
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("The checkpoint step-00000020 could not be saved: unwritable. "), "{error}");
    assert!(error.contains("The checkpoint step-00000010 is intact"), "{error}");
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    assert_eq!(restore(&store).unwrap().unwrap(), (10, "a".to_owned(), vec![]));
}

#[test]
fn a_full_disk_is_told_from_other_failures_below_any_context() {
    let full = anyhow::Error::from(std::io::Error::from_raw_os_error(28)).context("cannot write x").context("y");
    let other = anyhow::Error::from(std::io::Error::from_raw_os_error(13)).context("cannot write x");
    assert!(is_out_of_space(&full) && !is_out_of_space(&other));
}

/// Runs `work` on copies of a run, killed after 0, 1, 2, … operations until it gets through, and hands each resulting
/// folder to `check` with whether it got through.
fn killed_everywhere(original: &Path, work: impl Fn(&Store) -> Result<()>, check: impl Fn(&Path, bool)) -> usize {
    for num_operations in 0.. {
        let dir = scratch();
        copy(original, dir.path(), false);
        let store = Store::open(dir.path()).unwrap();
        store.disk.kill_after(num_operations);
        let finished = work(&store).is_ok();
        drop(store);
        check(dir.path(), finished);
        if finished {
            return num_operations;
        }
    }
    unreachable!()
}

#[test]
fn a_save_killed_anywhere_leaves_the_old_or_the_new_checkpoint() {
    let original = run_with(&[10]);
    let outcomes = std::cell::RefCell::new(BTreeSet::new());
    let num_operations = killed_everywhere(
        original.path(),
        |store| save(store, 20, "b").map(drop),
        |dir, finished| {
            assert!(weights::load(&dir.join(LATEST)).is_ok(), "latest names a complete model at every moment");
            let store = Store::open(dir).unwrap();
            assert_eq!(leftovers(dir), Vec::<String>::new());
            let (step, tag, _) = restore(&store).unwrap().unwrap();
            assert!([(10, "a"), (20, "b")].contains(&(step, tag.as_str())));
            assert!(!finished || step == 20);
            outcomes.borrow_mut().insert(step);
            // The run goes on and saves that step after all.
            save(&store, 20, "cc").unwrap();
            assert_eq!(restore(&store).unwrap().unwrap(), (20, "cc".to_owned(), vec![]));
        },
    );
    assert!(num_operations > 10);
    assert_eq!(outcomes.into_inner().len(), 2);
}

#[test]
fn the_first_save_killed_anywhere_leaves_nothing_or_a_checkpoint() {
    let original = run_with(&[]);
    killed_everywhere(
        original.path(),
        |store| save(store, 5, "a").map(drop),
        |dir, _| {
            let store = Store::open(dir).unwrap();
            if store.steps().unwrap().is_empty() {
                save(&store, 5, "a").unwrap();
            }
            assert_eq!(restore(&store).unwrap().unwrap(), (5, "a".to_owned(), vec![]));
        },
    );
}

#[test]
fn saving_the_only_step_again_killed_anywhere_and_killed_again_while_recovering_loses_nothing() {
    let original = run_with(&[10]);
    killed_everywhere(
        original.path(),
        |store| save(store, 10, "bb").map(drop),
        |dir, finished| {
            killed_recovery(dir, |dir| {
                let store = Store::open(dir).unwrap();
                assert_eq!(leftovers(dir), Vec::<String>::new());
                let (step, tag, warnings) = restore(&store).unwrap().unwrap();
                assert!(step == 10 && warnings.is_empty());
                assert!(tag == "bb" || tag == "a" && !finished);
            });
        },
    );
}

fn killed_recovery(original: &Path, check: impl Fn(&Path)) {
    for num_operations in 0.. {
        let dir = scratch();
        copy(original, dir.path(), false);
        let disk = Disk::default();
        disk.kill_after(num_operations);
        let finished = Store::open_on(dir.path(), disk).is_ok();
        check(dir.path());
        if finished {
            return;
        }
    }
}

#[test]
fn pruning_keeps_the_newest_the_regular_the_best_and_is_safe_to_kill() {
    let dir = run_with(&[10, 20, 30, 40, 50, 60]);
    Store::open(dir.path()).unwrap().mark_best(20).unwrap();
    killed_everywhere(
        dir.path(),
        |store| store.prune(2, 30).map(drop),
        |dir, finished| {
            let store = Store::open(dir).unwrap();
            assert_eq!(leftovers(dir), Vec::<String>::new());
            let steps = store.steps().unwrap();
            assert!([20, 30, 50, 60].iter().all(|step| steps.contains(step)), "{steps:?}");
            assert!(!finished || steps == [20, 30, 50, 60]);
            store.prune(2, 30).unwrap();
            assert_eq!(store.steps().unwrap(), [20, 30, 50, 60]);
            assert_eq!(store.claimed_steps().unwrap(), [20, 30, 50, 60]);
            assert_eq!(store.prune(1, 0).unwrap(), [30, 50]);
            assert_eq!(store.best(), Some(20));
            assert_eq!(restore(&store).unwrap().unwrap().0, 60);
            assert!(weights::load(&dir.join(BEST)).unwrap().params == numbers(20, "a", 0));
        },
    );
}

#[test]
fn only_a_complete_checkpoint_can_be_the_best() {
    let dir = run_with(&[10]);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.mark_best(11).is_err());
    store.mark_best(10).unwrap();
    save(&store, 20, "a").unwrap();
    store.mark_best(20).unwrap();
    assert_eq!((store.best(), store.latest()), (Some(20), Some(20)));
}

#[test]
fn a_run_folder_works_where_it_was_moved_to() {
    let dir = run_with(&[10, 20]);
    let moved = scratch();
    let moved = moved.path().join("elsewhere");
    fs::rename(dir.path(), &moved).unwrap();
    let store = Store::open(&moved).unwrap();
    assert_eq!(restore(&store).unwrap().unwrap().0, 20);
}

#[test]
fn a_copy_whose_links_became_folders_works_and_gets_its_links_back() {
    let dir = run_with(&[10, 20]);
    Store::open(dir.path()).unwrap().mark_best(10).unwrap();
    let copied = scratch();
    copy(dir.path(), copied.path(), true);
    assert!(copied.path().join(BEST).symlink_metadata().unwrap().is_dir());
    let store = Store::open(copied.path()).unwrap();
    assert_eq!((store.best(), store.latest()), (Some(10), Some(20)));
    assert_eq!(restore(&store).unwrap().unwrap().0, 20);
    assert_eq!(leftovers(copied.path()), Vec::<String>::new());
}

#[test]
fn a_second_process_is_kept_out_with_a_sentence() {
    let dir = run_with(&[10]);
    let first = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains(&format!("trained in by process {}", std::process::id())), "{error}");
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn starting_over_removes_checkpoints_and_links() {
    let dir = run_with(&[10, 20]);
    let store = Store::open(dir.path()).unwrap();
    store.mark_best(10).unwrap();
    fs::write(dir.path().join("metrics.jsonl"), "{}").unwrap();
    store.clear().unwrap();
    assert_eq!(names_in(dir.path()).unwrap(), [LOCK_FILE, "metrics.jsonl", STATE_DIR]);
    assert!(restore(&store).unwrap().is_none());
}

#[test]
fn a_checkpoint_fits_into_what_is_asked_for_it() {
    let dir = run_with(&[]);
    let saved = save(&Store::open(dir.path()).unwrap(), 1, "a").unwrap();
    let asked = checkpoint_bytes(&arch(), &Layout::of(&arch()), 2);
    assert!(saved.bytes <= asked && asked < saved.bytes + (128 << 10));
    assert!(free_bytes(dir.path()).unwrap() > asked);
}
