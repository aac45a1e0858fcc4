//! Text to tokens to rows: sources, tokenizer, packing, and the loader that prefetches batches.
//!
//! [`open`] turns a recipe into what the training loop needs. A source gives documents, `packing` makes one endless
//! stream of rows of them as the validator does, `loader` hands each rank its rows ahead of time, and `held_out` fixes
//! the rows that the held-out loss is taken on.

pub mod files;
mod json_line;
mod order;
mod pretokenize;
pub mod sample;
pub mod source;
mod text_file;
pub mod tokenizer;

use serde::{Deserialize, Serialize};

/// Consecutive documents that are drawn, trained on and held out together: a page of the subnet's data set.
pub const PAGE_DOCUMENTS: usize = 100;

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
