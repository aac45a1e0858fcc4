//! The machine-readable answers that scripts rely on: one JSON object on stdout, everything else on stderr.

use serde_json::Value;

use crate::util::{Dir, NUM_PARAMETERS};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A run of two steps; its model is `run/latest`.
fn trained() -> Dir {
    let dir = Dir::with_recipe(2);
    let outcome = dir.train(&["--device", "cpu"]).run().assert_exit(0);
    outcome.assert_stdout_contains("Held-out loss").assert_stdout_contains("run/latest");
    dir
}

#[test]
fn inspect_answers_with_one_object() {
    let dir = trained();
    let answer = dir.assay(&["inspect", "run/latest", "--json", "--sequence-length", "64"]).run().assert_exit(0).json();
    assert_eq!(keys(&answer), ["architecture", "parameters", "bytes", "hash", "ok", "reasons"]);
    assert_eq!(answer["architecture"], "GPT2LMHeadModel");
    assert_eq!(answer["parameters"], NUM_PARAMETERS);
    let num_bytes: u64 =
        std::fs::read_dir(dir.path("run/latest")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(answer["bytes"], num_bytes);
    assert_eq!(answer["hash"].as_str().unwrap().len(), 44, "SHA-256 in base64: {answer}");
    assert_eq!((&answer["ok"], &answer["reasons"]), (&Value::Bool(true), &Value::Array(Vec::new())));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = trained();
    let args = ["inspect", "run/latest", "--sequence-length", "64"];
    let outcome = dir.assay(&args).run_with_closed_stdout().assert_exit(0);
    assert!(!outcome.stderr.contains("error"), "{outcome:?}");
}

#[test]
fn score_answers_with_one_loss_a_list() {
    let dir = trained();
    let long: Vec<u32> = (0..64).map(|i| i * 700).collect();
    let too_long: Vec<u32> = (0..65).collect();
    let lists = serde_json::json!([
        [464, 18364, 4499, 257, 2746],
        long,
        too_long,
        [5, 50_257, 6],
        [464, 18364, 4499, 257, 2746]
    ]);
    dir.write("tokens.json", lists.to_string());
    let answer = dir.assay(&["score", "run/latest", "--tokens", "tokens.json", "--json"]).run().assert_exit(0).json();
    assert_eq!(keys(&answer), ["losses"]);
    let losses = answer["losses"].as_array().unwrap();
    assert_eq!(losses.len(), 5, "{answer}");
    for i in [0, 1] {
        // Two steps after a random start the model knows next to nothing: about ln(50257) = 10.82.
        let loss = losses[i].as_f64().unwrap();
        assert!((9.0..12.0).contains(&loss), "{answer}");
        assert_eq!(f64::from(loss as f32), loss, "a loss is an f32: {answer}");
    }
    // As for the validator: more tokens than positions, and an id outside the vocabulary.
    assert_eq!((&losses[2], &losses[3]), (&Value::from("inf"), &Value::from("inf")));
    assert_eq!(losses[0], losses[4]);
}

/// Every model of every family whose values are recorded, whatever its name; without quirks where that is recorded too.
#[test]
fn golden_models_are_scored_as_the_reference_did_and_without_its_quirks() {
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap());
    let dir = Dir::new();
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models");
    let folders = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut num_without_quirks = 0;
    for folder in folders {
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        dir.write("tokens.json", expected["batches"].to_string());
        let check = |reference: &str, expected: &Value| {
            let model = folder.to_str().unwrap();
            let args = ["score", model, "--tokens", "tokens.json", "--json", "--reference", reference];
            let answer = dir.assay(&args).run().assert_exit(0).json();
            let losses = answer["losses"].as_array().unwrap();
            for (found, expected) in losses.iter().zip(expected.as_array().unwrap()) {
                let (found, expected) = (number(found), number(expected));
                assert!(
                    found == expected || (found - expected).abs() <= 5e-6,
                    "{model}, {reference}: {found} {expected}"
                );
            }
        };
        check("transformers-4.38.0", &expected["losses_reference"]);
        // Two quirks are of the attention; what the reference found without them is recorded.
        let (name, eager) = (folder.file_name().unwrap().to_str().unwrap(), &expected["losses_if_eager_attention"]);
        if name.contains("sliding") || name.contains("alibi") {
            num_without_quirks += 1;
            assert_ne!(eager, &expected["losses_reference"], "{name}");
            check("none", eager);
        }
    }
    assert!(num_without_quirks > 0);
}

#[test]
fn outputs_that_are_repetition_make_every_loss_infinite() {
    let dir = Dir::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/llama");
    let row = |seed: u32| (0..60).map(|i| (i * 7 + seed) % 320).collect::<Vec<u32>>();
    let score = |lists: [Vec<u32>; 2]| {
        dir.write("tokens.json", serde_json::json!(lists).to_string());
        dir.assay(&["score", model, "--tokens", "tokens.json", "--outputs", "--json"]).run().assert_exit(0)
    };
    // The same prompt twice: the outputs are equal at every position.
    let alike = score([row(1), row(1)]).assert_stderr_contains("alike or repetitive").json();
    assert_eq!(keys(&alike), ["losses", "outputs", "reasonable_output"]);
    assert_eq!(alike["losses"], serde_json::json!(["inf", "inf"]));
    assert_eq!(alike["reasonable_output"], false);
    let outputs = alike["outputs"].as_array().unwrap();
    assert!(outputs[0] == outputs[1] && outputs[0].as_array().unwrap().len() == 30, "{alike}");
}

