//! What is told of files: the tree of a commit, and some paths of it.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::access::{Place, Visitor, World};
use super::attributes::{blob_id, is_large, pointer};
use crate::hex;
use crate::hub::{Checksum, Hub, RemoteFile};
use crate::local::http::blocking;
use crate::local::refusal::Refusal;

/// Entries of a page of the tree, at most.
const MAX_PAGE: usize = 1000;

/// SHA-256 of large files of commits that do not tell them, in hexadecimal, by commit and name.
pub(super) type Sums = Mutex<HashMap<(String, String), String>>;

/// A file of a commit as git would know it.
pub(super) struct Item {
    pub(super) path: String,
    pub(super) bytes: u64,
    /// Name of its object in git: its own, or that of its pointer.
    pub(super) blob_id: String,
    /// `None`: it is no large file.
    pub(super) large: Option<Large>,
}

/// What is known of a large file.
pub(super) struct Large {
    /// SHA-256 in hexadecimal.
    pub(super) sha256: String,
    pointer_bytes: usize,
    pub(super) xet_hash: Option<String>,
}

impl Item {
    /// What tells its content, as a header has it.
    pub(super) fn etag(&self) -> String {
        format!("\"{}\"", self.large.as_ref().map_or(&self.blob_id, |large| &large.sha256))
    }

    /// As an entry of the tree.
    fn entry(&self) -> Value {
        let mut entry = json!({ "type": "file", "oid": self.blob_id, "size": self.bytes, "path": self.path });
        if let Some(large) = &self.large {
            entry["lfs"] = json!({ "oid": large.sha256, "size": self.bytes, "pointerSize": large.pointer_bytes });
            if let Some(hash) = &large.xet_hash {
                entry["xetHash"] = json!(hash);
            }
        }
        entry
    }

    /// As a file of the repository's page.
    pub(super) fn sibling(&self) -> Value {
        let mut sibling = json!({ "rfilename": self.path, "blobId": self.blob_id, "size": self.bytes });
        if let Some(large) = &self.large {
            sibling["lfs"] = json!({ "sha256": large.sha256, "size": self.bytes, "pointerSize": large.pointer_bytes });
        }
        sibling
    }
}

impl World {
    /// All that is told of a file of a commit.
    pub(super) fn item(&self, repo_id: &str, commit: &str, file: &RemoteFile) -> Result<Item, Refusal> {
        let (path, bytes) = (file.path.clone(), file.bytes);
        if !is_large(&path, bytes) {
            let mut content = self.open(repo_id, commit, &path)?.take(bytes);
            let blob_id = blob_id(&mut content, bytes).map_err(anyhow::Error::from)?;
            return Ok(Item { path, bytes, blob_id, large: None });
        }
        let sha256 = match file.sum {
            Some(Checksum::Sha256(sum)) => hex::digits(sum),
            _ => self.computed_sum(repo_id, commit, &path)?,
        };
        let pointer = pointer(&sha256, bytes);
        let blob_id = blob_id(&mut pointer.as_bytes(), pointer.len() as u64).map_err(anyhow::Error::from)?;
        let xet_hash = self.xet().and_then(|xet| xet.hash(&sha256));
        Ok(Item { path, bytes, blob_id, large: Some(Large { sha256, pointer_bytes: pointer.len(), xet_hash }) })
    }

    /// The file of that path at a commit.
    pub(super) fn open(&self, repo_id: &str, commit: &str, path: &str) -> Result<std::fs::File, Refusal> {
        let file = self.hub.open_file(repo_id, commit, path)?;
        file.ok_or_else(|| Refusal::no_entry(format!("There is no file {path} in {repo_id} at {commit}.")))
    }

