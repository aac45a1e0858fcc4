//! HTTP on loopback, in a thread of its own, for programs of this machine alone.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::loopback::{self, Serving, is_own_origin, is_own_place};
use super::refusal::Refusal;

/// Requests wait for the disk; more threads only wait.
const MAX_WAITING_THREADS: usize = 32;
/// How long the end waits for answers that are under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves on a port of loopback; 0: any that is free. `is_watched`: a request's [`Connection`] is kept.
pub(super) fn serve(name: &'static str, port: u16, router: Router, is_watched: bool) -> Result<Serving> {
    let listener = loopback::listen(port)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_WAITING_THREADS)
        .thread_name(name)
        .enable_all()
        .build()
        .with_context(|| format!("the threads of the {name} cannot be started"))?;
    let listener = {
        let _guard = runtime.enter();
        TcpListener::from_std(listener).with_context(|| format!("the {name} cannot listen"))?
    };
    let router = router.layer(middleware::from_fn(own_only));
    let serve = move |stopped: oneshot::Receiver<()>| {
        runtime.block_on(async {
            let serving = async {
                match is_watched {
                    true => {
                        let service = router.into_make_service_with_connect_info::<Connection>();
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
    Serving::start(name, address, serve)
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
#[derive(Clone, Default)]
pub(super) struct Connection(Option<Arc<TcpStream>>);

impl Connection {
    /// That of a request to a server that is watched.
    pub(super) fn of(request: &Request) -> Self {
        let kept = request.extensions().get::<ConnectInfo<Self>>().cloned();
        kept.map(|ConnectInfo(connection)| connection).unwrap_or_default()
    }

    /// Ends it at once.
    pub(super) fn cut(&self) {
        if let Some(socket) = &self.0 {
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        stream.io().set_nodelay(true).ok();
        let socket = stream.io().as_fd().try_clone_to_owned();
        Self(socket.ok().map(|socket| Arc::new(TcpStream::from(socket))))
    }
}

/// Lets requests of this machine through.
async fn own_only(request: Request, next: Next) -> Response {
    if is_own(request.headers()) {
        return next.run(request).await;
    }
    Refusal::new(StatusCode::FORBIDDEN, "Only programs of this machine may ask.").into_response()
}

/// Whether a request comes from a program of this machine or a page of its own.
fn is_own(headers: &HeaderMap) -> bool {
    let is_own_host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(is_own_place);
    let mut origins = headers.get_all(header::ORIGIN).iter();
    is_own_host && origins.all(|origin| origin.to_str().is_ok_and(is_own_origin))
}

/// Does what waits for the disk, or computes, on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let failed = |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "The server failed; its output says why.");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
