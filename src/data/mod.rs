//! Text to tokens to rows: sources, tokenizer, packing, and the loader that prefetches batches.
//!
//! [`open`] turns a recipe into what the training loop needs. The way of a document:
//!
//! ```text
//! source ─► prefetch ─► walk ─► pipeline ─► stream ─► loader ─► training
//! shards    opened      in the  tokenized   one,      a rank's
//!           ahead       order   on threads  endless   batches
//! ```
//!
//! What the order is, is said by `order` and `cursor` alone; `tokens` holds the same stream as it was written before.
//! `held_out` fixes the rows that the held-out loss is taken on, `unigram` is the model to compare it with, and `pages` are
//! what models are scored on.

mod bpe;
mod corpus;
mod cursor;
pub mod files;
pub mod held_out;
mod json_line;
pub mod loader;
mod order;
pub mod packing;
pub mod pages;
pub mod parquet;
mod pipeline;
mod prefetch;
mod pretokenize;
pub mod rows;
pub mod sample;
pub mod set_aside;
pub mod source;
pub mod stages;
pub mod stream;
mod text_file;
pub mod token_lists;
pub mod tokenizer;
pub mod tokens;
pub mod unigram;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::chain::subtensor::default_state_dir;
use crate::error::input;
use crate::figures::bytes;
use crate::hub::file_hashes::FileHashes;
use crate::hub::huggingface;
use crate::metrics::printer::Printer;
use crate::metrics::transfers;
use crate::recipe::{self, Recipe, SourceKind};
pub use corpus::{Corpus, Document, TokenStream};
pub use cursor::{Cursor, OpenShard};
use files::Files;
use packing::Packing;
use parquet::Place;
pub use prefetch::Ahead;
use sample::Sample;
use set_aside::SetAside;
use source::Source;
use stages::Stages;
pub use stream::Reading;
use tokenizer::Tokenizer;
use tokens::TokenShards;

/// Consecutive documents that are drawn, trained on and held out together: a page of the subnet's data set.
pub const PAGE_DOCUMENTS: usize = 100;

/// Text in memory that is worth a word.
const MUCH_TEXT: u64 = 1 << 30;

/// What a recipe says about data, ready to be read.
pub struct Opened {
    /// What to train on.
    pub training: Corpus,
    /// What training never sees.
    pub held_out: Corpus,
    /// How it is read.
    pub reading: Reading,
}

impl Opened {
    /// Of two texts, read in the simplest way: for scoring without a recipe, and for tests.
    fn plain(training: impl Source + 'static, held_out: impl Source + 'static, packing: Packing) -> Result<Self> {
        let reading = Reading {
            tokenizer: Arc::new(Tokenizer::gpt2()?),
            packing,
            ahead: Ahead { readers: 1, bytes: 1 << 20 },
            tokenizer_threads: 1,
            stages: Arc::default(),
        };
        Ok(Self { training: text(training), held_out: text(held_out), reading })
    }
}

fn text(source: impl Source + 'static) -> Corpus {
    Corpus::Text(Arc::new(source))
}

/// Opens a recipe's data. `sequence_length` is that of the rules: the default length at which documents are cut.
///
/// Paths are taken relative to the current folder. Of files nothing is read yet but their names and, to find out how much
/// there is to hold out of, up to 1,000 lines; of a data set what tells where its rows lie.
pub fn open(recipe: &Recipe, sequence_length: usize, printer: &Printer) -> Result<Opened> {
    open_again(recipe, sequence_length, None, printer)
}

