//! Where each address leads, and who watches.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

use super::content::Content;
use super::fault::disturb;
use super::shards::Shards;
use super::{Fate, Options, files, rows};
use crate::local::http::{self, Connection};
use crate::local::loopback::Serving;
use crate::local::refusal::Refusal;

/// What all requests share.
pub(super) struct World {
    pub(super) shards: Arc<Shards>,
    /// The rows, once somebody has asked for any.
    pub(super) content: Mutex<Option<Arc<Content>>>,
    pub(super) options: Options,
}

/// Serves shards.
pub(super) fn serve(shards: Shards, port: u16, options: Options) -> Result<Serving> {
    let is_watched = options.observer.is_some();
    let world = Arc::new(World { shards: Arc::new(shards), content: Mutex::new(None), options });
    http::serve("dataset-server", port, router(world), is_watched)
}

fn router(world: Arc<World>) -> Router {
    let dataset = Router::new()
        .route("/", get(files::info))
        .route("/revision/{revision}", get(files::info))
        .route("/tree/{revision}", get(files::tree))
        .route("/tree/{revision}/{*path}", get(files::tree))
        .route("/paths-info/{revision}", post(files::paths_info));
    Router::new()
        .nest("/api/datasets/{namespace}/{name}", dataset)
        .route("/datasets/{namespace}/{name}/resolve/{revision}/{*path}", get(files::resolve))
        .route("/rows", get(rows::rows))
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "This server knows no such address.") })
        .layer(middleware::from_fn_with_state(Arc::clone(&world), watch))
        .with_state(world)
}

/// Lets requests through, past who watches them.
async fn watch(State(world): State<Arc<World>>, request: Request, next: Next) -> Response {
    let Some(observer) = &world.options.observer else { return next.run(request).await };
    let connection = Connection::of(&request);
    let (head, body) = request.into_parts();
    let fate = observer.sees(&head);
    let request = Request::from_parts(head, body);
    match fate {
        Fate::GoOn => next.run(request).await,
        Fate::Say(answer) => *answer,
        Fate::Never => std::future::pending().await,
        Fate::Cut => {
            connection.cut();
            Response::default() // which nobody hears
        }
        fate => disturb(fate, next.run(request).await),
    }
}
