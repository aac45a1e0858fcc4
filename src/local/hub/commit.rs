//! Commits: which files are uploaded how, and the commit itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::access::{BRANCH, Place, Visitor, World};
use super::attributes::is_large;
use super::objects::is_sha256;
use crate::hub::Hub;
use crate::hub::folder::{Addition, Change, Changed};
use crate::local::http::blocking;
use crate::local::refusal::Refusal;
use crate::model::weights::{FileSum, is_plain_name};

/// A commit's body: files of up to 64 MiB together, in base64.
const MAX_BODY_BYTES: usize = 96 << 20;
/// How long a commit's body may take on its way, which is within this machine.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Lines of a commit's body, at most.
const MAX_LINES: usize = 10_000;
/// Bytes of a commit's message, at most.
const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Bytes of a file's name, as disks have it.
const MAX_NAME_BYTES: usize = 255;

/// Files that a client wants to commit.
#[derive(Deserialize)]
pub(super) struct Plan {
    files: Vec<Planned>,
}

#[derive(Deserialize)]
struct Planned {
    path: String,
    size: u64,
}

/// `POST /api/models/{repo}/preupload/{revision}`: which of the files go up as large ones, and what is there of them.
pub(super) async fn preupload(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    Json(plan): Json<Plan>,
) -> Result<Json<Value>, Refusal> {
    blocking(move || {
        let repo_id = place.repo_id();
        world.check_visible(&visitor, &repo_id)?;
        visitor.check_user()?;
        let commit = world.commit(&repo_id, place.revision())?;
        let there = commit.as_deref().map_or(Ok(Vec::new()), |commit| world.hub.files(&repo_id, commit))?;
        let mut files = Vec::with_capacity(plan.files.len());
        for Planned { path, size } in plan.files {
            check_name(&path)?; // before gigabytes go up
            let mode = if is_large(&path, size) { "lfs" } else { "regular" };
            let mut file = json!({ "path": path, "uploadMode": mode, "shouldIgnore": false });
            if let (Some(commit), Some(old)) = (&commit, there.iter().find(|old| old.path == path)) {
                let item = world.item(&repo_id, commit, old)?;
                file["oid"] = json!(item.large.map_or(item.blob_id, |large| large.sha256));
            }
            files.push(file);
        }
        Ok(Json(json!({ "files": files })))
    })
    .await
}

/// A line of a commit.
#[derive(Deserialize)]
#[serde(tag = "key", content = "value")]
enum Line {
    #[serde(rename = "header", rename_all = "camelCase")]
    Header {
        summary: String,
        #[serde(default)]
        description: String,
        parent_commit: Option<String>,
    },
    #[serde(rename = "file")]
    File { path: String, content: String, encoding: Option<String> },
    #[serde(rename = "lfsFile")]
    LfsFile { path: String, algo: Option<String>, oid: String, size: u64 },
    #[serde(rename = "deletedFile")]
    DeletedFile { path: String },
}

/// What a commit is to do.
#[derive(Default)]
struct Wanted {
    message: String,
    parent: Option<String>,
    add: BTreeMap<String, Addition>,
    /// Large files with their SHA-256 and sizes.
    large: BTreeMap<String, FileSum>,
    delete: Vec<String>,
}

