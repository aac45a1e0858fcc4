#![allow(clippy::unwrap_used)]

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Model;

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
    let byte_names = byte_names();
    let name =
        |id: u16| tokenizer.tokens[id as usize].iter().map(|&byte| byte_names[byte as usize]).collect::<String>();
    let mut file = "#version: 0.2\n".to_owned();
    for &(left, right) in tokenizer.bpe.merges() {
        file += &format!("{} {}\n", name(left), name(right));
    }
    let hash: String = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5");
}

#[test]
fn each_entry_of_the_vocabulary_is_its_own_encoding_by_merges() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let definition = tokenizer.definition().unwrap();
    let byte_names = byte_names();
    for (token, id) in tokenizer.tokens.iter().zip(0u32..) {
        let named: String = token.iter().map(|&byte| byte_names[byte as usize]).collect();
        let defined = definition.get_model().tokenize(&named).unwrap();
        assert_eq!(defined.iter().map(|token| token.id).collect::<Vec<_>>(), [id], "{named}");
        let mut merged = Vec::new();
        tokenizer.bpe.encode(token, usize::MAX, &mut merged);
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
    let definition = tokenizer.definition().unwrap();
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

/// 10 MB each: English, and texts that are a single piece.
fn huge_texts() -> Vec<String> {
    let mut random = SplitMix64::new(2);
    let letters: String = (0..10_000_000).map(|_| char::from(b'a' + random.below(26) as u8)).collect();
    let kana = (0..3_333_333).map(|_| char::from_u32(0x30a1 + random.below(80) as u32).unwrap()).collect();
    let repeated = ["some quite unremarkable words ", "a", " ", "=", "🙂", "\u{301}", "ÃÂ"];
    let repeated = repeated.iter().map(|text| text.repeat(10_000_000 / text.len()));
    repeated.chain([letters, kana]).collect()
}

#[test]
fn huge_texts_cost_what_is_asked_of_them_and_are_encoded_as_the_library_does() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let definition = tokenizer.definition().unwrap();
    for text in huge_texts() {
        let shown: String = text.chars().take(10).collect();
        let start = std::time::Instant::now();
        let mut cut = Vec::new();
        tokenizer.encode(&text, Some(1024), &mut cut);
        assert!(start.elapsed().as_millis() < 500, "{shown:?}: {:?}", start.elapsed());

        let end = text.floor_char_boundary(200_000);
        let expected = definition.encode_fast(&text[..end], false).unwrap();
        assert!(encode(&tokenizer, &text[..end]) == expected.get_ids(), "{shown:?}");
        assert_eq!(cut, expected.get_ids()[..1024], "{shown:?}");
    }
}

#[test]
fn ids_beyond_the_vocabulary_decode_to_nothing() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    assert_eq!(tokenizer.decode(&[64, END_OF_TEXT, 50_257, u32::MAX, 65]), "a<|endoftext|>b");
}
