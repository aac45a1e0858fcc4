//! The ledger as a node of Bittensor's chain: the JSON-RPC that subxt and `substrate-interface` speak, on loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, bail};

use crate::chain::ledger::Ledger;

/// Which of the chain's programs it looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spec {
    /// Version 143, of March 2024.
    #[default]
    V143,
    /// Version 185, of the middle of 2024.
    V185,
}

/// A node that runs until it is dropped.
pub struct Devnet {
    address: SocketAddr,
}

impl Devnet {
    /// Serves a ledger on a port of loopback; 0: any that is free.
    pub fn start(ledger: Arc<Ledger>, port: u16, spec: Spec) -> Result<Self> {
        let _ = (ledger, port, spec);
        bail!("not there yet")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests it has answered.
    pub fn num_requests(&self) -> u64 {
        0
    }

    /// Runs another program from the next block on.
    pub fn upgrade(&self, spec: Spec) {
        let _ = spec;
    }
}
