//! One endless stream of tokens from a source, cut into rows.
//!
//! Documents are packed (`packing.rs`) and rows are consecutive slices: documents run across the borders of rows, shards and
//! epochs. Unlike the validator's buffer the stream never ends, so no tail is dropped: after the last shard the next epoch
//! begins, in another seeded order. A [`Cursor`] says where the stream stands; to go on there the shards that were open are
//! opened at their documents, and only the current one is tokenized again for what of it was used.

use std::sync::Arc;

use anyhow::Result;

use super::cursor::Cursor;
use super::packing::Packing;
use super::pipeline::{Chunk, Means, Pipeline};
use super::prefetch::Ahead;
use super::source::Source;
use super::stages::Stages;
use super::tokenizer::Tokenizer;
use super::walk::Walk;
use crate::error::input;
use crate::interrupt::Stop;

/// What a stream is read with.
#[derive(Clone)]
pub struct Reading {
    /// Text to tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// How documents become a stream.
    pub packing: Packing,
    /// How far ahead shards are opened.
    pub ahead: Ahead,
    /// Threads that tokenize, at least one.
    pub tokenizer_threads: usize,
    /// Where it is counted what each stage does.
    pub stages: Arc<Stages>,
}

/// The global stream of tokens, standing at a cursor.
pub struct Stream {
    pipeline: Pipeline,
    cursor: Cursor,
    chunk: Chunk,
    /// The next one of the chunk's events.
    event: usize,
    /// Where the current document begins in the chunk's tokens.
    start: usize,
    /// Tokens that a cursor in the midst of a document says are used.
    used_before: u64,
}

impl Stream {
    /// A stream that stands at a cursor; the default one is its start. `stop` ends its threads early.
    pub(super) fn new(source: Arc<dyn Source>, reading: &Reading, mut cursor: Cursor, stop: Stop) -> Result<Self> {
        let num_shards = source.num_shards();
        if num_shards == 0 {
            return Err(input("the data has no files, and so no text to train on"));
        }
        cursor.start((reading.packing.interleave.max(1) as u64).min(num_shards));
        if cursor.turn >= cursor.open.len() {
            return Err(moved(&cursor));
        }
        let Reading { tokenizer, packing, ahead, tokenizer_threads, stages } = reading.clone();
        let means = Means {
            tokenizer,
            packing,
            stages: Arc::clone(&stages),
            tokenizer_threads: tokenizer_threads.max(1),
            stop,
        };
        let start = cursor.clone();
        let pipeline = Pipeline::start(move || Walk::new(source, packing, stages, ahead, start), means)?;
        let used_before = std::mem::take(&mut cursor.token);
        Ok(Self { pipeline, cursor, chunk: Chunk::default(), event: 0, start: 0, used_before })
    }

    /// The first token that is not used yet. At a document's end this is the next document's start.
    pub fn cursor(&self) -> Cursor {
        // Until the first token is taken nothing is read of the document that the cursor is in.
        Cursor { token: self.cursor.token.max(self.used_before), ..self.cursor.clone() }
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
            let Some(&length) = self.chunk.lengths.get(self.event) else {
                (self.chunk, self.event, self.start) = (self.pipeline.next()?, 0, 0);
                continue;
            };
            if length == 0 {
                if self.used_before > 0 {
                    return Err(moved(&self.cursor()));
                }
                self.cursor.end_shard();
                self.event += 1;
                continue;
            }
            if self.used_before >= u64::from(length) {
                return Err(moved(&self.cursor()));
            }
            self.cursor.token += std::mem::take(&mut self.used_before);
            let used = self.cursor.token as usize;
            let end = (length as usize).min(used.saturating_add(count));
            consume(&self.chunk.tokens[self.start + used..self.start + end]);
            count -= end - used;
            self.cursor.token = end as u64;
            if end == length as usize {
                self.cursor.end_document();
                self.event += 1;
                self.start += end;
            }
        }
        Ok(())
    }
}

