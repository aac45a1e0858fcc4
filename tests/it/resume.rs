//! Stopping and going on: the same losses bit for bit and the same final weights as a run that went through.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::util::{Dir, assert_same_run, last_recorded_step, latest_step, recipe, recorded};

const STEPS: usize = 60;

/// Starts or continues the run and stops it by a signal once it has recorded `after_step`.
fn stop_by(signal: &str, dir: &Dir, args: &[&str], run: &Path, after_step: u64) {
    let mut running = dir.train(args).spawn();
    assert!(running.wait_until(|| last_recorded_step(run) >= after_step), "{:?}", running.wait());
    running.signal(signal);
    running.wait().assert_exit(130);
    let saved = latest_step(run);
    assert!((after_step..STEPS as u64).contains(&saved), "saved at step {saved}, stopped after step {after_step}");
    assert_eq!(last_recorded_step(run), saved, "every step that was recorded is saved, and none else");
}

/// With dropout, so that the random state is part of what must come back, and stopped between the regular saves.
#[test]
fn a_run_stopped_and_resumed_twice_writes_what_one_that_went_through_writes() {
    let dir = Dir::with_recipe(STEPS);
    let (through, stopped) = (dir.path("through"), dir.path("stopped"));
    let set = |run: &Path| format!("checkpoint.dir={}", run.display());
    let dropout = ["--set", "model.dropout=0.1", "--set"];
    dir.train(&[&dropout[..], &[&set(&through)]].concat()).run().assert_exit(0);
    assert_eq!(latest_step(&through), STEPS as u64);
    assert_eq!(recorded(&through, "loss").len(), STEPS);

    let to_stopped = set(&stopped);
    let start = [&dropout[..], &[&to_stopped]].concat();
    let resume = [&start[..], &["--resume"]].concat();
    stop_by("INT", &dir, &start, &stopped, 7);
    stop_by("TERM", &dir, &resume, &stopped, 33);
    dir.train(&resume).run().assert_exit(0);
    assert_same_run(&through, &stopped);
}

#[test]
fn a_run_folder_that_was_moved_resumes() {
    let text = Dir::with_recipe(STEPS);
    text.train(&[]).run().assert_exit(0);

    // Without checkpoint.dir a run lies in checkpoints/NAME of the folder where assay was started.
    let recipe = recipe(text.root(), Path::new("unused"), STEPS).replace("dir: \"unused\", ", "");
    let (old, new) = (Dir::new(), Dir::new());
    for dir in [&old, &new] {
        dir.write("recipe.yaml", &recipe);
    }
    stop_by("INT", &old, &[], &old.path("checkpoints/tiny"), 5);
    fs::create_dir(new.path("checkpoints")).unwrap();
    // Both lie in the same temporary file system, so this is a move.
    fs::rename(old.path("checkpoints/tiny"), new.path("checkpoints/tiny")).unwrap();
    drop(old);
    new.train(&["--resume"]).run().assert_exit(0);
    assert_same_run(&text.path("run"), &new.path("checkpoints/tiny"));
}

#[test]
fn a_finished_run_is_left_as_it_is_and_a_fresh_one_moves_it_aside() {
    let dir = Dir::with_recipe(3);
    dir.train(&[]).run().assert_exit(0);
    let (before, weights) = (dir.listing(), fs::read(dir.path("run/latest/model.safetensors")).unwrap());
    let losses = recorded(&dir.path("run"), "loss");
    for args in [&[][..], &["--resume"]] {
        dir.train(args).run().assert_exit(0).assert_stdout_contains("was trained before");
        assert_eq!(recorded(&dir.path("run"), "loss"), losses);
        assert!(fs::read(dir.path("run/latest/model.safetensors")).unwrap() == weights);
        let steps = |listing: &[PathBuf]| -> Vec<PathBuf> {
            listing.iter().filter(|path| !path.to_string_lossy().contains("tfevents")).cloned().collect()
        };
        assert_eq!(steps(&dir.listing()), steps(&before));
    }

    dir.train(&["--fresh"]).run().assert_exit(0).assert_stderr_contains("run.1");
    assert_eq!(recorded(&dir.path("run"), "loss"), losses);
    for run in ["run", "run.1"] {
        assert!(fs::read(dir.path(run).join("latest/model.safetensors")).unwrap() == weights);
    }
}

