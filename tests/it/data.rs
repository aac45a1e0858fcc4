//! Training on a data set: from shards on this machine, from a server, from the viewer, and from tokens that were written
//! before; with kills in between.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use assay::data::parquet::testing::write_shard;
use parquet::basic::{Compression, ZstdLevel};
use serde_json::Value;

use crate::util::{Dir, Random, Running, TestCommand, assert_same_run, last_recorded_step, recorded};

const STEPS: usize = 30;
const SHARD_ROWS: usize = 6_000;

/// A folder with a data set of two shards and a recipe for it, `recipe.yaml`.
struct Data {
    dir: Dir,
    shards: String,
}

impl Data {
    fn new() -> Self {
        let dir = Dir::with_recipe(STEPS);
        let mut random = Random::new(7);
        fs::create_dir(dir.path("shards")).unwrap();
        for shard in 0..2 {
            let texts: Vec<Option<String>> = (0..SHARD_ROWS)
                .map(|row| {
                    let words = (0..random.below(60)).map(|_| format!("word{} ", random.below(300)));
                    (row % 500 != 3).then(|| format!("{shard} {row} {}", words.collect::<String>()))
                })
                .collect();
            let codec = [Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())][shard];
            let texts = texts.iter().map(|text| text.as_ref().map(String::as_bytes));
            write_shard(&dir.path("shards").join(format!("train-{shard:05}.parquet")), texts, 700, codec).unwrap();
        }
        let shards = dir.path("shards").display().to_string();
        Self { dir, shards }
    }

    /// `assay` with no token of this machine and a cache of its own.
    fn assay(&self, args: &[&str]) -> TestCommand {
        let command = self.dir.assay(args).env("HF_TOKEN", "").env("HF_ACCESS_TOKEN", "").env("HF_ENDPOINT", "");
        command.env("HF_HOME", self.dir.path("nowhere")).env("ASSAY_HOME", self.dir.path("home"))
    }

    /// Arguments for the recipe with the data set as it is read by a source, and a run folder of its own.
    fn arguments(&self, run: &Path, sets: &[&str]) -> Vec<String> {
        let run = format!("checkpoint.dir={}", run.display());
        let common = ["data.held_out=[]", "data.held_out_every=3", "data.interleave=3", "eval.every=0", &run];
        common.iter().chain(sets).flat_map(|set| ["--set".to_owned(), (*set).to_owned()]).collect()
    }

    fn train(&self, run: &Path, sets: &[&str]) -> TestCommand {
        let arguments = self.arguments(run, sets);
        self.assay(&["train", "recipe.yaml"]).args(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn local(&self) -> Vec<String> {
        vec!["data.source=refinedweb-parquet".to_owned(), format!("data.paths=[\"{}\"]", self.shards)]
    }

    fn serve(&self) -> (Running, String) {
        let mut server = self.assay(&["local", "serve", "--dataset", "0", "--shards", "shards"]).spawn();
        let endpoint = server.wait_for_word("http://");
        (server, endpoint)
    }
}

fn strs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

#[test]
fn a_served_data_set_killed_and_resumed_trains_as_shards_on_this_machine_and_as_tokens_written_before() {
    let data = Data::new();
    let through = data.dir.path("through");
    data.train(&through, &strs(&data.local())).run().assert_exit(0);
    assert_eq!(recorded(&through, "loss").len(), STEPS);
    let record: Value = serde_json::from_slice(&fs::read(through.join("data.json")).unwrap()).unwrap();
    assert_eq!(record["rows"], 2 * SHARD_ROWS, "{record}");

    // Over HTTP, killed twice.
    let (server, endpoint) = data.serve();
    let remote = [
        "data.source=refinedweb-parquet".to_owned(),
        "data.paths=[]".to_owned(),
        "data.dataset=me/text".to_owned(),
        format!("data.endpoint={endpoint}"),
        "checkpoint.every=3".to_owned(),
    ];
    let killed = data.dir.path("killed");
    for step in [4, 17] {
        let mut running = data.train(&killed, &strs(&remote)).spawn();
        assert!(running.wait_until(|| last_recorded_step(&killed) >= step), "{:?}", running.wait());
        running.kill();
    }
    data.train(&killed, &strs(&remote)).run().assert_exit(0).assert_stderr_contains("Going on with tiny");
    assert_eq!(recorded(&through, "loss"), recorded(&killed, "loss"));

    // The same shards elsewhere, with another row: another text, with which the run does not go on.
    let more = [&remote[..], &["train.steps=40".to_owned()]].concat();
    write_shard(
        &data.dir.path("shards/train-00009.parquet"),
        (0..2_000).map(|_| Some(&b"another"[..])),
        700,
        Compression::SNAPPY,
    )
    .unwrap();
    drop(server);
    let (_server, endpoint) = data.serve();
    let moved = [&more[..], &[format!("data.endpoint={endpoint}")]].concat();
    let refused = data.train(&killed, &strs(&moved)).run();
    assert_ne!(refused.code, Some(0), "{refused:?}");
    fs::remove_file(data.dir.path("shards/train-00009.parquet")).unwrap();

    // And as tokens.
    let arguments = data.arguments(&data.dir.path("unused"), &strs(&data.local()));
    let prepare = [&["data", "prepare", "recipe.yaml", "--out", "tokens"][..], &strs(&arguments)].concat();
    data.assay(&prepare).run().assert_exit(0).assert_stdout_contains("Wrote 3,840 tokens");
    data.assay(&prepare).run().assert_exit(0).assert_stdout_contains("as many as are wanted");
    let prepared = data.dir.path("prepared");
    data.train(&prepared, &["data.source=tokens", "data.paths=[tokens]"]).run().assert_exit(0);
    assert_eq!(recorded(&through, "loss"), recorded(&prepared, "loss"));
    assert_same_run(&through, &prepared);
}

#[test]
fn the_viewers_rows_train_and_are_what_models_are_scored_on() {
    let data = Data::new();
    let (_server, endpoint) = data.serve();
    let rows = [
        "data.source=refinedweb-rows".to_owned(),
        "data.paths=[]".to_owned(),
        "data.dataset=me/text".to_owned(),
        format!("data.rows_endpoint={endpoint}"),
    ];
    let run = data.dir.path("rows");
    data.train(&run, &strs(&rows)).run().assert_exit(0);
    assert_eq!(recorded(&run, "loss").len(), STEPS);
    // A second one reads what it can from the pages that are kept.
    let again = data.dir.path("again");
    data.train(&again, &strs(&rows)).run().assert_exit(0);
    assert_eq!(recorded(&run, "loss"), recorded(&again, "loss"));
    let arguments = data.arguments(&run, &strs(&rows));
    // A page with a row without text would fail it, as it fails a validator: these pages have none.
    let compare = ["compare", "rows", "--top", "0", "--recipe", "recipe.yaml", "--pages", "2", "--seed", "1"];
    let compare = [&compare[..], &strs(&arguments)].concat();
    data.assay(&compare).run().assert_exit(0).assert_stdout_contains("training");
}

/// Every file of the folder but the lock, with what is in it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let kept = files.filter(|path| path.extension().is_some_and(|ending| ending == "bin" || ending == "json"));
    kept.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect()
}

