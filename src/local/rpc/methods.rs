//! What the node answers: its methods by name, as functions of the chain and of the parameters.

use std::sync::{Arc, MutexGuard};

use jsonrpsee::types::{ErrorObjectOwned, Params};
use serde_json::{Value, json};

use super::accounts::Account;
use super::block::Block;
use super::chain::Chain;
use super::node::Node;
use super::program::{NAME, TRANSACTION_VERSION};
use super::refused::{self, bad_parameters, internal};
use super::{calls, subscriptions};
use crate::chain::account::parse;
use crate::hex;

/// An answer, or why there is none.
pub(super) type Answer = Result<Value, ErrorObjectOwned>;

/// A method.
pub(super) type Method = fn(&Node, &Params<'_>) -> Answer;

/// As many keys are given at once.
const MAX_KEYS: u64 = 1_000;

/// All methods that are no subscriptions.
pub(super) const METHODS: &[(&str, Method)] = &[
    ("account_nextIndex", next_index),
    ("author_pendingExtrinsics", |node, _| {
        let chain = chain(node)?;
        Ok(chain.waiting().map(hex::write).collect())
    }),
    ("author_submitExtrinsic", |node, params| {
        let submitted = node.submit(&bytes(params.sequence().next()?)?)?;
        Ok(hex::write(submitted.hash).into())
    }),
    ("chain_getBlock", |node, params| {
        let at: Option<String> = params.sequence().optional_next()?;
        Ok(block(node, at)?.map_or(Value::Null, |block| block.json()))
    }),
    ("chain_getBlockHash", block_hash),
    ("chain_getFinalizedHead", |node, _| Ok(hex::write(chain(node)?.finalized(node.finality_lag()).hash).into())),
    ("chain_getHead", |node, _| Ok(hex::write(chain(node)?.head().hash).into())),
    ("chain_getHeader", |node, params| {
        let at: Option<String> = params.sequence().optional_next()?;
        Ok(block(node, at)?.map_or(Value::Null, |block| block.header()))
    }),
    ("chain_getRuntimeVersion", runtime_version),
    ("payment_queryInfo", |_, _| {
        let weight = json!({ "ref_time": 0, "proof_size": 0 });
        Ok(json!({ "weight": weight, "class": "normal", "partialFee": "0" }))
    }),
    ("rpc_methods", |_, _| {
        let subscriptions = subscriptions::NAMES.iter().flat_map(|names| [names.subscribe, names.unsubscribe]);
        let mut all: Vec<&str> = METHODS.iter().map(|(name, _)| *name).chain(subscriptions).collect();
        all.sort_unstable();
        Ok(json!({ "methods": all }))
    }),
    ("state_call", |node, params| {
        let mut params = params.sequence();
        let (name, arguments): (String, String) = (params.next()?, params.next()?);
        let at: Option<String> = params.optional_next()?;
        let block = known_block(node, at)?;
        Ok(hex::write(&calls::run(node, &block, &name, &bytes(arguments)?)?).into())
    }),
    ("state_getKeysPaged", |node, params| {
        let mut params = params.sequence();
        let (prefix, count): (String, u64) = (params.next()?, params.next()?);
        let (after, at): (Option<String>, Option<String>) = (params.optional_next()?, params.optional_next()?);
        if count > MAX_KEYS {
            return Err(refused::too_many(count, MAX_KEYS));
        }
        let (prefix, after) = (bytes(prefix)?, after.map(bytes).transpose()?);
        let block = known_block(node, at)?;
        Ok(block.keys(&prefix, count as usize, after.as_deref()).into_iter().map(hex::write).collect())
    }),
    ("state_getMetadata", |node, params| {
        let at: Option<String> = params.sequence().optional_next()?;
        Ok(hex::write(known_block(node, at)?.program.metadata_v14()).into())
    }),
    ("state_getRuntimeVersion", runtime_version),
    ("state_getStorage", storage),
    ("state_getStorageAt", storage),
    ("state_queryStorageAt", |node, params| {
        let mut params = params.sequence();
        let keys: Vec<String> = params.next()?;
        let block = known_block(node, params.optional_next()?)?;
        if keys.len() as u64 > MAX_KEYS {
            return Err(refused::too_many(keys.len() as u64, MAX_KEYS));
        }
        let change = |key: String| Ok(json!([key, block.get(&bytes(key.clone())?).map(hex::write)]));
        let changes: Vec<Value> = keys.into_iter().map(change).collect::<Result<_, ErrorObjectOwned>>()?;
        Ok(json!([{ "block": hex::write(&block.hash), "changes": changes }]))
    }),
    ("system_accountNextIndex", next_index),
    ("system_chain", |_, _| Ok("assay's embedded chain".into())),
    ("system_chainType", |_, _| Ok("Development".into())),
    ("system_health", |_, _| Ok(json!({ "peers": 0, "isSyncing": false, "shouldHavePeers": false }))),
    ("system_name", |_, _| Ok("assay".into())),
    ("system_properties", |_, _| Ok(json!({ "ss58Format": 42, "tokenDecimals": 9, "tokenSymbol": "TAO" }))),
    ("system_syncState", |node, _| {
        let number = chain(node)?.head().number;
        Ok(json!({ "startingBlock": 0, "currentBlock": number, "highestBlock": number }))
    }),
    ("system_version", |_, _| Ok(env!("CARGO_PKG_VERSION").into())),
];

fn chain(node: &Node) -> Result<MutexGuard<'_, Chain>, ErrorObjectOwned> {
    node.chain().map_err(|error| internal(&error))
}

