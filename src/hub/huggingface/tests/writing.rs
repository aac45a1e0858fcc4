//! Uploads against a hub that fails wherever it can: in the end there is one commit with the files, or a sentence.

use std::fs;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::memory_hub::{Contents, Fate, MemoryHub, Request, TOKEN, When, sha256};
use crate::error::{Failure, failure};
use crate::hub::file_hashes::FileHashes;
use crate::hub::huggingface::{HuggingFace, Options, Patience, Token};
use crate::hub::progress::{Observer, Progress, Told};
use crate::hub::{Hub, Upload};

pub(super) const NAMES: [&str; 3] = ["model-1.safetensors", "config.json", "model-2.safetensors"];

/// A hub, its client, and a model.
pub(super) struct World {
    pub(super) hub: MemoryHub,
    pub(super) model: TempDir,
    progress: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl World {
    pub(super) fn new() -> Self {
        let world = Self { hub: MemoryHub::start(), model: TempDir::new().unwrap(), progress: Arc::default() };
        world.write("config.json", b"{\"n_layer\": 1}");
        world.write("model-1.safetensors", &random(1, 5000));
        world.write("model-2.safetensors", &random(2, 3000));
        world
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.model.path().join(name), content).unwrap();
    }

    pub(super) fn client(&self) -> HuggingFace {
        self.client_with(Some(TOKEN))
    }

    fn client_with(&self, token: Option<&str>) -> HuggingFace {
        let progress = Arc::clone(&self.progress);
        HuggingFace::new(Options {
            endpoint: self.hub.endpoint.clone(),
            token: token.map(|token| Token::new(token, "the test").unwrap()),
            max_bytes_per_second: None,
            hashes: FileHashes::default(),
            patience: Patience {
                answer: Duration::from_secs(5),
                first_pause: Duration::from_millis(2),
                longest_pause: Duration::from_secs(3),
                ..Patience::default()
            },
            observer: Observer::new(move |told| {
                if let Told::Progress(Progress { done_bytes, total_bytes, .. }) = told {
                    progress.lock().unwrap().push((done_bytes, total_bytes));
                }
            }),
        })
        .unwrap()
    }

    pub(super) fn upload(&self) -> anyhow::Result<String> {
        let upload =
            Upload { card: Some("# A model\n"), ..Upload::new("me/model", self.model.path(), &NAMES, "Train") };
        self.client().upload(&upload)
    }

    /// Uploads, and the last commit of the hub, which has this many of them, is what was uploaded.
    pub(super) fn uploads(&self, num_commits: usize) {
        let commit = self.upload().unwrap();
        let commits = self.hub.commits();
        assert_eq!(commits.len(), num_commits);
        let newest = commits.last().unwrap();
        assert_eq!(newest.oid, commit);
        let paths: Vec<&str> = newest.files.keys().map(String::as_str).collect();
        assert_eq!(paths, [".gitattributes", "README.md", "config.json", "model-1.safetensors", "model-2.safetensors"]);
        for name in NAMES {
            assert!(newest.files[name] == fs::read(self.model.path().join(name)).unwrap(), "{name}");
        }
        assert_eq!(newest.files["README.md"], b"# A model\n");
        let mut large = newest.large.clone();
        large.sort_unstable();
        large.dedup();
        assert_eq!(large, ["model-1.safetensors", "model-2.safetensors"]);
    }

    /// Does not upload, and changes nothing; the sentence.
    fn fails(&self) -> (Failure, String) {
        let commits = self.hub.commits();
        let error = self.upload().unwrap_err();
        assert_eq!(self.hub.commits(), commits);
        refused(&error)
    }
}

pub(super) fn refused(error: &anyhow::Error) -> (Failure, String) {
    let text = format!("{error:#}");
    assert!(!text.contains(TOKEN) && !format!("{error:?}").contains(TOKEN), "{text}");
    let kind = match failure(error).unwrap_or_else(|| panic!("{text}")) {
        Failure::Input(_) => Failure::Input(String::new()),
        Failure::Unreachable(_) => Failure::Unreachable(String::new()),
        Failure::No(_) => Failure::No(String::new()),
        Failure::Interrupted(_) => Failure::Interrupted(String::new()),
    };
    (kind, text)
}

