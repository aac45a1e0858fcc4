//! Publishing by the real program: killed at any moment, refused with a sentence, and decided by a run's gate.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::util::Dir;

/// A folder with an embedded network, a run's recipe, and a trained model in `run/latest`.
fn with_network() -> Dir {
    let dir = Dir::with_recipe(2);
    dir.train(&[]).run().assert_exit(0);
    dir.assay(&["local", "init"]).run().assert_exit(0).assert_stdout_contains("miner (uid 2)");
    dir
}

const PUBLISH: [&str; 6] = ["publish", "run/latest", "--recipe", "recipe.yaml", "--repo", "me/model"];

/// The commits of the repository me/model.
fn commits(dir: &Dir) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.path("checkpoints/local/hub/me/model")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.len() == 40).collect()
}

fn compare(dir: &Dir) -> Value {
    dir.assay(&["compare", "--recipe", "recipe.yaml", "--pages", "1", "--batches", "2", "--json"])
        .run()
        .assert_exit(0)
        .json()
}

#[test]
fn killed_at_any_moment_and_repeated_a_model_is_published_exactly_once() {
    let dir = with_network();
    for delay_ms in [0, 10, 20, 30, 40, 60, 80, 120, 160, 240] {
        let running = dir.assay(&PUBLISH).spawn();
        sleep(Duration::from_millis(delay_ms));
        running.kill();
    }
    let outcome = dir.assay(&PUBLISH).args(&["--json"]).run().assert_exit(0).json();
    let [commit] = commits(&dir).try_into().unwrap();
    assert_eq!(outcome["commit"], commit.as_str());
    let models = compare(&dir)["models"].clone();
    let own = models.as_array().unwrap().iter().find(|model| model["hotkey"] == "miner").unwrap().clone();
    assert_eq!((&own["commit"], &own["hash"]), (&outcome["commit"], &outcome["hash"]));
    dir.assay(&PUBLISH).run().assert_exit(0).assert_stdout_contains("nothing was sent");
    assert_eq!(commits(&dir).len(), 1);
}

#[test]
fn what_stands_in_the_way_is_said_in_a_sentence_before_anything_is_uploaded() {
    let dir = with_network();
    dir.assay(&["publish", "run/latest", "--recipe", "recipe.yaml"])
        .run()
        .assert_exit(2)
        .assert_stderr_contains("--repo");
    let long = format!("me/{}", "x".repeat(40));
    let publish = |repo: &str, hotkey: &str| {
        dir.assay(&["publish", "run/latest", "--recipe", "recipe.yaml", "--repo", repo, "--hotkey", hotkey]).run()
    };
    publish(&long, "miner").assert_exit(2).assert_stderr_contains("at most 41");
    publish("me/model", "stranger").assert_exit(2).assert_stderr_contains("assay local register");
    fs::write(dir.path("checkpoints/local/hub/me"), "in the way").unwrap();
    publish("me/model", "miner").assert_exit(2).assert_stderr_contains("is no folder");
    fs::remove_file(dir.path("checkpoints/local/hub/me")).unwrap();
    let rehearsal = dir.assay(&PUBLISH).args(&["--dry-run"]).run().assert_exit(0);
    rehearsal.assert_stdout_contains("  me:model:COMMIT:").assert_stdout_contains("Nothing was written.");
    assert!(!dir.path("checkpoints/local/hub/me").exists());

    dir.assay(&PUBLISH).run().assert_exit(0);
    dir.train(&["--set", "train.steps=3"]).run().assert_exit(0);
    dir.assay(&PUBLISH).run().assert_exit(4).assert_stderr_contains("takes the next commitment of miner at block");
    assert_eq!(commits(&dir).len(), 1);
}

#[test]
fn a_run_publishes_by_itself_what_beats_the_rival_and_keeps_its_reasons() {
    let dir = Dir::with_recipe(60);
    let business = [
        "--set",
        "score.every=30",
        "--set",
        "score.budget=0.99",
        "--set",
        "score.pages=1",
        "--set",
        "score.page_documents=2",
        "--set",
        "hub.repo=me/model",
    ];
    let outcome = dir.train(&business).run().assert_exit(0);
    outcome.assert_stderr_contains("The hotkey miner is uid 2").assert_stdout_contains("ublished");
    let record =
        |name: &str| -> Value { serde_json::from_slice(&fs::read(dir.path("run/gate").join(name)).unwrap()).unwrap() };
    let published = record("published.json");
    let commits = commits(&dir);
    assert_eq!(commits.len(), 1, "{published}");
    assert!(published["id"].as_str().unwrap().starts_with(&format!("me:model:{}:", commits[0])));
    let first = record("step-00000030.json");
    assert_eq!(first["decision"]["verdict"]["action"], "publish", "{}", first["decision"]["reason"]);
    assert!(fs::read_to_string(dir.path("run/gate/step-00000030.txt")).unwrap().contains("local/unigram"));

    // The same question, the same answer: the model that stands is not sent again.
    dir.train(&business).run().assert_exit(0).assert_stdout_contains("Not published");
    assert_eq!(crate::publish::commits(&dir), commits);
}

#[test]
fn a_run_starts_from_a_published_model() {
    let dir = with_network();
    dir.assay(&PUBLISH).run().assert_exit(0);
    let weights = |path: &Path| fs::read(path.join("model.safetensors")).unwrap();
    for (name, init) in [("by-uid", "init={uid: 2}"), ("by-repo", "init={repo: me/model}")] {
        let run = dir.path(name);
        let set = format!("checkpoint.dir={}", run.display());
        let still = ["--set", init, "--set", &set, "--set", "optimizer.learning_rate=1e-30"];
        dir.train(&still).args(&["--set", "optimizer.weight_decay=0"]).run().assert_exit(0);
        assert!(weights(&run.join("latest")) == weights(&dir.path("run/latest")), "{name}");
    }
    dir.train(&["--fresh", "--set", "init={uid: 77}"])
        .run()
        .assert_exit(2)
        .assert_stderr_contains("uid 77 has published no model");
    dir.train(&["--fresh", "--set", "init=leader"]).run().assert_exit(2).assert_stderr_contains("another shape");
}
