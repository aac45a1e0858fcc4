//! Sending a call: signed at a view, handed in, and signed anew if the chain changed its program in between.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use subxt::ext::scale_value::Value;
use subxt::tx::DynamicPayload;
use subxt::utils::AccountId32;

use super::Subtensor;
use super::delivery::{Delivered, Extrinsic, Included, deliver};
use super::node::Node;
use super::patience::unless_interrupted;
use super::runtime::{Entry, LIFETIME, Part, Version};
use super::view::{Ask, Seen};
use crate::chain::wallet::Signer;
use crate::error::Failure;
use crate::figures;

const EVENTS: Entry = Entry { pallet: "System", name: "Events" };

/// An order is given anew so often when the chain changes its program.
const MAX_ORDERS: usize = 3;

/// A node goes by the newest block, here the newest final one counts: so many later.
const BLOCKS_TO_FINAL: usize = 5;

/// What a hotkey wants done.
pub(super) struct Order<'a> {
    /// What it is, in messages: "commitment".
    pub(super) what: &'static str,
    /// What must be known to word it.
    pub(super) asks: Vec<Ask>,
    /// The account of who signs.
    pub(super) account: AccountId32,
    /// Who signs.
    pub(super) signer: &'a Signer,
}

/// The call that an order comes to.
pub(super) struct Call {
    /// The call.
    pub(super) call: DynamicPayload<Vec<Value>>,
    /// Where the chain keeps what it changes, if that is to be read.
    pub(super) kept_under: Option<(Entry, Vec<Part>)>,
}

/// What came of an order.
pub(super) enum Fate {
    /// There was nothing to do: it stood there already, since this block.
    Stands(u64),
    /// The call was made, or failed, in a finalized block.
    Included(Included),
    /// It was not made and never will be; why.
    Not(String),
}

impl Subtensor {
    /// Sends an order, and waits until it is clear what became of it. It is worded by what stands on the chain: a call, or
    /// the block since which nothing is to be done. When the chain changes its program, it is worded and sent anew.
    pub(super) fn give(
        &self,
        order: &Order<'_>,
        word: impl Fn(&Seen) -> Result<ControlFlow<u64, Call>>,
    ) -> Result<Fate> {
        for _ in 0..MAX_ORDERS {
            let seen = self.wait(self.node.see(&order.asks, Some(order.account)))?;
            let call = match word(&seen)? {
                ControlFlow::Continue(call) => call,
                ControlFlow::Break(block) => return Ok(Fate::Stands(block)),
            };
            if let Some(fate) = self.wait(order.send(&self.node, &seen, &call))? {
                return Ok(fate);
            }
        }
        let what = order.what;
        Err(Failure::Unreachable(format!(
            "the chain changed its program again and again, and took no {what}: try again"
        ))
        .into())
    }
}

impl Order<'_> {
    /// Sends a call once, and waits until it is clear what became of it; `None`: it never will be taken in, since the
    /// chain's program is another now.
    async fn send(&self, node: &Node, seen: &Seen, call: &Call) -> Result<Option<Fate>> {
        let (view, nonce) = (&seen.view, seen.nonce);
        let runtime = &view.runtime;
        let kept_under = call.kept_under.as_ref().map(|(entry, parts)| {
            runtime.key(*entry, parts)?.with_context(|| format!("the chain has no {}", entry.name))
        });
        let extrinsic = Extrinsic {
            what: self.what,
            bytes: runtime.sign(&call.call, self.signer.keypair(), (view.number, view.hash), nonce)?,
            born: view.number,
            account: self.account,
            nonce,
            events_key: runtime.key(EVENTS, &[])?.context("the chain keeps no events")?,
            kept_under: kept_under.transpose()?,
        };
        let delivered = deliver(node, &extrinsic).await;
        node.forget_head();
        match delivered? {
            Delivered::Included(included) => Ok(Some(Fate::Included(included))),
            Delivered::Missed(said) => Ok(Some(Fate::Not(format!(
                "it was signed for the blocks from {} to {}, and is in none of them ({said})",
                figures::count(extrinsic.born + 1),
                figures::count(extrinsic.born + LIFETIME - 1)
            )))),
            Delivered::Refused(said) => self.after_refusal(node, &runtime.version, &said).await.map(|()| None),
        }
    }

    /// Finds out whether the chain's program is another; the node's refusal is the error if it is not.
    async fn after_refusal(&self, node: &Node, signed_for: &Version, said: &str) -> Result<()> {
        let refused = format!("the node did not take the {}: {said}; nothing was sent on", self.what);
        // A signature is for one program alone, and the node may have the next one in a block that is not final yet.
        let is_of_signature = ["bad signature", "badproof"].iter().any(|words| said.to_lowercase().contains(words));
        for look in 0..if is_of_signature { BLOCKS_TO_FINAL } else { 1 } {
            if look > 0 && unless_interrupted(tokio::time::sleep(node.until_next_block())).await.is_none() {
                bail!(Failure::Interrupted(refused));
            }
            node.forget_head();
            let now = node.see(&[], None).await.with_context(|| refused.clone())?;
            if now.view.runtime.version != *signed_for {
                return Ok(());
            }
        }
        bail!(Failure::No(refused))
    }
}