/// The same for a run that goes on, whose records say what its text is: a branch of the data set may have moved since.
///
/// # Errors
/// The text is another one.
pub fn open_again(
    recipe: &Recipe,
    sequence_length: usize,
    known: Option<&Map<String, Value>>,
    printer: &Printer,
) -> Result<Opened> {
    let opened = open_at(recipe, sequence_length, known.and_then(|known| known.get("commit")?.as_str()), printer)?;
    if let (Some(known), Some(found)) = (known, opened.training.record()) {
        let differs = |key: &&String| known.get(*key) != found.get(*key);
        if let Some(key) = known.keys().chain(found.keys()).find(differs) {
            let shown = |record: &Map<String, Value>| record.get(key).unwrap_or(&Value::Null).to_string();
            return Err(input(format!(
                "the data is not what was read so far: its {key} was {} and is {}; bring it back, or begin anew \
                 (train --fresh; data prepare into another folder)",
                shown(known),
                shown(&found)
            )));
        }
    }
    Ok(opened)
}

/// `commit`: the one of the data set that is read, whatever the recipe's revision leads to.
fn open_at(recipe: &Recipe, sequence_length: usize, commit: Option<&str>, printer: &Printer) -> Result<Opened> {
    let data = &recipe.data;
    let max_document_tokens = match data.max_document_tokens {
        None => Some(sequence_length),
        Some(0) => None,
        Some(max) => Some(max),
    };
    let stages = Arc::<Stages>::default();
    let (training, held_out) = match data.source {
        SourceKind::Sample => {
            let (training, held_out) = Sample::open()?;
            (text(training), text(held_out))
        }
        SourceKind::Files => {
            let all = Files::open(&data.paths, "data.paths", data.text_key())?;
            let (training, held_out) = if data.held_out.is_empty() {
                all.split(data.held_out_every)?
            } else {
                let held_out = Files::open(&data.held_out, "data.held_out", data.text_key())?;
                (all.without(&held_out)?, held_out)
            };
            (text(training), text(held_out))
        }
        SourceKind::Tokens => {
            let (training, held_out) = TokenShards::open(&data.paths)?;
            training.check_cut(max_document_tokens)?;
            (Corpus::Tokens(Arc::new(training)), Corpus::Tokens(Arc::new(held_out)))
        }
        SourceKind::RefinedwebRows => {
            let options = rows::Options::of(data, Arc::clone(&stages), transfers::observer(printer))?;
            let (training, held_out) = rows::open(options)?;
            (text(training), text(held_out))
        }
        SourceKind::RefinedwebParquet => {
            let place = match data.paths.is_empty() {
                false => Place::Folder(data.paths.clone()),
                true => Place::Hub {
                    dataset: data.dataset.clone(),
                    revision: commit.unwrap_or(&data.revision).to_owned(),
                    options: Box::new(huggingface::Options::of(
                        &hub_of_shards(recipe),
                        FileHashes::default(),
                        transfers::observer(printer),
                    )?),
                },
            };
            let (training, held_out) = parquet::open(
                place,
                parquet::Options {
                    text_key: data.text_key().to_owned(),
                    shards: data.shards.clone(),
                    set_aside: SetAside::new(data.held_out_every as u64),
                    cache: cache_dir(data),
                    stages: Arc::clone(&stages),
                },
            )?;
            warn_of_memory(&training, data.interleave, printer);
            (text(training), text(held_out))
        }
    };
    let interleave = if data.is_refinedweb() { data.interleave } else { 1 };
    let packing = Packing { max_document_tokens, shuffle_seed: Some(recipe.train.seed), interleave };
    let reading = Reading {
        tokenizer: Arc::new(Tokenizer::gpt2()?),
        packing,
        ahead: Ahead { readers: data.readers, bytes: (data.queue_mb as u64).saturating_mul(1_000_000) },
        tokenizer_threads: tokenizer_threads(data.tokenizer_threads),
        stages,
    };
    Ok(Opened { training, held_out, reading })
}

/// The hub that has a recipe's shards, which need not be the one that its models go to.
fn hub_of_shards(recipe: &Recipe) -> recipe::Hub {
    let mut hub = recipe.hub.clone();
    hub.endpoint = recipe.data.endpoint.clone().or(hub.endpoint);
    hub
}