fn random(seed: u64, num_bytes: usize) -> Vec<u8> {
    let mut content = vec![0; num_bytes];
    Rng::with_seed(seed).fill(&mut content);
    content
}

#[test]
fn a_commit_holds_just_the_files_the_page_and_what_the_hub_put_there() {
    let world = World::new();
    world.uploads(2);
    assert_eq!(
        world.hub.kinds(),
        ["look", "create", "look", "tree", "preupload", "batch", "put", "verify", "put", "verify", "commit"]
    );
    let progress = std::mem::take(&mut *world.progress.lock().unwrap());
    assert!(progress.is_sorted() && progress.last() == Some(&(8000, 8000)), "{progress:?}");

    // Again: nothing is made.
    world.uploads(2);
    assert_eq!(world.hub.kinds()[11..], ["look", "tree"]);

    // One file is another, and one that somebody put there goes: what the hub has is not sent again.
    world.write("model-2.safetensors", &random(3, 3001));
    {
        let mut contents = world.hub.contents();
        let newest = contents.commits.as_ref().unwrap().last().unwrap().clone();
        let mut files = newest.files;
        files.insert("pytorch_model.bin".to_owned(), b"pickle".to_vec());
        contents.add(files, newest.large);
    }
    world.uploads(4);
    assert_eq!(world.hub.kinds()[13..], ["look", "tree", "preupload", "batch", "put", "verify", "commit"]);
    assert_eq!(world.progress.lock().unwrap().last(), Some(&(8001, 8001)));
    for request in world.hub.log() {
        assert_eq!(request.headers["authorization"], format!("Bearer {TOKEN}"));
    }
}

#[test]
fn a_new_repository_is_private_where_that_is_wanted_and_can_be_shown() {
    let world = World::new();
    let client = world.client();
    assert_eq!(client.is_private("me/model").unwrap(), None);
    let upload = Upload { private: true, ..Upload::new("me/model", world.model.path(), &NAMES, "Train") };
    let commit = client.upload(&upload).unwrap();
    assert_eq!(client.is_private("me/model").unwrap(), Some(true));
    client.set_private("me/model", false).unwrap();
    assert!(!world.hub.contents().private);
    // One that is there stays as it is.
    assert_eq!(client.upload(&upload).unwrap(), commit);
    assert!(!world.hub.contents().private);
    assert!(!world.hub.commits()[1].files.contains_key("README.md"));
}

#[test]
fn a_connection_cut_anywhere_leaves_one_commit() {
    let world = World::new();
    world.uploads(2);
    let num_bytes = world.hub.num_bytes();
    let mut rng = Rng::with_seed(8);
    for _ in 0..100 {
        let at = rng.u64(..num_bytes);
        let world = World::new();
        world.hub.cut_after(at);
        world.uploads(2);
    }
}

#[test]
fn a_lost_request_or_answer_leaves_one_commit_at_each_step() {
    let num_requests = 11;
    for nth in 0..num_requests {
        for cut in [When::Before, When::After] {
            let world = World::new();
            let mut count = 0;
            world.hub.script(move |_, when, _| {
                count += usize::from(when == When::Before);
                if count == nth + 1 && when == cut { Fate::Cut } else { Fate::Go }
            });
            world.uploads(2);
            // A large file whose answer was lost is not sent again.
            let num_puts = world.hub.kinds().iter().filter(|kind| **kind == "put").count();
            let is_cut_put = [6, 8].contains(&nth) && cut == When::Before;
            assert_eq!(num_puts, 2 + usize::from(is_cut_put), "{nth} {cut:?}");
        }
    }
}

