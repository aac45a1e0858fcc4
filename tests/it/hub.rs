//! Publishing to a hub that is reached over HTTP, as Hugging Face is, by the real program.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::util::{Dir, Running, TestCommand};

const TOKEN: &str = "hf_abcdefghijklmnopqrstuvwxyz0123";

/// A folder with a trained model in `run/latest`, an embedded network, its hub on a port, and `hub.yaml`, a recipe that
/// names that.
struct Hub {
    dir: Dir,
    endpoint: String,
    _server: Running,
}

impl Hub {
    fn new() -> Self {
        let dir = Dir::with_recipe(2);
        dir.train(&[]).run().assert_exit(0);
        dir.assay(&["local", "init"]).run().assert_exit(0);
        let mut server = dir.assay(&["local", "serve", "--hub", "0", "--token", TOKEN]).spawn();
        let endpoint = server.wait_for_word("http://");
        let hub = format!("hub: {{kind: huggingface, endpoint: \"{endpoint}\", repo: me/model}}\n");
        dir.write("hub.yaml", fs::read_to_string(dir.path("recipe.yaml")).unwrap() + &hub);
        Self { dir, endpoint, _server: server }
    }

    /// `assay` with a token, or with none although this machine may have one.
    fn assay(&self, token: &str, args: &[&str]) -> TestCommand {
        let command = self.dir.assay(args).env("HF_TOKEN", token).env("HF_ACCESS_TOKEN", "");
        command.env("HF_HOME", self.dir.path("nowhere")).env("HF_TOKEN_PATH", self.dir.path("nowhere/token"))
    }

    fn publish(&self, token: &str, args: &[&str]) -> TestCommand {
        self.assay(token, &["publish", "run/latest", "--recipe", "hub.yaml"]).args(args)
    }

    /// The commits of the repository that hold a model.
    fn commits(&self) -> Vec<String> {
        let repository = self.dir.path("checkpoints/local/hub/me/model");
        let Ok(entries) = fs::read_dir(&repository) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let holds_model = |name: &String| repository.join(name).join("model.safetensors").exists();
        names.filter(|name| name.len() == 40 && holds_model(name)).collect()
    }
}

const PRIVATE: [&str; 2] = ["--set", "publish.visibility=private-until-committed"];

#[test]
fn killed_at_any_moment_and_repeated_a_model_is_published_exactly_once_and_seen_by_all() {
    let hub = Hub::new();
    // From when the publish begins, which its journal tells, ever later.
    let journal = || {
        let folder = fs::read_dir(hub.dir.path("checkpoints/local")).unwrap();
        folder.map(|entry| entry.unwrap().path().join("miner.json")).find(|path| path.is_file())
    };
    let mut num_killed = 0;
    for delay_ms in [0, 1, 2, 4, 8, 16, 32, 64, 128] {
        let mut running = hub.publish(TOKEN, &PRIVATE).spawn();
        if running.wait_until(|| journal().is_some()) {
            sleep(Duration::from_millis(delay_ms));
        }
        num_killed += u32::from(running.is_running());
        running.kill();
    }
    assert!(num_killed > 0 && journal().is_some());
    let published = hub.publish(TOKEN, &PRIVATE).args(&["--json"]).run().assert_exit(0).json();
    assert_eq!(hub.commits(), [published["commit"].as_str().unwrap()]);
    let page = hub.dir.path("checkpoints/local/hub/me/model").join(&hub.commits()[0]).join("README.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("# GPT2LMHeadModel, ") && page.contains("Recipe `tiny`, step 2 of 2: 256 tokens"), "{page}");
    hub.publish(TOKEN, &PRIVATE).run().assert_exit(0).assert_stdout_contains("nothing was sent");
    assert_eq!(hub.commits().len(), 1);

    // Who has no token sees it now.
    let compare = ["compare", "--recipe", "hub.yaml", "--pages", "1", "--batches", "2", "--json"];
    let compared = hub.assay("", &compare).run().assert_exit(0).json();
    let find = |hotkey: &str| -> Value {
        let models = compared["models"].as_array().unwrap();
        models.iter().find(|model| model["hotkey"] == hotkey).unwrap().clone()
    };
    assert_eq!((&find("miner")["commit"], &find("miner")["hash"]), (&published["commit"], &published["hash"]));
    assert!(find("miner")["average_loss"].is_f64() && find("unigram")["average_loss"].is_f64(), "{compared}");
}

#[test]
fn a_token_that_is_missing_or_refused_is_told_before_anything_is_written_and_never_shown() {
    let hub = Hub::new();
    hub.publish("", &[]).run().assert_exit(2).assert_stderr_contains("HF_TOKEN");
    let wrong = "hf_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
    for args in [&[] as &[&str], &["--dry-run"]] {
        let outcome = hub.publish(wrong, args).run().assert_exit(2);
        let outcome = outcome.assert_stderr_contains("the environment variable HF_TOKEN");
        assert!(!outcome.stderr.contains(wrong) && !outcome.stdout.contains(wrong), "{}", outcome.stderr);
    }
    // Nor is a rival taken for one that cannot be loaded because of it.
    let compare = ["compare", "--recipe", "hub.yaml", "--pages", "1", "--batches", "2"];
    hub.assay(wrong, &compare).run().assert_exit(2).assert_stderr_contains("HF_TOKEN");
    assert!(!hub.dir.path("checkpoints/local/hub/me").exists());

    let secret = format!("{}# {TOKEN}\n", fs::read_to_string(hub.dir.path("hub.yaml")).unwrap());
    hub.dir.write("secret.yaml", &secret);
    let setting = format!("hub.token={TOKEN}");
    for args in [&["check", "secret.yaml"] as &[&str], &["check", "hub.yaml", "--set", &setting]] {
        let outcome = hub.assay("", args).run().assert_exit(2);
        let outcome = outcome.assert_stderr_contains("a token of the hub has no place in a");
        assert!(!outcome.stderr.contains(TOKEN), "{}", outcome.stderr);
    }
}

#[test]
fn a_hub_that_is_not_there_is_an_outage_and_no_verdict() {
    let hub = Hub::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nowhere = format!("hub.endpoint=http://127.0.0.1:{port}");
    let compare = ["compare", "--recipe", "hub.yaml", "--pages", "1", "--batches", "2", "--set", &nowhere];
    let outcome = hub.assay(TOKEN, &compare).run().assert_exit(3);
    outcome.assert_stderr_contains(&format!("http://127.0.0.1:{port}"));
    // Of the recipe's own, or the one that Python's tools are told.
    let text = fs::read_to_string(hub.dir.path("hub.yaml")).unwrap();
    hub.dir.write("elsewhere.yaml", text.replace(&format!("endpoint: \"{}\", ", hub.endpoint), ""));
    let dry = ["publish", "run/latest", "--recipe", "elsewhere.yaml", "--dry-run"];
    let dry = hub.assay(TOKEN, &dry).env("HF_ENDPOINT", &hub.endpoint).run().assert_exit(0);
    dry.assert_stdout_contains(&hub.endpoint);
}
