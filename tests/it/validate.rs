//! A validator by the real program: it goes on where it was killed or interrupted, sends weights only if it is told to, and
//! refuses what it cannot work with.

use std::fs;

use serde_json::Value;

use crate::util::Dir;

/// A folder with an embedded network whose only model is the rival, and a recipe with short pages.
fn with_network() -> Dir {
    let dir = Dir::with_recipe(2);
    dir.assay(&["local", "init"]).run().assert_exit(0);
    dir
}

const VALIDATE: [&str; 11] = [
    "validate",
    "--recipe",
    "recipe.yaml",
    "--set",
    "score.page_documents=2",
    "--pages",
    "1",
    "--seed",
    "3",
    "--dir",
    "validator",
];

fn rows(dir: &Dir) -> Vec<Value> {
    let text = fs::read_to_string(dir.path("validator/steps.jsonl")).unwrap_or_default();
    // One is perhaps just being written.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a row says of models and weights; times and blocks are those of the machine.
fn findings(rows: &[Value]) -> Vec<[Value; 3]> {
    rows.iter().map(|row| ["step", "uid_data", "weight_data"].map(|key| row[key].clone())).collect()
}

#[test]
fn a_validator_that_is_killed_or_interrupted_finds_what_one_that_is_not_finds() {
    let undisturbed = with_network();
    let outcome = undisturbed.assay(&VALIDATE).args(&["--steps", "4", "--json"]).run().assert_exit(0);
    assert_eq!(findings(&rows(&undisturbed)).len(), 4);
    let printed: Vec<Value> = outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, rows(&undisturbed));

    let dir = with_network();
    let mut running = dir.assay(&VALIDATE).spawn();
    assert!(running.wait_until(|| !rows(&dir).is_empty()));
    running.kill();
    let mut running = dir.assay(&VALIDATE).spawn();
    let num_before = rows(&dir).len();
    assert!(running.wait_until(|| rows(&dir).len() > num_before));
    running.signal("INT");
    running.wait().assert_exit(130);
    let num_left = 5_usize.saturating_sub(rows(&dir).len()).max(1).to_string();
    dir.assay(&VALIDATE)
        .args(&["--steps", &num_left])
        .run()
        .assert_exit(0)
        .assert_stdout_contains("Weights > 0.001")
        .assert_stdout_contains("average_loss");
    assert_eq!(findings(&rows(&dir))[..4], findings(&rows(&undisturbed))[..]);
}

#[test]
fn what_a_validator_cannot_work_with_is_said_in_a_sentence() {
    let dir = with_network();
    let refused = |args: &[&str]| dir.assay(&VALIDATE).args(&["--steps", "1"]).args(args).run().assert_exit(2);
    refused(&["--rules", "2024-02-22"]).assert_stderr_contains("known are 2024-02-21, 2024-03-21");
    refused(&["--set-weights", "--hotkey", "stranger"]).assert_stderr_contains("assay local register stranger");
    refused(&["--hotkey", "miner"]).assert_stderr_contains("--set-weights");
    assert!(!dir.path("validator").exists());

    dir.assay(&VALIDATE).args(&["--steps", "1"]).run().assert_exit(0);
    let state = dir.path("validator/state.json");
    let good = fs::read(&state).unwrap();
    fs::write(&state, &good[..good.len() / 2]).unwrap();
    refused(&[]).assert_stderr_contains("is no state of a validator").assert_stderr_contains("--dir");
    assert_eq!(fs::read(&state).unwrap(), good[..good.len() / 2]);
    fs::write(&state, &good).unwrap();
    // The folder's own seed is 3.
    dir.assay(&["validate", "--recipe", "recipe.yaml", "--dir", "validator", "--seed", "4"])
        .run()
        .assert_exit(2)
        .assert_stderr_contains("by the seed 3");
}
