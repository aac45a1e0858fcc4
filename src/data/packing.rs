//! How documents become a stream of tokens, exactly as the validator packs: each is cut to `max_document_tokens`, an
//! end-of-text is appended (not counted in that), and all are concatenated.

use super::tokenizer::{END_OF_TEXT, Tokenizer};
use crate::error::input;

/// How documents become a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Tokens that are kept of a document, its end-of-text not counted; `None`: all.
    pub max_document_tokens: Option<usize>,
    /// Order of the shards, and of the documents inside where a source can do that: a seed for another one in each epoch;
    /// `None`: as they are, always.
    pub shuffle_seed: Option<u64>,
    /// Shards that are open at once and give a document each in turn.
    pub interleave: usize,
}

impl Packing {
    /// Appends one document and its end-of-text.
    pub(super) fn pack(&self, tokenizer: &Tokenizer, text: &str, out: &mut Vec<u32>) {
        tokenizer.encode(text, self.max_document_tokens, out);
        out.push(END_OF_TEXT);
    }
}

/// The error of a source without a character of text.
pub(super) fn no_text(name: &str) -> anyhow::Error {
    input(format!("{name}: no text to train on: there is no document, or all of them are empty"))
}
