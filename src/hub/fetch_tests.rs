//! Fetching against models that break one rule each, damaged caches, kills and rivals.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::disk::Disk;
use crate::error::exit_code;
use crate::hub::cache::{LOCK_FILE, PART};
use crate::hub::folder::FolderHub;
use crate::hub::hash::{directory_hash, files_hash};
use crate::hub::model_id::ModelId;
use crate::hub::testing::HubOver;
use crate::hub::{Sha256Sum, Upload};
use crate::model::arch::Arch;
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::weights;
use crate::rules::Rules;

const PARAMETERS: u64 = 75_072;

fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

fn model() -> TempDir {
    let dir = scratch();
    let arch = Arch::gpt2(320, 64, 48, 2, 4);
    let layout = Layout::of(&arch);
    weights::save(dir.path(), &ModelConfig::new(arch, 0.0), &layout, &vec![0.5; layout.len()]).unwrap();
    dir
}

fn criteria() -> Criteria {
    Criteria {
        max_parameters: PARAMETERS,
        max_repo_bytes: 1_000_000,
        sequence_length: 64,
        architectures: &["GPT2LMHeadModel"],
        ..Rules::default().criteria
    }
}

/// A folder hub that counts the files it is asked for.
struct CountingHub {
    inner: FolderHub,
    num_downloaded: AtomicUsize,
}

impl HubOver for CountingHub {
    fn inner(&self) -> &dyn Hub {
        &self.inner
    }
    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        if repo_id == "down/down" {
            return Err(Failure::Unreachable("The hub is down.".to_owned()).into());
        }
        self.inner.files(repo_id, commit)
    }
    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        self.num_downloaded.fetch_add(files.len(), Ordering::SeqCst);
        self.inner.download(repo_id, commit, files, into)
    }
}

/// A hub and a cache in one folder.
struct World {
    dir: TempDir,
    hub: CountingHub,
    cache: Cache,
}

impl World {
    fn new() -> Self {
        let dir = scratch();
        let inner = FolderHub::create(&dir.path().join("hub")).unwrap();
        let cache = Cache::new(&dir.path().join("cache"));
        Self { hub: CountingHub { inner, num_downloaded: AtomicUsize::new(0) }, cache, dir }
    }

    /// Publishes all files of a folder; the commitment holds the hash of those that validators fetch, if they fetch any.
    fn publish(&self, dir: &Path) -> ModelMetadata {
        let names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let commit = self.hub.upload(&Upload::new("miner/model", dir, &names, "")).unwrap();
        let files: Vec<_> = publishable_files(dir).unwrap_or_default().iter().map(|name| dir.join(name)).collect();
        let id = ModelId {
            namespace: "miner".to_owned(),
            name: "model".to_owned(),
            commit: Some(commit),
            hash: Some(files_hash(&files).unwrap()),
        };
        ModelMetadata { id, block: 1.try_into().unwrap() }
    }

    fn fetch(&self, metadata: &ModelMetadata, criteria: &Criteria) -> Result<PathBuf, Unreadable> {
        fetch(&self.hub, &self.cache, metadata, criteria).unwrap()
    }

    fn refusal(&self, metadata: &ModelMetadata, criteria: &Criteria) -> String {
        match self.fetch(metadata, criteria) {
            Err(Unreadable::Refused(sentence)) => sentence,
            other => panic!("{other:?}"),
        }
    }

    fn num_downloaded(&self) -> usize {
        self.hub.num_downloaded.swap(0, Ordering::SeqCst)
    }

