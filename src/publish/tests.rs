//! Publishing to an embedded network in a temporary folder: killed between any two steps, refused, repeated.

#![allow(clippy::unwrap_used)]

mod killed;
mod privacy;
mod requests;

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::chain::ledger::{Ledger, Settings};
use crate::error::exit_code;
use crate::hub::fetch::Cache;
use crate::hub::folder::FolderHub;
use crate::hub::hash::directory_hash;
use crate::hub::testing::HubOver;
use crate::hub::{ATTRIBUTES_FILE, Hub, RemoteFile, Sha256Sum, Upload};
use crate::model::arch::Arch;
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::weights;
use crate::rules::Rules;
use crate::score::cache::LossCache;

const STEPS: [Step; 10] = [
    Step::Checked,
    Step::Begun,
    Step::Hidden,
    Step::Uploaded,
    Step::UploadNoted,
    Step::Verified,
    Step::SendingNoted,
    Step::Sent,
    Step::ReadBack,
    Step::Shown,
];

const BOTH: [Visibility; 2] = [Visibility::Public, Visibility::PrivateUntilCommitted];

struct Fixture {
    dir: TempDir,
    network: Network,
    ledger: Ledger,
    criteria: Criteria,
    visibility: Visibility,
}

impl Fixture {
    /// A network of 1,000 blocks with the hotkey `miner`, and the model folders `a` and `b`.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let path = dir.path().join("ledger.sqlite");
        let ledger = Ledger::create(&path, &Settings::new(2_485_000, now - 12_000_000, 12_000)).unwrap();
        ledger.register("miner").unwrap();
        let hub = FolderHub::create(&dir.path().join("hub")).unwrap();
        let network = Network {
            hub: Box::new(hub),
            chain: Box::new(Ledger::open(&path).unwrap()),
            hotkeys: vec!["miner".to_owned()],
            cache: Cache::new(&dir.path().join("cache")),
            losses: LossCache::none(),
        };
        let criteria = Criteria { sequence_length: 16, ..Rules::default().criteria };
        let fixture = Self { dir, network, ledger, criteria, visibility: Visibility::Public };
        fixture.write_model("a", 0.5);
        fixture.write_model("b", 0.25);
        fixture
    }

    /// As [`new`](Self::new), to publish so that a model is seen as told.
    fn seen(visibility: Visibility) -> Self {
        Self { visibility, ..Self::new() }
    }

    fn is_private(&self) -> Option<bool> {
        self.network.hub.is_private("me/model").unwrap()
    }

    fn write_model(&self, name: &str, value: f32) {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let arch = Arch::gpt2(64, 16, 8, 1, 1);
        let layout = Layout::of(&arch);
        weights::save(&dir, &ModelConfig::new(arch, 0.0), &layout, &vec![value; layout.len()]).unwrap();
    }

    /// An order for a model, as most tests give it.
    fn order<'a>(&'a self, model_dir: &'a Path) -> Order<'a> {
        Order {
            model_dir,
            repo_id: "me/model",
            hotkey: "miner",
            criteria: &self.criteria,
            waits: false,
            visibility: self.visibility,
            card: Some("The page of a model.\n"),
            hashes: self.network.losses.hashes(),
        }
    }

    fn hold(&self) -> Hold {
        Hold::take(self.network.chain.as_ref(), "miner").unwrap()
    }

    fn run(&self, model: &str, after: &dyn Fn(Step) -> Result<()>) -> Result<Published> {
        self.run_to("me/model", "miner", model, after)
    }

    fn run_to(
        &self,
        repo_id: &str,
        hotkey: &str,
        model: &str,
        after: &dyn Fn(Step) -> Result<()>,
    ) -> Result<Published> {
        let model_dir = self.dir.path().join(model);
        let order = Order { repo_id, hotkey, ..self.order(&model_dir) };
        let hold = Hold::take(self.network.chain.as_ref(), hotkey)?;
        in_steps(&self.network, &order, &hold, &|_| Ok(()), &quiet(), after)
    }

    fn publish(&self, model: &str) -> Result<Published> {
        self.run(model, &|_| Ok(()))
    }

    /// Publishes and dies after a step.
    fn publish_killed_after(&self, model: &str, step: Step) {
        let killed = self.run(model, &|done| if done == step { bail!("killed") } else { Ok(()) });
        assert_eq!(killed.unwrap_err().to_string(), "killed", "{step:?}");
    }

    /// The commits of the repository, but for one that the hub makes by itself, and what the hotkey has ever committed.
    fn written(&self) -> (Vec<String>, Vec<String>) {
        let texts = self.ledger.commitments_of("miner").unwrap();
        let texts = texts.into_iter().map(|commitment| String::from_utf8(commitment.bytes).unwrap()).collect();
        let hub = &self.network.hub;
        let is_ours =
            |commit: &String| hub.files("me/model", commit).unwrap().iter().any(|file| file.path != ATTRIBUTES_FILE);
        (hub.commits("me/model").unwrap().into_iter().filter(is_ours).collect(), texts)
    }

    /// Panics unless there is one commit, one commitment, and they are of the model `a`.
    fn assert_published_once(&self, context: &str) {
        let (commits, texts) = self.written();
        let hash = directory_hash(&self.dir.path().join("a")).unwrap();
        assert_eq!(commits.len(), 1, "{context}");
        assert_eq!(texts, [format!("me:model:{}:{hash}", commits[0])], "{context}");
        assert_eq!(self.is_private(), Some(false), "{context}");
        let entry = self.hold().read().unwrap().unwrap();
        assert!(!entry.is_open() && entry.hash == hash && entry.sent.as_ref() == Some(&texts[0]), "{context}");
    }
}