#[test]
fn a_hub_that_fails_for_a_moment_is_asked_again_and_waited_for() {
    for (status, headers, least) in [(500, "", 0.0), (503, "", 0.0), (504, "", 0.0), (429, "Retry-After: 1\r\n", 1.0)] {
        for kind in ["look", "create", "tree", "preupload", "batch", "put", "verify", "commit"] {
            // Each wait takes a second: not all of them.
            if least > 0.0 && ["tree", "preupload", "verify"].contains(&kind) {
                continue;
            }
            let world = World::new();
            let mut left = 1;
            world.hub.script(move |request, when, _| {
                if request.kind() == kind && when == When::Before && left > 0 {
                    left -= 1;
                    return Fate::Answer(status, headers.to_owned(), json!({"error": "busy"}));
                }
                Fate::Go
            });
            let start = Instant::now();
            world.uploads(2);
            assert!(start.elapsed().as_secs_f64() >= least, "{status} {kind}");
        }
    }
}

#[test]
fn a_hub_that_goes_on_failing_is_given_up_with_a_sentence() {
    // Of what could not be verified, the hub itself says the next time that it has it.
    for kind in ["look", "create", "tree", "preupload", "batch", "put", "commit"] {
        let world = World::new();
        world.hub.script(move |request, when, _| match (request.kind() == kind, when) {
            (true, When::Before) => Fate::Answer(500, String::new(), json!({"error": "busy"})),
            _ => Fate::Go,
        });
        let error = world.upload().unwrap_err();
        let (kind, text) = refused(&error);
        assert!(matches!(kind, Failure::Unreachable(_)) && text.contains("busy"), "{text}");
        assert!(world.hub.commits().len() < 2);
    }
}

#[test]
fn a_commit_of_somebody_else_in_between_is_looked_at_and_followed() {
    let world = World::new();
    let mut left = 2;
    world.hub.script(move |request, when, contents| {
        if request.kind() == "commit" && when == When::Before && left > 0 {
            left -= 1;
            let mut files = contents.commits.as_ref().unwrap().last().unwrap().files.clone();
            files.insert(format!("notes-{left}.txt"), b"mine".to_vec());
            contents.add(files, vec![]);
        }
        Fate::Go
    });
    world.uploads(4);
    assert_eq!(world.hub.kinds().iter().filter(|kind| **kind == "put").count(), 2);
}

#[test]
fn an_address_that_has_run_out_is_asked_for_again() {
    let world = World::new();
    let mut left = 1;
    world.hub.script(move |request, when, _| {
        if request.kind() == "put" && when == When::Before && left > 0 {
            left -= 1;
            return Fate::Answer(403, String::new(), json!("Request has expired"));
        }
        Fate::Go
    });
    world.uploads(2);
    assert_eq!(world.hub.kinds().iter().filter(|kind| **kind == "batch").count(), 2);
}

#[test]
fn what_an_earlier_process_sent_is_not_sent_again() {
    let world = World::new();
    let mut num_puts = 0;
    world.hub.script(move |request, when, _| {
        num_puts += usize::from(request.kind() == "put" && when == When::Before);
        if num_puts >= 2 { Fate::Cut } else { Fate::Go }
    });
    let (kind, text) = world_without_commits(&world);
    assert!(matches!(kind, Failure::Unreachable(_)), "{text}");
    world.hub.script(|_, _, _| Fate::Go);
    let before = world.hub.kinds().len();
    world.uploads(2);
    assert_eq!(world.hub.kinds()[before..], ["look", "tree", "preupload", "batch", "put", "verify", "commit"]);
}

/// Fails with no commit but the repository's first.
fn world_without_commits(world: &World) -> (Failure, String) {
    let error = world.upload().unwrap_err();
    assert_eq!(world.hub.commits().len(), 1);
    refused(&error)
}

#[test]
fn a_hub_that_says_it_has_a_file_which_it_has_not_gets_no_commit() {
    let world = World::new();
    world.hub.script(|request, when, _| match (request.kind(), when) {
        ("batch", When::Before) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            Fate::Answer(200, String::new(), json!({"objects": body["objects"]}))
        }
        _ => Fate::Go,
    });
    let (kind, text) = world_without_commits(&world);
    assert!(matches!(kind, Failure::Input(_)) && text.contains("pointed to a file that does not exist"), "{text}");
}

