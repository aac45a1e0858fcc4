//! Wrong input: exit code 2, a sentence that says what is wrong and where, and nothing left on the disk.

use crate::util::{Dir, Outcome};

/// `train` and `check` both refuse; nothing is written, nothing answered.
fn refused(dir: &Dir, args: &[&str]) -> Outcome {
    let before = dir.listing();
    let check = dir.assay(&["check", "recipe.yaml"]).args(args).run().assert_exit(2);
    let train = dir.train(args).run().assert_exit(2);
    assert_eq!(train.stdout, "", "{train:?}");
    for outcome in [&check, &train] {
        assert!(outcome.stderr.starts_with("error: "), "{outcome:?}");
    }
    assert_eq!(dir.listing(), before);
    train
}

fn with_recipe_edited(from: &str, to: &str) -> Dir {
    let dir = Dir::with_recipe(2);
    let recipe = std::fs::read_to_string(dir.path("recipe.yaml")).unwrap();
    assert!(recipe.contains(from));
    dir.write("recipe.yaml", recipe.replacen(from, to, 1));
    dir
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_key_that_was_meant() {
    refused(&with_recipe_edited("width: 32", "widht: 32"), &[])
        .assert_stderr_contains("recipe.yaml")
        .assert_stderr_contains("widht")
        .assert_stderr_contains("width")
        .assert_stderr_contains("recipe.yaml:3:");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_key_and_place() {
    refused(&with_recipe_edited("layers: 1", "layers: big"), &[])
        .assert_stderr_contains("model.layers")
        .assert_stderr_contains("big")
        .assert_stderr_contains("recipe.yaml:3:");
}

#[test]
fn an_override_of_an_unknown_key_is_refused() {
    refused(&Dir::with_recipe(2), &["--set", "model.widht=32"]).assert_stderr_contains("model.widht");
}

#[test]
fn a_missing_recipe_is_named() {
    refused(&Dir::new(), &[]).assert_stderr_contains("recipe.yaml");
}

/// GPT-2 large: 774,030,080 parameters, 0.3 % over the limit in force since block 2,405,920.
#[test]
fn a_model_over_the_limit_is_refused_before_anything_is_written() {
    let dir = with_recipe_edited("layers: 1, heads: 2, width: 32", "layers: 36, heads: 20, width: 1280, context: 1024");
    refused(&dir, &[]).assert_stderr_contains("774,030,080").assert_stderr_contains("772,000,000");
    let before = dir.listing();
    dir.assay(&["check", "recipe.yaml", "--explain"]).run().assert_exit(2).assert_stderr_contains("774,030,080");
    assert_eq!(dir.listing(), before);
}

#[test]
fn the_limit_is_that_of_the_block_the_recipe_names() {
    let dir = with_recipe_edited("layers: 1, heads: 2, width: 32", "layers: 24, heads: 16, width: 1024, context: 1024");
    refused(&dir, &["--set", "rules.block=2405919"])
        .assert_stderr_contains("354,823,168")
        .assert_stderr_contains("186,000,000");
    dir.assay(&["check", "recipe.yaml", "--set", "rules.block=2405920"]).run().assert_exit(0);
}

#[test]
fn a_context_below_the_rules_sequence_length_is_refused() {
    refused(&with_recipe_edited("width: 32", "width: 32, context: 32"), &[])
        .assert_stderr_contains("model.context")
        .assert_stderr_contains("32")
        .assert_stderr_contains("64");
}

#[test]
fn text_that_holds_nothing_is_refused_with_the_files_name() {
    let dir = Dir::with_recipe(2);
    dir.write("train.jsonl", "");
    let before = dir.listing();
    let outcome = dir.train(&[]).run().assert_exit(2).assert_stderr_contains("train.jsonl");
    assert_eq!(outcome.stdout, "");
    assert_eq!(dir.listing(), before);
}

#[test]
fn text_that_is_not_utf8_is_refused_with_file_and_line() {
    for (name, lines) in [
        ("bad.jsonl", [&b"{\"text\":\"one\"}\n"[..], b"{\"text\":\"two\"}\n", b"{\"text\":\"caf\xe9\"}\n"]),
        ("bad.txt", [b"one\n", b"two\n", b"caf\xe9\n"]),
    ] {
        let dir = Dir::with_recipe(2);
        let path = dir.write(name, lines.concat());
        let before = dir.listing();
        let set = format!("data.paths=[\"{}\"]", path.display());
        dir.train(&["--set", &set])
            .run()
            .assert_exit(2)
            .assert_stderr_contains(name)
            .assert_stderr_contains_any(&["line 3", &format!("{name}:3")])
            .assert_stderr_contains("UTF-8");
        assert_eq!(dir.listing(), before);
    }
}

#[test]
fn a_folder_that_is_no_run_is_left_alone() {
    let dir = Dir::with_recipe(2);
    dir.write("mine/thesis.txt", "years of work");
    dir.write("file", "");
    let before = dir.listing();
    for (folder, part) in [("mine", "thesis.txt"), ("file", "is a file")] {
        for flags in [&[][..], &["--fresh"], &["--dry-run"]] {
            let set = format!("checkpoint.dir={}", dir.path(folder).display());
            dir.train(&[&["--set", &set][..], flags].concat()).run().assert_exit(2).assert_stderr_contains(part);
            assert_eq!(dir.listing(), before);
        }
    }
}

#[test]
fn a_run_whose_recipe_is_lost_is_not_guessed_at() {
    let dir = Dir::with_recipe(2);
    dir.train(&[]).run().assert_exit(0);
    std::fs::remove_file(dir.path("run/recipe.yaml")).unwrap();
    let before = dir.listing();
    dir.train(&[]).run().assert_exit(2).assert_stderr_contains("recipe.yaml").assert_stderr_contains("--fresh");
    assert_eq!(dir.listing(), before);
    dir.train(&["--fresh"]).run().assert_exit(0);
}

#[test]
fn a_run_that_diverged_is_no_success() {
    let dir = Dir::with_recipe(4);
    let args = ["--set", "optimizer.learning_rate=1e30", "--set", "schedule.warmup_steps=0"];
    dir.train(&args).run().assert_exit(1).assert_stderr_contains("diverged").assert_stderr_contains("held-out loss");
    assert!(!dir.path("run/best").exists());
}

#[test]
fn text_that_is_cut_off_nearly_whole_is_told_of() {
    let dir = Dir::with_recipe(2);
    let path = dir.write("book.txt", "a word after another ".repeat(5000));
    let set = format!("data.paths=[\"{}\"]", path.display());
    for flags in [&[][..], &["--dry-run"]] {
        let args = [&["--set", &set, "--set", "data.max_document_tokens=1024"][..], flags].concat();
        dir.train(&args).run().assert_exit(0).assert_stderr_contains("% of the text is cut off");
    }
}

#[test]
fn a_shape_too_large_for_the_machine_is_refused_by_bench() {
    let sizes = ["--layers", "1000", "--width", "8192", "--heads", "64"];
    for what in ["train", "score"] {
        Dir::new().assay(&["bench", what]).args(&sizes).run().assert_exit(2).assert_stderr_contains("of memory");
        let paper = ["--paper", "NVIDIA H200"];
        let on_paper = Dir::new().assay(&["bench", what]).args(&sizes).args(&paper).run();
        on_paper.assert_exit(2).assert_stderr_contains("of memory");
    }
}

#[test]
fn bench_says_what_it_needs_a_gpu_for_and_which_cards_it_knows() {
    for (args, words) in [
        (&["train", "--profile", "--device", "cpu"][..], "--paper CARD"),
        (&["score", "--paper", "H100"], "`NVIDIA H100 80GB HBM3`"),
        (&["card", "--device", "cpu"], "give a GPU, such as cuda:0"),
        (&["card", "--width", "10", "--heads", "3"], "multiple of --heads"),
    ] {
        Dir::new().assay(&["bench"]).args(args).run().assert_exit(2).assert_stderr_contains(words);
    }
}

#[test]
fn a_folder_without_shards_is_not_served() {
    let dir = Dir::new();
    std::fs::write(dir.path("text.jsonl"), "{}").unwrap();
    for (shards, sentence) in [(".", "holds no shards"), ("gone", "there is no folder gone")] {
        let serve = ["local", "serve", "--dataset", "0", "--shards", shards];
        dir.assay(&serve).run().assert_exit(2).assert_stderr_contains(sentence);
    }
}

#[test]
fn a_named_pipe_in_a_model_folder_is_refused_instead_of_waited_for() {
    let dir = Dir::with_recipe(2);
    dir.train(&[]).run().assert_exit(0);
    for name in ["config.json", "model.safetensors"] {
        let model = dir.path("model");
        std::fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(dir.path("run/latest").join(file), model.join(file)).unwrap();
        }
        std::fs::remove_file(model.join(name)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(model.join(name)).status().unwrap().success());
        for verb in ["score", "inspect"] {
            dir.assay(&[verb, "model"]).run().assert_exit(2).assert_stderr_contains("not a regular file");
        }
        std::fs::remove_dir_all(&model).unwrap();
    }
}

/// Whether this machine has a card; then what these tests refuse may well work.
fn has_gpu() -> bool {
    std::path::Path::new("/dev/nvidiactl").exists()
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_a_sentence_before_anything_is_written() {
    if has_gpu() {
        return;
    }
    let dir = Dir::with_recipe(2);
    let before = dir.listing();
    for args in [&["--device", "cuda"][..], &["--set", "train.device=cuda:0"], &["--device", "cuda", "--dry-run"]] {
        dir.train(args)
            .run()
            .assert_exit(2)
            .assert_stderr_contains("No GPU can be used")
            .assert_stderr_contains("cpu or auto");
        assert_eq!(dir.listing(), before);
    }
    // The run may be meant for another machine.
    dir.assay(&["check", "recipe.yaml", "--set", "train.device=cuda"])
        .run()
        .assert_exit(0)
        .assert_stdout_contains("on the GPU")
        .assert_stdout_contains("this machine has no GPU");

    dir.train(&["--device", "auto"]).run().assert_exit(0);
    dir.assay(&["local", "init"]).run().assert_exit(0);
    for args in [
        &["score", "run/latest"][..],
        &["bench", "score", "--layers", "1", "--width", "8", "--seq", "8"],
        &["compare", "--recipe", "recipe.yaml"],
        &["publish", "run/latest", "--recipe", "recipe.yaml", "--repo", "me/model", "--gate"],
    ] {
        let outcome = dir.assay(args).args(&["--device", "cuda:1"]).run().assert_exit(2);
        outcome.assert_stderr_contains("No GPU can be used");
    }
}

#[test]
fn a_device_that_does_not_exist_is_refused_with_those_that_do() {
    let dir = Dir::with_recipe(2);
    for device in ["gpu", "cuda:x", "0"] {
        let set = format!("train.device=\"{device}\"");
        refused(&dir, &["--set", &set])
            .assert_stderr_contains("train.device")
            .assert_stderr_contains("auto, cpu, cuda");
        dir.train(&["--device", device]).run().assert_exit(2).assert_stderr_contains("auto, cpu, cuda");
    }
    refused(&dir, &["--set", "train.device=cuda", "--set", "model.backend=candle"])
        .assert_stderr_contains("train.device")
        .assert_stderr_contains("candle");
}

#[test]
fn an_unknown_flag_or_verb_is_refused() {
    let dir = Dir::with_recipe(2);
    for args in [
        &["train", "recipe.yaml", "--frehs"][..],
        &["trian"],
        &["inspect"],
        &["train", "recipe.yaml", "--resume", "--fresh"],
    ] {
        let outcome = dir.assay(args).run().assert_exit(2);
        assert_eq!(outcome.stdout, "");
    }
    assert!(!dir.path("run").exists());
}

#[test]
fn a_folder_that_holds_no_model_is_refused() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("empty")).unwrap();
    for folder in ["empty", "absent"] {
        dir.assay(&["score", folder]).run().assert_exit(2).assert_stderr_contains(folder);
    }
}

#[test]
fn a_dry_run_checks_everything_and_writes_nothing() {
    let dir = Dir::with_recipe(2);
    let before = dir.listing();
    dir.train(&["--dry-run"]).run().assert_exit(0);
    dir.write("held_out.jsonl", b"{\"text\":\"caf\xe9\"}\n");
    dir.train(&["--dry-run"]).run().assert_exit(2).assert_stderr_contains("held_out.jsonl");
    assert_eq!(dir.listing(), before);
}

#[test]
fn every_recipe_that_is_shipped_passes_check() {
    let recipes = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes");
    let mut num_recipes = 0;
    for entry in std::fs::read_dir(recipes).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            Dir::new().assay(&["check"]).arg(&path).run().assert_exit(0);
            num_recipes += 1;
        }
    }
    assert!(num_recipes >= 3, "{num_recipes} recipes in {recipes}");
}
