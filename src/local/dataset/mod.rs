//! A folder of parquet shards as a server that speaks as Hugging Face and its data sets' viewer do, on loopback: for tests,
//! and for machines that have the shards and no network.
//!
//! The shards are those of every data set that is asked for, whatever its name. There is one branch, `main`, with one commit,
//! which the names, sizes and times of the shards make; so do the sums that are told of them: nothing is read to make them,
//! and they are no sums of the content. The viewer knows one configuration, `default`, with one split, `train`: the rows of
//! all shards, sorted by path. Columns with lists or structures in them are left out of it, and text that is no UTF-8 is null.

mod content;
mod fault;
mod files;
mod rows;
mod seams;
mod server;
mod shards;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

pub use self::seams::{Fate, Observer};
use crate::local::loopback::Serving;

/// How it serves.
#[derive(Clone)]
pub struct Options {
    /// Who watches requests, in tests.
    pub observer: Option<Arc<dyn Observer>>,
    /// So many entries of the tree come at once, unless a request asks for fewer.
    pub page_entries: usize,
}

impl Default for Options {
    /// Unwatched, with pages of 1,000 entries as Hugging Face has them.
    fn default() -> Self {
        Self { observer: None, page_entries: 1_000 }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("page_entries", &self.page_entries).finish_non_exhaustive()
    }
}

/// A server that runs until it is dropped.
pub struct DatasetServer {
    server: Serving,
    num_shards: usize,
}

impl DatasetServer {
    /// Serves the `.parquet` files of a folder and of those in it, as they are now, on a port of loopback; 0: any that is
    /// free. What is hidden, and links to folders, are passed over.
    ///
    /// # Errors
    /// Of kind [`crate::error::Failure::Input`] if there is no such file, or the port is in use.
    pub fn start(dir: &Path, port: u16, options: Options) -> Result<Self> {
        let shards = shards::list(dir)?;
        let num_shards = shards.all.len();
        Ok(Self { server: server::serve(shards, port, options)?, num_shards })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its address, as clients want it: that of the hub and that of the viewer.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// How many shards there are.
    pub fn num_shards(&self) -> usize {
        self.num_shards
    }
}
