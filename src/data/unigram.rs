//! The model that knows only how often each token occurs: what a loss is compared with, and the cheapest rival there is.
//!
//! It is counted on the beginning of the training text, files in their order, whatever order training reads them in.

use std::ops::ControlFlow;

use anyhow::Result;

use super::packing::no_text;
use super::tokenizer::{END_OF_TEXT, VOCAB_SIZE};
use super::{Corpus, Opened, Reading};

/// Tokens of training text that are counted.
const COUNTED_TOKENS: usize = 1_000_000;

/// How often each token occurs in a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Unigram {
    counts: Vec<u32>,
    num_tokens: f64,
    /// Added to the count of each token.
    smoothing: f64,
}

impl Unigram {
    /// The shares of tokens in a text, as they are.
    pub fn of<'a>(tokens: impl IntoIterator<Item = &'a u32>) -> Self {
        let mut counts = vec![0; VOCAB_SIZE];
        let mut num_tokens = 0.0;
        for &token in tokens {
            counts[token as usize] += 1;
            num_tokens += 1.0;
        }
        Self { counts, num_tokens, smoothing: 0.0 }
    }

    /// The first million tokens of training text, each token of the vocabulary counted once more; and which part of the
    /// text read for this is cut off its documents, about, by bytes.
    pub fn of_training(data: &Opened) -> Result<(Self, f64)> {
        let (tokens, cut_off) = first_tokens(&data.training, data, COUNTED_TOKENS)?;
        if tokens.iter().all(|&token| token == END_OF_TEXT) {
            return Err(no_text(&data.training.name()));
        }
        Ok((Self { smoothing: 1.0, ..Self::of(&tokens) }, cut_off))
    }

    /// The logarithm of a token's probability.
    ///
    /// # Panics
    ///
    /// If the token lies outside the vocabulary.
    pub fn log_probability(&self, token: usize) -> f64 {
        let total = self.num_tokens + self.smoothing * VOCAB_SIZE as f64;
        ((f64::from(self.counts[token]) + self.smoothing) / total).ln()
    }

    /// Mean of `-ln p` over the tokens of a text in nats, where `p` are the probabilities of this model.
    pub fn cross_entropy(&self, text: &Self) -> f64 {
        let occurring = text.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        occurring.map(|(token, &count)| f64::from(count) * -self.log_probability(token)).sum::<f64>() / text.num_tokens
    }
}

/// Up to `max` tokens of a corpus, in its own order, and which part of the text read was cut off its documents.
pub(super) fn first_tokens(corpus: &Corpus, data: &Opened, max: usize) -> Result<(Vec<u32>, f64)> {
    let Reading { tokenizer, packing, .. } = &data.reading;
    let mut tokens = Vec::new();
    let (mut read, mut lost) = (0, 0);
    corpus.each_document(&data.reading, packing.max_document_tokens, |document| {
        tokens.extend_from_slice(document.tokens);
        let length = document.text.map_or(0, str::len);
        read += length;
        if document.is_cut && document.text.is_some() {
            let kept = tokenizer.decode(&document.tokens[..document.tokens.len() - 1]).len();
            lost += length.saturating_sub(kept);
        }
        if tokens.len() >= max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    tokens.truncate(max);
    Ok((tokens, lost as f64 / read.max(1) as f64))
}
