//! Shards on a hub.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::is_shard;
use super::store::{ShardFile, Store};
use crate::hex;
use crate::hub::huggingface::Options;
use crate::hub::huggingface::dataset::{Dataset, SeenEtags};
use crate::hub::progress::Told;
use crate::hub::{Checksum, RemoteFile};

/// The shards of a data set at a commit.
pub(super) struct Remote {
    dataset: Dataset,
    shards: Vec<ShardFile>,
    files: Vec<(RemoteFile, SeenEtags)>,
}

impl Remote {
    /// Those of a data set at a revision.
    pub(super) fn open(options: Options, dataset: &str, revision: &str) -> Result<Self> {
        let dataset = Dataset::open(options, dataset, revision)?;
        let mut files = dataset.files()?;
        files.retain(|file| is_shard(&file.path));
        let shards = files.iter().map(|file| {
            let sum = file.sum.map(|sum| match sum {
                Checksum::Sha256(sum) => hex::digits(sum),
                Checksum::GitBlob(sum) => hex::digits(sum),
            });
            ShardFile { path: file.path.clone(), bytes: file.bytes, sum }
        });
        let shards = shards.collect();
        Ok(Self { dataset, shards, files: files.into_iter().map(|file| (file, SeenEtags::default())).collect() })
    }
}

impl Store for Remote {
    fn name(&self) -> String {
        self.dataset.id().to_owned()
    }

    fn record(&self) -> Map<String, Value> {
        let entries = [("dataset", self.dataset.id()), ("commit", self.dataset.commit())];
        entries.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect()
    }

    fn shards(&self) -> &[ShardFile] {
        &self.shards
    }

    fn read(&self, shard: usize, range: Range<u64>, what: &str) -> Result<Bytes> {
        let (file, etag) = &self.files[shard];
        self.dataset.read(file, etag, range, what)
    }

    fn rest(&self, shard: usize, tries: u32, what: &str, reason: &str) -> Result<()> {
        self.files[shard].1.forget();
        self.dataset.rest(tries, what, reason)
    }

    fn index_file(&self, cache: &Path) -> Option<PathBuf> {
        // Both names stay in their folder: what is no data set or no commit has been refused.
        let (id, commit) = (self.dataset.id().replace('/', "--"), self.dataset.commit());
        Some(cache.join("parquet").join(format!("{id}-{commit}.jsonl")))
    }

    fn tell(&self, told: Told<'_>) {
        self.dataset.tell(told);
    }
}
