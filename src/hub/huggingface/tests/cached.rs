//! A published model, from the server of a hub folder into the cache.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::error::exit_code;
use crate::hub::Checksum;
use crate::hub::fetch::{Cache, download_revision, fetch, publishable_files, publishable_hash};
use crate::hub::folder::FolderHub;
use crate::hub::hash::directory_hash;
use crate::hub::model_id::ModelMetadata;
use crate::local::hub::{self, HubServer};
use crate::model::arch::Arch;
use crate::model::config::{CONFIG_FILE, ModelConfig};
use crate::model::layout::Layout;
use crate::model::weights;
use crate::rules::{Criteria, Rules};

#[test]
fn a_model_comes_from_the_server_as_from_the_folder() {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("model");
    let arch = Arch::gpt2(320, 64, 48, 2, 4);
    let layout = Layout::of(&arch);
    fs::create_dir(&model).unwrap();
    weights::save(&model, &ModelConfig::new(arch, 0.0), &layout, &vec![0.5; layout.len()]).unwrap();
    let folder = Arc::new(FolderHub::create(&dir.path().join("hub")).unwrap());
    let names = publishable_files(&model).unwrap();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let commit = folder.upload(&Upload { card: Some("A model."), ..Upload::new(REPO, &model, &names, "a") }).unwrap();
    let hash = publishable_hash(&model).unwrap();

    let server = HubServer::start(Arc::clone(&folder), 0, hub::Options::default()).unwrap();
    let options = Options {
        endpoint: server.endpoint(),
        token: Some(Token::new(SECRET, "the test").unwrap()),
        max_bytes_per_second: None,
        hashes: FileHashes::default(),
        patience: Patience { answer: Duration::from_secs(20), ..patience() },
        observer: Observer::default(),
    };
    let client = HuggingFace::new(options).unwrap();
    assert_eq!(client.newest_commit(REPO).unwrap(), Some(commit.clone()));
    assert_eq!(client.commits(REPO).unwrap(), folder.commits(REPO).unwrap());
    assert_eq!(client.is_private(REPO).unwrap(), Some(false));
    assert_eq!(client.newest_commit("miner/none").unwrap(), None);
    let files = client.files(REPO, &commit).unwrap();
    let weights = files.iter().find(|file| file.path == weights::WEIGHTS_FILE).unwrap();
    assert!(matches!(weights.sum, Some(Checksum::Sha256(_))) && files.iter().all(|file| file.sum.is_some()));

    let cache = Cache::new(&dir.path().join("cache"));
    let criteria = Criteria { sequence_length: 64, architectures: &["GPT2LMHeadModel"], ..Rules::default().criteria };
    let metadata = |hash: &str| ModelMetadata {
        id: format!("miner:model:{commit}:{hash}").parse().unwrap(),
        block: 1.try_into().unwrap(),
    };
    let fetched = fetch(&client, &cache, &metadata(&hash), &criteria).unwrap().unwrap();
    assert_eq!(directory_hash(&fetched).unwrap(), hash);
    assert!(fetch(&client, &cache, &metadata("another"), &criteria).unwrap().is_err());
    fs::write(fetched.join(CONFIG_FILE), "{}").unwrap();
    assert_eq!(download_revision(&client, &cache, REPO, &commit).unwrap(), fetched);
    assert_eq!(directory_hash(&fetched).unwrap(), hash);
    let gone = client.files(REPO, &"0".repeat(40)).unwrap_err();
    assert_eq!(exit_code(&gone), 4, "{gone}");
    drop(server);
    assert_eq!(exit_code(&fetch(&client, &cache, &metadata(&hash), &criteria).unwrap_err()), 3);
}
