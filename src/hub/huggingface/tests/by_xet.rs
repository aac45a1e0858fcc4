//! Uploads to a hub that takes large files by Xet, which fails wherever it can: one commit, or a sentence, and silence.
//!
//! The store behind the hub is none, so that whoever gets so far as to send chunks fails. To get beyond, `hf-hub` is told
//! that all files are small ones.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::http::Method;
use axum::response::Response;
use serde_json::json;
use tempfile::TempDir;

use super::server::{Reply, Server};
use super::{patience, random};
use crate::error::exit_code;
use crate::hub::file_hashes::FileHashes;
use crate::hub::folder::FolderHub;
use crate::hub::huggingface::{HuggingFace, Options, Token};
use crate::hub::progress::Observer;
use crate::hub::{Hub, Upload};
use crate::local::hub::{self, Fate, HubServer, Moment, Xet, XetAccess};

const NAMES: [&str; 2] = ["config.json", "model.safetensors"];

/// A store that has nothing, and leads to a server.
struct Store(String);

impl Xet for Store {
    fn access(&self) -> XetAccess {
        XetAccess { cas_url: self.0.clone(), access_token: "x".to_owned(), expires: u64::MAX >> 16 }
    }
    fn hash(&self, _: &str) -> Option<String> {
        None
    }
    fn fetch(&self, _: &str, _: &Path) -> anyhow::Result<bool> {
        Ok(false)
    }
}

/// What becomes of the n-th request of a kind.
type Decide = Box<dyn Fn(&str, usize, Moment) -> Fate + Send + Sync>;

struct Script {
    asked: Mutex<Vec<&'static str>>,
    decide: Decide,
}

impl hub::Observer for Script {
    fn sees(&self, moment: Moment, _: &Method, path: &str) -> Fate {
        let mut asked = self.asked.lock().unwrap();
        if moment == Moment::Request {
            let kind = match path {
                path if path.contains("/preupload/") && asked.last() == Some(&"batch") => "preupload of hf-hub",
                path if path.contains("/preupload/") => "preupload",
                path if path.contains("/commit/") => "commit",
                path if path.ends_with("/objects/batch") => "batch",
                path if path.contains("/xet-write-token/") => "token",
                _ => "else",
            };
            asked.push(kind);
        }
        let kind = *asked.last().unwrap();
        let nth = asked.iter().filter(|asked| **asked == kind).count() - 1;
        (self.decide)(kind, nth, moment)
    }
}

fn say(status: u16, header: (&'static str, &'static str), body: &serde_json::Value) -> Fate {
    let answer = Response::builder().status(status).header("content-type", "application/json");
    Fate::Say(Box::new(answer.header(header.0, header.1).body(body.to_string().into()).unwrap()))
}

fn refuse(status: u16) -> Fate {
    say(status, ("x-error-message", "not now"), &json!({"error": "not now"}))
}

/// Tells `hf-hub` that all files are small.
fn all_small(kind: &str, moment: Moment) -> Fate {
    if (kind, moment) != ("preupload of hf-hub", Moment::Request) {
        return Fate::GoOn;
    }
    let files = NAMES.map(|name| json!({"path": name, "uploadMode": "regular", "shouldIgnore": false}));
    say(200, ("x-a", "b"), &json!({"files": files}))
}

struct World {
    dir: TempDir,
    folder: Arc<FolderHub>,
    script: Arc<Script>,
    told: Arc<Mutex<Vec<String>>>,
    server: HubServer,
}

impl World {
    fn new(store: String, decide: impl Fn(&str, usize, Moment) -> Fate + Send + Sync + 'static) -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/config.json"), "{}").unwrap();
        fs::write(dir.path().join("model/model.safetensors"), random(5, 200_000)).unwrap();
        let folder = Arc::new(FolderHub::create(&dir.path().join("hub")).unwrap());
        let script = Arc::new(Script { asked: Mutex::default(), decide: Box::new(decide) });
        let options = hub::Options {
            observer: Some(script.clone()),
            xet: Some(Arc::new(Store(store))),
            ..hub::Options::default()
        };
        let server = HubServer::start(Arc::clone(&folder), 0, options).unwrap();
        Self { dir, folder, script, told: Arc::default(), server }
    }

    fn upload(&self) -> anyhow::Result<String> {
        let told = Arc::clone(&self.told);
        let hub = HuggingFace::new(Options {
            endpoint: self.server.endpoint(),
            token: Some(Token::new("hf_of_anybody", "the test").unwrap()),
            max_bytes_per_second: None,
            hashes: FileHashes::default(),
            patience: patience(),
            observer: Observer::new(move |event| told.lock().unwrap().push(format!("{event:?}"))),
        })?;
        let model = self.dir.path().join("model");
        hub.upload(&Upload::new("me/model", &model, &NAMES, "Train"))
    }

    /// Uploads: one commit with the files, beside the repository's own.
    fn uploads(&self, context: &str) {
        let commit = self.upload().unwrap_or_else(|error| panic!("{context}: {error:#}"));
        let commits = self.folder.commits("me/model").unwrap();
        assert_eq!((commits.len(), &commits[0]), (2, &commit), "{context}");
        for name in NAMES {
            let stored = fs::read(self.dir.path().join("hub/me/model").join(&commit).join(name)).unwrap();
            assert!(stored == fs::read(self.dir.path().join("model").join(name)).unwrap(), "{context}: {name}");
        }
    }