/// Row groups that are open at once are held as a whole, whatever `data.queue_mb` says.
fn warn_of_memory(training: &parquet::Parquet, interleave: usize, printer: &Printer) {
    let largest = (0..training.num_shards()).filter_map(|shard| training.held_bytes(shard)).max().unwrap_or(0);
    let open = largest.saturating_mul(interleave as u64);
    if open > MUCH_TEXT {
        printer.warn(&format!(
            "{interleave} row groups of up to {} are open at once and take up to {} of memory: lower data.interleave if that \
             is too much",
            bytes(largest),
            bytes(open)
        ));
    }
}

/// Where what was learned of data sets is kept.
pub(crate) fn cache_dir(data: &recipe::Data) -> PathBuf {
    data.cache.clone().unwrap_or_else(|| default_state_dir().join("data"))
}

/// As many as are asked for. One keeps several GPUs busy; an eighth of a large machine rides over documents that are slow.
fn tokenizer_threads(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 8).clamp(1, 4)),
        asked => asked,
    }
}

/// The embedded text with documents cut at `sequence_length`, in its own order: for scoring without a recipe.
pub fn open_sample(sequence_length: usize) -> Result<Opened> {
    let (training, held_out) = Sample::open()?;
    let packing = Packing { max_document_tokens: Some(sequence_length), shuffle_seed: None, interleave: 1 };
    Opened::plain(training, held_out, packing)
}

/// Rows of tokens for one forward pass on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, row after row: `num_rows * row_len` of them.
    pub tokens: Vec<u32>,
    /// Number of rows.
    pub num_rows: usize,
    /// Tokens per row.
    pub row_len: usize,
    /// Where the global stream stands once every rank has consumed the batch of this micro-step.
    pub cursor_after: Cursor,
}

#[cfg(test)]
mod streaming_tests;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::error::exit_code;

    fn recipe(data: &str) -> Recipe {
        let yaml = format!(
            "name: test\nmodel: {{layers: 1, heads: 1, width: 8}}\ntrain: {{steps: 1, tokens_per_step: 8, micro_batch: 1, \
             seed: 5}}\ndata: {{{data}}}"
        );
        serde_yaml::from_str(&yaml).unwrap()
    }

    fn quiet() -> Printer {
        Printer::new(true)
    }

    fn texts(corpus: &Corpus) -> Vec<String> {
        let Corpus::Text(source) = corpus else { panic!("no text") };
        (0..source.num_shards())
            .flat_map(|shard| source.documents(shard, 0, None).unwrap())
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn a_small_file_is_split_by_default_and_held_out_files_replace_the_split() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let lines: String = (0..20).map(|number| format!("{{\"body\": \"{number}\"}}\n")).collect();
        fs::write(path("a.jsonl"), lines).unwrap();
        fs::write(path("b.txt"), "held").unwrap();

        let opened =
            open(&recipe(&format!("source: files, text_key: body, paths: ['{}']", path("a.jsonl"))), 1024, &quiet())
                .unwrap();
        assert_eq!(texts(&opened.held_out), ["0", "1"]);
        assert_eq!(texts(&opened.training).len(), 18);

        let data = format!("source: files, text_key: body, paths: ['{}/*'], held_out: ['{}']", path(""), path("b.txt"));
        let opened = open(&recipe(&data), 1024, &quiet()).unwrap();
        assert_eq!(texts(&opened.held_out), ["held"]);
        assert_eq!(texts(&opened.training).len(), 20);
    }

    #[test]
    fn documents_are_cut_at_the_rules_length_unless_the_recipe_says_otherwise() {
        for (key, expected) in
            [("", Some(1024)), (", max_document_tokens: 7", Some(7)), (", max_document_tokens: 0", None)]
        {
            let opened = open(&recipe(&format!("source: sample{key}")), 1024, &quiet()).unwrap();
            let packing = Packing { max_document_tokens: expected, shuffle_seed: Some(5), interleave: 1 };
            assert_eq!(opened.reading.packing, packing);
        }
    }

    #[test]
    fn files_without_paths_are_refused() {
        let error = open(&recipe("source: files"), 1024, &quiet()).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(format!("{error}").starts_with("data.paths is empty; name files"), "{error}");
    }
}