#[test]
fn answers_that_make_no_sense_are_refused_with_a_sentence() {
    for (kind, answer, said) in [
        ("batch", json!({"transfer": "multipart", "objects": []}), "was not offered"),
        ("batch", json!({"objects": []}), "does not say whether"),
        ("batch", json!({"objects": {}}), "cannot be understood"),
        ("batch", json!([1]), "cannot be understood"),
        ("preupload", json!({}), "cannot be understood"),
        ("look", json!({"id": "me/model", "sha": "main"}), "is none"),
        ("commit", json!({"commitOid": "../../etc/passwd"}), "names no commit"),
    ] {
        let world = World::new();
        world.hub.contents().add(Default::default(), vec![]);
        world.hub.script(move |request, when, _| match (request.kind() == kind, when) {
            (true, When::Before) => Fate::Answer(200, String::new(), answer.clone()),
            _ => Fate::Go,
        });
        let (kind, text) = world.fails();
        assert!(matches!(kind, Failure::Unreachable(_)) && text.contains(said), "{text}");
    }
}

#[test]
fn the_token_stays_with_the_hub_and_an_action_has_its_own_headers() {
    let other = MemoryHub::start();
    let world = World::new();
    world.hub.contents().action =
        json!({"href": format!("{}/lfs/OID", other.endpoint), "header": {"X-Signed": "yes", "Content-Length": "1"}});
    let shared = Arc::new(Mutex::new(Vec::new()));
    let received = Arc::clone(&shared);
    other.script(move |request, when, _| {
        if when == When::Before {
            received.lock().unwrap().push(request.clone());
        }
        Fate::Answer(200, String::new(), json!({}))
    });
    // What the other host has received is the hub's.
    let storage = Arc::clone(&shared);
    world.hub.script(move |request, _, contents: &mut Contents| {
        if request.kind() == "verify" {
            let received = storage.lock().unwrap().iter().map(|put: &Request| put.body.clone()).collect::<Vec<_>>();
            contents.objects.extend(received.into_iter().map(|body| (sha256(&body), body)));
        }
        Fate::Go
    });
    world.uploads(2);
    let received = shared.lock().unwrap();
    assert_eq!(received.len(), 2);
    for put in received.iter() {
        assert_eq!((put.method.as_str(), put.headers["x-signed"].as_str()), ("PUT", "yes"));
        assert_eq!(put.headers["content-length"], put.body.len().to_string());
        assert!(!put.headers.contains_key("authorization") && !format!("{put:?}").contains(TOKEN), "{put:?}");
    }
}

#[test]
fn a_redirect_to_another_host_takes_no_authorization_along() {
    let other = MemoryHub::start();
    let world = World::new();
    world.hub.contents().action = json!({"header": {"Authorization": "Basic c2VjcmV0"}});
    other.script(|_, _, _| Fate::Answer(403, String::new(), json!({})));
    let target = other.endpoint.clone();
    world.hub.script(move |request, _, _| match request.kind() {
        "put" => {
            assert_eq!(request.headers["authorization"], "Basic c2VjcmV0");
            Fate::Answer(307, format!("Location: {target}{}\r\n", request.path), json!({}))
        }
        _ => Fate::Go,
    });
    world_without_commits(&world);
    assert!(!other.log().is_empty());
    for request in other.log() {
        assert!(!request.headers.contains_key("authorization"), "{request:?}");
    }
}

#[test]
fn a_storage_that_never_answers_is_given_up() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    world.hub.contents().action = json!({"href": format!("http://{address}/OID")});
    // It takes connections, reads nothing, and says nothing.
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let upload = Upload::new("me/model", world.model.path(), &NAMES, "Train");
    let mut client = world.client();
    client.http.patience.answer = Duration::from_millis(100);
    let (kind, text) = refused(&client.upload(&upload).unwrap_err());
    assert!(matches!(kind, Failure::Unreachable(_)) && text.contains("no answer within 0.1 s"), "{text}");
}