fn moved(cursor: &Cursor) -> anyhow::Error {
    input(format!(
        "the data is not what it was when the checkpoint was saved: {}; bring it back, or begin anew with --fresh",
        match cursor.open.get(cursor.turn) {
            Some(open) =>
                format!("nothing is at position {}, document {}, token {}", open.position, open.document, cursor.token),
            None => "its place is none".to_owned(),
        }
    ))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::LazyLock;

    use serde_json::Value;

    use super::*;
    use crate::data::cursor::OpenShard;
    use crate::data::order::{Permutation, SplitMix64};
    use crate::data::source::Documents;
    use crate::data::tokenizer::END_OF_TEXT;
    use crate::error::exit_code;

    pub(in crate::data) static TOKENIZER: LazyLock<Arc<Tokenizer>> =
        LazyLock::new(|| Arc::new(Tokenizer::gpt2().unwrap()));

    /// Shards of documents in memory, and whether they are opened ahead of time.
    pub(in crate::data) struct Fixed(pub(in crate::data) Vec<Vec<String>>, pub(in crate::data) bool);

    impl Source for Fixed {
        fn name(&self) -> String {
            "a fixed text".to_owned()
        }

        fn num_shards(&self) -> u64 {
            self.0.len() as u64
        }

        fn documents(&self, shard: u64, from: u64, seed: Option<u64>) -> Result<Documents> {
            let documents = self.0[shard as usize].clone();
            let order = Permutation::new(documents.len().max(1) as u64, seed.unwrap_or_default(), 0);
            let at = move |place: u64| if seed.is_some() { order.at(place) } else { place };
            let places = from..documents.len() as u64;
            Ok(Box::new(places.map(move |place| Ok(documents[at(place) as usize].clone()))))
        }

        fn held_bytes(&self, shard: u64) -> Option<u64> {
            self.1.then(|| self.0[shard as usize].iter().map(|text| text.len() as u64).sum())
        }
    }

    /// How a stream is read in tests.
    pub(in crate::data) fn reading(packing: Packing) -> Reading {
        Reading {
            tokenizer: TOKENIZER.clone(),
            packing,
            ahead: Ahead { readers: 3, bytes: 1_000 },
            tokenizer_threads: 2,
            stages: Arc::default(),
        }
    }

    /// Shards of up to 5 documents of up to 60 words, empty ones among both.
    pub(in crate::data) fn random_source(seed: u64, num_shards: usize) -> Arc<dyn Source> {
        random_shards(seed, num_shards, false)
    }

    fn random_shards(seed: u64, num_shards: usize, ahead: bool) -> Arc<dyn Source> {
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
        Arc::new(Fixed(shards, ahead))
    }

    fn stream(source: &Arc<dyn Source>, packing: Packing, cursor: Cursor) -> Stream {
        Stream::new(source.clone(), &reading(packing), cursor, Stop::default()).unwrap()
    }

    fn take(stream: &mut Stream, count: usize) -> Vec<u32> {
        let mut tokens = Vec::new();
        stream.take(count, &mut tokens).unwrap();
        assert_eq!(tokens.len(), count);
        tokens
    }

    const PLAIN: Packing = Packing { max_document_tokens: None, shuffle_seed: None, interleave: 1 };

    #[test]
    fn documents_are_cut_ended_and_concatenated_without_gaps() {
        let shards = [&["a b c d", ""][..], &[], &["a<|endoftext|>b"]];
        let source: Arc<dyn Source> =
            Arc::new(Fixed(shards.map(|shard| shard.iter().map(|text| text.to_string()).collect()).to_vec(), false));
        let packing = Packing { max_document_tokens: Some(2), ..PLAIN };
        let mut stream = stream(&source, packing, Cursor::default());
        let epoch = [64, 275, END_OF_TEXT, END_OF_TEXT, 64, END_OF_TEXT, END_OF_TEXT];
        assert_eq!(take(&mut stream, 9), [&epoch[..], &epoch[..2]].concat());
        let at = |document, token| Cursor { next: 4, open: vec![OpenShard { position: 3, document }], turn: 0, token };
        assert_eq!(stream.cursor(), at(0, 2));
        assert_eq!(take(&mut stream, 1), [END_OF_TEXT]);
        assert_eq!(stream.cursor(), at(1, 0));
    }

    #[test]
    fn a_stream_resumed_at_any_cut_goes_on_with_the_same_tokens() {
        for seed in 0..8 {
            let source = random_shards(seed, 1 + seed as usize * 3, seed >= 4);
            let packing = Packing {
                max_document_tokens: (seed % 2 == 1).then_some(40),
                shuffle_seed: (seed != 6).then_some(seed),
                interleave: [1, 1, 3, 8][seed as usize % 4],
            };
            let whole = take(&mut stream(&source, packing, Cursor::default()), 6000);
            let mut random = SplitMix64::new(seed);
            let mut resumed = stream(&source, packing, Cursor::default());
            let mut at = 0;
            while at < 5500 {
                let count = random.below(80) as usize;
                assert_eq!(take(&mut resumed, count), whole[at..at + count]);
                at += count;
                let cursor: Cursor = serde_json::from_str(&serde_json::to_string(&resumed.cursor()).unwrap()).unwrap();
                resumed = stream(&source, packing, cursor.clone());
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
        let source: Arc<dyn Source> = Arc::new(Fixed(texts, false));
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
            let source: Arc<dyn Source> = Arc::new(Fixed(shards, false));
            let error = Stream::new(source, &reading(PLAIN), Cursor::default(), Stop::default())
                .and_then(|mut stream| stream.take(1000, &mut Vec::new()))
                .unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(format!("{error}").contains("no text to train on"), "{error}");
        }
    }

    #[test]
    fn a_cursor_beyond_the_data_is_refused() {
        let source = random_source(1, 3);
        let at = |document, token| Cursor { next: 1, open: vec![OpenShard { position: 0, document }], turn: 0, token };
        for cursor in [at(99, 1), at(0, 9_999), Cursor { turn: 1, ..at(0, 1) }] {
            let error = Stream::new(source.clone(), &reading(PLAIN), cursor, Stop::default())
                .and_then(|mut stream| stream.skip(1))
                .unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(format!("{error}").starts_with("the data is not what it was"), "{error}");
        }
    }

    /// Documents of the open shards take turns; each document comes once in an epoch, whatever is ahead.
    #[test]
    fn open_shards_take_turns_and_lose_nothing() {
        let texts: Vec<Vec<String>> =
            (0..7).map(|shard| (0..shard).map(|document| format!("{shard}{document}")).collect()).collect();
        let in_order = |ahead, shuffle_seed| {
            let source: Arc<dyn Source> = Arc::new(Fixed(texts.clone(), ahead));
            let mut stream = stream(&source, Packing { interleave: 3, shuffle_seed, ..PLAIN }, Cursor::default());
            let tokens = take(&mut stream, 2 * 21 * 2);
            tokens.chunks(2).map(|document| TOKENIZER.decode(&document[..1])).collect::<Vec<_>>()
        };
        // The first of the three is empty, and shard 3 takes its turn.
        assert_eq!(in_order(false, None)[..9], ["30", "10", "20", "31", "40", "21", "32", "41", "50"]);
        for shuffle_seed in [None, Some(5)] {
            let documents = in_order(true, shuffle_seed);
            assert_eq!(documents, in_order(false, shuffle_seed));
            let mut epoch = documents[..21].to_vec();
            epoch.sort_unstable();
            if shuffle_seed.is_none() {
                assert_eq!(epoch.len(), texts.concat().len());
            }
            epoch.dedup();
            assert!(epoch.len() > 15, "{epoch:?}");
        }
    }

    /// In one order of the shards the only one with text comes first, in the next one last.
    #[test]
    fn text_in_one_of_many_shards_is_repeated_for_ever() {
        let mut shards = vec![Vec::new(); 7];
        shards[3] = vec!["one two three".to_owned()];
        let source: Arc<dyn Source> = Arc::new(Fixed(shards, false));
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
            let source: Arc<dyn Source> = Arc::new(Fixed(vec![texts], false));
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
