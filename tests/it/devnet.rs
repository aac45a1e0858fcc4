//! The whole business on a chain that is reached as the real one is: a key in Bittensor's own format, a node that speaks
//! Bittensor's protocol, and the same commands.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::util::{Dir, Running, TestCommand};

/// A folder with a trained model in `run/latest`, a wallet, an embedded network with the wallet's hotkey on it, and a
/// node that serves it.
struct Devnet {
    dir: Dir,
    endpoint: String,
    hotkey: String,
    node: Option<Running>,
}

impl Devnet {
    fn new(block_seconds: &str) -> Self {
        let dir = Dir::with_recipe(2);
        dir.train(&[]).run().assert_exit(0);
        let wallet = ["--wallet-dir", "wallets", "--wallet", "me", "--hotkey", "first"];
        dir.assay(&["wallet", "new-hotkey"]).args(&wallet).run().assert_exit(0);
        let shown = dir.assay(&["wallet", "show", "--json"]).args(&wallet).run().assert_exit(0).json();
        let hotkey = shown["address"].as_str().unwrap().to_owned();
        dir.assay(&["local", "init", "--block-seconds", block_seconds]).run().assert_exit(0);
        dir.assay(&["local", "register", &hotkey]).run().assert_exit(0);
        let mut devnet = Self { dir, endpoint: String::new(), hotkey, node: None };
        devnet.serve("0");
        let text = fs::read_to_string(devnet.dir.path("recipe.yaml")).unwrap();
        let wallets = devnet.dir.path("wallets");
        let chain = format!(
            "chain: {{endpoint: \"{}\", hotkeys: [first], wallet: me, wallet_dir: \"{}\"}}\nhub: {{repo: me/model}}\n\
             score: {{page_documents: 1, pages: 1}}\n",
            devnet.endpoint,
            wallets.display()
        );
        devnet.dir.write("real.yaml", text + &chain);
        devnet
    }

    /// Starts the node, on a port.
    fn serve(&mut self, port: &str) {
        let mut node = self.dir.assay(&["local", "serve", "--rpc", port]).spawn();
        self.endpoint = node.wait_for_word("ws://");
        self.node = Some(node);
    }

    fn assay(&self, args: &[&str]) -> TestCommand {
        self.dir.assay(args).env("ASSAY_HOME", self.home())
    }

    fn home(&self) -> PathBuf {
        self.dir.path("home")
    }

    fn publish(&self, args: &[&str]) -> TestCommand {
        self.assay(&["publish", "--recipe", "real.yaml"]).args(args)
    }

    /// What stands committed under the hotkey, as the node tells and as the ledger has it.
    fn committed(&self) -> Value {
        let ask = ["chain", "commitment", &self.hotkey, "--json"];
        let told = self.assay(&ask).args(&["--endpoint", &self.endpoint]).run().assert_exit(0).json();
        assert_eq!(told, self.assay(&ask).run().assert_exit(0).json());
        told
    }

    fn num_commitments(&self) -> usize {
        let all = self.assay(&["chain", "commitments", "--json", "--endpoint", &self.endpoint]).run().assert_exit(0);
        let all: Vec<Value> = serde_json::from_str(&all.stdout).unwrap();
        all.iter().filter(|commitment| commitment["hotkey"] == self.hotkey.as_str()).count()
    }
}

#[test]
fn a_model_is_published_with_a_key_over_the_chains_own_protocol_once() {
    let devnet = Devnet::new("1");
    devnet
        .assay(&["chain", "commitment", &devnet.hotkey, "--endpoint", &devnet.endpoint])
        .run()
        .assert_exit(4)
        .assert_stderr_contains("has committed nothing");
    // Another model, for later; and the first one's publish killed at some moments, and repeated.
    devnet.dir.train(&["--set", "checkpoint.dir=other", "--set", "train.seed=2"]).run().assert_exit(0);
    for delay_ms in [50, 150, 300, 500] {
        let running = devnet.publish(&["run/latest"]).spawn();
        sleep(Duration::from_millis(delay_ms));
        running.kill();
    }
    let published = devnet.publish(&["run/latest", "--json"]).run().assert_exit(0).json();
    assert_eq!(published["hotkey"], devnet.hotkey.as_str());
    let committed = devnet.committed();
    assert_eq!((&committed["text"], &committed["block"]), (&published["commitment"], &published["block"]));
    assert_eq!(devnet.num_commitments(), 1);
    devnet.publish(&["run/latest"]).run().assert_exit(0).assert_stdout_contains("nothing was sent");

    // Another model within the rate limit.
    devnet.publish(&["other/latest"]).run().assert_exit(4).assert_stderr_contains("takes the next commitment of");
    let other = committed["text"].as_str().unwrap().replace("me:model", "me:other");
    let refused = devnet.assay(&["chain", "commit", "--recipe", "real.yaml", &other]).run().assert_exit(4);
    refused.assert_stderr_contains(&format!("at block {}", committed["block"].as_u64().unwrap() + 100));
    assert_eq!(devnet.committed(), committed);
}

