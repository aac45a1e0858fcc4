//! The embedded text: Jane Austen's six novels as documents of about a web page's length (`sample/README.md`).
//!
//! Each document is a shard of its own, so that the seeded order mixes the novels as a page of the real data set mixes
//! web sites. The last tenth, pages 18 and 19 of 100 documents each, is held out: chapters 8 to 24 of Persuasion.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::PAGE_DOCUMENTS;
use super::source::{Documents, Source};

const NOVELS: &[u8] = include_bytes!("sample/novels.jsonl.zst");

/// A run of the embedded documents.
pub struct Sample {
    documents: Arc<[String]>,
    range: Range<usize>,
}

impl Sample {
    /// The documents to train on and those held out.
    pub fn open() -> Result<(Self, Self)> {
        #[derive(Deserialize)]
        struct Line {
            text: String,
        }
        let lines = zstd::decode_all(NOVELS).context("the embedded text is damaged")?;
        let documents: Arc<[String]> = serde_json::Deserializer::from_slice(&lines)
            .into_iter()
            .map(|line| line.map(|Line { text }| text))
            .collect::<Result<_, _>>()
            .context("the embedded text is damaged")?;
        let num_pages = documents.len().div_ceil(PAGE_DOCUMENTS);
        let first_held_out = (num_pages - num_pages.div_ceil(10)) * PAGE_DOCUMENTS;
        let part = |range| Self { documents: documents.clone(), range };
        Ok((part(0..first_held_out), part(first_held_out..documents.len())))
    }
}

impl Source for Sample {
    fn name(&self) -> String {
        "the embedded text".to_owned()
    }

    fn num_shards(&self) -> u64 {
        self.range.len() as u64
    }

    fn documents(&self, shard: u64, from: u64, _: Option<u64>) -> Result<Documents> {
        let document = self.documents[self.range.clone()].get(shard as usize).filter(|_| from == 0).cloned();
        Ok(Box::new(document.into_iter().map(Ok)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn text(source: &Sample, shard: u64) -> String {
        source.documents(shard, 0, None).unwrap().next().unwrap().unwrap()
    }

    #[test]
    fn the_last_two_of_twenty_pages_are_held_out() {
        let (training, held_out) = Sample::open().unwrap();
        assert_eq!((training.num_shards(), held_out.num_shards()), (1800, 198));
        assert!(text(&training, 0).starts_with("SENSE AND SENSIBILITY\nby Jane Austen\n(1811)\nCHAPTER 1\nThe family"));
        assert!(text(&held_out, 197).ends_with("than in its national importance.\nFinis"));
        assert_ne!(text(&training, 1799), text(&held_out, 0));
        assert!(training.documents(3, 1, None).unwrap().next().is_none());
    }

    #[test]
    fn documents_are_as_long_as_web_pages() {
        let (training, _) = Sample::open().unwrap();
        let mean = training.documents.iter().map(String::len).sum::<usize>() / training.documents.len();
        assert_eq!(mean, 2021);
        assert!(training.documents.iter().all(|document| document.len() >= 600));
    }
}
