//! What stays in the cache: parts, hashes that are known, and models as long as there is room.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::error::exit_code;
use crate::hub::fetch::{Unreadable, download_revision, fetch};
use crate::hub::hash::directory_hash;
use crate::hub::model_id::ModelMetadata;
use crate::hub::testing::HubOver;
use crate::hub::{Checksum, Hub, Upload};
use crate::memo::Memo;
use crate::model::arch::Arch;
use crate::model::config::{CONFIG_FILE, ModelConfig};
use crate::model::layout::Layout;
use crate::model::weights::{self, WEIGHTS_FILE};
use crate::rules::{Criteria, Rules};

/// Repositories `miner/NAME`, each with one model, that go on with what is there of a file.
#[derive(Default)]
struct TestHub {
    models: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// So many bytes are sent before the hub is down.
    left: Option<AtomicUsize>,
    num_sent: AtomicUsize,
}

/// What its files are called at the hub's only commit.
fn commit_of(name: &str) -> String {
    let digit = name.bytes().next().unwrap() % 10;
    digit.to_string().repeat(40)
}

impl TestHub {
    fn add(&mut self, name: &str, weight: f32) {
        let dir = TempDir::new().unwrap();
        let arch = Arch::gpt2(320, 64, 48, 2, 4);
        let layout = Layout::of(&arch);
        weights::save(dir.path(), &ModelConfig::new(arch, 0.0), &layout, &vec![weight; layout.len()]).unwrap();
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        let files = entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
        self.models.insert(name.to_owned(), files.collect());
    }

    fn num_sent(&self) -> usize {
        self.num_sent.swap(0, Ordering::SeqCst)
    }

    fn model(&self, repo_id: &str) -> &BTreeMap<String, Vec<u8>> {
        &self.models[repo_id.strip_prefix("miner/").unwrap()]
    }

    /// A commitment with the hash that the model has, or another.
    fn committed(&self, name: &str, hash: Option<&str>) -> ModelMetadata {
        let sums: Vec<Sha256Sum> = self.models[name].values().map(|content| Sha256::digest(content).into()).collect();
        let hash = hash.map_or_else(|| sums_hash(&sums), str::to_owned);
        let id = format!("miner:{name}:{}:{hash}", commit_of(name)).parse().unwrap();
        ModelMetadata { id, block: 1.try_into().unwrap() }
    }

    fn bytes(&self, name: &str) -> usize {
        self.models[name].values().map(Vec::len).sum()
    }
}

impl Hub for TestHub {
    fn describe(&self) -> String {
        "a hub".to_owned()
    }
    fn check_writable(&self, _repo_id: &str) -> Result<()> {
        unreachable!("nothing is written")
    }
    fn newest_commit(&self, _repo_id: &str) -> Result<Option<String>> {
        unreachable!("commits are named")
    }
    fn commits(&self, _repo_id: &str) -> Result<Vec<String>> {
        unreachable!("commits are named")
    }
    fn files(&self, repo_id: &str, _commit: &str) -> Result<Vec<RemoteFile>> {
        let file = |(path, content): (&String, &Vec<u8>)| {
            let sum = Some(Checksum::Sha256(Sha256::digest(content).into()));
            RemoteFile { path: path.clone(), bytes: content.len() as u64, sum }
        };
        Ok(self.model(repo_id).iter().map(file).collect())
    }
    fn download(&self, repo_id: &str, _commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        let mut sums = Vec::new();
        for file in files {
            let content = &self.model(repo_id)[&file.path];
            let path = into.join(&file.path);
            let there = fs::read(&path).unwrap_or_default();
            let start = if content.starts_with(&there) { there.len() } else { 0 };
            let left = self.left.as_ref().map_or(usize::MAX, |left| left.load(Ordering::SeqCst));
            let end = content.len().min(start.saturating_add(left));
            fs::write(&path, &content[..end]).unwrap();
            self.num_sent.fetch_add(end - start, Ordering::SeqCst);
            if let Some(left) = &self.left {
                left.fetch_sub(end - start, Ordering::SeqCst);
            }
            if end < content.len() {
                return Err(Failure::Unreachable("The hub is down.".to_owned()).into());
            }
            sums.push(Sha256::digest(content).into());
        }
        Ok(sums)
    }
    fn upload(&self, _upload: &Upload<'_>) -> Result<String> {
        unreachable!("nothing is written")
    }
    fn is_private(&self, _repo_id: &str) -> Result<Option<bool>> {
        unreachable!("nobody asks")
    }
    fn set_private(&self, _repo_id: &str, _private: bool) -> Result<()> {
        unreachable!("nothing is written")
    }
}