    /// What lies in the cache's folder of the repository, but for the lock and hashes that are known.
    fn cached(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("cache/miner--model")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != LOCK_FILE && !name.starts_with(".hash-")).collect()
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join(CONFIG_FILE);
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn a_model_at_every_limit_is_fetched_once_without_what_validators_leave_out() {
    let (world, model) = (World::new(), model());
    let bare_hash = directory_hash(model.path()).unwrap();
    for extra in ["README.md", "tokenizer.json", "pytorch_model.bin", "model.safetensors.index.json"] {
        fs::write(model.path().join(extra), "not fetched").unwrap();
    }
    let metadata = world.publish(model.path());
    assert_eq!(metadata.id.hash.as_deref(), Some(bare_hash.as_str()));
    let files = Hub::files(&world.hub, "miner/model", metadata.id.commit.as_ref().unwrap()).unwrap();
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let exact = Criteria { max_repo_bytes: bytes, ..criteria() };
    let dir = world.fetch(&metadata, &exact).unwrap();
    assert_eq!(dir, world.dir.path().join("cache/miner--model").join(metadata.id.commit.as_ref().unwrap()));
    assert_eq!(names_in(&dir), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(directory_hash(&dir).unwrap(), bare_hash);
    assert_eq!(world.num_downloaded(), 3);
    assert_eq!(world.fetch(&metadata, &exact).unwrap(), dir);
    assert_eq!(world.num_downloaded(), 0);

    let too_large = Criteria { max_repo_bytes: bytes - 1, ..criteria() };
    let refusal = world.refusal(&metadata, &too_large);
    assert!(refusal.contains("The repository miner/model has") && refusal.contains("it may have"), "{refusal}");
}

#[test]
fn golden_models_are_fetched_with_their_shards() {
    let limits = Criteria { max_parameters: 1_000_000, max_repo_bytes: 10_000_000, ..criteria() };
    let mut num_files = std::collections::BTreeMap::new();
    for name in ["gpt2", "gpt2_sharded", "gpt2_no_prefix"] {
        let world = World::new();
        let metadata = world.publish(&golden(name));
        let dir = world.fetch(&metadata, &limits).unwrap();
        let names = publishable_files(&golden(name)).unwrap();
        assert_eq!(names_in(&dir), names);
        for file in names {
            assert!(fs::read(dir.join(&file)).unwrap() == fs::read(golden(name).join(&file)).unwrap(), "{name}/{file}");
        }
        num_files.insert(name, world.num_downloaded());
    }
    assert_eq!(num_files, [("gpt2", 3), ("gpt2_sharded", 6), ("gpt2_no_prefix", 2)].into());
}

#[test]
fn a_repository_that_is_too_large_is_refused_before_a_byte_is_copied() {
    let (world, model) = (World::new(), model());
    fs::File::create(model.path().join("README.md")).unwrap().set_len(1_000_000).unwrap();
    let metadata = world.publish(model.path());
    assert!(world.refusal(&metadata, &criteria()).contains("it may have 1,000,000."));
    assert_eq!(world.num_downloaded(), 0);
    assert!(!world.dir.path().join("cache").exists());
}

#[test]
fn a_model_that_breaks_a_rule_is_refused_with_the_reason() {
    let world = World::new();
    let plain = model();
    let good = world.publish(plain.path());
    let with = |change: &dyn Fn(&mut ModelMetadata)| {
        let mut metadata = good.clone();
        change(&mut metadata);
        metadata
    };
    let absent = "0".repeat(40);
    for (metadata, expected) in [
        (with(&|metadata| metadata.id.hash = Some("47DEQpj8HBSa".to_owned())), "the commitment says \"47DEQpj8HBSa\""),
        (with(&|metadata| metadata.id.hash = None), "names no commit or no hash"),
        (with(&|metadata| metadata.id.commit = None), "names no commit or no hash"),
        (with(&|metadata| metadata.id.commit = Some("main".to_owned())), "is no commit"),
        (with(&|metadata| metadata.id.commit = Some(absent.clone())), "has no commit 0000"),
        (with(&|metadata| metadata.id.commit = Some("../../../../../../../etc".to_owned())), "is no commit"),
        (with(&|metadata| metadata.id.name = "absent".to_owned()), "no repository miner/absent"),
        (with(&|metadata| metadata.id.namespace = "..".to_owned()), "is no repository"),
        (with(&|metadata| metadata.id.name = "model/..".to_owned()), "is no repository"),
        (with(&|metadata| metadata.id.namespace = String::new()), "is no repository"),
    ] {
        let refusal = world.refusal(&metadata, &criteria());
        assert!(refusal.contains(expected) && refusal.ends_with('.'), "{refusal}");
    }
    assert_eq!(names_in(world.dir.path()), ["cache", "hub"]);
    assert_eq!(world.cached(), Vec::<String>::new(), "a model whose hash is wrong gets no name");
    for (limits, expected) in [
        (Criteria { max_parameters: PARAMETERS - 1, ..criteria() }, "75,072 parameters; the limit is 75,071"),
        (Criteria { architectures: &["MistralForCausalLM"], ..criteria() }, "GPT2LMHeadModel is not allowed"),
    ] {
        let refusal = world.refusal(&good, &limits);
        assert!(refusal.contains(expected), "{refusal}");
    }
    // Validators take it; its losses are infinite all the same, batch by batch.
    world.fetch(&good, &Criteria { sequence_length: 65, ..criteria() }).unwrap();
}

#[test]
fn a_class_is_refused_if_the_rules_do_not_allow_it_and_else_only_not_implemented() {
    let (world, mistral) = (World::new(), model());
    edit_config(mistral.path(), |config| {
        config["model_type"] = json!("mistral");
        config["hidden_act"] = json!("mish");
    });
    let metadata = world.publish(mistral.path());
    assert!(world.refusal(&metadata, &criteria()).contains("MistralForCausalLM is not allowed by the rules"));
    let allowed = Criteria { architectures: &["MistralForCausalLM"], ..criteria() };
    let Err(Unreadable::NotImplemented(sentence)) = world.fetch(&metadata, &allowed) else { panic!() };
    assert!(sentence.contains("not implemented here"), "{sentence}");

    edit_config(mistral.path(), |config| config["model_type"] = json!("gpt2"));
    edit_config(mistral.path(), |config| config["activation_function"] = json!("mish"));
    let metadata = world.publish(mistral.path());
    assert!(matches!(world.fetch(&metadata, &criteria()), Err(Unreadable::NotImplemented(_))));
    edit_config(mistral.path(), |config| config["activation_function"] = json!("gelu_new"));
    edit_config(mistral.path(), |config| config["n_layer"] = json!("two"));
    let metadata = world.publish(mistral.path());
    assert!(world.refusal(&metadata, &criteria()).contains("n_layer is \"two\""));
}

#[test]
fn a_repository_without_what_validators_load_is_refused() {
    let limits = Criteria { max_parameters: 1_000_000, max_repo_bytes: 10_000_000, ..criteria() };
    type Change = fn(&Path);
    let edits: [(&str, Change, &str); 6] = [
        ("gpt2", |dir| fs::remove_file(dir.join("config.json")).unwrap(), "has no config.json"),
        ("gpt2", |dir| fs::remove_file(dir.join("model.safetensors")).unwrap(), "has neither model.safetensors nor"),
        (
            "gpt2",
            |dir| fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap(),
            "pytorch_model.bin is not fetched",
        ),
        (
            "gpt2_sharded",
            |dir| fs::remove_file(dir.join("model-00002-of-00003.safetensors")).unwrap(),
            "has no \"model-00002-of-00003.safetensors\", which",
        ),
        (
            "gpt2_sharded",
            |dir| {
                let index = dir.join(INDEX_FILE);
                let text = fs::read_to_string(&index).unwrap();
                fs::write(&index, text.replace("model-00001-of", "../model-00001-of")).unwrap();
            },
            "which is no file of this folder",
        ),
        ("gpt2_sharded", |dir| fs::write(dir.join(INDEX_FILE), "[]").unwrap(), "is not a JSON object"),
    ];
    for (name, edit, expected) in edits {
        let (world, copy) = (World::new(), scratch());
        for file in names_in(&golden(name)) {
            fs::copy(golden(name).join(&file), copy.path().join(&file)).unwrap();
        }
        edit(copy.path());
        assert_eq!(exit_code(&publishable_files(copy.path()).unwrap_err()), 2);
        let metadata = world.publish(copy.path());
        let refusal = world.refusal(&metadata, &limits);
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn a_damaged_cache_is_mended_by_one_download() {
    let (world, model) = (World::new(), model());
    let metadata = world.publish(model.path());
    let dir = world.fetch(&metadata, &criteria()).unwrap();
    let damages: [&dyn Fn(); 5] = [
        &|| {
            let mut bytes = fs::read(dir.join(WEIGHTS_FILE)).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::remove_file(dir.join(WEIGHTS_FILE)).unwrap();
            fs::write(dir.join(WEIGHTS_FILE), bytes).unwrap();
        },
        &|| fs::remove_file(dir.join(CONFIG_FILE)).unwrap(),
        &|| fs::write(dir.join("zz"), "more").unwrap(),
        &|| fs::remove_dir_all(&dir).unwrap(),
        &|| {
            fs::remove_dir_all(&dir).unwrap();
            fs::write(&dir, "a file").unwrap();
        },
    ];
    for damage in damages {
        world.num_downloaded();
        damage();
        assert_eq!(world.fetch(&metadata, &criteria()).unwrap(), dir);
        assert_eq!(directory_hash(&dir).unwrap(), directory_hash(model.path()).unwrap());
        assert_eq!((world.num_downloaded(), world.cached().len()), (3, 1));
    }
    // A wrong claim about a model that is whole does not cost the whole one.
    let mut claim = metadata.clone();
    claim.id.hash = Some("wrong".to_owned());
    world.refusal(&claim, &criteria());
    assert_eq!(directory_hash(&dir).unwrap(), *metadata.id.hash.as_ref().unwrap());
}

#[test]
fn a_fetch_killed_anywhere_leaves_nothing_that_is_taken_for_whole() {
    for is_damaged in [false, true] {
        let mut num_operations = 0;
        loop {
            let (mut world, model) = (World::new(), model());
            let metadata = world.publish(model.path());
            if is_damaged {
                let dir = world.fetch(&metadata, &criteria()).unwrap();
                fs::remove_file(dir.join(CONFIG_FILE)).unwrap();
            }
            world.cache.disk.kill_after(num_operations);
            let finished = fetch(&world.hub, &world.cache, &metadata, &criteria()).is_ok();
            world.cache.disk = Disk::default();
            let dir = world.fetch(&metadata, &criteria()).unwrap();
            assert_eq!(directory_hash(&dir).unwrap(), directory_hash(model.path()).unwrap());
            assert_eq!(world.cached(), [metadata.id.commit.unwrap()]);
            if finished {
                break;
            }
            num_operations += 1;
        }
        assert!(num_operations >= 3, "{num_operations}");
    }
}

#[test]
fn a_full_disk_and_a_hub_that_is_down_are_not_the_models_fault() {
    let (world, model) = (World::new(), model());
    let metadata = world.publish(model.path());
    world.cache.disk.set_full(true);
    let error = fetch(&world.hub, &world.cache, &metadata, &criteria()).unwrap_err();
    assert!(format!("{error:#}").contains("No space left in the cache"), "{error:#}");
    // What has come of it stays.
    assert_eq!(world.cached(), [format!("{PART}{}", metadata.id.commit.as_ref().unwrap())]);
    world.cache.disk.set_full(false);
    let mut down = metadata.clone();
    (down.id.namespace, down.id.name) = ("down".to_owned(), "down".to_owned());
    assert_eq!(exit_code(&fetch(&world.hub, &world.cache, &down, &criteria()).unwrap_err()), 3);
    world.fetch(&metadata, &criteria()).unwrap();
}

#[test]
fn processes_that_share_a_cache_download_a_model_once() {
    let (world, model) = (World::new(), model());
    let metadata = world.publish(model.path());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let cache = Cache::new(&world.dir.path().join("cache"));
                fetch(&world.hub, &cache, &metadata, &criteria()).unwrap().unwrap()
            });
        }
    });
    assert_eq!(world.num_downloaded(), 3);
}

