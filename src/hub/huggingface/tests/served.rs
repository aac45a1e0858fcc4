//! The client against the server of the hub folder: what one writes, the other has.

use std::fs;
use std::sync::{Arc, Mutex};

use axum::http::Method;
use tempfile::TempDir;

use super::{patience, random};
use crate::hub::file_hashes::FileHashes;
use crate::hub::folder::FolderHub;
use crate::hub::huggingface::{HuggingFace, Options, Token};
use crate::hub::progress::Observer;
use crate::hub::{Hub, Upload};
use crate::local::hub::{self, Fate, HubServer, Moment};

const NAMES: [&str; 2] = ["config.json", "model.safetensors"];

/// Ends the connection at one moment of one request.
struct Cutter {
    at: (usize, Moment),
    count: Mutex<usize>,
}

impl hub::Observer for Cutter {
    fn sees(&self, moment: Moment, _: &Method, _: &str) -> Fate {
        let mut count = self.count.lock().unwrap();
        let is_here = (*count, moment) == self.at;
        *count += usize::from(moment == Moment::Answer || is_here);
        if is_here { Fate::Cut } else { Fate::GoOn }
    }
}

struct World {
    dir: TempDir,
    folder: Arc<FolderHub>,
    cutter: Arc<Cutter>,
    server: HubServer,
}

impl World {
    fn new(at: (usize, Moment)) -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/config.json"), "{}").unwrap();
        fs::write(dir.path().join("model/model.safetensors"), random(5, 200_000)).unwrap();
        let folder = Arc::new(FolderHub::create(&dir.path().join("hub")).unwrap());
        let cutter = Arc::new(Cutter { at, count: Mutex::default() });
        let options = hub::Options { observer: Some(cutter.clone()), ..hub::Options::default() };
        let server = HubServer::start(Arc::clone(&folder), 0, options).unwrap();
        Self { dir, folder, cutter, server }
    }

    fn client(&self) -> HuggingFace {
        HuggingFace::new(Options {
            endpoint: self.server.endpoint(),
            token: Some(Token::new("hf_of_anybody", "the test").unwrap()),
            max_bytes_per_second: None,
            hashes: FileHashes::default(),
            patience: patience(),
            observer: Observer::default(),
        })
        .unwrap()
    }

    fn upload(&self, private: bool) -> String {
        let model = self.dir.path().join("model");
        let upload = Upload { card: Some("# A model\n"), private, ..Upload::new("me/model", &model, &NAMES, "Train") };
        self.client().upload(&upload).unwrap()
    }
}

#[test]
fn what_goes_up_to_the_server_is_in_the_folder_and_comes_down_again() {
    let world = World::new((usize::MAX, Moment::Request));
    let client = world.client();
    client.check_writable("me/model").unwrap();
    let commit = world.upload(true);
    assert_eq!(world.folder.newest_commit("me/model").unwrap(), Some(commit.clone()));
    assert_eq!(world.folder.is_private("me/model").unwrap(), Some(true));
    client.set_private("me/model", false).unwrap();
    assert_eq!(world.folder.is_private("me/model").unwrap(), Some(false));

    let files = client.files("me/model", &commit).unwrap();
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, [".gitattributes", "README.md", "config.json", "model.safetensors"]);
    let into = world.dir.path().join("into");
    fs::create_dir(&into).unwrap();
    client.download("me/model", &commit, &files.iter().collect::<Vec<_>>(), &into).unwrap();
    for name in NAMES {
        assert!(fs::read(into.join(name)).unwrap() == fs::read(world.dir.path().join("model").join(name)).unwrap());
    }
    assert_eq!(world.upload(true), commit);
}

#[test]
fn the_server_gone_between_any_two_requests_leaves_one_commit() {
    let whole = World::new((usize::MAX, Moment::Request));
    whole.upload(false);
    let num_requests = *whole.cutter.count.lock().unwrap();
    assert!(num_requests >= 9, "{num_requests}");
    for nth in 0..num_requests {
        for moment in [Moment::Request, Moment::Answer] {
            let world = World::new((nth, moment));
            let commit = world.upload(false);
            // The first is the repository's own.
            let commits = world.folder.commits("me/model").unwrap();
            assert_eq!((commits.len(), &commits[0]), (2, &commit), "{nth} {moment:?}");
            let stored = world.dir.path().join("hub/me/model").join(&commit);
            for name in NAMES {
                assert!(
                    fs::read(stored.join(name)).unwrap()
                        == fs::read(world.dir.path().join("model").join(name)).unwrap()
                );
            }
            assert!(*world.cutter.count.lock().unwrap() > num_requests.min(nth), "nothing was cut");
        }
    }
}