fn quiet() -> Printer {
    Printer::with_streams(std::io::sink(), std::io::sink(), true)
}

#[test]
fn a_model_goes_up_is_committed_and_read_back_and_a_second_time_nothing_is_sent() {
    let fixture = Fixture::new();
    let published = fixture.publish("a").unwrap();
    assert!(!published.before);
    fixture.assert_published_once("published");
    let again = fixture.publish("a").unwrap();
    assert_eq!(again, Published { before: true, ..published });
    fixture.assert_published_once("published again");
}

#[test]
fn killed_between_any_two_steps_and_repeated_a_model_is_published_exactly_once() {
    for (visibility, step) in BOTH.into_iter().flat_map(|visibility| STEPS.map(|step| (visibility, step))) {
        let fixture = Fixture::seen(visibility);
        fixture.publish_killed_after("a", step);
        let published = fixture.publish("a").unwrap();
        assert_eq!(published.before, matches!(step, Step::Sent | Step::ReadBack | Step::Shown), "{step:?}");
        fixture.assert_published_once(&format!("{visibility:?}, {step:?}"));
    }
}

#[test]
fn killed_twice_a_model_is_still_published_exactly_once() {
    for first in STEPS {
        for second in STEPS.into_iter().take(7) {
            // After the commitment has been sent, the second attempt finds it and takes no steps.
            if matches!(first, Step::Sent | Step::ReadBack | Step::Shown) {
                continue;
            }
            let fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
            fixture.publish_killed_after("a", first);
            fixture.publish_killed_after("a", second);
            fixture.publish("a").unwrap();
            fixture.assert_published_once(&format!("{first:?}, {second:?}"));
        }
    }
}

#[test]
fn a_commit_that_somebody_pushed_in_between_does_not_make_a_second_upload() {
    let fixture = Fixture::new();
    fixture.publish_killed_after("a", Step::UploadNoted);
    let other = fixture.dir.path().join("b");
    fixture.network.hub.upload(&Upload::new("me/model", &other, &["config.json"], "by hand")).unwrap();
    let published = fixture.publish("a").unwrap();
    let (commits, texts) = fixture.written();
    assert_eq!((commits.len(), texts.len()), (2, 1));
    assert_eq!(published.metadata.id.commit.as_ref(), Some(&commits[1]));
}

#[test]
fn another_model_after_an_interrupted_one_leaves_its_upload_and_commits_the_new_one() {
    let fixture = Fixture::new();
    fixture.publish_killed_after("b", Step::SendingNoted);
    fixture.publish("a").unwrap();
    let (commits, texts) = fixture.written();
    assert_eq!((commits.len(), texts.len()), (2, 1));
    assert!(texts[0].starts_with(&format!("me:model:{}:", commits[0])));
}

#[test]
fn the_rate_limit_is_found_before_anything_is_uploaded() {
    let fixture = Fixture::new();
    fixture.publish("a").unwrap();
    let error = fixture.publish("b").unwrap_err();
    assert_eq!(exit_code(&error), 4);
    assert!(error.to_string().contains("takes the next commitment of miner at block 2,486,1"), "{error}");
    assert!(
        error.to_string().contains("in about 20 min 0 s") || error.to_string().contains("in about 19 min"),
        "{error}"
    );
    fixture.assert_published_once("refused");
}