/// A hub with the models a and b, and a cache with a memory.
fn world() -> (TempDir, TestHub, Cache) {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut hub = TestHub::default();
    hub.add("a", 0.5);
    hub.add("b", 0.25);
    let hashes = FileHashes::in_memo(Arc::new(Memo::at(&dir.path().join("memo.sqlite"))));
    let cache = Cache::with_hashes(&dir.path().join("cache"), hashes);
    (dir, hub, cache)
}

fn criteria() -> Criteria {
    Criteria { sequence_length: 64, architectures: &["GPT2LMHeadModel"], ..Rules::default().criteria }
}

fn fetched(hub: &TestHub, cache: &Cache, metadata: &ModelMetadata) -> Result<Result<PathBuf, Unreadable>> {
    fetch(hub, cache, metadata, &criteria())
}

/// What lies in the cache's folder of a repository, but for the lock.
fn cached(cache: &Cache, name: &str) -> Vec<String> {
    let entries = fs::read_dir(cache.repository(&format!("miner/{name}"))).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != LOCK_FILE).collect();
    names.sort_unstable();
    names
}

fn part(name: &str) -> String {
    format!("{PART}{}", commit_of(name))
}

#[test]
fn what_has_come_of_a_model_is_not_fetched_again() {
    let (_dir, mut hub, cache) = world();
    let metadata = hub.committed("a", None);
    let bytes = hub.bytes("a");
    hub.left = Some(AtomicUsize::new(bytes / 2));
    assert_eq!(exit_code(&fetched(&hub, &cache, &metadata).unwrap_err()), 3);
    assert_eq!((cached(&cache, "a"), hub.num_sent()), (vec![part("a")], bytes / 2));
    hub.left = None;
    // What else came there meanwhile is no part of the model.
    let stray = cache.repository("miner/a").join(part("a")).join("stray");
    fs::write(&stray, "stray").unwrap();
    let dir = fetched(&hub, &cache, &metadata).unwrap().unwrap();
    assert_eq!((cached(&cache, "a"), hub.num_sent()), (vec![commit_of("a")], bytes - bytes / 2));
    assert_eq!(directory_hash(&dir).unwrap(), metadata.id.hash.clone().unwrap());
    assert!(!dir.join("stray").exists());
    fetched(&hub, &cache, &metadata).unwrap().unwrap();
    assert_eq!(hub.num_sent(), 0);
}

