//! Text to tokens to rows: sources, tokenizer, packing, and the loader that prefetches batches.

use serde::{Deserialize, Serialize};

/// Where the global stream of rows stands: a few numbers, the same for every world size.
///
/// It names the first token that no row has used yet. Documents are read shard by shard in a seeded order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the whole source that are finished.
    pub epoch: u64,
    /// Position in the seeded order of the epoch's shards.
    pub shard: u64,
    /// Document inside the shard.
    pub document: u64,
    /// Tokens of that document (its final end-of-text included) that rows have used.
    pub token: u64,
}

/// Rows of tokens for one forward pass on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, row after row: `num_rows * row_len` of them.
    pub tokens: Vec<u32>,
    /// Number of rows.
    pub num_rows: usize,
    /// Tokens per row.
    pub row_len: usize,
    /// Where the global stream stands once every rank has consumed the batch of this micro-step.
    pub cursor_after: Cursor,
}