#[test]
fn tokens_that_are_no_lists_of_ids_are_refused() {
    let dir = trained();
    for content in ["{}", "[1,2,3]", "[[1,-2]]", "[[1.5]]", "[[1,2]", ""] {
        dir.write("tokens.json", content);
        let outcome = dir.assay(&["score", "run/latest", "--tokens", "tokens.json", "--json"]).run();
        let outcome = outcome.assert_exit(2).assert_stderr_contains("tokens.json");
        assert_eq!(outcome.stdout, "");
    }
}

/// Rates and arithmetic belong together: 6N + 6LdT operations a trained token, a third of it a scored one.
#[test]
fn bench_answers_with_rates_that_belong_together() {
    let dir = Dir::new();
    let (layers, width, vocab, seq, batch) = (1.0, 32.0, 1000.0, 64.0, 2.0);
    for (what, part) in [("train", 1.0), ("score", 1.0 / 3.0)] {
        let sizes =
            "--layers 1 --width 32 --heads 2 --vocab 1000 --seq 64 --batch 2 --steps 3 --threads 2 --device cpu --json";
        let sizes: Vec<_> = sizes.split(' ').collect();
        let answer = dir.assay(&["bench", what]).args(&sizes).run().assert_exit(0).json();
        assert_eq!(keys(&answer), ["tokens_per_s", "step_s", "gflops", "tflops", "mfu", "peak_mib"]);
        let [tokens_per_s, step_s, gflops, tflops, peak_mib] =
            ["tokens_per_s", "step_s", "gflops", "tflops", "peak_mib"].map(|key| answer[key].as_f64().unwrap());
        let parameters = vocab * width + seq * width + layers * (12.0 * width * width + 13.0 * width) + 2.0 * width;
        let flops_per_token = part * (6.0 * parameters + 6.0 * layers * width * seq);
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        assert!(close(gflops, tokens_per_s * flops_per_token / 1e9), "{what}: {answer}");
        assert!(close(1000.0 * tflops, gflops) && answer["mfu"].is_null(), "no peak of a CPU is known: {answer}");
        assert!(close(tokens_per_s * step_s, batch * seq), "{what}: {answer}");
        assert!((1.0..4096.0).contains(&peak_mib), "{what}: {answer}");
    }
}

/// What a step would do on a card is told where there is none, and is the same model's arithmetic.
#[test]
fn bench_tells_on_paper_what_a_card_would_do() {
    let dir = Dir::new();
    let sizes = "--layers 2 --width 64 --heads 1 --mlp-width 96 --vocab 1000 --seq 64 --batch 2".split(' ');
    let args: Vec<&str> = sizes.chain(["--paper", "NVIDIA H100 80GB HBM3"]).collect();
    for what in ["train", "score"] {
        let answer = dir.assay(&["bench", what, "--json"]).args(&args).run().assert_exit(0).json();
        let operations = answer["operations"].as_array().unwrap();
        let sum = |key: &str| operations.iter().map(|operation| operation[key].as_f64().unwrap()).sum::<f64>();
        let in_blocks = 2.0 * (64.0 * 192.0 + 64.0 * 64.0 + 2.0 * 64.0 * 96.0);
        let products = 2.0 * 128.0 * (in_blocks + 1024.0 * 64.0) / 1e9;
        // Forward attention has two products of which causality leaves half, and backward, in two kernels, seven.
        let attention = 2.0 * 2.0 * (2.0 * 64.0 * 64.0 * 64.0) / 1e9;
        let flops = if what == "train" { 3.0 * products + 4.5 * attention } else { products + attention };
        assert!((sum("gflop") / flops - 1.0).abs() < 1e-9, "{answer}");
        let floor = answer["floor"]["seconds"].as_f64().unwrap();
        assert!((sum("floor_seconds") / floor - 1.0).abs() < 1e-9, "{answer}");
        assert!(answer.get("tokens_per_s").is_none(), "{answer}");
        let text = dir.assay(&["bench", what]).args(&args).run().assert_exit(0).stdout;
        assert!(text.contains("ms at least") && text.contains("attention_forward_d64"), "{text}");
    }
}

#[test]
fn a_run_records_what_its_readers_look_for() {
    let dir = trained();
    let text = std::fs::read_to_string(dir.path("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 2);
    for line in &steps {
        for key in ["step", "time", "loss", "grad_norm", "learning_rate", "tokens_per_s", "data_wait"] {
            assert!(line[key].is_number(), "{key} in {line}");
        }
        assert!((0.0..=1.0).contains(&line["data_wait"].as_f64().unwrap()), "{line}");
    }
    // Each record says where the time since the record before went, what writing that one took included.
    let share = |line: &Value, phase: &str| line[format!("time_{phase}")].as_f64().unwrap();
    for line in &steps {
        let phases = ["data", "forward_backward", "sum", "optimizer", "saving", "evaluating", "scoring"];
        let sum: f64 = phases.map(|phase| share(line, phase)).iter().sum();
        assert!((sum - 1.0).abs() < 1e-6, "{line}");
        assert!(share(line, "forward_backward") > 0.0 && share(line, "optimizer") > 0.0, "{line}");
        // Of a step's own time the wait for data is at least the part of all time.
        assert!(share(line, "data") <= line["data_wait"].as_f64().unwrap() + 0.01, "{line}");
        assert!(line.get("mfu").is_none(), "no peak of a CPU is known: {line}");
    }
    assert_eq!(share(steps[0], "saving"), 0.0);
    assert!(share(steps[1], "saving") > 0.0);
    assert_eq!(lines.iter().filter(|line| line["held_out_loss"].is_number()).count(), 1, "evaluated at the end");
    let names: Vec<String> =
        std::fs::read_dir(dir.path("run")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("events.out.tfevents.")).count(), 1, "{names:?}");
    for name in ["recipe.yaml", "latest", "best", "step-00000002", "state"] {
        assert!(names.iter().any(|other| other == name), "no {name} in {names:?}");
    }
}
