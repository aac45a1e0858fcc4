//! GPT-2's byte-level BPE, exactly as the subnet's reference computes it (tokenizers 0.15.2, distilgpt2).
//!
//! The merges are done by Hugging Face's `tokenizers`, whose BPE model is built at run time from the ranks in the crate
//! `tiktoken`. Pieces are cut by `pretokenize`, whose Unicode tables are the reference's. Most pieces of real text are
//! one entry of the vocabulary, and an entry is always its own encoding (a test goes through all of them), so a look-up
//! answers for them: that makes it some 20 times as fast as the library's own pipeline. A document that is cut to `n`
//! tokens costs what its first `n` tokens cost.

use std::collections::HashMap;

use anyhow::{Result, anyhow, ensure};
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::pretokenize::pieces;

/// Number of token ids.
pub const VOCAB_SIZE: usize = 50_257;

/// The id that ends each document, and that the literal `<|endoftext|>` in a text becomes.
pub const END_OF_TEXT: u32 = 50_256;

const END_OF_TEXT_LITERAL: &str = "<|endoftext|>";

/// Turns text into token ids and back.
pub struct Tokenizer {
    /// Bytes of each id, the special one left out.
    tokens: Vec<Box<[u8]>>,
    ids: HashMap<Box<[u8]>, u32>,
    byte_names: [char; 256],
    merges: BPE,
}

impl Tokenizer {
    /// GPT-2's tokenizer; takes some 0.2 s.
    pub fn gpt2() -> Result<Self> {
        let ranks = tiktoken::get_encoding("r50k_base").ok_or_else(|| anyhow!("tiktoken has no r50k_base"))?;
        let tokens: Vec<Box<[u8]>> = (0..END_OF_TEXT).map(|id| ranks.decode(&[id]).into()).collect();
        let ids: HashMap<_, _> = tokens.iter().cloned().zip(0..).collect();
        ensure!(ids.len() == VOCAB_SIZE - 1, "tiktoken's r50k_base has {} different tokens", ids.len());

        let byte_names = byte_names();
        let name = |token: &[u8]| -> String { token.iter().map(|&byte| byte_names[byte as usize]).collect() };
        let merges = merges(&tokens, &ids)?;
        let merges = merges.iter().map(|(left, right)| (name(left), name(right))).collect();
        let vocab: Vocab = tokens.iter().map(|token| name(token)).zip(0..).collect();
        let merges = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .build()
            .map_err(|error| anyhow!("the GPT-2 merges do not fit the vocabulary: {error}"))?;
        Ok(Self { tokens, ids, byte_names, merges })
    }

    /// Appends the first `max_tokens` (`None`: all) token ids of a text to `out`.
    pub fn encode(&self, text: &str, max_tokens: Option<usize>, out: &mut Vec<u32>) {
        let limit = max_tokens.map_or(usize::MAX, |max| out.len().saturating_add(max));
        let mut rest = Some(text);
        while let Some(text) = rest {
            let (ordinary, after) = match text.split_once(END_OF_TEXT_LITERAL) {
                Some((ordinary, after)) => (ordinary, Some(after)),
                None => (text, None),
            };
            for piece in pieces(ordinary) {
                if out.len() >= limit {
                    break;
                }
                self.encode_piece(piece, out);
            }
            if after.is_some() {
                out.push(END_OF_TEXT);
            }
            rest = after.filter(|_| out.len() < limit);
        }
        out.truncate(limit);
    }

    fn encode_piece(&self, piece: &str, out: &mut Vec<u32>) {
        if let Some(&id) = self.ids.get(piece.as_bytes()) {
            out.push(id);
            return;
        }
        let named: String = piece.bytes().map(|byte| self.byte_names[byte as usize]).collect();
        let tokens = self.merges.tokenize(&named).expect("each of the 256 bytes is a token, so no piece is unknown");
        out.extend(tokens.iter().map(|token| token.id));
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
}

/// The printable character by which GPT-2's vocabulary names each byte: itself where it is printable Latin-1, else the
/// next one from U+0100 on.
fn byte_names() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => others.next().expect("there are more characters than bytes"),
    })
}

/// The merges in their order, as the two parts that each joins. A rank says what came of a merge; the parts are found
/// by doing all merges of lower rank to it.
fn merges<'a>(tokens: &'a [Box<[u8]>], ids: &HashMap<Box<[u8]>, u32>) -> Result<Vec<(&'a [u8], &'a [u8])>> {
    let longer = tokens.iter().zip(0..).filter(|(token, _)| token.len() > 1);
    longer
        .map(|(token, rank)| {
            let middle = last_merge(token, rank, ids)
                .ok_or_else(|| anyhow!("token {rank} of tiktoken's r50k_base is not a merge of two earlier ones"))?;
            Ok(token.split_at(middle))
        })
        .collect()
}

