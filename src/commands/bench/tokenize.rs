//! Documents to rows of tokens, on one thread beside the one that takes them.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use super::speed::{Speed, reading};
use super::web_text::WebText;
use crate::data::sample::Sample;
use crate::data::source::{Documents, Source};
use crate::data::{Corpus, Cursor};
use crate::interrupt::Stop;

/// Tokens that are taken at once: about as many as the novels have.
const SLICE: usize = 1 << 20;
/// Documents of the text that is made up, about 20 MB.
const WEB_DOCUMENTS: usize = 10_000;
/// The seed of the text that is made up.
const WEB_SEED: u64 = 9;

/// What came of a text.
pub(super) struct Tokenized {
    pub(super) name: &'static str,
    /// Tokens a second, on one core.
    pub(super) speed: Speed,
    pub(super) bytes_per_token: f64,
}

impl Tokenized {
    pub(super) fn json(&self) -> Value {
        json!({ "tokens_per_s_per_core": self.speed.per_core(), "bytes_per_token": self.bytes_per_token })
    }
}

impl fmt::Display for Tokenized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, speed, bytes) = (self.name, self.speed.per_core() / 1e6, self.bytes_per_token);
        write!(f, "tokenize {name:<7} {speed:>6.2} M tokens/s per core ({bytes:.2} bytes per token)")
    }
}

/// Measures English of novels, and text as rough as the web's.
pub(super) fn measure() -> Result<[Tokenized; 2]> {
    let novels = Texts::of(&Sample::open()?.0)?;
    let web = Texts(WebText::new(WEB_SEED)?.take(WEB_DOCUMENTS).collect());
    Ok([tokenize("novels", novels)?, tokenize("web", web)?])
}

fn tokenize(name: &'static str, texts: Texts) -> Result<Tokenized> {
    let (reading, corpus) = (reading()?, Corpus::Text(Arc::new(texts)));
    let (mut num_bytes, mut num_tokens) = (0, 0);
    corpus.each_document(&reading, None, |document| {
        num_bytes += document.text.map_or(0, str::len);
        num_tokens += document.tokens.len();
        ControlFlow::Continue(())
    })?;
    let mut stream = corpus.stream(&reading, Cursor::default(), Stop::default())?;
    let mut tokens = Vec::with_capacity(SLICE);
    let speed = Speed::measure(|| {
        tokens.clear();
        stream.take(SLICE, &mut tokens)?;
        Ok(SLICE as u64)
    })?;
    Ok(Tokenized { name, speed, bytes_per_token: num_bytes as f64 / num_tokens as f64 })
}

/// Documents in memory.
struct Texts(Arc<[String]>);

impl Texts {
    fn of(source: &impl Source) -> Result<Self> {
        let documents = (0..source.num_shards()).map(|shard| source.documents(shard, 0, None));
        let documents: Vec<Documents> = documents.collect::<Result<_>>()?;
        Ok(Self(documents.into_iter().flatten().collect::<Result<_>>()?))
    }
}

impl Source for Texts {
    fn name(&self) -> String {
        "documents in memory".to_owned()
    }

    fn num_shards(&self) -> u64 {
        1
    }

    fn documents(&self, _: u64, from: u64, _: Option<u64>) -> Result<Documents> {
        let texts = Arc::clone(&self.0);
        Ok(Box::new((from as usize..texts.len()).map(move |number| Ok(texts[number].clone()))))
    }
}
