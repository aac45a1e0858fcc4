//! Shards on this machine: files, folders with all that lies below, and globs.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::is_shard;
use super::store::{ShardFile, Store};
use crate::error::input;
use crate::hub::progress::Told;
use crate::regular_file;

/// Shards on this machine.
pub(super) struct Folder {
    name: String,
    shards: Vec<ShardFile>,
    /// Where each of them lies.
    paths: Vec<PathBuf>,
}

impl Folder {
    /// The shards that paths name, sorted inside each path, each file once. What lies in a folder has its path below that
    /// folder, as it has on the hub.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self> {
        if paths.is_empty() {
            return Err(input("data.paths is empty; name .parquet files, folders of them or globs"));
        }
        let mut folder = Self { name: describe(paths), shards: Vec::new(), paths: Vec::new() };
        let mut seen = HashSet::new();
        for path in paths {
            let mut found = find(path)?;
            found.sort_unstable();
            for (name, path) in found {
                let context = || format!("cannot look at {}", path.display());
                if seen.insert(fs::canonicalize(&path).with_context(context)?) {
                    let bytes = fs::metadata(&path).with_context(context)?.len();
                    folder.shards.push(ShardFile { path: name, bytes, sum: None });
                    folder.paths.push(path);
                }
            }
        }
        Ok(folder)
    }
}

impl Store for Folder {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn record(&self) -> Map<String, Value> {
        Map::new()
    }

    fn shards(&self) -> &[ShardFile] {
        &self.shards
    }

    fn read(&self, shard: usize, range: Range<u64>, what: &str) -> Result<Bytes> {
        let path = &self.paths[shard];
        let context = || format!("{what} cannot be read from {}", path.display());
        let file = regular_file::open(path).with_context(context)?;
        // Only what is there is made room for.
        if file.metadata().with_context(context)?.len() != self.shards[shard].bytes {
            return Err(input(format!(
                "{} was changed while it was read; start again when it is done.",
                path.display()
            )));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).with_context(context)?;
        Ok(bytes.into())
    }

    fn rest(&self, _: usize, _: u32, what: &str, reason: &str) -> Result<()> {
        Err(input(format!("{what} is damaged: {reason}. Get that file again.")))
    }

    fn index_file(&self, _: &Path) -> Option<PathBuf> {
        None
    }

    fn tell(&self, _: Told<'_>) {}
}

fn describe(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
    names.join(", ")
}

/// Names and paths of the shards that a path leads to.
fn find(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let shown = path.display();
    let pattern = path.to_string_lossy();
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, path, &mut found)?;
    } else if path.exists() {
        if !is_shard(&pattern) {
            return Err(input(format!("data.paths: {shown} is no .parquet file")));
        }
        found.push((name(path, path), path.to_owned()));
    } else if pattern.contains(['*', '?', '[']) {
        let matches =
            glob::glob(&pattern).map_err(|error| input(format!("data.paths: {shown} is not a valid glob: {error}")))?;
        for entry in matches {
            let entry = entry.with_context(|| format!("cannot search {shown}"))?;
            if entry.is_dir() {
                walk(&entry, &entry, &mut found)?;
            } else if is_shard(&entry.to_string_lossy()) {
                found.push((name(&entry, &entry), entry));
            }
        }
    } else {
        return Err(input(format!("data.paths: {shown} does not exist")));
    }
    match found.is_empty() {
        true => Err(input(format!("data.paths: there is no .parquet file in {shown}"))),
        false => Ok(found),
    }
}

/// All shards below a folder. Links to folders are not followed: they may lead back.
fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let context = || format!("cannot read the folder {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let path = entry.path();
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            walk(root, &path, found)?;
        } else if path.is_file() && is_shard(&path.to_string_lossy()) {
            found.push((name(root, &path), path));
        }
    }
    Ok(())
}

/// A file's path below what names it, or else its name.
fn name(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).ok().filter(|below| !below.as_os_str().is_empty());
    let name = below.or_else(|| path.file_name().map(Path::new)).unwrap_or(path);
    name.to_string_lossy().into_owned()
}
