//! The server against plain requests, in the ways of clients and of strangers.

#![allow(clippy::unwrap_used)]

mod faults;
mod files;
mod rows;
mod shards;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::http::request::Parts;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::error::exit_code;

const TREE: &str = "/api/datasets/any/name/tree/main";

/// A server with a client.
struct World {
    dir: TempDir,
    server: Option<DatasetServer>,
    runtime: Runtime,
    client: reqwest::Client,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Whether the body came to its end.
    is_whole: bool,
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

    /// A refusal with that code and that sentence.
    #[track_caller]
    fn assert_refusal(self, status: u16, code: &str, sentence: &str) {
        let answer = self.assert(status);
        assert_eq!((answer.header("x-error-code"), answer.json()["error"].as_str()), (code, Some(sentence)));
    }
}

impl World {
    /// A server of files, by path and content.
    fn of(files: &[(&str, Vec<u8>)], options: Options) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let server = Some(DatasetServer::start(dir.path(), 0, options).unwrap());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { dir, server, runtime: Runtime::new().unwrap(), client }
    }

    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        Self::of(files, Options::default())
    }

    fn watched(files: &[(&str, Vec<u8>)], observer: impl Fn(&Parts) -> Fate + Send + Sync + 'static) -> Self {
        Self::of(files, Options { observer: Some(Arc::new(observer)), ..Options::default() })
    }

    fn restart(&mut self) {
        drop(self.server.take());
        self.server = Some(DatasetServer::start(self.dir.path(), 0, Options::default()).unwrap());
    }

    fn endpoint(&self) -> String {
        self.server.as_ref().unwrap().endpoint()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The answer; `None`: the connection ended without one.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Option<Answer> {
        let url = if path.starts_with("http") { path.to_owned() } else { self.endpoint() + path };
        let mut request = self.client.request(method.parse().unwrap(), url).body(body.to_owned());
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        self.runtime.block_on(async {
            let mut answer = request.send().await.ok()?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            let mut body = Vec::new();
            let is_whole = loop {
                match answer.chunk().await {
                    Ok(Some(part)) => body.extend_from_slice(&part),
                    end => break end.is_ok(),
                }
            };
            Some(Answer { status, headers, body, is_whole })
        })
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").unwrap()
    }

    fn get_with(&self, path: &str, name: &str, value: &str) -> Answer {
        self.send("GET", path, &[(name, value)], "").unwrap()
    }

    fn commit(&self) -> String {
        self.get("/api/datasets/any/name").assert(200).json()["sha"].as_str().unwrap().to_owned()
    }
}

fn address(path: &str) -> String {
    format!("/datasets/any/name/resolve/main/{path}")
}

/// Bytes that do not repeat soon.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
