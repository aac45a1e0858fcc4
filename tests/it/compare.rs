//! Comparing by the real program: losses that were computed once are not computed again, whatever ends the program or
//! spoils the file they are kept in; verdicts come page by page; and folders are compared without any network.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::util::{Dir, TestCommand};

const CACHE: &str = "checkpoints/local/cache/losses.sqlite";

/// A folder with an embedded network, and a run of two steps whose model is nowhere published.
fn with_network() -> Dir {
    let dir = Dir::with_recipe(2);
    dir.train(&[]).run().assert_exit(0);
    dir.assay(&["local", "init"]).run().assert_exit(0);
    dir
}

fn compare(dir: &Dir, args: &[&str]) -> TestCommand {
    compare_on(dir, "5", args)
}

fn compare_on(dir: &Dir, seed: &str, args: &[&str]) -> TestCommand {
    dir.assay(&["compare", "--recipe", "recipe.yaml", "--seed", seed, "--set", "score.page_documents=10"]).args(args)
}

fn json(dir: &Dir, args: &[&str]) -> Value {
    compare(dir, args).args(&["--json"]).run().assert_exit(0).json()
}

fn losses(answer: &Value) -> Vec<Vec<f64>> {
    let losses = |model: &Value| serde_json::from_value(model["losses"].clone()).unwrap();
    answer["models"].as_array().unwrap().iter().map(losses).collect()
}

#[test]
fn a_second_comparison_computes_nothing_and_finds_the_same() {
    let dir = with_network();
    // A run's folder means its newest model.
    let first = json(&dir, &["run", "--pages", "4"]);
    let batches = first["batches"].as_u64().unwrap();
    assert!(batches >= 8, "{first}");
    assert_eq!((&first["scored"], &first["from_cache"]), (&Value::from(2 * batches), &Value::from(0)));
    assert!(first["models"][1]["folder"].as_str().unwrap().ends_with("run/latest"), "{first}");
    let second = json(&dir, &["run/latest", "--pages", "4"]);
    assert_eq!((&second["scored"], &second["from_cache"]), (&Value::from(0), &Value::from(2 * batches)));
    assert_eq!(losses(&first), losses(&second));
    assert_eq!(first["matrix"], second["matrix"]);
    // Without the rows that are known, and with a row more than those.
    let half = json(&dir, &["run", "--pages", "4", "--batches", "3"]);
    assert_eq!((&half["scored"], &half["from_cache"]), (&Value::from(0), &Value::from(6)));
    let other = compare_on(&dir, "6", &["run", "--pages", "4", "--json"]).run().assert_exit(0).json();
    assert!(other["scored"].as_u64().unwrap() > 0, "{other}");

    // Another model at the same place is another model.
    dir.train(&["--set", "train.steps=3"]).run().assert_exit(0);
    let trained = json(&dir, &["run", "--pages", "4"]);
    assert_eq!((&trained["scored"], &trained["from_cache"]), (&Value::from(batches), &Value::from(batches)));
    assert_eq!(losses(&trained)[0], losses(&first)[0]);
    assert_ne!(losses(&trained)[1], losses(&first)[1]);
}

#[test]
fn what_was_scored_before_an_interruption_is_not_scored_again() {
    let dir = with_network();
    let mut running = compare(&dir, &["run", "--pages", "4000", "--json"]).spawn();
    assert!(running.wait_until(|| dir.path(CACHE).exists()), "{:?}", running.wait());
    // Less than the time after which losses are kept anyway.
    sleep(Duration::from_secs(2));
    running.signal("INT");
    running.wait().assert_exit(130).assert_stderr_contains("kept for the next time");
    let answer = json(&dir, &["run", "--pages", "4000", "--batches", "2"]);
    assert!(answer["from_cache"].as_u64().unwrap() >= 1, "{answer}");
}

