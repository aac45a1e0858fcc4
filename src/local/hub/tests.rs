//! The server against its clients' requests, those of strangers, and connections that end.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use axum::http::Method;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::error::exit_code;
use crate::hub::{Checksum, Hub, RemoteFile, Upload};

const REPO: &str = "miner/model";

/// A server with a client.
struct World {
    dir: TempDir,
    hub: Arc<FolderHub>,
    server: Option<HubServer>,
    runtime: Runtime,
    client: reqwest::Client,
    options: Options,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn assert(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

impl World {
    fn new(options: Options) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let hub = Arc::new(FolderHub::create(&dir.path().join("hub")).unwrap());
        let server = Some(HubServer::start(Arc::clone(&hub), 0, options.clone()).unwrap());
        let runtime = Runtime::new().unwrap();
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { dir, hub, server, runtime, client, options }
    }

    fn restart(&mut self) {
        drop(self.server.take());
        self.server = Some(HubServer::start(Arc::clone(&self.hub), 0, self.options.clone()).unwrap());
    }

    fn endpoint(&self) -> String {
        self.server.as_ref().unwrap().endpoint()
    }

    fn lfs(&self) -> PathBuf {
        self.dir.path().join("hub/.lfs")
    }

    /// Names of what waits for a commit.
    fn waiting(&self) -> Vec<String> {
        let entries = fs::read_dir(self.lfs()).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The answer; `None`: the connection ended without one.
    fn try_send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Option<Answer> {
        let url = if path.starts_with("http") { path.to_owned() } else { self.endpoint() + path };
        let mut request = self.client.request(method.parse().unwrap(), url).body(body);
        for &(name, value) in headers {
            request = request.header(name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap());
        }
        self.runtime.block_on(async {
            let answer = request.send().await.ok()?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            Some(Answer { status, headers, body: answer.bytes().await.ok()?.to_vec() })
        })
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        self.try_send(method, path, headers, body.into()).unwrap()
    }

    fn nobody_gets(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[(AUTHORIZATION.as_str(), "Bearer t")], "")
    }

    fn send_json(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [(AUTHORIZATION.as_str(), "Bearer t"), ("content-type", "application/json")];
        self.send(method, path, &headers, body.to_string())
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_json("POST", path, body)
    }

    fn create(&self, name: &str, private: bool) {
        let body = json!({ "organization": "miner", "name": name, "type": "model", "private": private });
        self.post("/api/repos/create", &body).assert(200);
    }

    fn batch(&self, repo: &str, content: &[u8]) -> Value {
        let body = json!({ "operation": "upload", "transfers": ["basic", "xet"], "hash_algo": "sha256",
            "objects": [{ "oid": sha256(content), "size": content.len() }] });
        self.post(&format!("/{repo}.git/info/lfs/objects/batch"), &body).assert(200).json()
    }

    /// The address that a large file is to be put to.
    fn address(&self, content: &[u8]) -> String {
        self.batch(REPO, content)["objects"][0]["actions"]["upload"]["href"].as_str().unwrap().to_owned()
    }

    fn commit(&self, repo: &str, lines: &[Value]) -> Answer {
        self.commit_text(repo, &lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    }

    fn commit_text(&self, repo: &str, text: &str) -> Answer {
        let headers = [(AUTHORIZATION.as_str(), "Bearer t"), ("content-type", "application/x-ndjson")];
        self.send("POST", &format!("/api/models/{repo}/commit/main"), &headers, text)
    }

    fn newest(&self) -> String {
        self.hub.newest_commit(REPO).unwrap().unwrap()
    }
}

fn sha256(content: &[u8]) -> String {
    attributes::hexadecimal(&Sha256::digest(content))
}

fn header(parent: Option<&str>) -> Value {
    json!({ "key": "header", "value": { "summary": "A model", "description": "in words", "parentCommit": parent } })
}

fn file(path: &str, content: &[u8]) -> Value {
    json!({ "key": "file", "value": { "path": path, "content": STANDARD.encode(content), "encoding": "base64" } })
}

fn large(path: &str, content: &[u8]) -> Value {
    json!({ "key": "lfsFile", "value": { "path": path, "algo": "sha256", "oid": sha256(content), "size": content.len() } })
}

/// Three million bytes that do not repeat soon.
fn weights() -> Vec<u8> {
    (0..1_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(3_000_001).collect()
}

#[test]
fn a_model_goes_up_as_a_large_file_and_comes_down_whole_or_in_part() {
    let world = World::new(Options::default());
    world.create("model", false);
    let content = weights();
    let plan = json!({ "files": [{ "path": "model.safetensors", "size": content.len(), "sample": "" },
        { "path": "config.json", "size": 2, "sample": "" }] });
    let modes = world.post(&format!("/api/models/{REPO}/preupload/main"), &plan).assert(200).json();
    assert_eq!(
        (&modes["files"][0]["uploadMode"], &modes["files"][1]["uploadMode"]),
        (&json!("lfs"), &json!("regular"))
    );
    assert_eq!(modes["files"][0].get("oid"), None);

    let batch = world.batch(REPO, &content);
    assert_eq!(batch["transfer"], "basic");
    let actions = &batch["objects"][0]["actions"];
    let verify = || {
        let object = json!({ "oid": sha256(&content), "size": content.len() });
        world.post(actions["verify"]["href"].as_str().unwrap(), &object).status
    };
    assert_eq!(verify(), 404);
    // Clients send no token there.
    world.send("PUT", actions["upload"]["href"].as_str().unwrap(), &[], content.clone()).assert(200);
    assert_eq!(verify(), 200);
    assert_eq!(world.waiting(), [sha256(&content)]);
    assert_eq!(world.batch(REPO, &content)["objects"][0].get("actions"), None, "it is to be uploaded again");

    let first = world.newest();
    let lines = [header(Some(&first)), file("config.json", b"{}"), large("model.safetensors", &content)];
    let made = world.commit(REPO, &lines).assert(200).json();
    let commit = world.newest();
    assert_eq!(made["commitOid"], commit.as_str());
    assert!(world.waiting().is_empty());
    assert_eq!(world.batch(REPO, &content)["objects"][0].get("actions"), None, "it stands in a commit");
    let modes = world.post(&format!("/api/models/{REPO}/preupload/main"), &plan).assert(200).json();
    let blob = "9e26dfeeb6e641a33dae4961196235bdb965b21b"; // git hash-object of {}
    assert_eq!((&modes["files"][0]["oid"], &modes["files"][1]["oid"]), (&json!(sha256(&content)), &json!(blob)));

    let path = format!("/{REPO}/resolve/{commit}/model.safetensors");
    let whole = world.nobody_gets(&path).assert(200);
    assert!(whole.body == content);
    let etag = format!("\"{}\"", sha256(&content));
    for answer in [whole, world.send("HEAD", &path, &[], "").assert(200)] {
        assert_eq!(answer.header("etag"), etag);
        assert_eq!((answer.header("x-linked-etag"), answer.header("x-linked-size")), (etag.as_str(), "3000001"));
        assert_eq!((answer.header("x-repo-commit"), answer.header("content-length")), (commit.as_str(), "3000001"));
        assert_eq!(answer.header("accept-ranges"), "bytes");
    }
    let part = world.send("GET", &path, &[("range", "bytes=2000000-")], "").assert(206);
    assert!(part.body == content[2_000_000..]);
    assert_eq!(part.header("content-range"), "bytes 2000000-3000000/3000001");
    let part = world.send("GET", &path, &[("range", "bytes=0-9"), ("if-range", &etag)], "").assert(206);
    assert_eq!(part.body, &content[..10]);
    assert_eq!(
        world.send("GET", &path, &[("range", "bytes=0-9"), ("if-range", "\"x\"")], "").assert(200).body.len(),
        3_000_001
    );
    let outside = world.send("GET", &path, &[("range", "bytes=3000001-")], "").assert(416);
    assert_eq!(outside.header("content-range"), "bytes */3000001");
    assert!(world.send("GET", &path, &[("if-none-match", &etag)], "").assert(304).body.is_empty());
    let config = world.nobody_gets(&format!("/{REPO}/resolve/main/config.json")).assert(200);
    assert_eq!((config.header("etag"), config.body.as_slice()), (format!("\"{blob}\"").as_str(), b"{}".as_slice()));

    let absent = world.nobody_gets(&format!("/{REPO}/resolve/main/absent.json")).assert(404);
    assert_eq!((absent.header("x-error-code"), absent.header("x-repo-commit")), ("EntryNotFound", commit.as_str()));

    // The folder's own view: the sum is known without a look at the file.
    let files = world.hub.files(REPO, &commit).unwrap();
    let stored = files.iter().find(|file| file.path == "model.safetensors").unwrap();
    assert_eq!(stored.sum, Some(Checksum::Sha256(Sha256::digest(&content).into())));
}

#[test]
fn what_was_uploaded_waits_for_its_commit_across_a_restart() {
    let mut world = World::new(Options::default());
    world.create("model", false);
    let content = weights();
    let address = world.address(&content);
    world.send("PUT", &address, &[], content.clone()).assert(200);
    world.restart();
    assert_eq!(world.batch(REPO, &content)["objects"][0].get("actions"), None);
    // An address is good for the server that gave it.
    let stale = address.replacen(&address[..address.find("/lfs").unwrap()], "", 1);
    world.send("PUT", &stale, &[], content.clone()).assert(403);
    world.commit(REPO, &[header(None), large("model.safetensors", &content)]).assert(200);
    assert!(world.nobody_gets(&format!("/{REPO}/resolve/main/model.safetensors")).body == content);

    // After a day it goes, and after a few minutes what a server that was killed has left of one.
    let other = b"other".repeat(1000);
    world.send("PUT", &world.address(&other), &[], other.clone()).assert(200);
    fs::write(world.lfs().join(".tmp-x"), "half").unwrap();
    let lfs = world.lfs();
    let age = |name: &str, seconds| {
        let times = fs::FileTimes::new().set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds));
        fs::File::open(lfs.join(name)).unwrap().set_times(times).unwrap();
    };
    age(&sha256(&other), 24 * 3600 - 60);
    age(".tmp-x", 660);
    world.restart();
    assert_eq!(world.waiting(), [sha256(&other)]);
    age(&sha256(&other), 24 * 3600 + 60);
    world.restart();
    assert!(world.waiting().is_empty());
}

#[test]
fn an_upload_that_is_not_the_promised_file_leaves_nothing() {
    let world = World::new(Options::default());
    world.create("model", false);
    let content = weights();
    let address = world.address(&content);
    let put = |address: &str, content: &[u8]| world.send("PUT", address, &[], content).status;
    assert_eq!(put(&address, &content[1..]), 413);
    assert_eq!(put(&address, &[&content[..], b"x"].concat()), 413);
    let mut other = content.clone();
    other[2_000_000] ^= 1;
    assert_eq!(put(&address, &other), 400);
    assert_eq!(put(&address.replace("size=3000001", "size=3000000"), &content[1..]), 403);
    assert_eq!(put(&address.replace(&sha256(&content), &sha256(&other)), &other), 403);
    assert_eq!(put(&address.replace("until=", "until=9"), &content), 403);
    assert_eq!(put(&address.replace("signature=", "signature=0"), &content), 403);
    assert_eq!(put(&format!("{}/lfs/..%2f..%2fx?{}", world.endpoint(), address.split_once('?').unwrap().1), b"x"), 403);

    // A client that dies half-way, with and without having told how much would come.
    let (host, path) = address.strip_prefix("http://").unwrap().split_once('/').unwrap();
    for length in ["Content-Length: 3000001", "Transfer-Encoding: chunked"] {
        let mut socket = TcpStream::connect(host).unwrap();
        write!(socket, "PUT /{path} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n\r\n186a0\r\n").unwrap();
        socket.write_all(&content[..100_000]).unwrap();
        let start = Instant::now();
        while world.waiting().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(10), "nothing was begun");
            sleep(Duration::from_millis(2));
        }
        drop(socket);
        while !world.waiting().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?} stays", world.waiting());
            sleep(Duration::from_millis(2));
        }
    }
    world.commit(REPO, &[header(None), large("model.safetensors", &content)]).assert(400);
    let huge = json!({ "operation": "upload", "objects": [{ "oid": "0".repeat(64), "size": 1_u64 << 60 },
        { "oid": "../../x", "size": 1 }] });
    let answer = world.post(&format!("/{REPO}.git/info/lfs/objects/batch"), &huge).assert(200).json();
    assert_eq!(
        (&answer["objects"][0]["error"]["code"], &answer["objects"][1]["error"]["code"]),
        (&json!(507), &json!(422))
    );
}

