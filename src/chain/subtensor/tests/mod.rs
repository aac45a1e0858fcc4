//! The client against what real nodes answered, and against a node over the ledger.

#![allow(clippy::unwrap_used)]

mod devnet;
mod faults;
mod golden;
mod hostile;
mod proxy;
mod publish;
mod recorded;
mod today;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use subxt::rpcs::RpcClient;

use super::Subtensor;
use super::endpoint::Endpoint;
use super::identity::Identity;
use super::node::Node;
use super::patience::Patience;
use crate::chain::wallet::Keyring;
use crate::hex;

/// So little that nothing is tried twice.
pub(super) const ONCE: Patience = Patience {
    dial: Duration::from_secs(2),
    request: Duration::from_secs(2),
    start: Duration::from_millis(300),
    operation: Duration::ZERO,
    news: Duration::from_secs(2),
};

/// A subnet over a client that is there.
fn over(client: RpcClient, netuid: u16, keyring: Keyring) -> Subtensor {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (endpoint, identity) = (Endpoint::parse("ws://127.0.0.1:9").unwrap(), Identity::new(None, dir.path()));
    let node = runtime.block_on(Node::over(client, endpoint, identity, ONCE)).unwrap();
    let (described, journal_dir) = ("the recorded subnet".to_owned(), PathBuf::new());
    let (sending, read) = Default::default();
    Subtensor { runtime, node, netuid, keyring, described, journal_dir, sending, read }
}

/// The bytes of hexadecimal digits after 0x.
fn unhex(text: &str) -> Vec<u8> {
    hex::read(text).unwrap()
}

/// What a runtime says of itself, `a_v14`, `c_v14` or `c_v15`, as the node over the ledger serves it.
fn metadata(name: &str) -> Vec<u8> {
    std::fs::read(crate::golden::repository().join(format!("src/local/rpc/metadata/{name}.scale"))).unwrap()
}