#[test]
fn a_cache_that_cannot_be_used_costs_one_warning_and_nothing_else() {
    let dir = with_network();
    let args = ["run", "--pages", "2", "--batches", "8"];
    let expected = json(&dir, &args);
    let assert_does_without = |command: TestCommand, reason: &str| {
        let outcome = command.run().assert_exit(0);
        assert_eq!(outcome.stderr.matches("warning: ").count(), 1, "{outcome:?}");
        assert!(outcome.stderr.contains("losses.sqlite") && outcome.stderr.contains(reason), "{outcome:?}");
        let answer = outcome.json();
        let (all, found) = (losses(&expected), losses(&answer));
        assert_eq!((&answer["scored"], &answer["from_cache"]), (&Value::from(8 * found.len()), &Value::from(0)));
        assert_eq!(found, all[all.len() - found.len()..]);
    };
    let remove = || {
        for name in ["", "-wal", "-shm"] {
            fs::remove_file(dir.path(&format!("{CACHE}{name}"))).ok();
        }
    };
    remove();
    fs::write(dir.path(CACHE), "this is no database ".repeat(100)).unwrap();
    assert_does_without(compare(&dir, &args).args(&["--json"]), "not a database");
    remove();
    symlink("/dev/full", dir.path(CACHE)).unwrap();
    assert_does_without(compare(&dir, &args).args(&["--json"]), "not a regular file");
    remove();
    // In blocks of 512 bytes: room for the answer, but not for the cache, nor for a ledger. Ignored, the signal becomes an
    // error of the write.
    let limited = compare(&dir, &args).args(&["--top", "0", "--json"]).under_shell("trap '' XFSZ; ulimit -f 16");
    assert_does_without(limited, "losses.sqlite is not used");
}

#[test]
fn verdicts_come_after_as_many_pages_as_they_take() {
    let dir = with_network();
    let answer = json(&dir, &["run", "--until-certain", "0.95", "--pages", "40"]);
    let [pair] = answer["until_certain"]["pairs"].as_array().unwrap().as_slice() else { panic!("{answer}") };
    // After two steps the model knows less than how often words occur.
    assert_eq!(
        (&pair["model"], &pair["rival"], &pair["verdict"]),
        (&Value::from(1), &Value::from(0), &Value::from("lost"))
    );
    let num_pages = pair["pages"].as_u64().unwrap();
    let num_drawn = answer["pages"].as_array().unwrap().len() as u64;
    assert!((6..=12).contains(&num_pages) && num_pages <= num_drawn && num_drawn <= 16, "{answer}");
    let batch_pages: Vec<u64> = serde_json::from_value(answer["batch_pages"].clone()).unwrap();
    let num_batches = batch_pages.iter().filter(|page| **page < num_pages).count();
    assert_eq!((&pair["wins"], &pair["losses"]), (&Value::from(0), &Value::from(num_batches)));
    assert_eq!(batch_pages.iter().collect::<BTreeSet<_>>().len() as u64, num_drawn);

    // A model against its own copy, at the same block: nobody ever wins.
    let args = ["run/latest", "run", "--top", "0", "--until-certain", "0.9", "--pages", "6"];
    let outcome = compare(&dir, &args).run().assert_exit(0);
    outcome.assert_stdout_contains("undecided").assert_stdout_contains("1 of 1 are undecided after 6 pages");
    for level in ["0.5", "1", "x"] {
        compare(&dir, &["--until-certain", level]).run().assert_exit(2).assert_stderr_contains("above 0.5 and below 1");
    }
}

#[test]
fn folders_are_compared_without_a_network() {
    let dir = Dir::with_recipe(2);
    dir.train(&[]).run().assert_exit(0);
    fs::create_dir(dir.path("other")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(dir.path("run/latest").join(file), dir.path("other").join(file)).unwrap();
    }
    let args = ["run", "other", "--top", "0", "--pages", "4"];
    let answer = json(&dir, &[&args[..], &["--write-tokens", "rows.json"]].concat());
    let batches = answer["batches"].as_u64().unwrap();
    assert_eq!((&answer["block"], answer["models"].as_array().unwrap().len()), (&Value::Null, 2));
    assert_eq!(answer["matrix"], serde_json::json!([[0, 0], [0, 0]]));
    assert_eq!(answer["models"][1]["difference"]["unit"], "page");
    assert_eq!(answer["models"][1]["difference"]["margin_95"], 0.0);
    let rows: Vec<Vec<u32>> = serde_json::from_slice(&fs::read(dir.path("rows.json")).unwrap()).unwrap();
    assert_eq!(rows.len() as u64, batches);
    // The rows are those that were scored.
    let scored = dir.assay(&["score", "other", "--tokens", "rows.json", "--json"]).run().assert_exit(0).json();
    assert_eq!(scored["losses"], answer["models"][1]["losses"]);

    let text = compare(&dir, &args).args(&["--matrix"]).run().assert_exit(0);
    let text = text.assert_stdout_contains("wins of").assert_stdout_contains("confidence interval by pages");
    let text = text
        .assert_stdout_contains("A repository may have 5.00 GiB. Validators give a model 60 s for a step of 3 pages");
    text.assert_stdout_contains("+0.0000 ± 0.0000");
    compare(&dir, &["--top", "0"]).run().assert_exit(2).assert_stderr_contains("name some");
    compare(&dir, &["gone", "--top", "0"]).run().assert_exit(2).assert_stderr_contains("gone");
    assert!(!dir.path("checkpoints/local/ledger.sqlite").exists());
}
