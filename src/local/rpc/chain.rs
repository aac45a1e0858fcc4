//! What of the chain changes: its last blocks, and the one that is being built.

use std::collections::VecDeque;
use std::collections::btree_map::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::accounts::{Account, Accounts};
use super::block::{Block, Hash};
use super::program::Program;
use super::state::Facts;

/// The number and hash of the block that holds a transaction.
pub(super) type InBlock = (u32, Hash);

/// What changes.
pub(super) struct Chain {
    pub(super) accounts: Accounts,
    /// Runs from the block after the one that is being built.
    pub(super) program: Arc<Program>,
    /// Never empty; the last is the head.
    pub(super) blocks: VecDeque<Arc<Block>>,
    /// What the head's storage is made of.
    pub(super) facts: Arc<Facts>,
    /// How many transactions each account has sent, those that wait among them, as the ledger keeps them.
    pub(super) nonces: BTreeMap<Account, u32>,
    pub(super) building: Building,
}

/// The block that is being built.
pub(super) struct Building {
    pub(super) number: u32,
    pub(super) program: Arc<Program>,
    pub(super) extrinsics: Vec<Vec<u8>>,
    pub(super) events: Vec<Vec<u8>>,
    /// Who wants to know the block's hash.
    pub(super) waiting: Vec<oneshot::Sender<InBlock>>,
}

impl Chain {
    /// The newest block.
    pub(super) fn head(&self) -> &Arc<Block> {
        self.blocks.back().expect("one is made before anything is served, and the last one stays")
    }

    /// The newest block that is final: so many before the newest, or the oldest one that is kept.
    pub(super) fn finalized(&self, finality_lag: u32) -> &Arc<Block> {
        let behind = self.blocks.len().saturating_sub(1).checked_sub(finality_lag as usize);
        &self.blocks[behind.unwrap_or(0)]
    }

    /// The block with a hash.
    pub(super) fn by_hash(&self, hash: &[u8]) -> Option<&Arc<Block>> {
        self.blocks.iter().rev().find(|block| block.hash == hash)
    }

    /// The block with a number.
    pub(super) fn by_number(&self, number: u64) -> Option<&Arc<Block>> {
        self.blocks.iter().rev().find(|block| u64::from(block.number) == number)
    }

    /// The transactions that wait for their block.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        self.building.extrinsics.iter().map(Vec::as_slice)
    }

    /// The number that an account's next transaction must have.
    pub(super) fn next_nonce(&self, account: &Account) -> u32 {
        self.nonces.get(account).copied().unwrap_or(0)
    }
}

impl Building {
    /// A block without transactions.
    pub(super) fn new(number: u32, program: Arc<Program>) -> Self {
        Self { number, program, extrinsics: Vec::new(), events: Vec::new(), waiting: Vec::new() }
    }
}
