//! One endless stream of tokens from a source, cut into rows, exactly as the validator packs.
//!
//! Each document is cut to `max_document_tokens`, an end-of-text is appended (not counted in that), all are
//! concatenated, and rows are consecutive slices: documents run across the borders of rows, shards and epochs. Unlike the
//! validator's buffer the stream never ends, so no tail is dropped: after the last shard the next epoch begins, in
//! another seeded order. A [`Cursor`] says where the stream stands; to continue there the source is opened at the
//! document and only that one is tokenized again.

use std::sync::Arc;

use anyhow::Result;

use super::Cursor;
use super::order::Permutation;
use super::source::{Documents, Source};
use super::tokenizer::{END_OF_TEXT, Tokenizer};
use crate::error::input;

/// How documents become a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Tokens that are kept of a document, its end-of-text not counted; `None`: all.
    pub max_document_tokens: Option<usize>,
    /// Order of the shards: a seed for another one in each epoch; `None`: as they are, always.
    pub shuffle_seed: Option<u64>,
}

impl Packing {
    /// Appends one document and its end-of-text.
    pub(super) fn pack(&self, tokenizer: &Tokenizer, text: &str, out: &mut Vec<u32>) {
        tokenizer.encode(text, self.max_document_tokens, out);
        out.push(END_OF_TEXT);
    }
}

/// The error of a source without a character of text.
pub(super) fn no_text(source: &dyn Source) -> anyhow::Error {
    input(format!("{}: no text to train on: there is no document, or all of them are empty", source.name()))
}

/// The global stream of tokens, standing at a cursor.
pub struct Stream {
    source: Arc<dyn Source>,
    tokenizer: Arc<Tokenizer>,
    packing: Packing,
    cursor: Cursor,
    order: Option<Permutation>,
    /// What is still to be read of the cursor's shard, after the current document.
    documents: Option<Documents>,
    /// Tokens of the current document, and how many of them are used; empty between documents.
    tokens: Vec<u32>,
    /// Shards that ended without a character of text since there last was one.
    barren_shards: u64,
}

impl Stream {
    /// A stream that stands at a cursor; the default one is its start.
    pub fn new(source: Arc<dyn Source>, tokenizer: Arc<Tokenizer>, packing: Packing, cursor: Cursor) -> Result<Self> {
        let num_shards = source.num_shards();
        if num_shards == 0 {
            return Err(input("the data has no files, and so no text to train on"));
        }
        if cursor.shard >= num_shards {
            return Err(moved(&cursor));
        }
        let mut stream = Self {
            source,
            tokenizer,
            packing,
            cursor,
            order: None,
            documents: None,
            tokens: Vec::new(),
            barren_shards: 0,
        };
        stream.order = stream.epoch_order();
        if cursor.token > 0 {
            stream.cursor.token = 0;
            if !stream.read_document()? || cursor.token >= stream.tokens.len() as u64 {
                return Err(moved(&cursor));
            }
            stream.cursor.token = cursor.token;
        }
        Ok(stream)
    }

    /// The first token that is not used yet. At a document's end this is the next document's start.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Appends the next `count` tokens to `out`.
    pub fn take(&mut self, count: usize, out: &mut Vec<u32>) -> Result<()> {
        self.advance(count, |tokens| out.extend_from_slice(tokens))
    }

    /// Passes over the next `count` tokens.
    pub fn skip(&mut self, count: usize) -> Result<()> {
        self.advance(count, |_| {})
    }

    fn advance(&mut self, mut count: usize, mut consume: impl FnMut(&[u32])) -> Result<()> {
        while count > 0 {
            if self.tokens.is_empty() && !self.read_document()? {
                self.next_shard()?;
                continue;
            }
            let used = self.cursor.token as usize;
            let end = self.tokens.len().min(used.saturating_add(count));
            consume(&self.tokens[used..end]);
            count -= end - used;
            self.cursor.token = end as u64;
            if end == self.tokens.len() {
                self.tokens.clear();
                self.cursor.document += 1;
                self.cursor.token = 0;
            }
        }
        Ok(())
    }

    /// Tokenizes the cursor's document; whether the shard has one.
    fn read_document(&mut self) -> Result<bool> {
        let documents = match &mut self.documents {
            Some(documents) => documents,
            None => {
                let shard = self.order.as_ref().map_or(self.cursor.shard, |order| order.at(self.cursor.shard));
                self.documents.insert(self.source.documents(shard, self.cursor.document, None)?)
            }
        };
        let Some(text) = documents.next().transpose()? else { return Ok(false) };
        if !text.is_empty() {
            self.barren_shards = 0;
        }
        self.packing.pack(&self.tokenizer, &text, &mut self.tokens);
        Ok(true)
    }

