//! Handing in a signed extrinsic, once.
//!
//! It is signed once, with one nonce, for a known span of blocks: the chain takes it once, however often it is handed in,
//! and never after that span. So whatever the connection does, this ends with what became of it: in a block (and whether
//! the call failed there), or in none and never to be. Where a node's word is missing, the finalized chain is looked at: as
//! long as the account's nonce is the same, the extrinsic is in no block, and is handed in again; once it is another, the
//! block that changed it is searched for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;
use subxt::SubstrateConfig;
use subxt::events::{Events, Phase};
use subxt::ext::futures::future::{try_join_all, try_join4};
use subxt::ext::scale_value::{Composite, Value as Scale, ValueDef};
use subxt::utils::{AccountId32, H256};

use super::link::Link;
use super::node::Node;
use super::patience::unless_interrupted;
use super::runtime::{LIFETIME, Runtime, Version};
use super::trouble::{Attempt, Fault, METHOD_NOT_FOUND, Trouble, quoted};
use super::view::nonce_at;
use crate::error::Failure;
use crate::figures;

/// The codes of a node that took no part of an extrinsic: its pool finds it invalid, it cannot read it, it has no pool.
const NOT_TAKEN: [i64; 3] = [1010, 1001, METHOD_NOT_FOUND];

/// A signed extrinsic.
pub(super) struct Extrinsic {
    /// What it is, in messages: "commitment".
    pub(super) what: &'static str,
    /// As it goes over the wire.
    pub(super) bytes: Vec<u8>,
    /// The block that it was signed at.
    pub(super) born: u64,
    /// The account that signed it.
    pub(super) account: AccountId32,
    /// The account's count of extrinsics before it.
    pub(super) nonce: u64,
    /// Where the chain keeps what happened in a block.
    pub(super) events_key: Vec<u8>,
    /// Where the chain keeps what it changes, if that is to be read.
    pub(super) kept_under: Option<Vec<u8>>,
}

/// An extrinsic in a finalized block.
pub(super) struct Included {
    /// The block's number.
    pub(super) block: u64,
    /// `Pallet.Error`, if the call failed.
    pub(super) failure: Option<String>,
    /// What the block keeps under [`Extrinsic::kept_under`].
    pub(super) kept: Option<Vec<u8>>,
    /// The program at the block.
    pub(super) runtime: Arc<Runtime>,
}

/// What became of it.
pub(super) enum Delivered {
    /// It is in a finalized block.
    Included(Included),
    /// The pool would not have it: it is in no block and never will be.
    Refused(String),
    /// It is in no block and never will be, since its time is over, or its nonce was used by another; with the last that
    /// was heard of it.
    Missed(String),
}

/// What a node said of it.
enum News {
    Finalized(H256),
    Refused(String),
    /// That it goes no further there, which need not be the end of it.
    Unclear(String),
    /// Nothing that can be understood.
    Lost(String),
}

impl From<Fault> for News {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Lost(text) => Self::Lost(text),
            refused => Self::Unclear(refused.text()),
        }
    }
}

