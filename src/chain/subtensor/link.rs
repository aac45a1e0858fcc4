//! One connection to one node: the requests that are made of it, each with a time limit.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use subxt::ext::futures::future::try_join_all;
use subxt::ext::jsonrpsee::core::client::async_client::PingConfig;
use subxt::ext::jsonrpsee::ws_client::WsClientBuilder;
use subxt::rpcs::client::{RpcParams, RpcSubscription};
use subxt::rpcs::methods::legacy::{Bytes, StorageChangeSet};
use subxt::rpcs::{Error, RpcClient, rpc_params};
use subxt::utils::H256;

use super::endpoint::Endpoint;
use super::patience::Patience;
use super::trouble::{Fault, quoted};
use crate::hex;

/// No answer is longer: a runtime's metadata, the longest, is about 1 MB.
const MAX_ANSWER_BYTES: u32 = 32 << 20;

/// Values asked for in one request.
const VALUES_PER_REQUEST: usize = 512;

/// Keys asked for in one request; real nodes give at most 1,000.
pub(super) const KEYS_PER_PAGE: u32 = 512;

const PING_INTERVAL: Duration = Duration::from_secs(5);
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// A connection. Its clones are the same connection; when the last is dropped, it is closed.
#[derive(Clone)]
pub(super) struct Link {
    client: RpcClient,
    /// Tells it from the connections before it.
    pub(super) serial: u64,
    /// Its place in the list of endpoints.
    pub(super) place: usize,
}

#[derive(Deserialize)]
struct Header {
    number: String,
}

#[derive(Deserialize)]
struct Block {
    block: Body,
}

#[derive(Deserialize)]
struct Body {
    extrinsics: Vec<Bytes>,
}

impl Link {
    /// Connects.
    pub(super) async fn dial(
        endpoint: &Endpoint,
        place: usize,
        serial: u64,
        patience: &Patience,
    ) -> Result<Self, Fault> {
        let pings = PingConfig::new().ping_interval(PING_INTERVAL).inactive_limit(SILENCE_LIMIT).max_failures(1);
        let builder = WsClientBuilder::default()
            .connection_timeout(patience.dial)
            .request_timeout(patience.request)
            .max_response_size(MAX_ANSWER_BYTES)
            // One connection, and none to where the node sends, which could be unencrypted.
            .max_redirections(1)
            .enable_ws_ping(pings);
        // The name of the host is looked up without a time limit, by a call that blocks.
        let url = endpoint.url().to_owned();
        let dialing = tokio::spawn(async move { builder.build(url).await });
        match tokio::time::timeout(patience.dial * 2, dialing).await {
            Ok(Ok(Ok(client))) => Ok(Self::over(RpcClient::new(client), place, serial)),
            Ok(Ok(Err(error))) => Err(Fault::Lost(quoted(&with_causes(&error)))),
            Ok(Err(_)) | Err(_) => Err(Fault::Lost("no connection in time".to_owned())),
        }
    }

    /// A link over a client that is there.
    pub(super) fn over(client: RpcClient, place: usize, serial: u64) -> Self {
        Self { client, serial, place }
    }

    async fn request<T: DeserializeOwned>(&self, method: &str, params: RpcParams) -> Result<T, Fault> {
        self.client.request(method, params).await.map_err(fault)
    }

    /// The hash of the block of a number; `None` if there is none yet.
    pub(super) async fn block_hash(&self, number: u64) -> Result<Option<H256>, Fault> {
        self.request("chain_getBlockHash", rpc_params![number]).await
    }

    /// The hash of the first block.
    pub(super) async fn genesis(&self) -> Result<H256, Fault> {
        self.block_hash(0).await?.ok_or_else(|| Fault::Lost("it knows no first block".to_owned()))
    }

    /// The hash of the newest finalized block.
    pub(super) async fn finalized_head(&self) -> Result<H256, Fault> {
        self.request("chain_getFinalizedHead", rpc_params![]).await
    }