fn bytes(text: String) -> Result<Vec<u8>, ErrorObjectOwned> {
    hex::read(&text).ok_or_else(|| bad_parameters("bytes are written as hexadecimal digits after 0x"))
}

/// The block with a hash; without one the newest.
fn block(node: &Node, at: Option<String>) -> Result<Option<Arc<Block>>, ErrorObjectOwned> {
    let chain = chain(node)?;
    let Some(at) = at else { return Ok(Some(chain.head().clone())) };
    Ok(chain.by_hash(&bytes(at)?).cloned())
}

/// As [`block`]; one that is not there is an error.
fn known_block(node: &Node, at: Option<String>) -> Result<Arc<Block>, ErrorObjectOwned> {
    block(node, at.clone())?.ok_or_else(|| refused::unknown_block(&at.unwrap_or_default()))
}

fn block_hash(node: &Node, params: &Params<'_>) -> Answer {
    let wanted: Option<Value> = params.sequence().optional_next()?;
    let chain = chain(node)?;
    let hash = |wanted: &Value| -> Answer {
        let number = match wanted {
            Value::Null => return Ok(hex::write(chain.head().hash).into()),
            Value::Number(number) => number.as_u64(),
            Value::String(text) => match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            },
            _ => None,
        };
        let number = number.ok_or_else(|| bad_parameters("a block is named by its number"))?;
        Ok(node.hash_of(&chain, number).map(hex::write).into())
    };
    match wanted.unwrap_or_default() {
        Value::Array(list) => list.iter().take(MAX_KEYS as usize).map(hash).collect(),
        one => hash(&one),
    }
}

fn next_index(node: &Node, params: &Params<'_>) -> Answer {
    let address: String = params.sequence().next()?;
    let account: Account = match hex::read(&address).and_then(|bytes| bytes.try_into().ok()) {
        Some(account) => account,
        None => parse(&address).map_err(|error| bad_parameters(&error))?.0,
    };
    Ok(chain(node)?.next_nonce(&account).into())
}

fn runtime_version(node: &Node, params: &Params<'_>) -> Answer {
    let program = known_block(node, params.sequence().optional_next()?)?.program.clone();
    let apis: Vec<_> =
        program.apis().iter().map(|(name, version)| json!([hex::write(name.to_be_bytes()), version])).collect();
    Ok(json!({
        "specName": NAME,
        "implName": NAME,
        "authoringVersion": 1,
        "specVersion": program.version(),
        "implVersion": 1,
        "apis": apis,
        "transactionVersion": TRANSACTION_VERSION,
        "stateVersion": 1,
    }))
}

fn storage(node: &Node, params: &Params<'_>) -> Answer {
    let mut params = params.sequence();
    let key = bytes(params.next()?)?;
    let block = known_block(node, params.optional_next()?)?;
    Ok(block.get(&key).map(hex::write).into())
}