#[test]
fn a_commit_changes_the_newest_one_and_nothing_else() {
    let world = World::new(Options::default());
    world.create("model", false);
    let first = world.newest();
    let made = world.commit(REPO, &[header(Some(&first)), file("a", b"1"), file("b", b"2")]).assert(200).json();
    let second = world.newest();
    assert_eq!(made["commitOid"], second.as_str());
    world.commit(REPO, &[header(Some(&first)), file("a", b"3")]).assert(412);
    let gone =
        world.commit(REPO, &[header(None), json!({ "key": "deletedFile", "value": { "path": "c" } })]).assert(404);
    assert_eq!(gone.header("x-error-code"), "EntryNotFound");
    assert_eq!(world.newest(), second);
    let lines = [header(Some(&second)), json!({ "key": "deletedFile", "value": { "path": "a" } }), file("c", b"")];
    world.commit(REPO, &lines).assert(200);
    let names = |commit: &str| {
        let files = world.hub.files(REPO, commit).unwrap();
        files.into_iter().map(|file| file.path).filter(|path| path != ".gitattributes").collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&second), names(&world.newest())),
        (vec!["a".to_owned(), "b".into()], vec!["b".to_owned(), "c".into()])
    );

    // Pages by their links.
    let follow = |path: String| {
        let (mut found, mut next) = (Vec::new(), path);
        loop {
            let page = world.nobody_gets(&next).assert(200);
            found.extend(page.json().as_array().unwrap().clone());
            let Some(link) = page.header("link").strip_prefix('<') else { return found };
            next = link.split_once(">; rel=\"next\"").unwrap().0.to_owned();
        }
    };
    let tree = follow(format!("/api/models/{REPO}/tree/main?recursive=true&limit=1"));
    assert_eq!(
        tree.iter().map(|entry| entry["path"].as_str().unwrap()).collect::<Vec<_>>(),
        [".gitattributes", "b", "c"]
    );
    let commits = follow(format!("/api/models/{REPO}/commits/main?limit=2"));
    let ids: Vec<_> = commits.iter().map(|commit| commit["id"].as_str().unwrap()).collect();
    assert_eq!(ids, world.hub.commits(REPO).unwrap());
    assert_eq!((&commits[0]["title"], &commits[0]["message"]), (&json!("A model"), &json!("in words")));
    assert_eq!(follow(format!("/api/models/{REPO}/commits/{first}")).len(), 1);
}