    /// The number of a block.
    pub(super) async fn number(&self, block: H256) -> Result<u64, Fault> {
        let header: Option<Header> = self.request("chain_getHeader", rpc_params![block]).await?;
        let header = header.ok_or_else(|| Fault::Lost(format!("it does not know the block {block:?}")))?;
        let digits = header.number.strip_prefix("0x").unwrap_or(&header.number);
        u64::from_str_radix(digits, 16)
            .map_err(|_| Fault::Lost(format!("its block has the number `{}`", quoted(&header.number))))
    }

    /// The extrinsics of a block.
    pub(super) async fn extrinsics(&self, block: H256) -> Result<Vec<Bytes>, Fault> {
        let found: Option<Block> = self.request("chain_getBlock", rpc_params![block]).await?;
        Ok(found.ok_or_else(|| Fault::Lost(format!("it does not know the block {block:?}")))?.block.extrinsics)
    }

    /// Calls a function of the chain's program at a block.
    pub(super) async fn call(&self, function: &str, arguments: &[u8], block: H256) -> Result<Vec<u8>, Fault> {
        let bytes: Bytes = self.request("state_call", rpc_params![function, hex::write(arguments), block]).await?;
        Ok(bytes.0)
    }

    /// The values of keys at a block, in the order of the keys.
    pub(super) async fn values(&self, keys: &[Vec<u8>], block: H256) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        let chunks = keys.chunks(VALUES_PER_REQUEST).map(|keys| async move {
            let named: Vec<String> = keys.iter().map(hex::write).collect();
            let sets: Vec<StorageChangeSet<H256>> =
                self.request("state_queryStorageAt", rpc_params![named, block]).await?;
            let mut found: HashMap<Vec<u8>, Vec<u8>> = sets
                .into_iter()
                .flat_map(|set| set.changes)
                .filter_map(|(key, value)| Some((key.0, value?.0)))
                .collect();
            Ok(keys.iter().map(|key| found.remove(key)).collect::<Vec<_>>())
        });
        Ok(try_join_all(chunks).await?.into_iter().flatten().collect())
    }

    /// The keys that begin with a prefix, in their order, from the first after `after` on: at most [`KEYS_PER_PAGE`].
    pub(super) async fn keys_page(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        block: H256,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let params = rpc_params![hex::write(prefix), KEYS_PER_PAGE, after.map(hex::write), block];
        let keys: Vec<Bytes> = self.request("state_getKeysPaged", params).await?;
        let keys: Vec<Vec<u8>> = keys.into_iter().map(|key| key.0).collect();
        let is_ascending = keys.is_sorted_by(|one, next| one < next)
            && keys.first().is_none_or(|first| after.is_none_or(|after| first.as_slice() > after));
        if keys.len() > KEYS_PER_PAGE as usize || !is_ascending || !keys.iter().all(|key| key.starts_with(prefix)) {
            return Err(Fault::Lost("it gave other keys than it was asked for".to_owned()));
        }
        Ok(keys)
    }

    /// Hands in a signed extrinsic, and watches what becomes of it.
    pub(super) async fn submit(&self, extrinsic: &[u8]) -> Result<RpcSubscription<Value>, Fault> {
        self.client
            .subscribe("author_submitAndWatchExtrinsic", rpc_params![hex::write(extrinsic)], "author_unwatchExtrinsic")
            .await
            .map_err(fault)
    }
}

/// What an error of the client means.
pub(super) fn fault(error: Error) -> Fault {
    match error {
        Error::User(error) => {
            let data = error.data.map(|data| data.get().trim_matches('"').to_owned());
            let text = match data.filter(|data| !data.is_empty() && data != "null") {
                Some(data) => format!("{}: {data}", error.message),
                None => error.message,
            };
            Fault::Refused { code: error.code.into(), text: quoted(&text) }
        }
        Error::Client(error) => Fault::Lost(quoted(&with_causes(error.as_ref()))),
        error => Fault::Lost(quoted(&error.to_string())),
    }
}

/// An error and its causes, where they say more.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
