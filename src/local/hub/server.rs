//! The socket: HTTP on loopback, in a thread of its own, and where each address leads.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::serve::IncomingStream;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use super::access::{World, is_own};
use super::objects::Objects;
use super::refusal::Refusal;
use super::{Fate, Moment, Options, commit, files, lfs, repository, resolve};
use crate::hub::folder::FolderHub;
use crate::local::loopback::{self, Serving};

/// What is sent as JSON, but for commits, which are bounded by themselves.
const MAX_JSON_BYTES: usize = 1 << 20;
/// As many large files and commits come at once.
const MAX_SENDERS: usize = 8;
/// Requests wait for the disk; more threads only wait.
const MAX_WAITING_THREADS: usize = 32;
/// How long the end waits for answers that are under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves a hub.
pub(super) fn serve(hub: Arc<FolderHub>, port: u16, options: Options) -> Result<Serving> {
    let objects = Objects::of(hub.dir())?;
    let listener = loopback::listen(port)?;
    let address = listener.local_addr()?;
    let (sums, turns) = (Mutex::new(HashMap::new()), Semaphore::new(MAX_SENDERS));
    let world = Arc::new(World { hub, objects, sums, turns, options });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_WAITING_THREADS)
        .thread_name("hub-server")
        .enable_all()
        .build()
        .context("the threads of the hub's server cannot be started")?;
    let listener = {
        let _guard = runtime.enter();
        TcpListener::from_std(listener).context("the hub's server cannot listen")?
    };
    let serve = move |stopped: oneshot::Receiver<()>| {
        runtime.block_on(async {
            let is_watched = world.options.observer.is_some();
            let router = router(world);
            let serving = async {
                match is_watched {
                    true => {
                        let service = router.into_make_service_with_connect_info::<Watched>();
                        axum::serve(listener, service).await
                    }
                    false => {
                        let service = router.into_make_service_with_connect_info::<Unwatched>();
                        axum::serve(listener, service).await
                    }
                }
            };
            tokio::select! {
                _ = stopped => {}
                _ = serving => {}
            }
        });
        runtime.shutdown_timeout(PATIENCE);
    };
    Serving::start("hub-server", address, serve)
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

/// A connection of which nothing is kept.
#[derive(Clone)]
struct Unwatched;

impl Connected<IncomingStream<'_, TcpListener>> for Unwatched {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        // The parts of an answer are not to wait until the parts before them are acknowledged.
        stream.io().set_nodelay(true).ok();
        Self
    }
}

/// A connection, so that whoever watches can end it without an answer.
#[derive(Clone)]
struct Watched(Option<Arc<TcpStream>>);

impl Connected<IncomingStream<'_, TcpListener>> for Watched {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        stream.io().set_nodelay(true).ok();
        let socket = stream.io().as_fd().try_clone_to_owned();
        Self(socket.ok().map(|socket| Arc::new(TcpStream::from(socket))))
    }
}

/// Lets requests of this machine through, and past who watches them.
async fn watch(State(world): State<Arc<World>>, request: Request, next: Next) -> Response {
    if !is_own(request.headers()) {
        return Refusal::new(StatusCode::FORBIDDEN, "Only programs of this machine may ask.").into_response();
    }
    let Some(observer) = &world.options.observer else { return next.run(request).await };
    let connection = request.extensions().get::<ConnectInfo<Watched>>().cloned();
    let connection = connection.and_then(|ConnectInfo(Watched(socket))| socket);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let done = match observer.sees(Moment::Request, &method, &path) {
        Fate::GoOn => next.run(request).await,
        fate => return end(fate, connection.as_deref()).unwrap_or_default(),
    };
    end(observer.sees(Moment::Answer, &method, &path), connection.as_deref()).unwrap_or(done)
}

/// What takes the place of an answer; `None`: nothing does.
fn end(fate: Fate, connection: Option<&TcpStream>) -> Option<Response> {
    match fate {
        Fate::GoOn => None,
        Fate::Say(answer) => Some(*answer),
        Fate::Cut => {
            if let Some(socket) = connection {
                socket.shutdown(Shutdown::Both).ok();
            }
            Some(Response::default()) // which nobody hears
        }
    }
}
