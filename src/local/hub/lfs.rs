//! Large files on their way in: what is to be uploaded where (the batch API of Git LFS), and the upload itself.

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::access::{Place, Visitor, World};
use super::objects::{Grant, is_sha256};
use crate::local::http::blocking;
use crate::local::refusal::Refusal;
use crate::model::weights::FileSum;

/// Files of one request, at most.
const MAX_FILES: usize = 1000;
/// Parts of an upload that wait to be written.
const MAX_WAITING: usize = 8;
/// How long the next part of an upload is waited for.
const STALL: Duration = Duration::from_secs(60);
/// Of a body that is refused, so much is read, for so long.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN: Duration = Duration::from_secs(2);

/// What a client wants to upload.
#[derive(Deserialize)]
pub(super) struct Batch {
    operation: String,
    #[serde(default)]
    transfers: Vec<String>,
    objects: Vec<Object>,
}

/// A large file.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Object {
    /// SHA-256 in hexadecimal.
    oid: String,
    /// Size in bytes.
    size: u64,
}

/// `POST /{repo}.git/info/lfs/objects/batch`. A file that is there already has no address to upload it to.
pub(super) async fn batch(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    Json(batch): Json<Batch>,
) -> Result<Response, Refusal> {
    blocking(move || {
        let repo_id = place.git_repo_id()?;
        world.check_visible(&visitor, &repo_id)?;
        visitor.check_user()?;
        if batch.operation != "upload" {
            return Err(Refusal::bad(format!("Only uploads are asked for here, and no {}.", batch.operation)));
        }
        if batch.objects.len() > MAX_FILES {
            return Err(Refusal::bad(format!("There are more than {MAX_FILES} files in one request.")));
        }
        let by_xet = world.xet().is_some() && batch.transfers.iter().any(|transfer| transfer == "xet");
        let answer = |object: &Object| answer(&world, &visitor, &repo_id, object);
        let objects = batch.objects.iter().map(answer).collect::<Result<Vec<_>, Refusal>>()?;
        let answer = json!({ "transfer": if by_xet { "xet" } else { "basic" }, "objects": objects });
        Ok(([(header::CONTENT_TYPE, "application/vnd.git-lfs+json")], answer.to_string()).into_response())
    })
    .await
}

fn answer(world: &World, visitor: &Visitor, repo_id: &str, object: &Object) -> Result<Value, Refusal> {
    let Object { oid, size } = object;
    let error = |code: StatusCode, message: String| {
        Ok(json!({ "oid": oid, "size": size, "error": { "code": code.as_u16(), "message": message } }))
    };
    if !is_sha256(oid) {
        return error(StatusCode::UNPROCESSABLE_ENTITY, format!("{oid:?} is no SHA-256."));
    }
    let mut answer = json!({ "oid": oid, "size": size });
    if world.large_file(repo_id, oid, *size)?.is_some() {
        return Ok(answer);
    }
    if !world.objects.has_room(*size)? {
        return error(StatusCode::INSUFFICIENT_STORAGE, format!("The hub's disk has no room for {size} bytes more."));
    }
    let grant = world.objects.grant(oid, *size);
    let query = grant.query();
    let address = |what: &str| json!({ "href": format!("{}/lfs/{oid}{what}?{query}", visitor.endpoint), "header": {} });
    // A client of Xet asks for a token of its own; to it this says only that there is something to do.
    answer["actions"] = json!({ "upload": address(""), "verify": address("/verify") });
    Ok(answer)
}

impl World {
    /// Where a large file lies: that was uploaded, or stands in a commit of the repository.
    pub(super) fn large_file(&self, repo_id: &str, sha256: &str, size: u64) -> Result<Option<PathBuf>, Refusal> {
        if let Some(path) = self.objects.find(sha256, size) {
            return Ok(Some(path));
        }
        Ok(self.hub.find_content(repo_id, &FileSum { bytes: size, sha256: sha256.to_owned() })?)
    }

    /// Refuses an address that is not of the batch.
    fn check_granted(&self, oid: &str, grant: &Grant) -> Result<(), Refusal> {
        let refused = || Refusal::new(StatusCode::FORBIDDEN, "This address is too old, or none of this server's.");
        if self.objects.is_granted(oid, grant) { Ok(()) } else { Err(refused()) }
    }
}