#[test]
fn commits_of_strangers_are_refused_before_anything_is_written() {
    let world = World::new(Options::default());
    world.create("model", false);
    let before = world.newest();
    for path in ["folder/x", "../x", "/etc/x", "", ".", "..", "a\\b", "a\0b", "a\nb", &"n".repeat(256)] {
        let answer = world.commit(REPO, &[header(None), file(path, b"x")]).assert(400);
        assert!(answer.json()["error"].as_str().unwrap().contains("no plain name of a file"), "{path:?}");
        world.commit(REPO, &[header(None), large(path, b"x")]).assert(400);
        let plan = json!({ "files": [{ "path": path, "size": 1 }] });
        world.post(&format!("/api/models/{REPO}/preupload/main"), &plan).assert(400);
    }
    let bad_base64 = json!({ "key": "file", "value": { "path": "a", "content": "*", "encoding": "base64" } });
    let bad_sum = json!({ "key": "lfsFile", "value": { "path": "a", "algo": "sha256", "oid": "../../x", "size": 1 } });
    let unknown = json!({ "key": "copyFile", "value": { "path": "a" } });
    for line in [bad_base64, bad_sum, unknown] {
        world.commit(REPO, &[header(None), line]).assert(400);
    }
    for text in ["", "{", "[]\n", "null", &file("a", b"x").to_string(), &"\n{}".repeat(3)] {
        world.commit_text(REPO, text).assert(400);
    }
    let long = json!({ "key": "header", "value": { "summary": "x".repeat(70_000) } });
    world.commit(REPO, &[long, file("a", b"x")]).assert(400);
    world.commit_text(REPO, &" ".repeat((96 << 20) + 1)).assert(413);
    world.post("/api/repos/create", &json!({ "name": "x".repeat(1 << 20) })).assert(413);
    assert_eq!(world.newest(), before);
    for (organization, name) in [("..", "x"), (".lfs", "x"), ("a/b", "x"), ("a", "../b"), ("", "x"), ("a", "")] {
        world.post("/api/repos/create", &json!({ "organization": organization, "name": name })).assert(400);
    }
    assert_eq!(fs::read_dir(world.dir.path()).unwrap().count(), 1);
}