    fn next_shard(&mut self) -> Result<()> {
        // Twice as many as there are shards: in one epoch the shard with text may be the first, in the next the last.
        self.barren_shards += 1;
        if self.barren_shards > 2 * self.source.num_shards() {
            return Err(no_text(self.source.as_ref()));
        }
        self.documents = None;
        self.cursor = Cursor { shard: self.cursor.shard + 1, document: 0, token: 0, ..self.cursor };
        if self.cursor.shard == self.source.num_shards() {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, shard: 0, ..self.cursor };
            self.order = self.epoch_order();
        }
        Ok(())
    }

    fn epoch_order(&self) -> Option<Permutation> {
        self.packing.shuffle_seed.map(|seed| Permutation::new(self.source.num_shards(), seed, self.cursor.epoch))
    }
}

fn moved(cursor: &Cursor) -> anyhow::Error {
    input(format!(
        "the data is not what it was when the checkpoint was saved: nothing is at shard {}, document {}, token {}; bring \
         back the files or begin anew with --fresh",
        cursor.shard, cursor.document, cursor.token
    ))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::LazyLock;

    use serde_json::Value;

    use super::*;
    use crate::data::order::SplitMix64;
    use crate::error::exit_code;

    pub(in crate::data) static TOKENIZER: LazyLock<Arc<Tokenizer>> =
        LazyLock::new(|| Arc::new(Tokenizer::gpt2().unwrap()));

    /// Shards of documents in memory.
    pub(in crate::data) struct Fixed(pub(in crate::data) Vec<Vec<String>>);

    impl Source for Fixed {
        fn name(&self) -> String {
            "a fixed text".to_owned()
        }

        fn num_shards(&self) -> u64 {
            self.0.len() as u64
        }

        fn documents(&self, shard: u64, from: u64, _: Option<u64>) -> Result<Documents> {
            let documents = self.0[shard as usize].clone();
            Ok(Box::new(documents.into_iter().skip(from as usize).map(Ok)))
        }
    }

    /// Shards of up to 5 documents of up to 60 words, empty ones among both.
    pub(in crate::data) fn random_source(seed: u64, num_shards: usize) -> Arc<dyn Source> {
        let mut random = SplitMix64::new(seed);
        let mut shards: Vec<Vec<String>> = (0..num_shards)
            .map(|_| {
                let documents = 0..random.below(6);
                documents
                    .map(|_| (0..random.below(60)).map(|_| format!(" word{}", random.below(300))).collect::<String>())
                    .collect()
            })
            .collect();
        shards[0].push("at least one text".to_owned());
        Arc::new(Fixed(shards))
    }

    fn stream(source: &Arc<dyn Source>, packing: Packing, cursor: Cursor) -> Stream {
        Stream::new(source.clone(), TOKENIZER.clone(), packing, cursor).unwrap()
    }

    fn take(stream: &mut Stream, count: usize) -> Vec<u32> {
        let mut tokens = Vec::new();
        stream.take(count, &mut tokens).unwrap();
        assert_eq!(tokens.len(), count);
        tokens
    }

    const PLAIN: Packing = Packing { max_document_tokens: None, shuffle_seed: None };

    #[test]
    fn documents_are_cut_ended_and_concatenated_without_gaps() {
        let shards = [&["a b c d", ""][..], &[], &["a<|endoftext|>b"]];
        let source: Arc<dyn Source> =
            Arc::new(Fixed(shards.map(|shard| shard.iter().map(|text| text.to_string()).collect()).to_vec()));
        let packing = Packing { max_document_tokens: Some(2), shuffle_seed: None };
        let mut stream = stream(&source, packing, Cursor::default());
        let epoch = [64, 275, END_OF_TEXT, END_OF_TEXT, 64, END_OF_TEXT, END_OF_TEXT];
        assert_eq!(take(&mut stream, 9), [&epoch[..], &epoch[..2]].concat());
        assert_eq!(stream.cursor(), Cursor { epoch: 1, shard: 0, document: 0, token: 2 });
        assert_eq!(take(&mut stream, 1), [END_OF_TEXT]);
        assert_eq!(stream.cursor(), Cursor { epoch: 1, shard: 0, document: 1, token: 0 });
    }

    #[test]
    fn a_stream_resumed_at_any_cut_goes_on_with_the_same_tokens() {
        for seed in 0..4 {
            let source = random_source(seed, 1 + seed as usize * 3);
            let packing = Packing { max_document_tokens: (seed % 2 == 1).then_some(40), shuffle_seed: Some(seed) };
            let whole = take(&mut stream(&source, packing, Cursor::default()), 6000);
            let mut random = SplitMix64::new(seed);
            let mut resumed = stream(&source, packing, Cursor::default());
            let mut at = 0;
            while at < 5500 {
                let count = random.below(80) as usize;
                assert_eq!(take(&mut resumed, count), whole[at..at + count]);
                at += count;
                let cursor: Cursor = serde_json::from_str(&serde_json::to_string(&resumed.cursor()).unwrap()).unwrap();
                resumed = stream(&source, packing, cursor);
                assert_eq!(resumed.cursor(), cursor);
            }
            let mut skipped = stream(&source, packing, Cursor::default());
            skipped.skip(at).unwrap();
            assert_eq!(skipped.cursor(), resumed.cursor());
        }
    }

    #[test]
    fn each_epoch_brings_all_documents_in_an_order_of_its_own() {
        let texts: Vec<Vec<String>> = (0..20).map(|number| vec![format!("{number}")]).collect();
        let source: Arc<dyn Source> = Arc::new(Fixed(texts));
        let mut stream = stream(&source, Packing { shuffle_seed: Some(3), ..PLAIN }, Cursor::default());
        let epochs: Vec<Vec<u32>> = (0..3).map(|_| take(&mut stream, 40)).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            let mut first = epochs[0].clone();
            sorted.sort_unstable();
            first.sort_unstable();
            assert_eq!(sorted, first);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2] && epochs[0] != epochs[2]);
    }

    #[test]
    fn data_without_text_is_an_error_and_no_endless_loop() {
        for shards in [vec![], vec![vec![]; 3], vec![vec![String::new(); 2]; 3]] {
            let source: Arc<dyn Source> = Arc::new(Fixed(shards));
            let error = Stream::new(source, TOKENIZER.clone(), PLAIN, Cursor::default())
                .and_then(|mut stream| stream.take(1000, &mut Vec::new()))
                .unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(format!("{error}").contains("no text to train on"), "{error}");
        }
    }

    #[test]
    fn a_cursor_beyond_the_data_is_refused() {
        let source = random_source(1, 3);
        for cursor in [Cursor { shard: 3, ..Cursor::default() }, Cursor { document: 99, token: 1, ..Cursor::default() }]
        {
            let error = Stream::new(source.clone(), TOKENIZER.clone(), PLAIN, cursor).err().unwrap();
            assert_eq!(exit_code(&error), 2);
            assert!(format!("{error}").starts_with("the data is not what it was"), "{error}");
        }
    }

    /// In one order of the shards the only one with text comes first, in the next one last.
    #[test]
    fn text_in_one_of_many_shards_is_repeated_for_ever() {
        let mut shards = vec![Vec::new(); 7];
        shards[3] = vec!["one two three".to_owned()];
        let source: Arc<dyn Source> = Arc::new(Fixed(shards));
        for seed in 0..20 {
            let packing = Packing { shuffle_seed: Some(seed), ..PLAIN };
            assert_eq!(take(&mut stream(&source, packing, Cursor::default()), 4 * 50).len(), 4 * 50);
        }
    }

    /// The reference's loader, fed with recorded pages: what it made of them, as far as all pages arrived.
    #[test]
    fn golden_pages_are_packed_as_by_the_reference() {
        let mut num_cases = 0;
        for case in crate::golden::cases("dataset", "cases") {
            let Some(texts) = texts(&case) else { continue };
            let name = &case["name"];
            let batches: Vec<Vec<Vec<u32>>> = serde_json::from_value(case["batches"].clone()).unwrap();
            let left_over: Vec<u32> = serde_json::from_value(case["left_in_buffer"].clone()).unwrap();
            let expected = [batches.concat().concat(), left_over].concat();
            let source: Arc<dyn Source> = Arc::new(Fixed(vec![texts]));
            let packing = Packing { max_document_tokens: Some(1024), ..PLAIN };
            let mut stream = stream(&source, packing, Cursor::default());
            assert_eq!(take(&mut stream, expected.len()), expected, "{name}");
            num_cases += 1;
        }
        assert!(num_cases >= 10, "only {num_cases} cases");
    }

    /// The texts of a case that ended with batches.
    fn texts(case: &Value) -> Option<Vec<String>> {
        case["batches"].as_array().filter(|batches| !batches.is_empty())?;
        let mut texts = Vec::new();
        for response in case["responses"].as_array()? {
            // A response without rows is a failure that was tried again.
            let body = response["text"].as_str().and_then(|text| serde_json::from_str(text).ok());
            for row in body.as_ref().unwrap_or(&response["json"])["rows"].as_array().into_iter().flatten() {
                texts.push(row["row"]["content"].as_str()?.to_owned());
            }
        }
        Some(texts)
    }
}
