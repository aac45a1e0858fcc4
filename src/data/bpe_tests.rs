#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use tokenizers::Model;

use super::prefixes::STRIDE;
use super::*;
use crate::data::order::SplitMix64;
use crate::data::tokenizer::{Tokenizer, byte_names};

/// GPT-2's merges, ours and as the library does them.
struct Both {
    ours: Tokenizer,
    library: tokenizers::Tokenizer,
}

static BOTH: LazyLock<Both> = LazyLock::new(|| {
    let ours = Tokenizer::gpt2().unwrap();
    let library = ours.definition().unwrap();
    Both { ours, library }
});

impl Both {
    fn bpe(&self) -> &Bpe {
        &self.ours.bpe
    }

    /// The encoding by `tokenizers`.
    fn defined(&self, piece: &[u8]) -> Vec<u32> {
        let byte_names = byte_names();
        let named: String = piece.iter().map(|&byte| byte_names[byte as usize]).collect();
        self.library.get_model().tokenize(&named).unwrap().iter().map(|token| token.id).collect()
    }

    fn by_prefixes(&self, piece: &[u8], max: usize) -> Vec<u32> {
        let mut ids = Vec::new();
        self.bpe().encode_prefixes(piece, max, &mut ids);
        ids
    }
}

/// Alphabets in which merges overlap in many ways, and those of long words of the web.
fn alphabets() -> Vec<Vec<Vec<u8>>> {
    let letters = |letters: &str| letters.chars().map(|letter| letter.to_string().into_bytes()).collect::<Vec<_>>();
    let mut random = SplitMix64::new(9);
    let mut entries = |count| -> Vec<Vec<u8>> {
        let mut entry = || BOTH.ours.tokens[random.below(50_256) as usize].to_vec();
        (0..count).map(|_| entry()).collect()
    };
    vec![
        letters("a"),
        letters("ab"),
        letters("aeh"),
        letters("-="),
        letters("ÃÂ"),
        letters(" \u{a0}"),
        letters("abcdefghijklmnopqrstuvwxyz"),
        letters("абвгдежзийклмнопрстуфхцчшщъыьэюя"),
        letters("的一是不了人我在有他这为之大来以个中上们"),
        letters("🙂🏽\u{200d}👩❤\u{fe0f}"),
        letters("e\u{301}\u{300}\u{308}\u{20dd}"),
        (0..=255).map(|byte| vec![byte]).collect(),
        entries(2),
        entries(7),
        entries(1000),
    ]
}

fn word(alphabet: &[Vec<u8>], len: usize, random: &mut SplitMix64) -> Vec<u8> {
    let mut word = Vec::new();
    while word.len() < len {
        word.extend_from_slice(&alphabet[random.below(alphabet.len() as u64) as usize]);
    }
    word.truncate(len);
    word
}

#[test]
fn short_words_are_encoded_as_the_library_does_in_both_ways() {
    let mut random = SplitMix64::new(1);
    for alphabet in alphabets() {
        for _ in 0..300 {
            let len = 1 + random.below(MAX_TOKEN_BYTES as u64) as usize;
            let word = word(&alphabet, len, &mut random);
            let expected = BOTH.defined(&word);
            let mut merged = Vec::new();
            BOTH.bpe().merge(&word, &mut merged);
            assert_eq!(merged, expected, "{:?}", String::from_utf8_lossy(&word));
            assert_eq!(BOTH.by_prefixes(&word, usize::MAX), expected, "{:?}", String::from_utf8_lossy(&word));
        }
    }
}

#[test]
fn long_words_are_encoded_as_the_library_does_and_begin_with_the_same_ids_when_cut() {
    let mut random = SplitMix64::new(2);
    for alphabet in alphabets() {
        for len in [129, 1000, 4095, 4096, 4097, 20_000, 100_000] {
            let word = word(&alphabet, len, &mut random);
            let expected = BOTH.defined(&word);
            assert!(BOTH.by_prefixes(&word, usize::MAX) == expected, "{len} bytes of {alphabet:?}");
            // No more than what is final at the first look, or the whole of what is shorter.
            assert!(BOTH.by_prefixes(&word, 1).len() <= STRIDE, "{len} bytes of {alphabet:?}");
            for max in [0, 1, 1024, expected.len() - 1, expected.len(), random.below(expected.len() as u64) as usize] {
                let cut = BOTH.by_prefixes(&word, max);
                assert!(
                    cut.len() >= max.min(expected.len()) && expected.starts_with(&cut),
                    "{len} bytes of {alphabet:?} cut to {max}"
                );
            }
        }
    }
}

#[test]
fn neighbours_may_follow_one_another_just_if_their_text_is_encoded_as_the_two() {
    let mut random = SplitMix64::new(3);
    let (mut num_allowed, mut num_refused) = (0, 0);
    for alphabet in alphabets() {
        for _ in 0..300 {
            let len = 2 + random.below(12) as usize;
            let word = word(&alphabet, len, &mut random);
            let middle = 1 + random.below(word.len() as u64 - 1) as usize;
            let (left, right) = word.split_at(middle);
            let (&[.., left], &[right, ..]) = (&BOTH.defined(left)[..], &BOTH.defined(right)[..]) else { panic!() };
            let text = [&*BOTH.ours.tokens[left as usize], &BOTH.ours.tokens[right as usize]].concat();
            let expected = BOTH.defined(&text) == [left, right];
            assert_eq!(BOTH.bpe().may_follow(left as u16, right as u16), expected, "{left} {right}");
            *if expected { &mut num_allowed } else { &mut num_refused } += 1;
        }
    }
    assert!(num_allowed > 500 && num_refused > 500, "{num_allowed} {num_refused}");
}

#[test]
fn tokens_that_no_merges_make_are_refused() {
    let bytes = || (0..=255u8).map(|byte| vec![byte]);
    let error = |tokens: Vec<Vec<u8>>| Bpe::new(&tokens).err().unwrap().to_string();
    assert_eq!(error(bytes().chain([b"abc".to_vec()]).collect()), "token 256 is no merge of two earlier ones");
    assert_eq!(error(bytes().take(255).collect()), "a vocabulary of 255 tokens");
    assert!(Bpe::new(&bytes().chain([b"ab".to_vec(), b"abc".to_vec()]).collect::<Vec<_>>()).is_ok());
}