/// Hands it in, and waits until it is clear what became of it.
pub(super) async fn deliver(node: &Node, extrinsic: &Extrinsic) -> Result<Delivered> {
    let limit = Duration::from_secs_f64((LIFETIME + 8) as f64 * node.seconds_per_block()) + node.patience.operation;
    let began = Instant::now();
    let mut tries = 0;
    loop {
        let is_first = tries == 0;
        let link = node.with(node.patience.operation, async |_| node.link().await).await;
        let link = link.map_err(|error| extrinsic.unknown(error, is_first))?;
        // News that come and come do not hold it for longer than it can be of use.
        let handing_in = hand_in(&link, extrinsic, node.patience.news);
        let handing_in = tokio::time::timeout(limit.saturating_sub(began.elapsed()), handing_in);
        let Some(news) = unless_interrupted(handing_in).await else {
            return Err(extrinsic.interrupted());
        };
        let news = news.unwrap_or_else(|_| News::Lost("the node told no end of it".to_owned()));
        let said = match news {
            News::Finalized(hash) => match unless_interrupted(outcome(node, &link, extrinsic, hash)).await {
                None => return Err(extrinsic.interrupted()),
                Some(Ok(Delivered::Missed(said))) => said,
                Some(Ok(delivered)) => return Ok(delivered),
                Some(Err(Trouble::Final(error))) => return Err(extrinsic.unknown(error, false)),
                Some(Err(trouble)) => {
                    node.drop_link(&link).await;
                    trouble.to_string()
                }
            },
            News::Refused(said) if is_first => return Ok(Delivered::Refused(said)),
            News::Refused(said) | News::Unclear(said) => said,
            News::Lost(said) => {
                node.drop_link(&link).await;
                said
            }
        };
        tries += 1;
        let seen = node.see(&[], Some(extrinsic.account)).await.map_err(|error| extrinsic.unknown(error, false))?;
        if seen.nonce > extrinsic.nonce {
            let last = seen.view.number;
            let found = node.with(node.patience.operation, async |link| search(node, link, extrinsic, last).await);
            let found = found.await.map_err(|error| extrinsic.unknown(error, false))?;
            return Ok(found.unwrap_or(Delivered::Missed("another extrinsic of the hotkey took its place".to_owned())));
        }
        if seen.view.number >= extrinsic.born + LIFETIME {
            return Ok(Delivered::Missed(said));
        }
        if began.elapsed() > limit {
            let error = Failure::Unreachable(format!("the chain makes no blocks: {said}"));
            return Err(extrinsic.unknown(error.into(), false));
        }
        // The first time, all that it lacked may have been a connection.
        if tries > 1 && unless_interrupted(tokio::time::sleep(node.until_next_block())).await.is_none() {
            return Err(extrinsic.interrupted());
        }
    }
}

impl Extrinsic {
    /// The error of who does not know what became of it.
    fn unknown(&self, error: anyhow::Error, is_unsent: bool) -> anyhow::Error {
        let Self { what, born, .. } = self;
        if is_unsent {
            return error.context(format!("the {what} was not sent"));
        }
        error.context(format!(
            "the {what} was sent, and what became of it is not known: it may still be included, up to block {}; look for it \
             on the chain before sending another",
            figures::count(born + LIFETIME - 1)
        ))
    }

    fn interrupted(&self) -> anyhow::Error {
        Failure::Interrupted(format!(
            "stopped after the {} was sent: it may still be included, up to block {}; look for it on the chain",
            self.what,
            figures::count(self.born + LIFETIME - 1)
        ))
        .into()
    }
}

async fn hand_in(link: &Link, extrinsic: &Extrinsic, patience: Duration) -> News {
    let mut subscription = match link.submit(&extrinsic.bytes).await {
        Ok(subscription) => subscription,
        Err(Fault::Refused { code, text }) if NOT_TAKEN.contains(&code) && !is_of_the_nonce(&text) => {
            return News::Refused(text);
        }
        // It is in the pool or in a block already, or the pool is full.
        Err(fault) => return fault.into(),
    };
    loop {
        let status = match tokio::time::timeout(patience, subscription.next()).await {
            Ok(Some(Ok(status))) => status,
            Ok(Some(Err(error))) => return super::link::fault(error).into(),
            Ok(None) => return News::Lost("the connection was lost while waiting for a block".to_owned()),
            Err(_) => return News::Lost("the node gave no news of it".to_owned()),
        };
        // Nodes say `"ready"`, a simulator of them `{"ready": null}`.
        let (name, value) = match &status {
            Value::String(name) => (name.as_str(), &Value::Null),
            Value::Object(fields) if fields.len() == 1 => match fields.iter().next() {
                Some((name, value)) => (name.as_str(), value),
                None => continue,
            },
            _ => return News::Lost(format!("the node said `{}`", quoted(&status.to_string()))),
        };
        match name {
            "future" | "ready" | "broadcast" | "inBlock" | "retracted" => (),
            "finalized" => {
                return match serde_json::from_value(value.clone()) {
                    Ok(hash) => News::Finalized(hash),
                    Err(_) => News::Lost("the node finalized a block without a hash".to_owned()),
                };
            }
            _ => return News::Unclear(format!("the node says that it is {}", quoted(&status.to_string()))),
        }
    }
}

