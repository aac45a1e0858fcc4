//! What a run reads: text that is tokenized as it comes, or tokens that were made before.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value};

use super::cursor::Cursor;
use super::source::Source;
use super::stages::Stage;
use super::stream::{Reading, Stream};
use super::tokenizer::END_OF_TEXT;
use super::tokens::{TokenReader, TokenShards};
use crate::interrupt::Stop;

/// Text or tokens.
#[derive(Clone)]
pub enum Corpus {
    /// Documents.
    Text(Arc<dyn Source>),
    /// Token shards.
    Tokens(Arc<TokenShards>),
}

/// A document as it is packed.
pub struct Document<'a> {
    /// Its tokens, its end-of-text the last one.
    pub tokens: &'a [u32],
    /// Its text, where there is one.
    pub text: Option<&'a str>,
    /// Whether it has more tokens than these.
    pub is_cut: bool,
}

/// The global stream of tokens of a corpus.
pub enum TokenStream {
    /// Tokenized as it comes.
    Text(Box<Stream>),
    /// Made before.
    Tokens(TokenReader),
}

impl Corpus {
    /// What it reads, for messages.
    pub fn name(&self) -> String {
        match self {
            Self::Text(source) => source.name(),
            Self::Tokens(shards) => shards.name(),
        }
    }

    /// What a run's records say of it, as [`Source::record`].
    pub fn record(&self) -> Option<Map<String, Value>> {
        match self {
            Self::Text(source) => source.record(),
            Self::Tokens(shards) => Some(shards.record()),
        }
    }

    /// The stream from a cursor on. `stop` ends its threads early.
    pub(crate) fn stream(&self, reading: &Reading, cursor: Cursor, stop: Stop) -> Result<TokenStream> {
        Ok(match self {
            Self::Text(source) => TokenStream::Text(Box::new(Stream::new(Arc::clone(source), reading, cursor, stop)?)),
            Self::Tokens(shards) => TokenStream::Tokens(TokenReader::new(Arc::clone(shards), cursor)?),
        })
    }

    /// Goes through the documents in their own order, each cut to `max_tokens` and ended by an end-of-text.
    pub fn each_document(
        &self,
        reading: &Reading,
        max_tokens: Option<usize>,
        mut visit: impl FnMut(&Document<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut tokens = Vec::new();
        // One more tells whether there are more.
        let looked_at = max_tokens.map(|max| max.saturating_add(1));
        let mut end = |tokens: &mut Vec<u32>, text: Option<&str>| {
            let is_cut = max_tokens.is_some_and(|max| tokens.len() > max);
            tokens.truncate(max_tokens.unwrap_or(usize::MAX));
            tokens.push(END_OF_TEXT);
            visit(&Document { tokens, text, is_cut })
        };
        match self {
            Self::Text(source) => {
                for shard in 0..source.num_shards() {
                    for text in source.documents(shard, 0, None)? {
                        let text = text?;
                        tokens.clear();
                        let tokenizing = reading.stages.enter(Stage::Tokenize);
                        reading.tokenizer.encode(&text, looked_at, &mut tokens);
                        drop(tokenizing);
                        reading.stages.add_bytes(Stage::Tokenize, text.len() as u64);
                        if end(&mut tokens, Some(&text)).is_break() {
                            return Ok(());
                        }
                    }
                }
            }
            Self::Tokens(shards) => {
                for document in shards.documents() {
                    let document = document?;
                    tokens.clear();
                    tokens.extend_from_slice(&document);
                    if end(&mut tokens, None).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

impl TokenStream {
    /// The first token that is not used yet.
    pub fn cursor(&self) -> Cursor {
        match self {
            Self::Text(stream) => stream.cursor(),
            Self::Tokens(reader) => reader.cursor(),
        }
    }

    /// Appends the next `count` tokens to `out`.
    pub fn take(&mut self, count: usize, out: &mut Vec<u32>) -> Result<()> {
        match self {
            Self::Text(stream) => stream.take(count, out),
            Self::Tokens(reader) => reader.take(count, out),
        }
    }

    /// Passes over the next `count` tokens.
    pub fn skip(&mut self, count: usize) -> Result<()> {
        match self {
            Self::Text(stream) => stream.skip(count),
            Self::Tokens(reader) => {
                reader.skip(count);
                Ok(())
            }
        }
    }
}
