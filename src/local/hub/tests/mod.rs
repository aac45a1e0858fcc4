//! The server against its clients' requests, those of strangers, and connections that end.

#![allow(clippy::unwrap_used)]

mod commits;
mod large_files;
mod seams;
mod strangers;

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
    crate::hex::digits(Sha256::digest(content))
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
