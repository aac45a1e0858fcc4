//! The ledger as a node of Bittensor's chain: the JSON-RPC that subxt and `substrate-interface` speak, on loopback.
//!
//! Whoever reads sees the subnet under the keys and in the encoding of the chain's own program, at each of the last
//! blocks. Whoever signs with the key of a hotkey can commit and set weights; what the ledger refuses is in the block as a
//! transaction that failed with the chain's own error. Nothing costs anything. Some things are less than on the chain: a
//! block is final at once, or after as many more as the node is told, there is no state root, and only the calls of
//! miners and validators are taken. A transaction whose number is above the account's next is refused, where a real pool
//! would keep it until its turn comes. No web page of elsewhere can ask: only what is sent to this machine by name, and by
//! nothing of another origin, is answered.

mod accounts;
mod block;
mod call;
mod calls;
mod chain;
mod extrinsic;
mod methods;
mod node;
mod origin;
mod program;
mod refused;
mod server;
mod state;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use crate::chain::ledger::Ledger;
use crate::error::input;
use crate::local::loopback::Serving;

pub use self::accounts::account;
use self::node::Node;
use self::program::Program;

/// Which of the chain's programs it looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spec {
    /// Version 143, of March 2024.
    #[default]
    V143,
    /// Version 185, of the middle of 2024.
    V185,
}

impl Spec {
    /// The program with a version; the user's error if it is another one.
    pub fn of(version: u32) -> Result<Self> {
        match version {
            143 => Ok(Self::V143),
            185 => Ok(Self::V185),
            _ => Err(input(format!("there is no program of version {version} to serve: give --spec 143 or 185"))),
        }
    }

    /// Its version.
    pub fn version(self) -> u32 {
        match self {
            Self::V143 => 143,
            Self::V185 => 185,
        }
    }
}

/// A node that runs until it is dropped.
pub struct Devnet {
    node: Arc<Node>,
    programs: [(Spec, Arc<Program>); 2],
    server: Serving,
}

impl Devnet {
    /// Serves a ledger on a port of loopback; 0: any that is free. Every block is final at once.
    pub fn start(ledger: Arc<Ledger>, port: u16, spec: Spec) -> Result<Self> {
        Self::start_lagging(ledger, port, spec, 0)
    }

    /// As [`start`](Self::start); the newest final block is so many before the newest.
    pub fn start_lagging(ledger: Arc<Ledger>, port: u16, spec: Spec, finality_lag: u32) -> Result<Self> {
        let limit = ledger.settings().commit_rate_limit;
        let program = |spec| Program::new(spec, limit).map(|program| (spec, Arc::new(program)));
        let programs = [program(Spec::V143)?, program(Spec::V185)?];
        let node = Arc::new(Node::new(ledger, of_spec(&programs, spec), finality_lag)?);
        let server = server::serve(Arc::clone(&node), port)?;
        Ok(Self { node, programs, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How many requests it has answered.
    pub fn num_requests(&self) -> u64 {
        self.node.num_requests()
    }

    /// Runs another program from the next block on.
    pub fn upgrade(&self, spec: Spec) {
        self.node.upgrade(of_spec(&self.programs, spec));
    }
}

fn of_spec(programs: &[(Spec, Arc<Program>); 2], spec: Spec) -> Arc<Program> {
    let [(first, program), (_, other)] = programs;
    Arc::clone(if spec == *first { program } else { other })
}