#[test]
fn what_cannot_be_published_is_refused_before_anything_is_uploaded() {
    let fixture = Fixture::new();
    let go = |_: Step| Ok(());
    fixture.write_model("nan", f32::NAN);
    let long = format!("me/{}", "x".repeat(39));
    for (repo_id, hotkey, model, expected) in [
        ("me/model", "nobody", "a", "the hotkey `nobody` is not registered"),
        (long.as_str(), "miner", "a", "42 characters; it must have more than 3 and at most 41"),
        ("memodel", "miner", "a", "not of the form namespace/name"),
        ("me/model", "miner", "nan", "numbers that are not finite"),
        ("me/model", "miner", "hub", "config.json"),
    ] {
        let error = fixture.run_to(repo_id, hotkey, model, &go).unwrap_err();
        assert_eq!(exit_code(&error), 2, "{error:#}");
        assert!(error.to_string().contains(expected), "{error:#}");
    }
    let small = Criteria { max_parameters: 100, ..fixture.criteria.clone() };
    let model_dir = fixture.dir.path().join("a");
    let order = Order { criteria: &small, ..fixture.order(&model_dir) };
    let error = publish(&fixture.network, &order, &fixture.hold(), &|_| Ok(()), &quiet()).unwrap_err();
    assert!(error.to_string().contains("the limit is 100"), "{error:#}");
    assert_eq!(fixture.written(), (vec![], vec![]));
    assert_eq!(fs::read_dir(fixture.dir.path().join("hub")).unwrap().count(), 0);
}

#[test]
fn a_field_that_has_changed_stops_the_commitment_and_the_next_try_uses_the_upload() {
    let fixture = Fixture::new();
    let model_dir = fixture.dir.path().join("a");
    let order = fixture.order(&model_dir);
    let changed = |_: &Snapshot| Err("the field has changed".to_owned());
    let error = publish(&fixture.network, &order, &fixture.hold(), &changed, &quiet()).unwrap_err();
    assert_eq!(exit_code(&error), 4);
    assert!(
        error.to_string().contains("the field has changed: the model is uploaded, but was not committed"),
        "{error}"
    );
    let (commits, texts) = fixture.written();
    assert_eq!((commits.len(), texts.len()), (1, 0));
    fixture.publish("a").unwrap();
    fixture.assert_published_once("after the change");
}

#[test]
fn a_hotkey_belongs_to_one_process_at_a_time() {
    let fixture = Fixture::new();
    let hold = fixture.hold();
    let error = Hold::take(fixture.network.chain.as_ref(), "miner").unwrap_err();
    assert_eq!(exit_code(&error), 2);
    let expected = format!("process {} publishes under the hotkey miner", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
    drop(hold);
    fixture.hold();
}

#[test]
fn a_rehearsal_writes_nothing_and_tells_what_would_be_sent() {
    let fixture = Fixture::new();
    let model_dir = fixture.dir.path().join("a");
    let order = fixture.order(&model_dir);
    let text = rehearse(&fixture.network, &order).unwrap();
    let hash = directory_hash(&model_dir).unwrap();
    assert!(text.contains("  model.safetensors  ") && text.contains(&format!("  me:model:COMMIT:{hash}\n")), "{text}");
    let length = "me:model:".len() + 40 + 1 + hash.len();
    assert!(text.contains(&format!("as miner (uid 0), {length} of at most 128 bytes")), "{text}");
    assert_eq!(fixture.written(), (vec![], vec![]));
    assert!(!fixture.dir.path().join("publish").exists() && !fixture.dir.path().join("cache").exists());
    fixture.publish("a").unwrap();
    assert!(rehearse(&fixture.network, &order).unwrap().starts_with("Nothing would be sent"));
}

/// A hub that gives back another file than it was given.
struct Lossy(FolderHub);

impl HubOver for Lossy {
    fn inner(&self) -> &dyn Hub {
        &self.0
    }
    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        let sums = self.0.download(repo_id, commit, files, into)?;
        if files.iter().all(|file| file.path != "model.safetensors") {
            return Ok(sums);
        }
        let path = into.join("model.safetensors");
        let mut bytes = fs::read(&path)?;
        *bytes.last_mut().unwrap() ^= 1;
        fs::remove_file(&path)?;
        fs::write(path, &bytes)?;
        Ok(files.iter().map(|file| Sha256::digest(fs::read(into.join(&file.path)).unwrap()).into()).collect())
    }
}

#[test]
fn what_the_hub_does_not_give_back_as_it_was_is_never_committed() {
    let mut fixture = Fixture::new();
    fixture.network.hub = Box::new(Lossy(FolderHub::open(&fixture.dir.path().join("hub")).unwrap()));
    let error = fixture.publish("a").unwrap_err();
    assert!(error.to_string().contains("is not what was uploaded, and nothing was committed"), "{error:#}");
    assert_eq!(fixture.written().1, [] as [String; 0]);
}
