//! Files on their way out: `HEAD` and `GET /{repo}/resolve/{revision}/{path}`, whole or a range.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::response::Response;

use super::access::{Place, Visitor, World};
use super::files::Item;
use crate::hub::Hub;
use crate::local::file_answer::{self, value};
use crate::local::http::blocking;
use crate::local::refusal::{REPO_COMMIT, Refusal};

/// Gives a file, or tells of it.
pub(super) async fn resolve(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    blocking(move || {
        let (repo_id, commit) = world.asked(&visitor, &place)?;
        let path = place.path();
        let commit = commit.ok_or_else(|| Refusal::no_entry(format!("{repo_id} has no files yet.")))?;
        let absent = || Refusal::no_entry(format!("There is no file {path} in {repo_id} at {commit}.")).at(&commit);
        let files = world.hub.files(&repo_id, &commit)?;
        let file = files.iter().find(|file| file.path == path).ok_or_else(absent)?;
        let item = world.item(&repo_id, &commit, file)?;
        let refresh = format!("{}/api/models/{repo_id}/xet-read-token/{commit}", visitor.endpoint);
        let told = told(&item, &commit, &refresh)?;
        file_answer::answer(&method, &headers, told, &item.etag(), item.bytes, || world.open(&repo_id, &commit, path))
    })
    .await
}

/// What the headers tell of a file.
fn told(item: &Item, commit: &str, refresh: &str) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(REPO_COMMIT, value(commit)?);
    if let Some(large) = &item.large {
        headers.insert(HeaderName::from_static("x-linked-size"), value(&item.bytes.to_string())?);
        headers.insert(HeaderName::from_static("x-linked-etag"), value(&item.etag())?);
        if let Some(hash) = &large.xet_hash {
            headers.insert(HeaderName::from_static("x-xet-hash"), value(hash)?);
            headers.insert(header::LINK, value(&format!("<{refresh}>; rel=\"xet-auth\""))?);
        }
    }
    Ok(headers)
}
