//! The shards of a folder: their names, and what stands for their content.

use std::fs::{self, File, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use axum::http::StatusCode;
use sha2::{Digest, Sha256};

use crate::data::parquet::shards_below;
use crate::error::input;
use crate::local::refusal::Refusal;
use crate::{hex, regular_file};

/// A shard as it was when the server started.
pub(super) struct Shard {
    /// Its path in the data set, with slashes.
    pub(super) path: String,
    pub(super) bytes: u64,
    /// 64 hexadecimal digits that stand for its content.
    pub(super) digest: String,
    file: PathBuf,
}

/// The shards of a folder, sorted by path.
pub(super) struct Shards {
    pub(super) all: Vec<Shard>,
    /// 40 hexadecimal digits that stand for all of them.
    pub(super) commit: String,
}

/// Lists a folder's shards.
pub(super) fn list(dir: &Path) -> Result<Shards> {
    if !dir.is_dir() {
        return Err(input(format!("there is no folder {}: name the one that holds the shards", dir.display())));
    }
    let shard = |(path, file): (String, PathBuf)| {
        let metadata = fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Shard { bytes: metadata.len(), digest: digest(&path, &metadata), path, file })
    };
    let mut all = shards_below(dir)?.into_iter().map(shard).collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(input(format!(
            "the folder {} holds no shards, which are files whose names end in .parquet: name the one that does",
            dir.display()
        )));
    }
    all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut digest = Sha256::new();
    all.iter().for_each(|shard| digest.update(&shard.digest));
    let mut commit = hex::digits(digest.finalize());
    commit.truncate(40);
    Ok(Shards { all, commit })
}

fn digest(path: &str, metadata: &Metadata) -> String {
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    hex::digits(Sha256::digest(format!("{path}\0{}\0{}", metadata.len(), modified.as_nanos())))
}

impl Shard {
    /// What tells its content, as a header has it.
    pub(super) fn etag(&self) -> String {
        format!("\"{}\"", self.digest)
    }

    /// Opens it, unless it is another one by now.
    pub(super) fn open(&self) -> Result<File, Refusal> {
        let context = || format!("cannot read {}", self.path);
        let file = regular_file::open(&self.file).with_context(context)?;
        if digest(&self.path, &file.metadata().with_context(context)?) == self.digest {
            return Ok(file);
        }
        let sentence = format!("{} has changed since the server started: start it again.", self.path);
        Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, sentence))
    }
}