#[test]
fn preparing_that_is_killed_again_and_again_writes_what_one_that_was_left_alone_writes() {
    let data = Data::new();
    let arguments = data.arguments(&data.dir.path("unused"), &strs(&data.local()));
    let prepare = |out: &str| {
        let command = ["data", "prepare", "recipe.yaml", "--out", out, "--tokens", "400_000", "--shard-tokens", "9000"];
        data.assay(&[&command[..], &strs(&arguments)].concat())
    };
    prepare("alone").run().assert_exit(0);
    let mut random = Random::new(3);
    for _ in 0..12 {
        let running = prepare("killed").spawn();
        sleep(Duration::from_millis(20 + random.below(400)));
        running.kill();
    }
    prepare("killed").run().assert_exit(0);
    assert!(contents(&data.dir.path("alone")) == contents(&data.dir.path("killed")));
    let tokens = ["data", "stat", "recipe.yaml", "--set", "data.source=tokens", "--set", "data.paths=[alone]"];
    data.assay(&tokens).run().assert_exit(0).assert_stdout_contains("46 of 46 token shards are what was written");
    let text = [&["data", "stat", "recipe.yaml"][..], &strs(&arguments)].concat();
    data.assay(&text).run().assert_exit(0).assert_stdout_contains("bytes per token");
}

#[test]
fn what_is_wrong_with_a_data_set_is_said_with_its_remedy() {
    let data = Data::new();
    let run = data.dir.path("run-of-nothing");
    let refused = |sets: &[&str], exit, sentence: &str| {
        data.train(&run, sets).run().assert_exit(exit).assert_stderr_contains(sentence);
        assert!(!run.exists());
    };
    let here = format!("data.paths=[\"{}\"]", data.shards);
    let parquet = "data.source=refinedweb-parquet";
    refused(&[parquet, &here, "data.text_key=body"], 2, "body");
    refused(&[parquet, "data.paths=[gone]"], 2, "gone");
    refused(&[parquet, &here, "data.shards=[\"x*\"]"], 2, "x*");
    refused(&["data.source=tokens", "data.paths=[shards]"], 2, "no token shard");
    refused(&["data.source=tokens", "data.paths=[]"], 2, "data.paths");
    let nobody = "data.endpoint=http://127.0.0.1:9";
    // Nothing listens there: a hub that would not answer.
    let gone = data.train(&run, &[parquet, "data.paths=[]", nobody, "data.dataset=me/text"]).spawn();
    sleep(Duration::from_secs(2));
    gone.signal("INT");
    let code = gone.wait().code;
    assert!(matches!(code, Some(3 | 130)), "{code:?}");
    fs::write(data.dir.path("shards/train-00000.parquet"), b"no parquet at all").unwrap();
    refused(&[parquet, &here], 2, "train-00000.parquet");
}
