//! The socket: a JSON-RPC server on loopback, over WebSocket and HTTP, in a thread of its own.
//!
//! What waits for the ledger or for another request does so on threads of its own, so that two are enough to listen.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use jsonrpsee::RpcModule;
use jsonrpsee::server::middleware::http::HostFilterLayer;
use jsonrpsee::server::{BatchRequestConfig, RandomStringIdProvider, ServerBuilder, ServerConfig};
use tokio::sync::oneshot;
use tower::ServiceBuilder;

use super::methods::METHODS;
use super::node::Node;
use super::origin::OriginLayer;
use super::subscriptions::{self, FINALIZED_HEADS, NAMES};
use crate::local::loopback::{self, OWN_HOSTS, Serving};

/// Keys of a thousand storage entries have some 140 kB.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// The metadata has some 120 kB.
const MAX_RESPONSE_BYTES: u32 = 16 << 20;

const MAX_CONNECTIONS: u32 = 128;

const MAX_SUBSCRIPTIONS: u32 = 64;

const MAX_BATCH: u32 = 256;

/// The chain answers one request at a time; more threads only wait.
const MAX_WAITING_THREADS: usize = 16;

/// How long the end waits for answers that are under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves a node.
pub(super) fn serve(node: Arc<Node>, port: u16) -> Result<Serving> {
    let listener = loopback::listen(port)?;
    let address = listener.local_addr()?;
    let module = module(&node)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_WAITING_THREADS)
        .thread_name("devnet")
        .enable_all()
        .build()
        .context("the threads of the node cannot be started")?;
    let config = ServerConfig::builder()
        .max_request_body_size(MAX_REQUEST_BYTES)
        .max_response_body_size(MAX_RESPONSE_BYTES)
        .max_connections(MAX_CONNECTIONS)
        .max_subscriptions_per_connection(MAX_SUBSCRIPTIONS)
        .set_batch_request_config(BatchRequestConfig::Limit(MAX_BATCH))
        .set_id_provider(RandomStringIdProvider::new(16))
        .build();
    // A web page has the browser send what it likes: it is told apart by where it says it comes from and goes to.
    let hosts = HostFilterLayer::new(OWN_HOSTS.map(|host| format!("{host}:*")))?;
    let filter = ServiceBuilder::new().layer(hosts).layer(OriginLayer);
    let server = {
        let _guard = runtime.enter();
        let builder = ServerBuilder::with_config(config).set_http_middleware(filter);
        builder.build_from_tcp(listener).context("the node cannot listen")?
    };
    let serve = move |stopped: oneshot::Receiver<()>| {
        runtime.block_on(async {
            let handle = server.start(module);
            tokio::select! {
                _ = stopped => {}
                () = pass_time(&node) => {}
            }
            handle.stop().ok(); // it may have stopped by itself
            tokio::time::timeout(PATIENCE, handle.stopped()).await.ok();
        });
        runtime.shutdown_timeout(PATIENCE);
    };
    Serving::start("devnet", address, serve)
}

/// Ends blocks although nobody asks. A ledger that does not answer now may do so later.
async fn pass_time(node: &Arc<Node>) {
    let mut ticks = tokio::time::interval(node.tick());
    loop {
        ticks.tick().await;
        let node = Arc::clone(node);
        tokio::task::spawn_blocking(move || drop(node.chain())).await.ok();
    }
}

fn module(node: &Arc<Node>) -> Result<RpcModule<Node>> {
    let mut module = RpcModule::from_arc(Arc::clone(node));
    for &(name, method) in METHODS {
        module.register_blocking_method(name, move |params, node, _| {
            node.count_request();
            method(&node, &params)
        })?;
    }
    let [transaction, heads @ ..] = NAMES;
    let names = (transaction.subscribe, transaction.message, transaction.unsubscribe);
    module.register_subscription(names.0, names.1, names.2, |params, pending, node, _| {
        node.count_request();
        subscriptions::watch(params, pending, node)
    })?;
    for names in heads {
        let is_final = names.subscribe == FINALIZED_HEADS;
        module.register_subscription(
            names.subscribe,
            names.message,
            names.unsubscribe,
            move |_, pending, node, _| {
                node.count_request();
                let lag = if is_final { node.finality_lag() } else { 0 };
                subscriptions::heads(pending, node, lag)
            },
        )?;
    }
    Ok(module)
}