#[test]
fn what_is_gone_on_with_makes_no_room_for_itself() {
    let (_dir, mut hub, cache) = world();
    let cache = cache.with_budget(Some(1));
    let metadata = hub.committed("a", None);
    let bytes = hub.bytes("a");
    hub.left = Some(AtomicUsize::new(bytes / 2));
    assert_eq!(exit_code(&fetched(&hub, &cache, &metadata).unwrap_err()), 3);
    hub.num_sent();
    let repository = cache.repository("miner/a");
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let age = || {
        let part = repository.join(part("a"));
        let files = fs::read_dir(&part).unwrap().map(|entry| entry.unwrap().path());
        for path in files.chain([part.clone()]) {
            File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
    };
    age();
    hub.left = None;
    fetched(&hub, &cache, &metadata).unwrap().unwrap();
    assert_eq!((cached(&cache, "a"), hub.num_sent()), (vec![commit_of("a")], bytes - bytes / 2));

    // Nor does one that was there in full.
    fs::rename(repository.join(commit_of("a")), repository.join(part("a"))).unwrap();
    age();
    fetched(&hub, &cache, &metadata).unwrap().unwrap();
    assert_eq!((cached(&cache, "a"), hub.num_sent()), (vec![commit_of("a")], 0));
}

#[test]
fn a_model_that_has_come_is_not_read_to_be_hashed() {
    let (_dir, hub, cache) = world();
    let dir = fetched(&hub, &cache, &hub.committed("a", None)).unwrap().unwrap();
    for file in fs::read_dir(&dir).unwrap() {
        assert!(cache.hashes.knows(&file.unwrap().path()));
    }
}

#[test]
fn a_wrong_hash_is_told_again_without_a_download() {
    let (_dir, mut hub, cache) = world();
    let wrong = hub.committed("a", Some("wrong"));
    let refusal = |hub: &TestHub| match fetched(hub, &cache, &wrong).unwrap() {
        Err(Unreadable::Refused(sentence)) => sentence,
        other => panic!("{other:?}"),
    };
    let first = refusal(&hub);
    assert!(first.contains("the commitment says \"wrong\""), "{first}");
    assert_eq!(hub.num_sent(), hub.bytes("a"));
    assert_eq!(cached(&cache, "a"), [format!(".hash-{}", commit_of("a"))]);
    assert_eq!((refusal(&hub), hub.num_sent()), (first, 0));
    // Who commits to its right hash gets it.
    fetched(&hub, &cache, &hub.committed("a", None)).unwrap().unwrap();
    assert_eq!(hub.num_sent(), hub.bytes("a"));
    // Another hub has other files there, in the place of which the old ones are not taken.
    hub.add("a", 0.125);
    refusal(&hub);
    assert_eq!(hub.num_sent(), hub.bytes("a"));
}

#[test]
fn a_part_is_dropped_with_its_model_and_with_another_commit() {
    let (dir, mut hub, cache) = world();
    let repository = cache.repository("miner/a");
    let other = repository.join(format!("{PART}{}", "f".repeat(40)));
    fs::create_dir_all(&other).unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, repository.join(part("a"))).unwrap();
    fetched(&hub, &cache, &hub.committed("a", None)).unwrap().unwrap();
    assert_eq!(cached(&cache, "a"), [commit_of("a")]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "a link was followed");

    let files = hub.models.get_mut("b").unwrap();
    files.insert(weights::INDEX_FILE.to_owned(), b"{\"weight_map\": {\"a\": \"../a\"}}".to_vec());
    files.remove(WEIGHTS_FILE);
    assert!(fetched(&hub, &cache, &hub.committed("b", None)).unwrap().is_err());
    assert_eq!(cached(&cache, "b"), Vec::<String>::new());
}

#[test]
fn a_damaged_copy_of_a_revision_is_mended() {
    let (_dir, hub, cache) = world();
    let metadata = hub.committed("a", None);
    let bring = || download_revision(&hub, &cache, "miner/a", &commit_of("a")).unwrap();
    let dir = bring();
    hub.num_sent();
    assert_eq!((bring(), hub.num_sent()), (dir.clone(), 0));
    let path = dir.join(WEIGHTS_FILE);
    let mut content = fs::read(&path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    let damages: [&dyn Fn(); 3] =
        [&|| fs::write(&path, &content).unwrap(), &|| fs::remove_file(dir.join(CONFIG_FILE)).unwrap(), &|| {
            fs::write(dir.join(CONFIG_FILE), "{").unwrap()
        }];
    for damage in damages {
        damage();
        assert_eq!(directory_hash(&bring()).unwrap(), metadata.id.hash.clone().unwrap());
        assert_eq!(hub.num_sent(), hub.bytes("a"));
    }
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let (_dir, hub, cache) = world();
    let metadata = hub.committed("a", None);
    let huge = Claims { inner: hub, bytes: 1 << 60 };
    let criteria = Criteria { max_repo_bytes: u64::MAX, ..criteria() };
    let error = fetch(&huge, &cache, &metadata, &criteria).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("No space left in the cache") && text.contains("needs 3072.00 PiB more, and"), "{text}");
    assert_eq!(huge.inner.num_sent(), 0);
}

/// A hub that claims its weights to be larger than they are.
struct Claims {
    inner: TestHub,
    bytes: u64,
}

impl HubOver for Claims {
    fn inner(&self) -> &dyn Hub {
        &self.inner
    }
    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        let mut files = self.inner.files(repo_id, commit)?;
        files.iter_mut().for_each(|file| file.bytes = self.bytes);
        Ok(files)
    }
}
