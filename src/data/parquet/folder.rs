//! Shards on this machine: files, folders with all that lies below, and globs.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::is_shard;
use super::store::{ShardFile, Store};
use crate::error::input;
use crate::hub::progress::Told;
use crate::regular_file;

/// What makes a path a glob.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// Shards on this machine.
pub(super) struct Folder {
    name: String,
    shards: Vec<ShardFile>,
    /// Where each of them lies.
    paths: Vec<PathBuf>,
}

impl Folder {
    /// The shards that paths name, sorted inside each path, each file once. What lies in a folder has its path below that
    /// folder, as it has on the hub, and what a glob finds its path below the folder that the glob begins with.
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
        Err(input(format!("{what} is damaged: {reason}. Get that file again, or leave it out by data.shards.")))
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
        found = shards_below(path)?;
    } else if path.exists() {
        if !is_shard(&pattern) {
            return Err(input(format!("data.paths: {shown} is no .parquet file")));
        }
        found.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path.to_owned()));
    } else if pattern.contains(WILDCARDS) {
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
        let matches = glob::glob_with(&pattern, options)
            .map_err(|error| input(format!("data.paths: {shown} is not a valid glob: {error}")))?;
        // What is found has no `./` before it.
        let parts = path.components().filter(|part| *part != Component::CurDir);
        let is_fixed = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(WILDCARDS);
        let fixed: PathBuf = parts.take_while(is_fixed).collect();
        for entry in matches {
            let entry = entry.with_context(|| format!("cannot search {shown}"))?;
            let name = entry.strip_prefix(&fixed).unwrap_or(&entry).to_string_lossy().into_owned();
            if entry.is_dir() {
                walk(&entry, &format!("{name}/"), &mut found)?;
            } else if is_shard(&name) {
                found.push((name, entry));
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

/// Names and paths of all shards below a folder, in no order. A name is the path below the folder, with slashes.
///
/// Hidden files and folders are passed over. Links to folders are not followed: they may lead back.
pub(crate) fn shards_below(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    walk(folder, "", &mut found)?;
    Ok(found)
}

/// Adds the shards of a folder, whose name is empty or ends with a slash.
fn walk(folder: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let context = || format!("cannot read the folder {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let Some(name) = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.')) else { continue };
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            walk(&path, &format!("{name}/"), found)?;
        } else if is_shard(&name) && path.is_file() {
            found.push((name, path));
        }
    }
    Ok(())
}