/// `PUT /lfs/{oid}`: the file itself.
pub(super) async fn put(
    State(world): State<Arc<World>>,
    Path(oid): Path<String>,
    Query(grant): Query<Grant>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let mut body = request.into_body();
    let received = receive(&world, oid, &grant, &mut body).await;
    if received.is_err() {
        // A connection that ends while more comes takes the refusal with it.
        timeout(DRAIN, drain(&mut body)).await.ok();
    }
    received
}

/// Reads what comes, within bounds, to nowhere.
async fn drain(body: &mut Body) {
    let mut left = DRAIN_BYTES;
    while left > 0
        && let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
    {
        left = left.saturating_sub(frame.data_ref().map_or(0, |part| part.len()));
    }
}

async fn receive(world: &Arc<World>, oid: String, grant: &Grant, body: &mut Body) -> Result<StatusCode, Refusal> {
    world.check_granted(&oid, grant)?;
    let size = grant.size;
    let wrong_size = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("The file must have {size} bytes."));
    if body.size_hint().exact().is_some_and(|bytes| bytes != size) {
        return Err(wrong_size());
    }
    if !world.objects.has_room(size)? {
        let sentence = format!("The hub's disk has no room for {size} bytes more.");
        return Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, sentence));
    }
    let _turn = world.turns.acquire().await; // never closed
    let (sender, parts) = mpsc::channel(MAX_WAITING);
    let writing = {
        let world = Arc::clone(world);
        tokio::spawn(blocking(move || Ok(world.objects.receive(&oid, size, parts)?)))
    };
    let mut received = 0;
    // Where the client goes away, this ends here, and what writes sees that the file is not whole.
    loop {
        let frame = timeout(STALL, poll_fn(|context| Pin::new(&mut *body).poll_frame(context))).await;
        let frame = frame.map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "No more of the file came."))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Refusal::bad(format!("The file did not come to its end: {error}")))?;
        let Ok(part) = frame.into_data() else { continue };
        received += part.len() as u64;
        if received > size {
            return Err(wrong_size());
        }
        if sender.send(part).await.is_err() {
            break; // writing has failed, and says why
        }
    }
    drop(sender);
    writing.await.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
    Ok(StatusCode::OK)
}

/// `POST /lfs/{oid}/verify`: whether the file is there.
pub(super) async fn verify(
    State(world): State<Arc<World>>,
    Path(oid): Path<String>,
    Query(grant): Query<Grant>,
    Json(object): Json<Object>,
) -> Result<StatusCode, Refusal> {
    world.check_granted(&oid, &grant)?;
    blocking(move || {
        let is_there =
            (&object.oid, object.size) == (&oid, grant.size) && world.objects.find(&oid, grant.size).is_some();
        if is_there { Ok(StatusCode::OK) } else { Err(Refusal::no_entry(format!("{oid} was not uploaded."))) }
    })
    .await
}

/// `GET /api/models/{repo}/xet-read-token/{revision}`.
pub(super) async fn read_token(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
) -> Result<Response, Refusal> {
    xet_token(world, visitor, place, false).await
}

/// `GET /api/models/{repo}/xet-write-token/{revision}`.
pub(super) async fn write_token(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
) -> Result<Response, Refusal> {
    xet_token(world, visitor, place, true).await
}

/// The token for the store, as JSON and in headers: clients differ in where they look.
async fn xet_token(world: Arc<World>, visitor: Visitor, place: Place, to_write: bool) -> Result<Response, Refusal> {
    blocking(move || {
        world.check_visible(&visitor, &place.repo_id())?;
        if to_write {
            visitor.check_user()?;
        }
        let sentence = "Files are not kept by Xet here: set HF_HUB_DISABLE_XET=1 for Python's huggingface_hub.";
        let xet = world.xet().ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, sentence))?;
        let access = xet.access();
        let headers = [
            ("x-xet-cas-url", access.cas_url.clone()),
            ("x-xet-access-token", access.access_token.clone()),
            ("x-xet-token-expiration", access.expires.to_string()),
        ];
        let answer = json!({ "casUrl": access.cas_url, "accessToken": access.access_token, "exp": access.expires });
        Ok((headers, Json(answer)).into_response())
    })
    .await
}