/// `POST /api/models/{repo}/commit/{revision}`.
pub(super) async fn commit(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let repo_id = place.repo_id();
    let visitor = {
        let (world, repo_id) = (Arc::clone(&world), repo_id.clone());
        let checked =
            move || world.check_visible(&visitor, &repo_id).and_then(|()| visitor.check_user()).map(|()| visitor);
        blocking(checked).await?
    };
    if place.revision() != BRANCH {
        return Err(Refusal::no_revision(place.revision()));
    }
    if request.uri().query().is_some_and(|query| query.contains("create_pr=1")) {
        return Err(Refusal::bad("There are no pull requests here: commit to main."));
    }
    let too_large = |_| {
        let sentence = format!("A commit has at most {} MiB, large files aside.", MAX_BODY_BYTES >> 20);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
    };
    let _turn = world.turns.acquire().await; // never closed
    let too_slow = |_| {
        let sentence = format!("The commit did not come within {} s.", BODY_TIME.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, sentence)
    };
    let body = timeout(BODY_TIME, to_bytes(request.into_body(), MAX_BODY_BYTES)).await.map_err(too_slow)?;
    let body = body.map_err(too_large)?;
    let world = Arc::clone(&world);
    blocking(move || {
        let mut wanted = read(&body)?;
        drop(body);
        for (name, sum) in &wanted.large {
            let path = large_file(&world, &repo_id, sum)?;
            wanted.add.insert(name.clone(), Addition::File(path, sum.clone()));
        }
        let change = Change {
            repo_id: &repo_id,
            parent: wanted.parent.as_deref(),
            add: &wanted.add,
            delete: &wanted.delete,
            message: &wanted.message,
        };
        let commit = match world.hub.change(&change)? {
            Changed::Made(commit) => commit,
            Changed::Stale => {
                let sentence = "A commit has happened since. Please refresh and try again.";
                return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, sentence));
            }
            Changed::Missing(name) => {
                return Err(Refusal::no_entry(format!("A file with this name doesn't exist: {name}")));
            }
        };
        Ok(Json(json!({
            "success": true, "commitOid": commit, "commitUrl": format!("{}/{repo_id}/commit/{commit}", visitor.endpoint),
            "hookOutput": "", "pullRequestUrl": null,
        })))
    })
    .await
}

/// Reads the lines of a commit.
fn read(body: &[u8]) -> Result<Wanted, Refusal> {
    let mut wanted = Wanted::default();
    let mut has_header = false;
    for (index, line) in body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        if index >= MAX_LINES {
            return Err(Refusal::bad(format!("A commit has at most {MAX_LINES} lines.")));
        }
        let bad = |why: &dyn std::fmt::Display| Refusal::bad(format!("Line {} of the commit: {why}", index + 1));
        match serde_json::from_slice(line).map_err(|error| bad(&error))? {
            Line::Header { summary, description, parent_commit } => {
                wanted.message = format!("{summary}\n\n{description}").trim_end().to_owned();
                if wanted.message.len() > MAX_MESSAGE_BYTES {
                    return Err(bad(&"its message is too long"));
                }
                wanted.parent = parent_commit;
                has_header = true;
            }
            Line::File { path, content, encoding } => {
                check_name(&path)?;
                let content = match encoding.as_deref() {
                    Some("base64") => STANDARD.decode(content).map_err(|error| bad(&error))?,
                    None | Some("utf-8") => content.into_bytes(),
                    Some(other) => return Err(bad(&format!("no encoding {other} is known"))),
                };
                wanted.add.insert(path, Addition::Bytes(content.into()));
            }
            Line::LfsFile { path, algo, oid, size } => {
                check_name(&path)?;
                if algo.is_some_and(|algo| algo != "sha256") || !is_sha256(&oid) {
                    return Err(bad(&"large files are told by their SHA-256"));
                }
                wanted.large.insert(path, FileSum { bytes: size, sha256: oid });
            }
            Line::DeletedFile { path } => wanted.delete.push(path),
        }
    }
    if !has_header {
        return Err(Refusal::bad("The commit has no header."));
    }
    Ok(wanted)
}

/// Refuses a path that is more than a name.
fn check_name(path: &str) -> Result<(), Refusal> {
    if is_plain_name(path) && path.len() <= MAX_NAME_BYTES && !path.chars().any(char::is_control) {
        return Ok(());
    }
    let sentence =
        format!("{path:?} is no plain name of a file: this hub keeps no folders. Upload the files of one folder.");
    Err(Refusal::bad(sentence))
}

/// Where a large file lies that is to be committed.
fn large_file(world: &World, repo_id: &str, sum: &FileSum) -> Result<PathBuf, Refusal> {
    let FileSum { bytes, sha256 } = sum;
    if let Some(path) = world.large_file(repo_id, sha256, *bytes)? {
        return Ok(path);
    }
    if let Some(xet) = world.xet()
        && world.objects.fetch(sha256, *bytes, |path| xet.fetch(sha256, path))?
        && let Some(path) = world.objects.find(sha256, *bytes)
    {
        return Ok(path);
    }
    Err(Refusal::bad(format!("LFS pointer pointed to a file that does not exist: {sha256} of {bytes} bytes")))
}
