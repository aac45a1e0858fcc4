//! The hub folder as a server that speaks as Hugging Face does, on loopback: for tests, and for teams without an account.
//!
//! `hf-hub`, Python's `huggingface_hub` and [`HuggingFace`](crate::hub::huggingface::HuggingFace) create repositories,
//! upload and download with it. There is one user, to whom every namespace belongs; a repository has one branch, `main`, and
//! its files lie in no folders. Large files are taken by plain PUT (Git LFS, transfer `basic`). No web page of elsewhere can
//! ask, and nothing is read or written outside the hub.

mod access;
mod attributes;
mod commit;
mod files;
mod lfs;
mod objects;
mod repository;
mod resolve;
mod seams;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

pub(super) use self::files::{asked_paths, link};
pub use self::seams::{Fate, Moment, Observer, Xet, XetAccess};
use crate::hub::folder::FolderHub;
use crate::local::loopback::Serving;

/// How it serves.
#[derive(Clone, Default)]
pub struct Options {
    /// The only token that is taken; `None`: any is.
    pub token: Option<String>,
    /// Who watches requests, in tests.
    pub observer: Option<Arc<dyn Observer>>,
    /// A store for large files that clients reach by Xet, in tests; `None`: they are taken by plain PUT.
    pub xet: Option<Arc<dyn Xet>>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("has_token", &self.token.is_some()).finish_non_exhaustive()
    }
}

/// A server that runs until it is dropped.
pub struct HubServer {
    server: Serving,
}

impl HubServer {
    /// Serves a hub folder on a port of loopback; 0: any that is free.
    pub fn start(hub: Arc<FolderHub>, port: u16, options: Options) -> Result<Self> {
        Ok(Self { server: server::serve(hub, port, options)? })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its address, as clients want it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }
}