    /// Does not upload: the exit code and the sentence.
    fn fails(&self) -> (u8, String) {
        let error = self.upload().unwrap_err();
        assert_eq!(self.folder.commits("me/model").unwrap().len(), 1);
        (exit_code(&error), format!("{error:#}"))
    }

    fn num_asked(&self, kind: &str) -> usize {
        self.script.asked.lock().unwrap().iter().filter(|asked| **asked == kind).count()
    }
}

fn nowhere() -> String {
    "http://127.0.0.1:1".to_owned()
}

#[test]
fn what_fails_once_is_tried_again_and_leaves_one_commit() {
    type Once = fn(Moment) -> Fate;
    let fates: [(&str, Once); 6] = [
        ("503", |moment| if moment == Moment::Request { refuse(503) } else { Fate::GoOn }),
        ("500", |moment| if moment == Moment::Request { refuse(500) } else { Fate::GoOn }),
        ("429 without a time", |moment| if moment == Moment::Request { refuse(429) } else { Fate::GoOn }),
        ("412", |moment| if moment == Moment::Request { refuse(412) } else { Fate::GoOn }),
        ("cut before", |moment| if moment == Moment::Request { Fate::Cut } else { Fate::GoOn }),
        ("cut after", |moment| if moment == Moment::Answer { Fate::Cut } else { Fate::GoOn }),
    ];
    for at in ["preupload of hf-hub", "token", "commit"] {
        for (what, once) in fates {
            let world = World::new(nowhere(), move |kind, nth, moment| match (kind == at, nth) {
                (true, 0) => once(moment),
                // On to the token, the first time.
                (false, 0) if at == "token" && kind == "preupload of hf-hub" => Fate::GoOn,
                _ => all_small(kind, moment),
            });
            // Where the question about the files is answered as it is, the store is asked, and fails.
            if at == "preupload of hf-hub" && what == "cut after" {
                continue;
            }
            world.uploads(&format!("{at}: {what}"));
            assert!(world.num_asked(at) >= 1 && world.num_asked("batch") >= 2 - usize::from(what == "cut after"));
        }
    }
}

#[test]
fn a_pause_is_as_long_as_was_asked_and_else_our_own() {
    for (after, least, most) in [("1", 1.0, 20.0), ("Thu, 01 Jan 2099 00:00:00 GMT", 0.0, 0.9), ("soon", 0.0, 0.9)] {
        let world = World::new(nowhere(), move |kind, nth, moment| match (kind, nth, moment) {
            ("commit", 0, Moment::Request) => say(429, ("retry-after", after), &json!({"error": "slowly"})),
            _ => all_small(kind, moment),
        });
        let started = Instant::now();
        world.uploads(after);
        let seconds = started.elapsed().as_secs_f64();
        // A busy machine needs some time for the rest.
        assert!(seconds >= least && seconds < most + 10.0, "{after}: {seconds}");
        assert_eq!(world.num_asked("commit"), 2);
    }
}

#[test]
fn what_goes_on_failing_is_given_up_with_the_hubs_word() {
    for (at, status) in [("token", 503), ("token", 429), ("commit", 503), ("commit", 429), ("commit", 412)] {
        let world = World::new(nowhere(), move |kind, _, moment| match (kind == at, moment) {
            (true, Moment::Request) => refuse(status),
            _ if at == "token" => Fate::GoOn,
            _ => all_small(kind, moment),
        });
        let (code, text) = world.fails();
        // What stays in the way of a commit is for the user to look at.
        assert_eq!(code, if status == 412 { 2 } else { 3 }, "{text}");
        assert!(text.contains("not now"), "{text}");
        assert_eq!(world.num_asked(at), 4, "{at} {status}");
    }
    let world = World::new(nowhere(), |kind, _, moment| match (kind, moment) {
        ("commit", Moment::Request) => refuse(403),
        _ => all_small(kind, moment),
    });
    let (code, text) = world.fails();
    assert!(code == 2 && text.contains("must be allowed to write there") && world.num_asked("commit") == 1, "{text}");
}

#[test]
fn a_file_that_is_gone_is_our_own_affair() {
    let path = Arc::new(Mutex::new(None::<std::path::PathBuf>));
    let doomed = Arc::clone(&path);
    let world = World::new(nowhere(), move |kind, _, moment| {
        if kind == "batch" {
            doomed.lock().unwrap().take().into_iter().for_each(|path| fs::remove_file(path).unwrap());
        }
        all_small(kind, moment)
    });
    *path.lock().unwrap() = Some(world.dir.path().join("model/model.safetensors"));
    let (code, text) = world.fails();
    assert!(code == 2 && text.contains("was changed while it was uploaded"), "{text}");
    assert_eq!(world.num_asked("batch"), 1, "it was tried again");
}

#[test]
fn nothing_is_told_of_an_upload_that_has_failed() {
    let store = Server::start(|_| Reply::new(400, "no"));
    let world = World::new(store.endpoint(), |_, _, _| Fate::GoOn);
    let (code, text) = world.fails();
    assert_eq!(code, 3, "{text}");
    let told = world.told.lock().unwrap().clone();
    assert_eq!(told.last().map(String::as_str), Some("Ended(\"uploading me/model\")"));
    thread::sleep(Duration::from_millis(400));
    assert_eq!(*world.told.lock().unwrap(), told);
}
