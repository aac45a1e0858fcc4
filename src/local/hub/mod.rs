//! The hub folder as a server that speaks as Hugging Face does, on loopback: for tests, and for teams without an account.
//!
//! `hf-hub`, Python's `huggingface_hub` and [`HuggingFace`](crate::hub::huggingface::HuggingFace) create repositories,
//! upload and download with it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, bail};

use crate::hub::folder::FolderHub;

/// How it serves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The only token that is taken; `None`: any is.
    pub token: Option<String>,
}

/// A server that runs until it is dropped.
pub struct HubServer {
    address: SocketAddr,
}

impl HubServer {
    /// Serves a hub folder on a port of loopback; 0: any that is free.
    pub fn start(_hub: Arc<FolderHub>, _port: u16, _options: Options) -> Result<Self> {
        bail!("not yet")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address, as clients want it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}
