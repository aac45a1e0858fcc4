//! A hub in memory that is asked over HTTP, one request to a connection, and fails as a test wants.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(super) const TOKEN: &str = "hf_averysecrettokenofmine";
/// Larger files are large ones to this hub.
pub(super) const LARGE_BYTES: usize = 1000;

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// What it asks for, in one word.
    pub(super) fn kind(&self) -> &'static str {
        match self.path.split('?').next().unwrap_or_default() {
            path if path.contains("/tree/") => "tree",
            path if path.contains("/preupload/") => "preupload",
            path if path.contains("/commit/") => "commit",
            path if path.ends_with("/objects/batch") => "batch",
            path if path.ends_with("/settings") => "settings",
            path if path.starts_with("/lfs/") => "put",
            "/verify" => "verify",
            "/api/repos/create" => "create",
            "/api/whoami-v2" => "whoami",
            _ => "look",
        }
    }
}

/// Whether a request has been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

/// What becomes of a request.
pub(super) enum Fate {
    Go,
    /// No answer.
    Cut,
    /// Another answer: a status and its headers, each ended by a line break.
    Answer(u16, String, Value),
}

type Script = Box<dyn FnMut(&Request, When, &mut Contents) -> Fate + Send>;

/// What the hub holds.
#[derive(Default)]
pub(super) struct Contents {
    /// The commits of the only repository, oldest first; `None`: it is not there.
    pub(super) commits: Option<Vec<Commit>>,
    pub(super) private: bool,
    /// Large files by their hashes.
    pub(super) objects: HashMap<String, Vec<u8>>,
    pub(super) account: Value,
    /// What is added to the addresses that large files are to be sent to.
    pub(super) action: Value,
    /// The id that the repository says it has.
    pub(super) id: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) oid: String,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The paths of the large ones.
    pub(super) large: Vec<String>,
}

pub(super) struct MemoryHub {
    pub(super) endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    contents: Mutex<Contents>,
    script: Mutex<Option<Script>>,
    log: Mutex<Vec<Request>>,
    /// After so many more bytes, in either direction, the connection is cut, once.
    bytes_left: Mutex<Option<u64>>,
    num_bytes: Mutex<u64>,
}

impl MemoryHub {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::<Shared>::default();
        shared.contents.lock().unwrap().account = json!({"name": "me", "orgs": []});
        let served = (Arc::clone(&shared), endpoint.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, endpoint) = served.clone();
                thread::spawn(move || shared.serve(&endpoint, stream));
            }
        });
        Self { endpoint, shared }
    }

    pub(super) fn contents(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.shared.contents.lock().unwrap()
    }

    pub(super) fn commits(&self) -> Vec<Commit> {
        self.contents().commits.clone().unwrap_or_default()
    }

    /// Decides from now on what becomes of each request.
    pub(super) fn script(&self, script: impl FnMut(&Request, When, &mut Contents) -> Fate + Send + 'static) {
        *self.shared.script.lock().unwrap() = Some(Box::new(script));
    }

    pub(super) fn log(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap().clone()
    }

    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.log().iter().map(Request::kind).collect()
    }

    pub(super) fn cut_after(&self, num_bytes: u64) {
        *self.shared.bytes_left.lock().unwrap() = Some(num_bytes);
    }

    /// Bytes of all requests and answers.
    pub(super) fn num_bytes(&self) -> u64 {
        *self.shared.num_bytes.lock().unwrap()
    }
}

/// A connection that may be cut.
struct Wire<'a>(TcpStream, &'a Shared);

impl Wire<'_> {
    fn allow(&self, bytes: usize) -> std::io::Result<usize> {
        *self.1.num_bytes.lock().unwrap() += bytes as u64;
        let mut left = self.1.bytes_left.lock().unwrap();
        match *left {
            Some(most) if most < bytes as u64 => {
                *left = None;
                let _ = self.0.shutdown(Shutdown::Both);
                Err(std::io::Error::other("cut"))
            }
            Some(most) => {
                *left = Some(most - bytes as u64);
                Ok(bytes)
            }
            None => Ok(bytes),
        }
    }
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(512);
        let bytes = self.0.read(&mut buffer[..most])?;
        self.allow(bytes)
    }
}

impl Shared {
    fn serve(&self, endpoint: &str, stream: TcpStream) {
        let wire = Wire(stream.try_clone().unwrap(), self);
        let Some(request) = read_request(&mut BufReader::new(wire)) else { return };
        self.log.lock().unwrap().push(request.clone());
        let mut answer = None;
        for when in [When::Before, When::After] {
            let mut contents = self.contents.lock().unwrap();
            let fate =
                self.script.lock().unwrap().as_mut().map_or(Fate::Go, |script| script(&request, when, &mut contents));
            match fate {
                Fate::Go if when == When::Before => answer = Some(contents.handle(endpoint, &request)),
                Fate::Go => {}
                Fate::Cut => return drop(stream.shutdown(Shutdown::Both)),
                Fate::Answer(status, headers, body) => {
                    answer = Some((status, headers, body));
                    break;
                }
            }
        }
        let (status, headers, body) = answer.unwrap();
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let mut wire = Wire(stream, self);
        for part in [head, body].concat().as_bytes().chunks(100) {
            if wire.allow(part.len()).is_err() || wire.0.write_all(part).is_err() {
                return;
            }
        }
        // What the client still sends is read, or it would never see the answer.
        let _ = wire.0.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut wire.0, &mut std::io::sink());
    }
}

