//! The seam between where text comes from and everything that uses it.
//!
//! A source is a fixed list of shards, a shard a fixed list of documents. Shards are what the seeded order shuffles; a source
//! that holds a whole shard in memory shuffles its documents as well. A place in a source is therefore two numbers, and
//! nothing has to be remembered to return to it.

use anyhow::Result;
use serde_json::{Map, Value};

/// Documents of one shard, in order.
pub type Documents = Box<dyn Iterator<Item = Result<String>> + Send>;

/// Text in shards of documents, the same each time it is read.
pub trait Source: Send + Sync {
    /// What it reads, for messages: a file's name, or how many files.
    fn name(&self) -> String;

    /// Number of shards.
    fn num_shards(&self) -> u64;

    /// The documents of a shard (below [`num_shards`](Self::num_shards)) from document `from` on: none at all if it has
    /// no more than that. May read what it passes over; must not parse it. What is no text is left out and counted: it is no
    /// document.
    ///
    /// `seed`: the order of the documents inside the shard, for a source that has the whole of it in memory; `None`: as they
    /// are. Other sources give them as they are.
    fn documents(&self, shard: u64, from: u64, seed: Option<u64>) -> Result<Documents>;

    /// About how many bytes an opened shard holds in memory, for a source whose shards come from afar and are held as a whole:
    /// [`documents`](Self::documents) then does all the work, and is called ahead of time from several threads at once.
    /// `None`: shards are read as they are used.
    fn held_bytes(&self, shard: u64) -> Option<u64> {
        let _ = shard;
        None
    }

    /// What a run's records say of this text: data set, commit, shards, rows, what is set aside. A text with another record is
    /// another text, with which a run does not go on. `None`: there is nothing to say.
    fn record(&self) -> Option<Map<String, Value>> {
        None
    }
}