#[test]
fn a_file_that_changes_on_the_way_is_noticed_before_it_is_whole() {
    // Larger than what is read ahead, and than what a connection buffers.
    let world = World::new();
    world.write("model-2.safetensors", &random(4, 64 << 20));
    let path = world.model.path().join("model-2.safetensors");
    let storage = TcpListener::bind("127.0.0.1:0").unwrap();
    world.hub.contents().action = json!({"href": format!("http://{}/OID", storage.local_addr().unwrap())});
    let received = thread::spawn(move || {
        let mut longest = 0;
        for stream in storage.incoming().flatten().take(2) {
            let mut stream = stream;
            let mut head = [0; 1 << 16];
            std::io::Read::read(&mut stream, &mut head).unwrap();
            if String::from_utf8_lossy(&head).contains(&format!("content-length: {}", 64 << 20)) {
                let file = fs::File::options().write(true).open(&path).unwrap();
                std::os::unix::fs::FileExt::write_at(&file, b"other", 63 << 20).unwrap();
                longest = std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or(0);
                break;
            }
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
        longest
    });
    world.hub.script(|request, when, _| match (request.kind(), when) {
        ("verify", When::Before) => Fate::Answer(200, String::new(), json!({})),
        _ => Fate::Go,
    });
    let (kind, text) = world_without_commits(&world);
    assert!(matches!(kind, Failure::Input(_)) && text.contains("model-2.safetensors was changed"), "{text}");
    let received = received.join().unwrap();
    assert!(received > 0 && received < 64 << 20, "{received}");
}

#[test]
fn refusals_say_what_to_do() {
    for (kind, status, message, said) in [
        ("create", 403, "You don't have the rights", "must be allowed to write there"),
        ("create", 401, "Invalid token", "must be allowed to write there"),
        ("batch", 403, "Private repository storage limit reached", "storage limit reached"),
        ("batch", 413, "File too large", "has no room for it (File too large)"),
        ("put", 507, "No space", "has no room for it (No space)"),
        ("commit", 403, "Forbidden", "The token of the test must be allowed"),
        ("commit", 400, "Bad name", "Bad name"),
    ] {
        let world = World::new();
        world.hub.script(move |request, when, _| match (request.kind() == kind, when) {
            (true, When::Before) => Fate::Answer(status, "X-Error-Code: X\r\n".to_owned(), json!({"error": message})),
            _ => Fate::Go,
        });
        let error = world.upload().unwrap_err();
        let (failure, text) = refused(&error);
        assert!(matches!(failure, Failure::Input(_)) && text.contains(said), "{text}");
        assert!(world.hub.commits().len() < 2);
        // It is not asked again what was refused for good.
        assert_eq!(world.hub.kinds().iter().filter(|asked| **asked == kind).count(), 1, "{kind} {status}");
    }
    let object_error = World::new();
    object_error.hub.script(|request, when, _| match (request.kind(), when) {
        ("batch", When::Before) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            let mut objects = body["objects"].clone();
            objects[0]["error"] = json!({"code": 413, "message": "over your quota"});
            Fate::Answer(200, String::new(), json!({"objects": objects}))
        }
        _ => Fate::Go,
    });
    let (_, text) = world_without_commits(&object_error);
    assert!(text.contains("has no room for it (over your quota)"), "{text}");
}

#[test]
fn it_is_checked_before_that_a_repository_can_be_written() {
    let world = World::new();
    world.client().check_writable("me/model").unwrap();
    assert_eq!(world.hub.kinds(), ["look", "whoami"]);
    world.hub.contents().add(Default::default(), vec![]);
    world.client().check_writable("me/model").unwrap();

    let says = |client: HuggingFace, said: &str| {
        let (kind, text) = refused(&client.check_writable("me/model").unwrap_err());
        assert!(matches!(kind, Failure::Input(_)) && text.contains(said), "{text}");
    };
    says(world.client_with(None), "set HF_TOKEN");
    says(world.client_with(Some("hf_anothertokenofsomebody")), "does not take the token of the test");
    world.hub.contents().account = json!({"name": "you", "orgs": []});
    says(world.client(), "the token belongs to \"you\"");
    world.hub.contents().account = json!({"name": "me", "auth": {"accessToken": {"role": "read"}}});
    says(world.client(), "may only read");
    world.hub.contents().id = Some("me/renamed".to_owned());
    says(world.client(), "is called me/renamed");
    assert!(world.client().check_writable("../x").is_err());
}
