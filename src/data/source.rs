//! The seam between where text comes from and everything that uses it.
//!
//! A source is a fixed list of shards, a shard a fixed list of documents. Shards are what the seeded order shuffles;
//! inside a shard documents come in order. A place in a source is therefore two numbers, and nothing has to be
//! remembered to return to it.

use anyhow::Result;

/// Documents of one shard, in order.
pub type Documents = Box<dyn Iterator<Item = Result<String>> + Send>;

/// Text in shards of documents, the same each time it is read.
pub trait Source: Send + Sync {
    /// What it reads, for messages: a file's name, or how many files.
    fn name(&self) -> String;

    /// Number of shards.
    fn num_shards(&self) -> u64;

    /// The documents of a shard (below [`num_shards`](Self::num_shards)) from document `from` on: none at all if it has
    /// no more than that. May read what it passes over; must not parse it.
    fn documents(&self, shard: u64, from: u64) -> Result<Documents>;
}
