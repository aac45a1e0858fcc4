//! Sending a call: signed at a view, handed in, and signed anew if the chain changed its program in between.

use anyhow::{Context, Result, bail};
use subxt::ext::scale_value::Value;
use subxt::tx::DynamicPayload;
use subxt::utils::AccountId32;

use super::delivery::{Delivered, Extrinsic, Included, deliver};
use super::node::Node;
use super::runtime::{Entry, LIFETIME, Part};
use super::view::Seen;
use crate::chain::wallet::Signer;
use crate::error::Failure;
use crate::figures;

const EVENTS: Entry = Entry { pallet: "System", name: "Events" };

/// A call that a hotkey wants made.
pub(super) struct Order<'a> {
    /// What it is, in messages: "commitment".
    pub(super) what: &'static str,
    /// The call.
    pub(super) call: DynamicPayload<Vec<Value>>,
    /// The account of who signs.
    pub(super) account: AccountId32,
    /// Who signs.
    pub(super) signer: &'a Signer,
    /// Where the chain keeps what the call changes.
    pub(super) kept_under: (Entry, Vec<Part>),
}

/// What came of an order.
pub(super) enum Fate {
    /// The call was made, or failed, in a finalized block.
    Included(Included),
    /// It was not made and never will be; why.
    Not(String),
    /// The chain's program became another before the call was taken in: look again, and order again.
    Upgraded,
}

impl Order<'_> {
    /// Sends it once, and waits until it is clear what became of it.
    pub(super) async fn send(&self, node: &Node, seen: &Seen) -> Result<Fate> {
        let (view, nonce) = (&seen.view, seen.nonce);
        let (entry, parts) = &self.kept_under;
        let runtime = &view.runtime;
        let extrinsic = Extrinsic {
            what: self.what,
            bytes: runtime.sign(&self.call, self.signer.keypair(), (view.number, view.hash), nonce)?,
            born: view.number,
            account: self.account,
            nonce,
            events_key: runtime.key(EVENTS, &[])?.context("the chain keeps no events")?,
            kept_under: runtime.key(*entry, parts)?.with_context(|| format!("the chain has no {}", entry.name))?,
        };
        let delivered = deliver(node, &extrinsic).await;
        node.forget_head();
        match delivered? {
            Delivered::Included(included) => Ok(Fate::Included(included)),
            Delivered::Missed(said) => Ok(Fate::Not(format!(
                "it was signed for the blocks from {} to {}, and is in none of them ({said})",
                figures::count(extrinsic.born + 1),
                figures::count(extrinsic.born + LIFETIME - 1)
            ))),
            Delivered::Refused(said) => {
                let now = node.see(&[], None).await?;
                if now.view.runtime.version != runtime.version {
                    return Ok(Fate::Upgraded);
                }
                bail!(Failure::No(format!("the node did not take the {}: {said}; nothing was sent on", self.what)))
            }
        }
    }
}
