//! The data set as Hugging Face has it: its commit, the tree of its files, and the files.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::response::Response;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::server::World;
use super::shards::Shard;
use crate::local::file_answer::{self, value};
use crate::local::http::blocking;
use crate::local::hub::{asked_paths, link};
use crate::local::refusal::{REPO_COMMIT, Refusal};

/// The only branch.
const BRANCH: &str = "main";

/// Where an address leads: the parts that its route has.
#[derive(Deserialize)]
pub(super) struct Place {
    namespace: String,
    name: String,
    revision: Option<String>,
    path: Option<String>,
}

/// How the tree is asked for.
#[derive(Deserialize)]
pub(super) struct Asked {
    /// `true`, which Python spells with a capital.
    #[serde(default)]
    recursive: String,
    limit: Option<usize>,
    /// Number of entries before it.
    cursor: Option<usize>,
}

impl World {
    /// Refuses a revision that is not there.
    fn check(&self, place: &Place) -> Result<(), Refusal> {
        match place.revision.as_deref() {
            None | Some(BRANCH) => Ok(()),
            Some(revision) if revision == self.shards.commit => Ok(()),
            Some(revision) => Err(Refusal::no_revision(revision)),
        }
    }
}

/// `GET /api/datasets/{namespace}/{name}[/revision/{revision}]`.
pub(super) async fn info(
    State(world): State<Arc<World>>,
    Path(place): Path<Place>,
) -> Result<(HeaderMap, Json<Value>), Refusal> {
    world.check(&place)?;
    let shards = &world.shards;
    let siblings: Vec<Value> = shards.all.iter().map(|shard| json!({ "rfilename": shard.path })).collect();
    let id = format!("{}/{}", place.namespace, place.name);
    let info = json!({
        "id": id, "author": place.namespace, "sha": shards.commit, "private": false, "gated": false, "disabled": false,
        "tags": [], "siblings": siblings,
    });
    Ok((told(&shards.commit)?, Json(info)))
}

/// `GET /api/datasets/{namespace}/{name}/tree/{revision}[/{path}]`.
pub(super) async fn tree(
    State(world): State<Arc<World>>,
    Path(place): Path<Place>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<(HeaderMap, Json<Value>), Refusal> {
    world.check(&place)?;
    let path = place.path.as_deref().unwrap_or_default();
    let commit = &world.shards.commit;
    let recursive = asked.recursive.eq_ignore_ascii_case("true");
    let entries = entries(&world.shards.all, path, recursive);
    if entries.is_empty() {
        return Err(no_entry(path, commit));
    }
    let limit = asked.limit.unwrap_or(usize::MAX).min(world.options.page_entries).max(1);
    let start = asked.cursor.unwrap_or_default().min(entries.len());
    let end = entries.len().min(start.saturating_add(limit));
    let mut told = told(commit)?;
    if end < entries.len() {
        told.extend(link(&next_page(&headers, &place, commit, recursive, limit, end)?));
    }
    Ok((told, Json(entries.into_values().skip(start).take(end - start).collect())))
}

/// The address of a page of the tree, by the name by which the client knows the server. It is of the same commit, whatever the
/// branch is at by then.
fn next_page(
    headers: &HeaderMap,
    place: &Place,
    commit: &str,
    recursive: bool,
    limit: usize,
    cursor: usize,
) -> Result<String, Refusal> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let bad = |_| Refusal::bad("The request does not say which host it is for.");
    let mut url = Url::parse(&format!("http://{host}")).map_err(bad)?;
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.extend(["api", "datasets", &place.namespace, &place.name, "tree", commit]);
        segments.extend(place.path.iter().flat_map(|path| path.split('/')));
    }
    let pairs = [("recursive", recursive.to_string()), ("limit", limit.to_string()), ("cursor", cursor.to_string())];
    url.query_pairs_mut().extend_pairs(pairs);
    Ok(url.into())
}

/// `POST /api/datasets/{namespace}/{name}/paths-info/{revision}`.
pub(super) async fn paths_info(
    State(world): State<Arc<World>>,
    Path(place): Path<Place>,
    headers: HeaderMap,
    body: String,
) -> Result<(HeaderMap, Json<Value>), Refusal> {
    world.check(&place)?;
    let asked = asked_paths(&headers, &body)?;
    let entries = entries(&world.shards.all, "", true);
    let found = asked.iter().filter_map(|path| entries.get(path.trim_end_matches('/')).cloned());
    Ok((told(&world.shards.commit)?, Json(found.collect())))
}

/// `HEAD` and `GET /datasets/{namespace}/{name}/resolve/{revision}/{path}`.
pub(super) async fn resolve(
    State(world): State<Arc<World>>,
    Path(place): Path<Place>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    blocking(move || {
        world.check(&place)?;
        let (path, commit) = (place.path.as_deref().unwrap_or_default(), &world.shards.commit);
        let at = world.shards.all.binary_search_by(|shard| shard.path.as_str().cmp(path));
        let shard = &world.shards.all[at.map_err(|_| no_entry(path, commit))?];
        let mut told = told(commit)?;
        told.insert(HeaderName::from_static("x-linked-size"), shard.bytes.into());
        told.insert(HeaderName::from_static("x-linked-etag"), value(&shard.etag())?);
        file_answer::answer(&method, &headers, told, &shard.etag(), shard.bytes, || shard.open())
    })
    .await
}

/// The files below a folder, and the folders that lead to them; or, not recursively, what is in it. By path.
fn entries(shards: &[Shard], folder: &str, recursive: bool) -> BTreeMap<String, Value> {
    let mut entries = BTreeMap::new();
    for shard in shards {
        let below = match folder {
            "" => Some(shard.path.as_str()),
            _ => shard.path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')),
        };
        let Some(below) = below else { continue };
        let start = shard.path.len() - below.len();
        let ends = below.match_indices('/').map(|(at, _)| start + at).chain([shard.path.len()]);
        for end in ends.take(if recursive { usize::MAX } else { 1 }) {
            let path = &shard.path[..end];
            let entry = if end == shard.path.len() { file(shard) } else { directory(path) };
            entries.insert(path.to_owned(), entry);
        }
    }
    entries
}

fn file(Shard { path, bytes, digest, .. }: &Shard) -> Value {
    let lfs = json!({ "oid": digest, "size": bytes, "pointerSize": 130 });
    json!({ "type": "file", "oid": digest[..40], "size": bytes, "path": path, "lfs": lfs })
}

fn directory(path: &str) -> Value {
    json!({ "type": "directory", "oid": "0".repeat(40), "size": 0, "path": path })
}

fn told(commit: &str) -> Result<HeaderMap, Refusal> {
    Ok(HeaderMap::from_iter([(REPO_COMMIT, value(commit)?)]))
}

fn no_entry(path: &str, commit: &str) -> Refusal {
    Refusal::no_entry(format!("There is nothing called {path:?} in the data set at {commit}.")).at(commit)
}
