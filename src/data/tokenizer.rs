//! GPT-2's byte-level BPE, exactly as the subnet's reference computes it (tokenizers 0.15.2, distilgpt2).
//!
//! Hugging Face's `tokenizers` is the definition, and what the tests hold this to ([`Tokenizer::definition`]); here the
//! same is done some 50 times as fast. The merges are recovered at run time from the ranks in the crate `tiktoken`.
//! `pretokenize` cuts a text into pieces, by the reference's Unicode tables. Most pieces of real text are one entry of the
//! vocabulary, and an entry is always its own encoding (a test goes through all of them), so a look-up answers for them;
//! the others are merged by `bpe`. A document that is cut to `n` tokens costs what its first `n` tokens cost.

use anyhow::{Result, anyhow, ensure};
use rustc_hash::FxHashMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::bpe::{Bpe, MAX_TOKEN_BYTES};
use super::pretokenize::pieces;

/// Number of token ids.
pub const VOCAB_SIZE: usize = 50_257;

/// The id that ends each document, and that the literal `<|endoftext|>` in a text becomes.
pub const END_OF_TEXT: u32 = 50_256;

const END_OF_TEXT_LITERAL: &str = "<|endoftext|>";

/// Turns text into token ids and back.
pub struct Tokenizer {
    /// Bytes of each id, the special one left out.
    pub(super) tokens: Vec<Box<[u8]>>,
    ids: FxHashMap<Box<[u8]>, u32>,
    pub(super) bpe: Bpe,
}

impl Tokenizer {
    /// GPT-2's tokenizer; takes some 0.05 s.
    pub fn gpt2() -> Result<Self> {
        let ranks = tiktoken::get_encoding("r50k_base").ok_or_else(|| anyhow!("tiktoken has no r50k_base"))?;
        let tokens: Vec<Box<[u8]>> = (0..END_OF_TEXT).map(|id| ranks.decode(&[id]).into()).collect();
        let ids: FxHashMap<_, _> = tokens.iter().cloned().zip(0..).collect();
        ensure!(ids.len() == VOCAB_SIZE - 1, "tiktoken's r50k_base has {} different tokens", ids.len());
        let bpe = Bpe::new(&tokens)?;
        Ok(Self { tokens, ids, bpe })
    }

    /// Appends the first `max_tokens` (`None`: all) token ids of a text to `out`.
    pub fn encode(&self, text: &str, max_tokens: Option<usize>, out: &mut Vec<u32>) {
        let limit = max_tokens.map_or(usize::MAX, |max| out.len().saturating_add(max));
        for (at, ordinary) in text.split(END_OF_TEXT_LITERAL).enumerate() {
            if at > 0 {
                out.push(END_OF_TEXT);
            }
            for piece in pieces(ordinary) {
                if out.len() >= limit {
                    break;
                }
                self.encode_piece(piece.as_bytes(), limit - out.len(), out);
            }
            if out.len() >= limit {
                break;
            }
        }
        out.truncate(limit);
    }

    /// Appends the ids of a piece, at least the first `max` of them.
    fn encode_piece(&self, piece: &[u8], max: usize, out: &mut Vec<u32>) {
        if piece.len() <= MAX_TOKEN_BYTES
            && let Some(&id) = self.ids.get(piece)
        {
            out.push(id);
        } else {
            self.bpe.encode(piece, max, out);
        }
    }

    /// The text of token ids. Bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            match self.tokens.get(id as usize) {
                Some(token) => bytes.extend_from_slice(token),
                None if id == END_OF_TEXT => bytes.extend_from_slice(END_OF_TEXT_LITERAL.as_bytes()),
                None => {}
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The same tokenizer in Hugging Face's library, built anew at each call (some 0.1 s): what this one is checked
    /// against, and what saves it in that library's formats.
    ///
    /// Its tables of Unicode are newer than the reference's, so that the two cut some rare characters' pieces differently.
    pub fn definition(&self) -> Result<tokenizers::Tokenizer> {
        let byte_names = byte_names();
        let name = |token: &[u8]| -> String { token.iter().map(|&byte| byte_names[byte as usize]).collect() };
        let vocab: Vocab = self.tokens.iter().map(|token| name(token)).zip(0..).collect();
        let named = |id: u16| name(&self.tokens[id as usize]);
        let merges = self.bpe.merges().iter().map(|&(left, right)| (named(left), named(right))).collect();
        let merges = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .build()
            .map_err(|error| anyhow!("the GPT-2 merges do not fit the vocabulary: {error}"))?;
        let mut definition = tokenizers::Tokenizer::new(merges);
        definition.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        let special = tokenizers::AddedToken::from(END_OF_TEXT_LITERAL, true);
        definition.add_special_tokens([special]).map_err(|error| anyhow!("{END_OF_TEXT_LITERAL}: {error}"))?;
        Ok(definition)
    }
}

/// The printable character by which GPT-2's vocabulary names each byte: itself where it is printable Latin-1, else the
/// next one from U+0100 on.
pub(super) fn byte_names() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => others.next().expect("there are more characters than bytes"),
    })
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