    /// Reads a large file once, however often it is asked for.
    fn computed_sum(&self, repo_id: &str, commit: &str, path: &str) -> Result<String, Refusal> {
        let key = (commit.to_owned(), path.to_owned());
        let known = |sums: &Sums| sums.lock().ok().and_then(|sums| sums.get(&key).cloned());
        if let Some(sum) = known(&self.sums) {
            return Ok(sum);
        }
        let mut file = self.open(repo_id, commit, path)?;
        let mut digest = Sha256::new();
        std::io::copy(&mut file, &mut digest).map_err(anyhow::Error::from)?;
        let sum = hex::digits(digest.finalize());
        if let Ok(mut sums) = self.sums.lock() {
            sums.insert(key, sum.clone());
        }
        Ok(sum)
    }
}

/// Which page of the tree.
#[derive(Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
    /// Number of entries before it.
    cursor: Option<usize>,
}

/// `GET /api/models/{repo}/tree/{revision}[/{path}]`.
pub(super) async fn tree(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    Query(page): Query<Page>,
) -> Result<(HeaderMap, Json<Value>), Refusal> {
    blocking(move || {
        let (repo_id, commit) = world.asked(&visitor, &place)?;
        if !place.path().is_empty() {
            return Err(Refusal::no_entry(format!("There is no folder {} in {repo_id}.", place.path())));
        }
        let Some(commit) = commit else { return Ok((HeaderMap::new(), Json(json!([])))) };
        let files = world.hub.files(&repo_id, &commit)?;
        let start = page.cursor.unwrap_or_default().min(files.len());
        let limit = page.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let end = files.len().min(start.saturating_add(limit));
        let entries = files[start..end].iter().map(|file| Ok(world.item(&repo_id, &commit, file)?.entry()));
        let entries = entries.collect::<Result<Vec<_>, Refusal>>()?;
        // The next page is of the same commit, whatever is committed meanwhile.
        let next = format!(
            "{}/api/models/{repo_id}/tree/{commit}?recursive=true&limit={limit}&cursor={end}",
            visitor.endpoint
        );
        let headers = if end < files.len() { link(&next) } else { HeaderMap::new() };
        Ok((headers, Json(entries.into())))
    })
    .await
}

/// The header that leads to the next page.
pub(in crate::local) fn link(next: &str) -> HeaderMap {
    let value = format!("<{next}>; rel=\"next\"");
    value.parse().ok().map(|value| (header::LINK, value)).into_iter().collect()
}

/// `POST /api/models/{repo}/paths-info/{revision}`, with the paths as JSON or as a form.
pub(super) async fn paths_info(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    headers: HeaderMap,
    body: String,
) -> Result<Json<Value>, Refusal> {
    let paths = asked_paths(&headers, &body)?;
    blocking(move || {
        let (repo_id, Some(commit)) = world.asked(&visitor, &place)? else { return Ok(Json(json!([]))) };
        let files = world.hub.files(&repo_id, &commit)?;
        let asked = files.iter().filter(|file| paths.contains(&file.path));
        let entries = asked.map(|file| Ok(world.item(&repo_id, &commit, file)?.entry()));
        Ok(Json(entries.collect::<Result<Vec<_>, Refusal>>()?.into()))
    })
    .await
}

/// The paths that are asked for, as JSON or as a form.
pub(in crate::local) fn asked_paths(headers: &HeaderMap, body: &str) -> Result<Vec<String>, Refusal> {
    let is_form =
        headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www"));
    if is_form {
        let pairs = from_form(body)?;
        return Ok(pairs.into_iter().filter(|(name, _)| name == "paths").map(|(_, path)| path).collect());
    }
    #[derive(Deserialize)]
    struct Asked {
        paths: Vec<String>,
    }
    let asked: Asked = serde_json::from_str(body).map_err(|error| Refusal::bad(error.to_string()))?;
    Ok(asked.paths)
}

/// The pairs of a form.
fn from_form(body: &str) -> Result<Vec<(String, String)>, Refusal> {
    let uri = format!("/?{body}").parse().map_err(|_| Refusal::bad("The form cannot be read."))?;
    let query = Query::try_from_uri(&uri).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    Ok(query.0)
}