/// Whether the pool found fault with the nonce alone: then the extrinsic, or another of the account, is in a block that is
/// not finalized yet.
fn is_of_the_nonce(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("outdated") || text.contains("stale")
}

/// Searches the blocks that may hold it, up to the last finalized one.
async fn search(node: &Node, link: &Link, extrinsic: &Extrinsic, last: u64) -> Attempt<Option<Delivered>> {
    let numbers = extrinsic.born + 1..=last.min(extrinsic.born + LIFETIME);
    let nonces = try_join_all(numbers.map(|number| nonce_at(link, number, extrinsic.account))).await?;
    let Some(&(hash, _)) = nonces.iter().find(|(_, nonce)| *nonce > extrinsic.nonce) else { return Ok(None) };
    match outcome(node, link, extrinsic, hash).await? {
        Delivered::Missed(_) => Ok(None),
        delivered => Ok(Some(delivered)),
    }
}

/// What became of it in a block.
pub(super) async fn outcome(node: &Node, link: &Link, extrinsic: &Extrinsic, hash: H256) -> Attempt<Delivered> {
    let keys: Vec<Vec<u8>> =
        [Some(&extrinsic.events_key), extrinsic.kept_under.as_ref()].into_iter().flatten().cloned().collect();
    let read = try_join4(link.number(hash), Version::read(link, hash), link.extrinsics(hash), link.values(&keys, hash));
    let (block, version, extrinsics, values) = read.await?;
    let mut values = values.into_iter();
    let Some(index) = extrinsics.iter().position(|bytes| bytes.0 == extrinsic.bytes) else {
        return Ok(Delivered::Missed("it is not in the block that the node named".to_owned()));
    };
    let Some(events) = values.next().flatten() else {
        return Err(Trouble::Node("it does not say what happened in the block".to_owned()));
    };
    let kept = values.next().flatten();
    let runtime = node.runtime_of(link, hash, version).await?;
    let failure = failure(&runtime, events, index)?;
    Ok(Delivered::Included(Included { block, failure, kept, runtime }))
}

/// The failure of the call of an extrinsic, by the events of its block.
fn failure(runtime: &Runtime, events: Vec<u8>, index: usize) -> Result<Option<String>> {
    let client = runtime.offline()?;
    let events: Events<SubstrateConfig> = client.events().from_bytes(events);
    for event in events.iter() {
        let event = event.map_err(|error| runtime.strange(&format!("the events do not decode ({error})")))?;
        if event.pallet_name() != "System" || event.phase() != Phase::ApplyExtrinsic(index as u32) {
            continue;
        }
        match event.event_name() {
            "ExtrinsicSuccess" => return Ok(None),
            "ExtrinsicFailed" => {
                let fields: Composite<()> = event
                    .decode_fields_unchecked_as()
                    .map_err(|error| runtime.strange(&format!("a failure does not decode ({error})")))?;
                return Ok(Some(failure_name(runtime, &fields)));
            }
            _ => (),
        }
    }
    bail!("the chain does not say whether the call succeeded");
}

/// `Pallet.Error`, or the name of a failure that is no pallet's.
fn failure_name(runtime: &Runtime, fields: &Composite<()>) -> String {
    let Some(Scale { value: ValueDef::Variant(error), .. }) = fields.values().next() else {
        return "an unknown failure".to_owned();
    };
    let numbers: Vec<u8> = numbers(&error.values).take(8).collect();
    let module = match (error.name.as_str(), numbers.as_slice()) {
        ("Module", &[pallet, error, ..]) => runtime.error_name(pallet, error),
        _ => None,
    };
    module.unwrap_or_else(|| format!("{} {numbers:?}", error.name))
}

/// The bytes of a value, from the left to the right, however they are nested.
fn numbers(values: &Composite<()>) -> Box<dyn Iterator<Item = u8> + '_> {
    Box::new(values.values().flat_map(|value| match &value.value {
        ValueDef::Composite(inner) => numbers(inner),
        ValueDef::Variant(inner) => numbers(&inner.values),
        _ => Box::new(value.as_u128().and_then(|number| u8::try_from(number).ok()).into_iter()),
    }))
}