fn read_request(wire: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    wire.read_line(&mut line).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        wire.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    wire.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

type Answer = (u16, String, Value);

fn refuse(status: u16, code: &str, message: &str) -> Answer {
    (status, format!("X-Error-Code: {code}\r\n"), json!({"error": message}))
}

impl Contents {
    fn handle(&mut self, endpoint: &str, request: &Request) -> Answer {
        if request.headers.get("authorization").is_none_or(|header| header != &format!("Bearer {TOKEN}")) {
            return refuse(401, "RepoNotFound", "Invalid username or password.");
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if matches!(request.kind(), "whoami") {
            return (200, String::new(), self.account.clone());
        }
        if request.kind() == "create" {
            if self.commits.is_some() {
                return refuse(409, "", "You already created this model repo");
            }
            self.private = body["private"] == true;
            self.commits = Some(Vec::new());
            self.add(BTreeMap::from([(".gitattributes".to_owned(), b"*.safetensors filter=lfs\n".to_vec())]), vec![]);
            return (200, String::new(), json!({"url": format!("{endpoint}/me/model")}));
        }
        let Some(commits) = &self.commits else { return refuse(404, "RepoNotFound", "Repository not found") };
        let newest = commits.last();
        match request.kind() {
            "look" => {
                let id = self.id.as_deref().unwrap_or("me/model");
                (
                    200,
                    String::new(),
                    json!({"id": id, "sha": newest.map(|commit| &commit.oid), "private": self.private}),
                )
            }
            "settings" => {
                self.private = body["private"] == true;
                (200, String::new(), json!({}))
            }
            "tree" => {
                let Some(commit) = commits.iter().find(|commit| request.path.contains(&commit.oid)) else {
                    return refuse(404, "RevisionNotFound", "Invalid rev id");
                };
                (200, String::new(), commit.files.iter().map(|(path, content)| commit.entry(path, content)).collect())
            }
            "preupload" => {
                let mode = |file: &Value| {
                    let is_large = file["size"].as_u64().unwrap() > LARGE_BYTES as u64;
                    json!({"path": file["path"], "uploadMode": if is_large { "lfs" } else { "regular" }})
                };
                (
                    200,
                    String::new(),
                    json!({"files": body["files"].as_array().unwrap().iter().map(mode).collect::<Value>()}),
                )
            }
            "batch" => {
                assert_eq!(body["transfers"], json!(["basic", "xet"]));
                let object = |object: &Value| {
                    let oid = object["oid"].as_str().unwrap();
                    let mut answer = json!({"oid": oid, "size": object["size"]});
                    if !self.objects.contains_key(oid) {
                        let mut upload = json!({"href": format!("{endpoint}/lfs/{oid}")});
                        for (key, value) in self.action.as_object().into_iter().flatten() {
                            upload[key] = match value {
                                Value::String(text) => text.replace("OID", oid).into(),
                                other => other.clone(),
                            };
                        }
                        answer["actions"] = json!({"upload": upload, "verify": {"href": format!("{endpoint}/verify")}});
                    }
                    answer
                };
                let objects: Value = body["objects"].as_array().unwrap().iter().map(object).collect();
                (200, String::new(), json!({"transfer": "basic", "objects": objects}))
            }
            "put" => {
                let oid = request.path.trim_start_matches("/lfs/").to_owned();
                if sha256(&request.body) != oid {
                    return refuse(400, "", "content and hash differ");
                }
                self.objects.insert(oid, request.body.clone());
                (200, String::new(), json!({}))
            }
            "verify" => match self.objects.get(body["oid"].as_str().unwrap()) {
                Some(object) if body["size"] == object.len() => (200, String::new(), json!({})),
                _ => refuse(404, "", "no such object"),
            },
            "commit" => self.commit(&request.body),
            _ => refuse(404, "", "what?"),
        }
    }

    fn commit(&mut self, body: &[u8]) -> Answer {
        let newest = self.commits.as_ref().unwrap().last().cloned();
        let (mut files, mut large) =
            newest.as_ref().map_or_else(Default::default, |c| (c.files.clone(), c.large.clone()));
        for line in body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let line: Value = serde_json::from_slice(line).unwrap();
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_owned();
            match line["key"].as_str().unwrap() {
                "header" => {
                    let parent = value["parentCommit"].as_str().map(str::to_owned);
                    if parent != newest.as_ref().map(|commit| commit.oid.clone()) {
                        return refuse(412, "", "A commit has happened since. Please refresh and try again.");
                    }
                }
                "file" => {
                    large.retain(|name| name != &path);
                    files.insert(path, STANDARD.decode(value["content"].as_str().unwrap()).unwrap());
                }
                "lfsFile" => {
                    let Some(object) = self.objects.get(value["oid"].as_str().unwrap()) else {
                        return refuse(400, "", "LFS pointer pointed to a file that does not exist");
                    };
                    large.push(path.clone());
                    files.insert(path, object.clone());
                }
                "deletedFile" => {
                    assert!(files.remove(&path).is_some(), "{path} was not there");
                }
                other => panic!("{other}"),
            }
        }
        (200, String::new(), json!({"success": true, "commitOid": self.add(files, large)}))
    }

    /// Adds a commit.
    pub(super) fn add(&mut self, files: BTreeMap<String, Vec<u8>>, large: Vec<String>) -> String {
        let commits = self.commits.get_or_insert_default();
        let oid = sha256(format!("{} {files:?}", commits.len()).as_bytes())[..40].to_owned();
        commits.push(Commit { oid: oid.clone(), files, large });
        oid
    }
}

impl Commit {
    fn entry(&self, path: &str, content: &[u8]) -> Value {
        let mut blob = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
        blob.update(content);
        let mut entry =
            json!({"type": "file", "path": path, "size": content.len(), "oid": format!("{:x}", blob.finalize())});
        if self.large.iter().any(|name| name == path) {
            entry["lfs"] = json!({"oid": sha256(content), "size": content.len(), "pointerSize": 134});
        }
        entry
    }
}

pub(super) fn sha256(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}
