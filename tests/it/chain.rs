//! A subnet's chain by the real program: what is told of it, what is written to it, and what is refused.

use serde_json::{Value, json};

use crate::util::{Dir, Outcome};

const MODEL: &str = "me:model:0123456789012345678901234567890123456789:q83vEjRWeJA=";

/// An embedded network: the validator has uid 0, its rival uid 1, the own hotkey `miner` uid 2.
fn network() -> Dir {
    let dir = Dir::new();
    dir.assay(&["local", "init"]).run().assert_exit(0);
    dir
}

fn chain(dir: &Dir, args: &[&str]) -> Outcome {
    dir.assay(&["chain"]).args(args).run()
}

fn list(outcome: Outcome) -> Vec<Value> {
    serde_json::from_str(&outcome.assert_exit(0).stdout).unwrap()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_chain_is_read_by_people_and_by_scripts() {
    let dir = network();
    let status = chain(&dir, &["status", "--json"]).assert_exit(0).json();
    for (key, value) in [("netuid", 9), ("tempo", 360), ("num_uids", 3), ("max_uids", 256), ("immunity_period", 4096)] {
        assert_eq!(status[key], value, "{key}");
    }
    assert_eq!((&status["spec_version"], &status["registration_cost"]), (&Value::Null, &Value::Null));
    assert_eq!((&status["commit_limit"], &status["currency"]), (&json!({"blocks": 100}), &json!("TAO")));
    let block = status["block"].as_u64().unwrap();
    assert!((2_486_000..2_486_100).contains(&block), "{block}");
    chain(&dir, &["status"]).assert_exit(0).assert_stdout_contains("places taken  3 of 256");

    let neurons = list(chain(&dir, &["neurons", "--json"]));
    let asked = ["uid", "hotkey", "stake", "incentive", "validator_permit", "last_update"];
    for neuron in &neurons {
        assert_eq!(keys(neuron)[..asked.len()], asked);
    }
    let of = |neuron: &Value| asked[..5].iter().map(|&key| neuron[key].clone()).collect::<Vec<_>>();
    assert_eq!(of(&neurons[0]), [json!(0), json!("validator"), json!(1_000_000_000_000_u64), json!(0), json!(true)]);
    assert_eq!(of(&neurons[1]), [json!(1), json!("unigram"), json!(0), json!(65_535), json!(false)]);
    assert!((block - 5..=block).contains(&neurons[0]["last_update"].as_u64().unwrap()), "{}", neurons[0]);
    let table = chain(&dir, &["neurons"]).assert_exit(0);
    // Half of 11.25 TAO in each epoch of 4,332 s.
    table.assert_stdout_contains("1  unigram       0.000    1.00000    112.188");

    let [rivals] = list(chain(&dir, &["commitments", "--json"])).try_into().unwrap();
    assert_eq!((keys(&rivals), &rivals["hotkey"]), (vec!["hotkey", "block", "text"], &json!("unigram")));
    assert_eq!(rivals["block"], 2_485_010);
    assert_eq!(chain(&dir, &["commitment", "unigram", "--json"]).assert_exit(0).json(), rivals);
    let text = rivals["text"].as_str().unwrap();
    assert!(text.starts_with("local:unigram:"), "{text}");
    let told = chain(&dir, &["commitments"]).assert_exit(0);
    told.assert_stdout_contains(&format!("2,485,010    1  unigram  {text}"));
    let nothing = chain(&dir, &["commitment", "miner", "--json"]).assert_exit(4);
    assert_eq!(nothing.stdout, "");
    nothing.assert_stderr_contains("the hotkey miner has committed nothing on the ledger");
}

#[test]
fn a_text_is_committed_once_within_the_rate_limit_and_read_back() {
    let dir = network();
    let refused = |args: &[&str], code, sentence: &str| {
        dir.assay(&["chain", "commit"]).args(args).run().assert_exit(code).assert_stderr_contains(sentence);
    };
    refused(&["hello"], 2, "`hello` is no model id");
    refused(&[&"x".repeat(129), "--any-text"], 2, "the text has 129 bytes, and the chain takes 128");
    refused(&[MODEL, "--hotkey-file", "key.json"], 2, "name the hotkey by --hotkey NAME");
    refused(&[MODEL, "--hotkey", "stranger"], 2, "assay local register stranger");
    refused(&[MODEL, "--hotkey", "a", "--hotkey-file", "b"], 2, "cannot be used with");
    assert_eq!(list(chain(&dir, &["commitments", "--json"])).len(), 1);

    let committed = chain(&dir, &["commit", MODEL, "--json"]).assert_exit(0).json();
    assert_eq!((&committed["hotkey"], &committed["text"]), (&json!("miner"), &json!(MODEL)));
    assert_eq!(chain(&dir, &["commitment", "miner", "--json"]).assert_exit(0).json(), committed);
    let next = committed["block"].as_u64().unwrap() + 100;
    refused(&["hello", "--any-text"], 4, &format!("takes the next commitment of miner at block {next}"));
    let other = chain(&dir, &["commit", "hello", "--any-text", "--hotkey", "unigram"]).assert_exit(0);
    other.assert_stdout_contains("Committed as unigram at block 2,486,");
    assert_eq!(list(chain(&dir, &["commitments", "--json"])).len(), 2);
}

#[test]
fn weights_are_sent_in_proportion_and_wrong_ones_refused() {
    let dir = network();
    let set = |weights: &str, args: &[&str]| {
        dir.write("weights.json", weights);
        dir.assay(&["chain", "set-weights", "weights.json", "--hotkey", "second"]).args(args).run()
    };
    set("{\"1\": 1}", &[]).assert_exit(2).assert_stderr_contains("assay local register second");
    dir.assay(&["local", "register", "second"]).run().assert_exit(0);
    set("{\"1\": 1}", &[]).assert_exit(2).assert_stderr_contains("has no validator permit");
    dir.assay(&["local", "register", "second", "--stake", "3000"]).run().assert_exit(0);
    set("{\"1\": 1,", &[]).assert_exit(2).assert_stderr_contains("weights.json: EOF while parsing");
    set("{\"1\": 1, \"9\": 1}", &[])
        .assert_exit(2)
        .assert_stderr_contains("weights.json: no hotkey is registered as uid 9");
    set("{\"1\": 1, \"1\": 1}", &[])
        .assert_exit(2)
        .assert_stderr_contains("uid 1 is given two weights at line 1 column");

    let sent = set("{\"0\": 0.5, \"1\": 0.125, \"2\": 1e-9}", &["--json"]).assert_exit(0);
    let answer = sent.json();
    assert_eq!(answer["weights"], json!({"0": 65_535, "1": 16_384}));
    assert_eq!((&answer["hotkey"], &answer["version_key"]), (&json!("second"), &json!(2021)));
    sent.assert_stderr_contains("weights of 1 uids round to 0");
    let neurons = list(chain(&dir, &["neurons", "--json"]));
    assert_eq!(neurons[3]["last_update"], answer["block"]);
    let next = answer["block"].as_u64().unwrap() + 100;
    set("{\"1\": 1}", &[]).assert_exit(4).assert_stderr_contains(&format!("set them again at block {next}"));

    let [rival] = list(chain(&dir, &["miner", "--hotkey", "unigram", "--json"])).try_into().unwrap();
    let [second, first] = rival["weight_from"].as_array().unwrap().as_slice() else { panic!("{rival}") };
    assert_eq!(
        (&second["uid"], &second["hotkey"], &second["stake_share"]),
        (&json!(3), &json!("second"), &json!(0.75))
    );
    let share = second["weight_share"].as_f64().unwrap();
    assert!((share - 16_384.0 / 81_919.0).abs() < 1e-12, "{share}");
    assert_eq!((&first["uid"], &first["weight_share"], &first["stake_share"]), (&json!(0), &json!(1.0), &json!(0.25)));
}

#[test]
fn a_miner_is_told_how_it_stands_and_a_stranger_what_to_do() {
    let dir = network();
    let [miner, rival] =
        list(chain(&dir, &["miner", "--hotkey", "miner", "--hotkey", "unigram", "--json"])).try_into().unwrap();
    assert_eq!((&miner["registered"], &miner["uid"], &miner["tao_per_day"]), (&json!(true), &json!(2), &json!(0.0)));
    let registered = miner["registered_at"].as_u64().unwrap();
    assert_eq!(miner["immunity_ends"], registered + 4_096);
    assert_eq!((&miner["commitment"], &miner["next_commit_block"]), (&Value::Null, &Value::Null));
    // All three are immune, so that immunity protects nobody: who earns nothing comes first.
    assert_eq!((&miner["replacement_rank"], &miner["num_replaceable"]), (&json!(1), &json!(3)));
    assert_eq!((&miner["free_places"], &rival["replacement_rank"]), (&json!(253), &json!(3)));
    let per_day = rival["tao_per_day"].as_f64().unwrap();
    assert!((per_day - 112.188).abs() < 1e-3, "{per_day}");
    assert_eq!((&rival["is_model"], &rival["commitment"]["block"]), (&json!(true), &json!(2_485_010)));

    let both = chain(&dir, &["miner", "--hotkey", "stranger", "--hotkey", "miner"]).assert_exit(0);
    both.assert_stdout_contains("stranger: the hotkey `stranger` is not registered")
        .assert_stdout_contains("miner: uid 2, registered at block 2,486,0")
        .assert_stdout_contains("nobody is replaced while 253 of 256 places are free");
    let nobody = chain(&dir, &["miner", "--hotkey", "stranger", "--json"]).assert_exit(4);
    let reports: Vec<Value> = serde_json::from_str(&nobody.stdout).unwrap();
    assert_eq!((&reports[0]["hotkey"], &reports[0]["registered"]), (&json!("stranger"), &json!(false)));
    nobody.assert_stderr_contains("not registered on the ledger");
}

#[test]
fn which_chain_is_meant_must_be_clear() {
    let dir = Dir::new();
    let refused = |args: &[&str], sentence: &str| {
        dir.assay(&["chain"]).args(args).run().assert_exit(2).assert_stderr_contains(sentence);
    };
    refused(&["status"], "assay local init");
    refused(&["status", "--network", "local", "--endpoint", "ws://127.0.0.1:1"], "which has no endpoint");
    refused(&["status", "--netuid", "8"], "holds subnet 9 only, not 8");
    refused(&["status", "--local", "a", "--endpoint", "ws://127.0.0.1:1"], "cannot be used with");
    refused(&["commitment", "miner", "--endpoint", "ws://127.0.0.1:1"], "`miner` is no address");
    refused(&["miner", "--endpoint", "ws://127.0.0.1:1"], "no hotkey is named");
    refused(&["commit", MODEL, "--endpoint", "ws://127.0.0.1:1"], "--hotkey-file");
}
