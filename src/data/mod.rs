//! Text to tokens to rows: sources, tokenizer, packing, and the loader that prefetches batches.
//!
//! [`open`] turns a recipe into what the training loop needs. A source gives documents, `packing` makes one endless
//! stream of rows of them as the validator does, `loader` hands each rank its rows ahead of time, `held_out` fixes
//! the rows that the held-out loss is taken on, and `unigram` is the model to compare it with.

pub mod files;
pub mod held_out;
mod json_line;
pub mod loader;
mod order;
pub mod packing;
pub mod pages;
pub mod parquet;
mod pretokenize;
pub mod sample;
pub mod set_aside;
pub mod source;
pub mod stages;
mod text_file;
pub mod token_lists;
pub mod tokenizer;
pub mod unigram;

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::recipe::{Recipe, SourceKind};
use files::Files;
use packing::Packing;
use sample::Sample;
use source::Source;
use tokenizer::Tokenizer;

/// Consecutive documents that are drawn, trained on and held out together: a page of the subnet's data set.
pub const PAGE_DOCUMENTS: usize = 100;

/// What a recipe says about data, ready to be read.
pub struct Opened {
    /// Text to tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// The documents to train on.
    pub training: Arc<dyn Source>,
    /// Those that training never sees.
    pub held_out: Arc<dyn Source>,
    /// How the training documents become a stream.
    pub packing: Packing,
}

/// Opens a recipe's data. `sequence_length` is that of the rules: the default length at which documents are cut.
///
/// Paths are taken relative to the current folder. Nothing is read yet but the names of files and, to find out how
/// much there is to hold out of, up to 1,000 lines.
pub fn open(recipe: &Recipe, sequence_length: usize) -> Result<Opened> {
    let data = &recipe.data;
    let (training, held_out): (Arc<dyn Source>, Arc<dyn Source>) = match data.source {
        SourceKind::Sample => {
            let (training, held_out) = Sample::open()?;
            (Arc::new(training), Arc::new(held_out))
        }
        SourceKind::Files => {
            let all = Files::open(&data.paths, "data.paths", data.text_key())?;
            let (training, held_out) = if data.held_out.is_empty() {
                all.split(data.held_out_every)?
            } else {
                let held_out = Files::open(&data.held_out, "data.held_out", data.text_key())?;
                (all.without(&held_out)?, held_out)
            };
            (Arc::new(training), Arc::new(held_out))
        }
        SourceKind::RefinedwebRows | SourceKind::RefinedwebParquet | SourceKind::Tokens => {
            anyhow::bail!("not yet")
        }
    };
    let max_document_tokens = match data.max_document_tokens {
        None => Some(sequence_length),
        Some(0) => None,
        Some(max) => Some(max),
    };
    let packing = Packing { max_document_tokens, shuffle_seed: Some(recipe.train.seed) };
    Ok(Opened { tokenizer: Arc::new(Tokenizer::gpt2()?), training, held_out, packing })
}

/// The embedded text with documents cut at `sequence_length`, in its own order: for scoring without a recipe.
pub fn open_sample(sequence_length: usize) -> Result<Opened> {
    let (training, held_out) = Sample::open()?;
    Ok(Opened {
        tokenizer: Arc::new(Tokenizer::gpt2()?),
        training: Arc::new(training),
        held_out: Arc::new(held_out),
        packing: Packing { max_document_tokens: Some(sequence_length), shuffle_seed: None },
    })
}

/// Where the global stream of rows stands: a few numbers, the same for every world size.
///
/// It names the first token that no row has used yet. Documents are read shard by shard in a seeded order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the whole source that are finished.
    pub epoch: u64,
    /// Position in the seeded order of the epoch's shards.
    pub shard: u64,
    /// Document inside the shard.
    pub document: u64,
    /// Tokens of that document (its final end-of-text included) that rows have used.
    pub token: u64,
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

    fn texts(source: &dyn Source) -> Vec<String> {
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
            open(&recipe(&format!("source: files, text_key: body, paths: ['{}']", path("a.jsonl"))), 1024).unwrap();
        assert_eq!(texts(opened.held_out.as_ref()), ["0", "1"]);
        assert_eq!(texts(opened.training.as_ref()).len(), 18);

        let data = format!("source: files, text_key: body, paths: ['{}/*'], held_out: ['{}']", path(""), path("b.txt"));
        let opened = open(&recipe(&data), 1024).unwrap();
        assert_eq!(texts(opened.held_out.as_ref()), ["held"]);
        assert_eq!(texts(opened.training.as_ref()).len(), 20);
    }

    #[test]
    fn documents_are_cut_at_the_rules_length_unless_the_recipe_says_otherwise() {
        for (key, expected) in
            [("", Some(1024)), (", max_document_tokens: 7", Some(7)), (", max_document_tokens: 0", None)]
        {
            let opened = open(&recipe(&format!("source: sample{key}")), 1024).unwrap();
            assert_eq!(opened.packing, Packing { max_document_tokens: expected, shuffle_seed: Some(5) });
        }
    }

    #[test]
    fn files_without_paths_are_refused() {
        let error = open(&recipe("source: files"), 1024).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(format!("{error}").starts_with("data.paths is empty; name files"), "{error}");
    }
}
