//! A damaged checkpoint is recognised, said so, and the one before is used.

use std::fs;
use std::path::Path;

use crate::util::{Dir, assert_same_run, latest_step};

const STEPS: usize = 20;

fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn cut_in_half(path: &Path) {
    let len = fs::metadata(path).unwrap().len();
    fs::File::options().write(true).open(path).unwrap().set_len(len / 2).unwrap();
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let dir = Dir::with_recipe(STEPS);
    dir.train(&[]).run().assert_exit(0);
    let (expected, run) = (dir.path("run"), dir.path("damaged"));
    let set = format!("checkpoint.dir={}", run.display());
    dir.train(&["--set", &set]).run().assert_exit(0);
    assert_eq!(latest_step(&run), STEPS as u64);

    let (model, state) = (run.join("step-00000020"), run.join("state/step-00000020"));
    for (damage, file) in [
        (flip_a_byte as fn(&Path), model.join("model.safetensors")),
        (flip_a_byte, state.join("moments.safetensors")),
        (flip_a_byte, model.join("config.json")),
        (cut_in_half, state.join("state.json")),
        (cut_in_half, state.join("manifest.json")),
        (remove, model.join("model.safetensors")),
    ] {
        damage(&file);
        dir.train(&["--set", &set, "--resume"]).run().assert_exit(0).assert_stderr_contains("step-00000020");
        // Steps 11 to 20 were computed again from the checkpoint of step 10.
        assert_same_run(&expected, &run);
    }
}

#[test]
fn a_run_without_any_intact_checkpoint_is_refused_rather_than_started_over() {
    let dir = Dir::with_recipe(STEPS);
    dir.train(&[]).run().assert_exit(0);
    for step in ["step-00000010", "step-00000020"] {
        flip_a_byte(&dir.path("run").join(step).join("model.safetensors"));
    }
    let before = fs::read(dir.path("run/metrics.jsonl")).unwrap();
    let outcome = dir.train(&["--resume"]).run().assert_stderr_contains("--fresh");
    assert!(matches!(outcome.code, Some(1 | 2)), "{outcome:?}");
    assert_eq!(fs::read(dir.path("run/metrics.jsonl")).unwrap(), before);
}