#[test]
fn a_run_is_not_continued_with_another_recipe() {
    let dir = Dir::with_recipe(3);
    dir.train(&[]).run().assert_exit(0);
    let before = dir.listing();
    for args in [&["--set", "optimizer.learning_rate=0.01"][..], &["--set", "train.seed=2", "--resume"]] {
        let key = args[1].split_once('=').unwrap().0;
        dir.train(args).run().assert_exit(2).assert_stderr_contains(key).assert_stderr_contains("--fresh");
        assert_eq!(dir.listing(), before);
    }
    dir.assay(&["train", "recipe.yaml", "--resume", "--set", "name=other", "--set", "checkpoint.dir=absent"])
        .run()
        .assert_exit(2)
        .assert_stderr_contains("absent");
    dir.train(&["--set", "train.steps=2"]).run().assert_exit(2).assert_stderr_contains("3 steps of this run are done");
    dir.train(&["--set", "train.steps=5"]).run().assert_exit(0).assert_stderr_contains("train.steps was 3");
    assert_eq!(latest_step(&dir.path("run")), 5);
}

/// Rewrites the state of a checkpoint as another machine, or an earlier assay, would have written it.
fn edit_state(run: &Path, step: u64, edit: impl FnOnce(&mut Map<String, Value>)) {
    let dir = run.join(format!("state/step-{step:08}"));
    let read =
        |name: &str| -> Map<String, Value> { serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap() };
    let (mut state, mut manifest) = (read("state.json"), read("manifest.json"));
    edit(&mut state);
    let bytes = serde_json::to_vec(&state).unwrap();
    let entries = manifest["state"].as_array_mut().unwrap();
    let entry = entries.iter_mut().find(|entry| entry["file"] == "state.json").unwrap();
    entry["bytes"] = bytes.len().into();
    entry["sha256"] = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    fs::write(dir.join("state.json"), bytes).unwrap();
    fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// Where a run was computed counts, not where it was asked for.
#[test]
fn a_run_that_goes_on_on_another_device_says_so() {
    let dir = Dir::with_recipe(3);
    let run = dir.path("run");
    dir.train(&["--device", "cpu"]).run().assert_exit(0);
    edit_state(&run, 3, |state| assert_eq!(state["device"], "cpu"));
    let go_on = |device: &str, steps: &str| dir.train(&["--set", steps, "--device", device]).run().assert_exit(0);
    let is_told = |stderr: &str| stderr.contains("the same curve, but with other rounding");

    // Asked for otherwise, but it is the CPU again.
    if !Path::new("/dev/nvidiactl").exists() {
        assert!(!is_told(&go_on("auto", "train.steps=4").stderr));
    }
    edit_state(&run, latest_step(&run), |state| state["device"] = "a card".into());
    if !Path::new("/dev/nvidiactl").exists() {
        // A run of days must not crawl on on the CPU because a card is hidden, unless that is meant.
        let auto = dir.train(&["--set", "train.steps=5", "--device", "auto"]).run().assert_exit(2);
        auto.assert_stderr_contains("computed on a card so far").assert_stderr_contains("--device cpu");
    }
    go_on("cpu", "train.steps=5")
        .assert_stderr_contains("the device was a card and is now cpu: a GPU computes in bf16");
    edit_state(&run, 5, |state| assert!(state["device"] == "cpu" && state.remove("device").is_some()));
    assert!(!is_told(&go_on("cpu", "train.steps=6").stderr));
}

#[test]
fn the_resolved_recipe_lies_in_the_run_folder_and_trains_the_same_again() {
    let dir = Dir::with_recipe(3);
    dir.train(&["--set", "train.seed=7"]).run().assert_exit(0);
    fs::copy(dir.path("run/recipe.yaml"), dir.path("resolved.yaml")).unwrap();
    let again = format!("checkpoint.dir={}", dir.path("again").display());
    dir.assay(&["train", "resolved.yaml", "--set", &again]).run().assert_exit(0);
    assert_same_run(&dir.path("run"), &dir.path("again"));
}