#[test]
fn a_hash_that_is_bound_to_a_hotkey_is_that_of_its_hotkey_only() {
    let dir = scratch();
    let hub = FolderHub::create(&dir.path().join("hub")).unwrap();
    let model = model();
    let names = publishable_files(model.path()).unwrap();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let commit = hub.upload(&Upload::new("me/model", model.path(), &names, "a model")).unwrap();
    let hash = publishable_hash(model.path()).unwrap();
    let bound = text_pair_hash(&hash, "me");
    let fetched = |hash: &str, hotkey: Option<&str>, cache: &str| {
        let id: ModelId = format!("me:model:{commit}:{hash}").parse().unwrap();
        let cache = Cache::new(&dir.path().join(cache));
        let metadata = ModelMetadata { id: id.clone(), block: std::num::NonZeroU64::MIN };
        let dir = fetch_of(&hub, &cache, &metadata, &criteria(), hotkey).unwrap();
        assert!(dir.is_err() || dir == Ok(cache.folder(&id).unwrap()));
        dir.is_ok()
    };
    // Each in a cache of its own, and then all in one that has the model.
    for cache in ["", "shared"] {
        let named = |own: &str| if cache.is_empty() { own.to_owned() } else { cache.to_owned() };
        assert!(fetched(&bound, Some("me"), &named("a")));
        assert!(fetched(&hash, Some("me"), &named("b")));
        assert!(!fetched(&bound, Some("thief"), &named("c")));
        assert!(!fetched(&bound, None, &named("d")));
        assert!(fetched(&hash, None, &named("e")));
    }
}

#[test]
fn only_what_can_have_been_fetched_has_a_folder() {
    let cache = Cache::new(Path::new("cache"));
    let folder = |text: &str| cache.folder(&text.parse().unwrap());
    let commit = "0123456789".repeat(4);
    assert_eq!(folder(&format!("a:b:{commit}:h")), Some(Path::new("cache/a--b").join(&commit)));
    for bad in ["a:b:None:h", "a:b:main:h", "a:b:../../../../../../../../../../../../../x:h"] {
        assert_eq!(folder(bad), None, "{bad}");
    }
    assert_eq!(folder(&format!("..:b:{commit}:h")), None);
    assert_eq!(folder(&format!("a/..:b:{commit}:h")), None);
}