/// Where a token falls in two when all merges of lower rank than its own are done.
fn last_merge(token: &[u8], rank: u32, ids: &HashMap<Box<[u8]>, u32>) -> Option<usize> {
    let mut starts: Vec<usize> = (0..=token.len()).collect();
    while starts.len() > 3 {
        let lowest = (0..starts.len() - 2)
            .filter_map(|at| Some((*ids.get(&token[starts[at]..starts[at + 2]])?, at)))
            .min()
            .filter(|&(id, _)| id < rank)?;
        starts.remove(lowest.1 + 1);
    }
    Some(starts[1])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;
    use sha2::{Digest, Sha256};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;
    use crate::data::order::SplitMix64;
    use crate::golden;

    fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        tokenizer.encode(text, None, &mut ids);
        ids
    }

    fn ids(case: &Value) -> Vec<u32> {
        serde_json::from_value(case.clone()).unwrap()
    }

    #[test]
    fn golden_texts_have_the_reference_ids_and_decode_to_themselves() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        for case in golden::cases("tokenizer", "cases") {
            let text = case["text"].as_str().unwrap();
            assert_eq!(encode(&tokenizer, text), ids(&case["ids"]), "{text:?}");
            assert_eq!(tokenizer.decode(&ids(&case["ids"])) == text, case["decode_roundtrip"], "{text:?}");
        }
    }

    #[test]
    fn golden_truncation_keeps_the_first_ids_of_the_whole_text() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        for case in golden::cases("tokenizer", "truncation") {
            let text = case["text"].as_str().unwrap();
            let mut cut = vec![7];
            tokenizer.encode(text, Some(1024), &mut cut);
            assert_eq!(cut[0], 7);
            assert_eq!(cut[1..], ids(&case["ids"]), "{}", case["name"]);
            assert_eq!(cut.len() - 1, case["n"], "{}", case["name"]);
            assert_eq!(encode(&tokenizer, text).len(), case["n_full"], "{}", case["name"]);
        }
    }

    #[test]
    fn golden_classes_decide_the_pieces_of_every_code_point() {
        for (_, file) in golden::files("tokenizer", "runs") {
            let runs: Vec<(u32, String)> = serde_json::from_value(file["runs"].clone()).unwrap();
            for (at, (first, class)) in runs.iter().enumerate() {
                let end = runs.get(at + 1).map_or(char::MAX as u32 + 1, |next| next.0);
                for character in (*first..end).filter_map(char::from_u32) {
                    let joins = |start: char| pieces(&format!("{start}{character}")).count() == 1;
                    let found = match (joins('a'), joins('1'), joins('!'), joins('\n')) {
                        (true, false, false, false) => "L",
                        (false, true, false, false) => "N",
                        (false, false, true, false) => "O",
                        (false, false, false, true) => "S",
                        other => panic!("U+{:04X}: {other:?}", character as u32),
                    };
                    assert_eq!(found, class, "U+{:04X}", character as u32);
                }
            }
        }
    }

    #[test]
    fn merges_recovered_from_ranks_are_the_published_file() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let name = |token: &[u8]| token.iter().map(|&byte| tokenizer.byte_names[byte as usize]).collect::<String>();
        let mut file = "#version: 0.2\n".to_owned();
        for (left, right) in merges(&tokenizer.tokens, &tokenizer.ids).unwrap() {
            file += &format!("{} {}\n", name(left), name(right));
        }
        let hash: String = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5");
    }

    #[test]
    fn each_entry_of_the_vocabulary_is_its_own_encoding_by_merges() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        for (token, id) in tokenizer.tokens.iter().zip(0u32..) {
            let named: String = token.iter().map(|&byte| tokenizer.byte_names[byte as usize]).collect();
            let merged: Vec<u32> = tokenizer.merges.tokenize(&named).unwrap().iter().map(|token| token.id).collect();
            assert_eq!(merged, [id], "{named}");
        }
    }

    /// Code points of which the library's Unicode tables and the reference's think the same.
    const ODD: &[&str] = &[
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{b}",
        "\u{1c}",
        "\u{85}",
        "\u{a0}",
        "\u{3000}",
        "\u{200b}",
        "a",
        "Z",
        "the",
        "ing",
        "'s",
        "'ll",
        "'",
        "’s",
        "0",
        "12345",
        "½",
        "٣",
        "é",
        "e\u{301}",
        "ß",
        "я",
        "привет",
        "中",
        "日本語",
        "한국",
        "🙂",
        "👩‍👩‍👧",
        "_",
        "!!",
        "...",
        "—",
        "<|",
        "endoftext",
        "|>",
        "<|endoftext|>",
        "\0",
        "\u{feff}",
        "\u{fffd}",
        "{",
        "\\",
        "http://",
        "aaaaaaaa",
        "=-=-=-",
    ];

    #[test]
    fn odd_texts_get_the_ids_of_the_library_pipeline() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let definition = {
            let merges = Tokenizer::gpt2().unwrap().merges;
            let mut definition = tokenizers::Tokenizer::new(merges);
            definition.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
            let special = tokenizers::AddedToken::from(END_OF_TEXT_LITERAL, true);
            definition.add_special_tokens([special]).unwrap();
            definition
        };
        let mut random = SplitMix64::new(1);
        for _ in 0..3000 {
            let len = random.below(40);
            let text: String = (0..len).map(|_| ODD[random.below(ODD.len() as u64) as usize]).collect();
            let expected = definition.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(encode(&tokenizer, &text), expected.get_ids(), "{text:?}");
            assert_eq!(tokenizer.decode(expected.get_ids()), text);
            let max = random.below(30) as usize;
            let mut cut = Vec::new();
            tokenizer.encode(&text, Some(max), &mut cut);
            assert_eq!(cut, expected.get_ids()[..max.min(expected.get_ids().len())], "{text:?} cut to {max}");
        }
    }

    #[test]
    fn a_long_document_cut_short_is_not_tokenized_whole() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let text = "some quite unremarkable words ".repeat(1_000_000);
        let start = std::time::Instant::now();
        let mut ids = Vec::new();
        tokenizer.encode(&text, Some(1024), &mut ids);
        assert_eq!(ids.len(), 1024);
        assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
    }

    #[test]
    fn ids_beyond_the_vocabulary_decode_to_nothing() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        assert_eq!(tokenizer.decode(&[64, END_OF_TEXT, 50_257, u32::MAX, 65]), "a<|endoftext|>b");
    }
}
