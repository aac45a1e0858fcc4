//! What a ledger is made with, and keeps: the subnet's parameters, and how its blocks pass.

use anyhow::Result;
use rusqlite::{Transaction, named_params};

use crate::chain::ConsensusParams;
use crate::error::input;

/// What a ledger is made with, and keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first block.
    pub genesis_block: u64,
    /// When it was, in milliseconds of Unix time.
    pub first_unix_ms: u64,
    /// Milliseconds from one block to the next; at least 1.
    pub block_ms: u64,
    /// Blocks between two epochs.
    pub tempo: u64,
    /// A new registration cannot be replaced for so many blocks.
    pub immunity_period: u64,
    /// A validator that has not set weights for more blocks than this does not count.
    pub activity_cutoff: u64,
    /// A hotkey may commit again so many blocks after it last did.
    pub commit_rate_limit: u64,
    /// A validator may set weights again so many blocks after it last did.
    pub weights_rate_limit: u64,
    /// Places on the subnet.
    pub max_uids: u16,
    /// What an epoch is computed with.
    pub consensus: ConsensusParams,
}

impl Settings {
    /// The constants of subnet 9 in March 2024.
    pub fn new(genesis_block: u64, first_unix_ms: u64, block_ms: u64) -> Self {
        Self {
            genesis_block,
            first_unix_ms,
            block_ms,
            tempo: 360,
            immunity_period: 4096,
            activity_cutoff: 5000,
            commit_rate_limit: 100,
            weights_rate_limit: 100,
            max_uids: 256,
            consensus: ConsensusParams::default(),
        }
    }

    /// Refuses what no ledger can be made with.
    pub(super) fn check(&self) -> Result<()> {
        if self.block_ms == 0 {
            return Err(input("a block must last for at least 1 ms"));
        }
        Ok(())
    }

    /// Writes them into an empty ledger.
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> Result<()> {
        transaction.execute(
            "INSERT INTO settings VALUES (
                :genesis_block, :first_unix_ms, :block_ms, :tempo, :immunity_period, :activity_cutoff,
                :commit_rate_limit, :weights_rate_limit, :max_uids,
                :kappa, :bonds_moving_average, :max_validators, :emission,
                :genesis_block
            )",
            named_params! {
                ":genesis_block": self.genesis_block,
                ":first_unix_ms": self.first_unix_ms,
                ":block_ms": self.block_ms,
                ":tempo": self.tempo,
                ":immunity_period": self.immunity_period,
                ":activity_cutoff": self.activity_cutoff,
                ":commit_rate_limit": self.commit_rate_limit,
                ":weights_rate_limit": self.weights_rate_limit,
                ":max_uids": self.max_uids,
                ":kappa": self.consensus.kappa,
                ":bonds_moving_average": self.consensus.bonds_moving_average,
                ":max_validators": self.consensus.max_validators,
                ":emission": self.consensus.emission,
            },
        )?;
        Ok(())
    }

    /// Reads those of a ledger.
    pub(super) fn read(transaction: &Transaction<'_>) -> Result<Self> {
        Ok(transaction.query_row("SELECT * FROM settings", [], |row| {
            Ok(Self {
                genesis_block: row.get("genesis_block")?,
                first_unix_ms: row.get("first_unix_ms")?,
                block_ms: row.get("block_ms")?,
                tempo: row.get("tempo")?,
                immunity_period: row.get("immunity_period")?,
                activity_cutoff: row.get("activity_cutoff")?,
                commit_rate_limit: row.get("commit_rate_limit")?,
                weights_rate_limit: row.get("weights_rate_limit")?,
                max_uids: row.get("max_uids")?,
                consensus: ConsensusParams {
                    kappa: row.get("kappa")?,
                    bonds_moving_average: row.get("bonds_moving_average")?,
                    max_validators: row.get("max_validators")?,
                    emission: row.get("emission")?,
                },
            })
        })?)
    }
}
