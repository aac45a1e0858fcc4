//! Where each address leads, and who watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use tokio::sync::Semaphore;

use super::access::World;
use super::objects::Objects;
use super::{Fate, Moment, Options, commit, files, lfs, repository, resolve};
use crate::hub::folder::FolderHub;
use crate::local::http::{self, Connection};
use crate::local::loopback::Serving;
use crate::local::refusal::Refusal;

/// What is sent as JSON, but for commits, which are bounded by themselves.
const MAX_JSON_BYTES: usize = 1 << 20;
/// As many large files and commits come at once.
const MAX_SENDERS: usize = 8;

/// Serves a hub.
pub(super) fn serve(hub: Arc<FolderHub>, port: u16, options: Options) -> Result<Serving> {
    let objects = Objects::of(hub.dir())?;
    let (sums, turns) = (Mutex::new(HashMap::new()), Semaphore::new(MAX_SENDERS));
    let is_watched = options.observer.is_some();
    let world = Arc::new(World { hub, objects, sums, turns, options });
    http::serve("hub-server", port, router(world), is_watched)
}

fn router(world: Arc<World>) -> Router {
    let repository = Router::new()
        .route("/", get(repository::info))
        .route("/revision/{revision}", get(repository::info))
        .route("/settings", put(repository::settings))
        .route("/refs", get(repository::refs))
        .route("/commits/{revision}", get(repository::commits))
        .route("/tree/{revision}", get(files::tree))
        .route("/tree/{revision}/{*path}", get(files::tree))
        .route("/paths-info/{revision}", post(files::paths_info))
        .route("/preupload/{revision}", post(commit::preupload))
        .route("/commit/{revision}", post(commit::commit))
        .route("/xet-read-token/{revision}", get(lfs::read_token))
        .route("/xet-write-token/{revision}", get(lfs::write_token));
    Router::new()
        .route("/api/whoami-v2", get(repository::whoami))
        .route("/api/validate-yaml", post(repository::validate_yaml))
        .route("/api/repos/create", post(repository::create))
        .nest("/api/models/{namespace}/{name}", repository)
        .route("/{namespace}/{name}/info/lfs/objects/batch", post(lfs::batch))
        .route("/{namespace}/{name}/resolve/{revision}/{*path}", get(resolve::resolve))
        .route("/lfs/{oid}", put(lfs::put))
        .route("/lfs/{oid}/verify", post(lfs::verify))
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "This server knows no such address.") })
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&world), watch))
        .with_state(world)
}

/// Lets requests through, past who watches them.
async fn watch(State(world): State<Arc<World>>, request: Request, next: Next) -> Response {
    let Some(observer) = &world.options.observer else { return next.run(request).await };
    let connection = Connection::of(&request);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let done = match observer.sees(Moment::Request, &method, &path) {
        Fate::GoOn => next.run(request).await,
        fate => return end(fate, &connection).unwrap_or_default(),
    };
    end(observer.sees(Moment::Answer, &method, &path), &connection).unwrap_or(done)
}

/// What takes the place of an answer; `None`: nothing does.
fn end(fate: Fate, connection: &Connection) -> Option<Response> {
    match fate {
        Fate::GoOn => None,
        Fate::Say(answer) => Some(*answer),
        Fate::Cut => {
            connection.cut();
            Some(Response::default()) // which nobody hears
        }
    }
}
