//! What the node tells without being asked again: new heads, a transaction's way into a block, a new program.

use std::sync::Arc;

use jsonrpsee::core::server::{PendingSubscriptionSink, SubscriptionSink};
use jsonrpsee::types::Params;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use super::node::{KEPT, Node};
use super::refused::{bad_parameters, internal};
use crate::hex;

/// What a subscription is called.
pub(super) struct Names {
    /// How it is begun.
    pub(super) subscribe: &'static str,
    /// What its messages are called.
    pub(super) message: &'static str,
    /// How it is ended.
    pub(super) unsubscribe: &'static str,
}

/// How the heads that are final are subscribed to.
pub(super) const FINALIZED_HEADS: &str = "chain_subscribeFinalizedHeads";

/// The way of a transaction; then heads that are final, and twice heads of either kind, as there are no forks.
pub(super) const NAMES: [Names; 4] = [
    Names {
        subscribe: "author_submitAndWatchExtrinsic",
        message: "author_extrinsicUpdate",
        unsubscribe: "author_unwatchExtrinsic",
    },
    Names {
        subscribe: FINALIZED_HEADS,
        message: "chain_finalizedHead",
        unsubscribe: "chain_unsubscribeFinalizedHeads",
    },
    Names { subscribe: "chain_subscribeNewHeads", message: "chain_newHead", unsubscribe: "chain_unsubscribeNewHeads" },
    Names { subscribe: "chain_subscribeAllHeads", message: "chain_allHead", unsubscribe: "chain_unsubscribeAllHeads" },
];

/// Submits a transaction and tells of its way.
pub(super) async fn watch(params: Params<'static>, pending: PendingSubscriptionSink, node: Arc<Node>) {
    let mut heads = node.heads();
    let chain = Arc::clone(&node);
    let submit = move || {
        let text: String = params.sequence().next()?;
        let bytes = hex::read(&text).ok_or_else(|| bad_parameters("a transaction is written in hexadecimal"))?;
        chain.submit(&bytes)
    };
    let submitted = match tokio::task::spawn_blocking(submit).await.unwrap_or_else(|error| Err(internal(&error.into())))
    {
        Ok(submitted) => submitted,
        Err(error) => return pending.reject(error).await,
    };
    let Ok(sink) = pending.accept().await else { return };
    if !tell(&sink, &json!("ready")).await || !tell(&sink, &json!({ "broadcast": [] })).await {
        return;
    }
    tokio::select! {
        () = sink.closed() => {}
        block = submitted.block => {
            let Ok((number, hash)) = block else { return };
            let hash = hex::write(hash);
            if tell(&sink, &json!({ "inBlock": hash })).await {
                let last = number.saturating_add(node.finality_lag());
                let is_final = async { heads.wait_for(|head| *head >= last).await.is_ok() };
                let is_final = tokio::select! {
                    () = sink.closed() => false,
                    is_final = is_final => is_final,
                };
                if is_final {
                    tell(&sink, &json!({ "finalized": hash })).await;
                }
            }
        }
    }
    // The watcher ends it.
    sink.closed().await;
}

/// Tells of every head that is so many blocks before the newest, beginning with the present one.
pub(super) async fn heads(pending: PendingSubscriptionSink, node: Arc<Node>, lag: u32) {
    let mut heads = node.heads();
    let Ok(sink) = pending.accept().await else { return };
    let mut next = heads.borrow_and_update().saturating_sub(lag);
    loop {
        let head = heads.borrow_and_update().saturating_sub(lag);
        // After a long sleep of this machine the older ones are not kept.
        for number in next.max(head.saturating_sub(KEPT as u32))..=head {
            let node = Arc::clone(&node);
            let header = tokio::task::spawn_blocking(move || node.header(number)).await;
            if let Ok(Some(header)) = header
                && !tell(&sink, &header).await
            {
                return;
            }
        }
        next = head.saturating_add(1);
        tokio::select! {
            () = sink.closed() => return,
            changed = heads.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether there is still somebody to tell.
async fn tell(sink: &SubscriptionSink, message: &Value) -> bool {
    let Ok(message) = to_raw_value(message) else { return false };
    sink.send(message).await.is_ok()
}