#[test]
fn without_the_key_a_model_is_prepared_and_the_machine_with_the_key_commits_it() {
    let devnet = Devnet::new("1");
    let rented = devnet.dir.path("rented");
    let without_key = ["--set", "chain.wallet_dir=nowhere", "--hotkey", &devnet.hotkey];
    let publish = |args: &[&str]| {
        devnet.dir.assay(&["publish", "--recipe", "real.yaml"]).args(args).args(&without_key).env("ASSAY_HOME", &rented)
    };
    publish(&["run/latest"]).run().assert_exit(2).assert_stderr_contains("--prepare");
    // Nor does anything begin that would need the key in the night.
    let watched = format!("chain.hotkeys=[{}]", devnet.hotkey);
    let watched = ["--set", "chain.wallet_dir=nowhere", "--set", &watched];
    let auto =
        ["train", "real.yaml", "--set", "checkpoint.dir=other", "--set", "publish.mode=auto", "--set", "score.every=1"];
    let train = devnet.dir.assay(&auto).args(&watched).env("ASSAY_HOME", &rented).run();
    train.assert_exit(2).assert_stderr_contains("--prepare");
    let weigh = ["validate", "--recipe", "real.yaml", "--set-weights", "--steps", "1", "--dir", "validator"];
    devnet.dir.assay(&weigh).args(&watched).env("ASSAY_HOME", &rented).run().assert_exit(2);
    publish(&["run/latest", "--prepare", "request.json"]).run().assert_exit(0).assert_stdout_contains("--commit");
    assert_eq!(devnet.num_commitments(), 0);
    let published = devnet.publish(&["--commit", "request.json", "--json"]).run().assert_exit(0).json();
    assert_eq!(devnet.committed()["text"], published["commitment"]);
    devnet.publish(&["--commit", "request.json"]).run().assert_exit(0).assert_stdout_contains("nothing was sent");
    assert_eq!(devnet.num_commitments(), 1);
}

#[test]
fn a_node_that_is_another_chain_or_none_is_refused() {
    let mut devnet = Devnet::new("1");
    let status = |devnet: &Devnet, args: &[&str]| devnet.assay(&["chain", "status"]).args(args).run();
    let endpoint = devnet.endpoint.clone();
    status(&devnet, &["--endpoint", &endpoint]).assert_exit(0);
    status(&devnet, &["--endpoint", &endpoint, "--network", "finney"])
        .assert_exit(2)
        .assert_stderr_contains("is not on finney");
    // The endpoint is known as this chain by now; another one there is not taken for it.
    drop(devnet.node.take());
    fs::remove_dir_all(devnet.dir.path("checkpoints/local")).unwrap();
    devnet.dir.assay(&["local", "init", "--block-seconds", "0.3"]).run().assert_exit(0);
    let port = endpoint.rsplit(':').next().unwrap().to_owned();
    devnet.serve(&port);
    status(&devnet, &["--endpoint", &endpoint]).assert_exit(2).assert_stderr_contains("another chain");
    status(&devnet, &["--endpoint", "ftp://127.0.0.1:1"]).assert_exit(2).assert_stderr_contains("ws://");
    status(&devnet, &["--endpoint", "ws://192.0.2.1:9944"]).assert_exit(2).assert_stderr_contains("wss://");
}

#[test]
fn a_run_publishes_under_a_key_by_itself() {
    let devnet = Devnet::new("1");
    let run = ["--set", "train.steps=60", "--set", "checkpoint.dir=long", "--set", "score.every=30"];
    let outcome = devnet
        .assay(&["train", "real.yaml", "--set", "score.budget=0.99", "--set", "score.page_documents=2"])
        .args(&run)
        .args(&["--set", "publish.mode=auto"])
        .run()
        .assert_exit(0);
    outcome
        .assert_stderr_contains(&format!("The hotkey {} is uid 3", devnet.hotkey))
        .assert_stderr_contains(&format!("as {} at block", devnet.hotkey));
    let record = fs::read(devnet.dir.path("long/gate/published.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((&record["id"], &record["block"]), (&devnet.committed()["text"], &devnet.committed()["block"]));
    assert_eq!(devnet.num_commitments(), 1);
}

#[test]
fn a_validator_with_a_key_sets_weights() {
    let devnet = Devnet::new("0.1");
    let wallet = ["--wallet-dir", "wallets", "--wallet", "me", "--hotkey", "judge"];
    devnet.dir.assay(&["wallet", "new-hotkey"]).args(&wallet).run().assert_exit(0);
    let shown = devnet.dir.assay(&["wallet", "show", "--json"]).args(&wallet).run().assert_exit(0).json();
    let judge = shown["address"].as_str().unwrap();
    devnet.dir.assay(&["local", "register", judge, "--stake", "1000000"]).run().assert_exit(0);
    let last_update = || {
        let neurons =
            devnet.assay(&["chain", "neurons", "--json", "--endpoint", &devnet.endpoint]).run().assert_exit(0);
        let neurons: Vec<Value> = serde_json::from_str(&neurons.stdout).unwrap();
        neurons.iter().find(|neuron| neuron["hotkey"] == judge)?["last_update"].as_u64()
    };
    let before = loop {
        // In a block that has passed.
        if let Some(block) = last_update() {
            break Some(block);
        }
        sleep(Duration::from_millis(50));
    };
    let weights = ["--set-weights", "--hotkey", "judge", "--dir", "validator"];
    let mut validator = devnet.assay(&["validate", "--recipe", "real.yaml"]).args(&weights).spawn();
    // Fifty blocks later, or when the rate limit lets it.
    let is_set = validator.wait_until(|| {
        sleep(Duration::from_millis(500));
        last_update() > before
    });
    if !is_set {
        panic!("{:?}", validator.wait());
    }
    validator.signal("INT");
    validator.wait().assert_exit(130).assert_stderr_contains(&format!("as {judge}; miners with weight: 1"));
    let unigram = devnet.assay(&["chain", "miner", "--hotkey", "unigram", "--json"]).run().assert_exit(0);
    assert!(unigram.stdout.contains(judge), "{unigram:?}");
}