#[test]
fn no_path_leads_out_of_a_commit() {
    let world = World::new(Options::default());
    world.create("model", false);
    fs::write(world.dir.path().join("secret"), "secret").unwrap();
    let commit = world.newest();
    let dir = world.dir.path().join("hub").join(REPO);
    std::os::unix::fs::symlink("../../../../secret", dir.join(&commit).join("link")).unwrap();
    for path in [
        "link",
        "..%2fcommits.jsonl",
        "..%2f..%2f..%2f..%2fsecret",
        "%2fetc%2fpasswd",
        "a%00b",
        "x/../.gitattributes",
        "%2e%2e",
    ] {
        let url = format!("/{REPO}/resolve/{commit}/{path}");
        // As it is: a client would tidy it up.
        let host = world.server.as_ref().unwrap().address();
        let mut socket = TcpStream::connect(host).unwrap();
        write!(socket, "GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("\r\n\r\nsecret"), "{path}: {answer}");
    }
    for revision in ["dev", "refs%2Fpr%2F1", &"f".repeat(40), &commit[..39]] {
        let answer = world.get(&format!("/{REPO}/resolve/{revision}/.gitattributes"));
        assert_eq!((answer.status, answer.header("x-error-code")), (404, "RevisionNotFound"), "{revision}");
    }
    for repo in ["..%2f../x", "../..", ".lfs/x", "%2e%2e/model"] {
        assert!([400, 404].contains(&world.get(&format!("/api/models/{repo}")).status), "{repo}");
    }
}

#[test]
fn who_may_not_see_a_repository_cannot_tell_it_from_one_that_is_not_there() {
    let world = World::new(Options { token: Some("t".to_owned()), ..Options::default() });
    world.create("model", true);
    world.commit(REPO, &[header(None), file("config.json", b"{}")]).assert(200);
    let paths = |repo: &str| {
        let models = format!("/api/models/{repo}");
        vec![
            models.clone(),
            format!("{models}/tree/main"),
            format!("{models}/refs"),
            format!("{models}/commits/main"),
            format!("/{repo}/resolve/main/config.json"),
        ]
    };
    for (hidden, absent) in paths(REPO).iter().zip(paths("miner/absent")) {
        let (hidden_answer, absent_answer) = (world.nobody_gets(hidden), world.nobody_gets(&absent));
        assert_eq!((hidden_answer.status, hidden_answer.header("x-error-code")), (401, "RepoNotFound"), "{hidden}");
        assert_eq!((absent_answer.status, absent_answer.body), (401, hidden_answer.body), "{absent}");
        world.get(hidden).assert(200);
        assert_eq!(world.get(&absent).assert(404).header("x-error-code"), "RepoNotFound");
        let wrong = world.send("GET", hidden, &[("authorization", "Bearer T")], "").assert(401);
        assert_eq!(wrong.header("x-error-message"), "Invalid credentials in Authorization header");
    }
    let settings = format!("/api/models/{REPO}/settings");
    let anonymous = |method, path: &str| {
        world.send(
            method,
            path,
            &[("content-type", "application/json")],
            json!({ "private": false, "name": "x" }).to_string(),
        )
    };
    anonymous("PUT", &settings).assert(401);
    world.send_json("PUT", &settings, &json!({ "visibility": "public" })).assert(200);
    assert_eq!(world.nobody_gets(&format!("/api/models/{REPO}")).assert(200).json()["private"], false);
    // To see is not to write.
    anonymous("PUT", &settings).assert(401);
    anonymous("POST", "/api/repos/create").assert(401);
    world.send("POST", &format!("/api/models/{REPO}/commit/main"), &[], header(None).to_string()).assert(401);
    let batch = json!({ "operation": "upload", "objects": [] }).to_string();
    let json_type = [("content-type", "application/json")];
    world.send("POST", &format!("/{REPO}.git/info/lfs/objects/batch"), &json_type, batch).assert(401);
    world.send_json("PUT", &settings, &json!({ "private": true })).assert(200);
    world.nobody_gets(&format!("/api/models/{REPO}")).assert(401);
    world.nobody_gets("/api/whoami-v2").assert(401);
}

#[test]
fn pages_of_elsewhere_cannot_ask() {
    let world = World::new(Options::default());
    let who = |headers: &[(&str, &str)]| {
        let headers = [&[(AUTHORIZATION.as_str(), "Bearer t")], headers].concat();
        world.send("GET", "/api/whoami-v2", &headers, "").status
    };
    assert_eq!(who(&[("origin", "http://localhost:1")]), 200);
    assert_eq!(who(&[("origin", "http://evil.example")]), 403);
    assert_eq!(who(&[("origin", "null")]), 403);
    assert_eq!(who(&[("host", "evil.example")]), 403);
    assert_eq!(who(&[("host", "localhost:7")]), 200);
}

/// Cuts the connection at the so manieth sight of a request, and at all later ones.
struct Killer {
    left: Mutex<usize>,
}

impl Observer for Killer {
    fn sees(&self, _: Moment, _: &Method, _: &str) -> Fate {
        let mut left = self.left.lock().unwrap();
        let alive = *left > 0;
        *left = left.saturating_sub(1);
        if alive { Fate::GoOn } else { Fate::Cut }
    }
}

#[test]
fn an_observer_can_end_everything_before_and_after_each_request() {
    for left in 0..=6 {
        let world =
            World::new(Options { observer: Some(Arc::new(Killer { left: Mutex::new(left) })), ..Options::default() });
        let create = || {
            let body = json!({ "organization": "miner", "name": "model" }).to_string().into_bytes();
            let headers = [(AUTHORIZATION.as_str(), "Bearer t"), ("content-type", "application/json")];
            world.try_send("POST", "/api/repos/create", &headers, body)
        };
        let commit = || {
            let body = format!("{}\n{}", header(None), file("a", b"1")).into_bytes();
            let headers = [(AUTHORIZATION.as_str(), "Bearer t")];
            world.try_send("POST", &format!("/api/models/{REPO}/commit/main"), &headers, body)
        };
        let answers = [create().map(|answer| answer.status), commit().map(|answer| answer.status)];
        let expected = [(left >= 2).then_some(200), (left >= 4).then_some(200)];
        assert_eq!(answers, expected, "{left}");
        // A request that was cut before it was handled changed nothing, one that was cut afterwards did.
        let num_commits = usize::from(left >= 1) + usize::from(left >= 3);
        assert_eq!(world.hub.commits(REPO).unwrap().len(), num_commits, "{left}");
    }
}

#[test]
fn an_observer_can_answer_in_the_servers_place() {
    struct Busy;
    impl Observer for Busy {
        fn sees(&self, _: Moment, _: &Method, path: &str) -> Fate {
            match path.ends_with("refs") {
                true => Fate::Say(Box::new(
                    (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response(),
                )),
                false => Fate::GoOn,
            }
        }
    }
    let world = World::new(Options { observer: Some(Arc::new(Busy)), ..Options::default() });
    world.create("model", false);
    assert_eq!(world.nobody_gets(&format!("/api/models/{REPO}/refs")).assert(429).header("retry-after"), "1");
    world.nobody_gets(&format!("/api/models/{REPO}")).assert(200);
}

#[test]
fn large_files_come_from_the_xet_store_where_there_is_one() {
    struct Store(Vec<u8>);
    impl Xet for Store {
        fn access(&self) -> XetAccess {
            XetAccess { cas_url: "http://127.0.0.1:1".to_owned(), access_token: "x".to_owned(), expires: 7 }
        }
        fn hash(&self, sum: &str) -> Option<String> {
            (sum == sha256(&self.0)).then(|| "abc".to_owned())
        }
        fn fetch(&self, sum: &str, to: &Path) -> Result<bool> {
            // One file that is what it should be, and one that is not.
            fs::write(to, if sum == sha256(&self.0) { &self.0 } else { b"other".as_slice() })?;
            Ok(true)
        }
    }
    let content = weights();
    let world = World::new(Options { xet: Some(Arc::new(Store(content.clone()))), ..Options::default() });
    world.create("model", false);
    assert_eq!(world.batch(REPO, &content)["transfer"], "xet");
    let token = world.get(&format!("/api/models/{REPO}/xet-write-token/main")).assert(200);
    assert_eq!(token.json(), json!({ "casUrl": "http://127.0.0.1:1", "accessToken": "x", "exp": 7 }));
    world.nobody_gets(&format!("/api/models/{REPO}/xet-write-token/main")).assert(401);
    world.commit(REPO, &[header(None), large("model.safetensors", b"wrong")]).assert(400);
    world.commit(REPO, &[header(None), large("model.safetensors", &content)]).assert(200);
    assert!(world.waiting().is_empty());
    let path = format!("/{REPO}/resolve/main/model.safetensors");
    let answer = world.nobody_gets(&path).assert(200);
    assert!(answer.body == content);
    assert_eq!(answer.header("x-xet-hash"), "abc");
    let refresh =
        format!("<{}/api/models/{REPO}/xet-read-token/{}>; rel=\"xet-auth\"", world.endpoint(), world.newest());
    assert_eq!(answer.header("link"), refresh);
    let tree = world.get(&format!("/api/models/{REPO}/tree/main")).assert(200).json();
    assert_eq!(tree[1]["xetHash"], "abc");
}

#[test]
fn what_the_folder_hub_has_uploaded_is_served_even_if_it_wrote_no_sums_down() {
    let world = World::new(Options::default());
    let model = tempfile::tempdir().unwrap();
    let content = weights();
    fs::write(model.path().join("model.safetensors"), &content).unwrap();
    let commit = world.hub.upload(&Upload::new(REPO, model.path(), &["model.safetensors"], "by hand")).unwrap();
    let told = || {
        let tree = world.nobody_gets(&format!("/api/models/{REPO}/tree/{commit}")).assert(200).json();
        tree[0]["lfs"]["oid"].as_str().unwrap().to_owned()
    };
    assert_eq!(told(), sha256(&content));
    let line = world.dir.path().join("hub").join(REPO).join("commits.jsonl");
    fs::write(&line, format!("{}\n", json!({ "commit": commit, "message": "by hand" }))).unwrap();
    assert_eq!(world.hub.files(REPO, &commit).unwrap(), [RemoteFile::new("model.safetensors", 3_000_001)]);
    assert_eq!(told(), sha256(&content));
    assert_eq!(told(), sha256(&content));
    // A commit on top of it writes them down.
    world.commit(REPO, &[header(Some(&commit)), file("config.json", b"{}")]).assert(200);
    let files = world.hub.files(REPO, &world.newest()).unwrap();
    assert!(files.iter().all(|file| file.sum.is_some()) && files.len() == 2);
}

/// The crate that assay writes with.
#[test]
fn hf_hub_creates_uploads_lists_and_downloads() {
    use hf_hub::repository::{CommitOperation, RepoTreeEntry, RepoTypeModel};
    let world = World::new(Options::default());
    let cache = tempfile::tempdir().unwrap();
    let client = hf_hub::HFClient::builder().endpoint(world.endpoint()).token("t").cache_dir(cache.path());
    let client = client.build_sync().unwrap();
    for exist_ok in [false, true] {
        let create = client.create_repository().repo_id(REPO).repo_type(RepoTypeModel).private(true).exist_ok(exist_ok);
        assert_eq!(create.send().unwrap().url, format!("{}/{REPO}", world.endpoint()));
    }
    let model = client.model("miner", "model");
    let first = model.list_commits().send().unwrap().remove(0).id;
    let add = |name: &str, content: &[u8]| CommitOperation::add_bytes(name, content.to_vec());
    let operations = vec![add("config.json", b"{}"), add("model.safetensors", &weights())];
    let commit = |operations, parent: &str| {
        model.create_commit().operations(operations).commit_message("A model").parent_commit(parent.to_owned()).send()
    };
    let made = commit(operations, &first).unwrap().commit_oid.unwrap();
    assert_eq!(made, world.newest());
    assert!(commit(vec![CommitOperation::delete("config.json")], &first).unwrap_err().to_string().contains("412"));
    let info = model.info().send().unwrap();
    assert_eq!((info.sha.as_deref(), info.private), (Some(made.as_str()), Some(true)));
    let sizes: Vec<_> = model.list_tree().revision(made.as_str()).recursive(true).send().unwrap();
    let sizes = sizes.iter().map(|entry| match entry {
        RepoTreeEntry::File { path, size, .. } => (path.as_str(), *size),
        RepoTreeEntry::Directory { path, .. } => panic!("{path} is a folder"),
    });
    let sizes: Vec<_> = sizes.collect();
    assert_eq!(sizes[1..], [("config.json", 2), ("model.safetensors", 3_000_001)]);
    let path = model.download_file().filename("model.safetensors").revision(made.as_str()).send().unwrap();
    assert!(fs::read(path).unwrap() == weights());
    model.update_settings().private(false).send().unwrap();
    assert_eq!(world.hub.is_private(REPO).unwrap(), Some(false));
}

#[test]
fn a_dropped_server_is_gone_and_a_port_in_use_is_the_users_error() {
    let mut world = World::new(Options::default());
    let address = world.server.as_ref().unwrap().address();
    let error = HubServer::start(Arc::clone(&world.hub), address.port(), Options::default()).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("is in use"), "{error}");
    let start = Instant::now();
    drop(world.server.take());
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(TcpStream::connect(address).is_err());
}
