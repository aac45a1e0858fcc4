//! What the node tells without being asked again: new heads, a transaction's way into a block, a new program.

use std::sync::Arc;

use jsonrpsee::core::server::{PendingSubscriptionSink, SubscriptionSink};
use jsonrpsee::types::Params;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use super::node::Node;
use super::refused::bad_parameters;
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

/// The way of a transaction, and then heads: every block is final at once, so that all kinds of them are the same.
pub(super) const NAMES: [Names; 4] = [
    Names {
        subscribe: "author_submitAndWatchExtrinsic",
        message: "author_extrinsicUpdate",
        unsubscribe: "author_unwatchExtrinsic",
    },
    Names {
        subscribe: "chain_subscribeFinalizedHeads",
        message: "chain_finalizedHead",
        unsubscribe: "chain_unsubscribeFinalizedHeads",
    },
    Names { subscribe: "chain_subscribeNewHeads", message: "chain_newHead", unsubscribe: "chain_unsubscribeNewHeads" },
    Names { subscribe: "chain_subscribeAllHeads", message: "chain_allHead", unsubscribe: "chain_unsubscribeAllHeads" },
];

/// Submits a transaction and tells of its way.
pub(super) async fn watch(params: Params<'static>, pending: PendingSubscriptionSink, node: Arc<Node>) {
    let submit = || {
        let text: String = params.sequence().next()?;
        let bytes = hex::read(&text).ok_or_else(|| bad_parameters("a transaction is written in hexadecimal"))?;
        node.submit(&bytes)
    };
    let submitted = match submit() {
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
            let Ok(hash) = block.map(hex::write) else { return };
            if tell(&sink, &json!({ "inBlock": hash })).await {
                tell(&sink, &json!({ "finalized": hash })).await;
            }
        }
    }
    // The watcher ends it.
    sink.closed().await;
}

/// Tells of every new head, beginning with the present one.
pub(super) async fn heads(pending: PendingSubscriptionSink, node: Arc<Node>) {
    let mut heads = node.heads();
    let Ok(sink) = pending.accept().await else { return };
    let mut next = *heads.borrow_and_update();
    loop {
        let head = *heads.borrow_and_update();
        for number in next..=head {
            let header = node.header(number);
            // After a long sleep of this machine the older ones are not kept.
            if let Some(header) = header
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
