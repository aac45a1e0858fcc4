//! Brings a published model here, and refuses it where a validator would before scoring it.
//!
//! As the reference: the size of the whole repository first, then the download, then hash, parameters and class. The
//! hub is asked even if the model is in the [cache](super::cache), for a validator that has no copy yet asks it too.

use std::path::{Path, PathBuf};

use anyhow::Result;
use thiserror::Error;

pub use super::cache::Cache;
use super::file_hashes::FileHashes;
use super::hash::text_pair_hash;
use super::judge::{Verdict, judge, sentence};
use super::model_id::ModelMetadata;
use super::{Hub, RemoteFile, names};
use crate::error::{Failure, failure, input};
use crate::figures::count;
use crate::model::config::{CONFIG_FILE, GENERATION_FILE};
use crate::model::weights::{INDEX_FILE, WEIGHTS_FILE, shard_names};
use crate::rules::Criteria;

/// Why a published model has no finite loss here, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// Validators cannot get it or do not take it: they score it infinite.
    #[error("{0}")]
    Refused(String),
    /// Validators may well score it, but this program does not implement its kind: nothing follows about its loss.
    #[error("{0}")]
    NotImplemented(String),
}

/// Brings a model here and returns its folder, which holds just the files that validators fetch. The outer error is
/// ours (the hub does not answer, the disk is full); the inner one is the model's.
pub fn fetch(
    hub: &dyn Hub,
    cache: &Cache,
    metadata: &ModelMetadata,
    criteria: &Criteria,
) -> Result<Result<PathBuf, Unreadable>> {
    fetch_of(hub, cache, metadata, criteria, None)
}

/// As [`fetch`]; of a hotkey's model the commitment may name the hash of its hash and the hotkey instead of its own.
pub fn fetch_of(
    hub: &dyn Hub,
    cache: &Cache,
    metadata: &ModelMetadata,
    criteria: &Criteria,
    hotkey: Option<&str>,
) -> Result<Result<PathBuf, Unreadable>> {
    match try_fetch(hub, cache, metadata, criteria, hotkey) {
        Ok(dir) => Ok(Ok(dir)),
        Err(Stop::Model(unreadable)) => Ok(Err(unreadable)),
        Err(Stop::Ours(error)) => Err(error),
    }
}

/// Brings the model of a repository at a commit here, whatever its hash, and returns its folder.
pub fn download_revision(hub: &dyn Hub, cache: &Cache, repo_id: &str, commit: &str) -> Result<PathBuf> {
    names::repository(repo_id).map_err(input)?;
    let wanted = Wanted { hub, repo_id, commit, hash: None, hotkey: None, files: hub.files(repo_id, commit)? };
    cache.get(&wanted).map_err(|stop| match stop {
        Stop::Model(unreadable) => input(unreadable.to_string()),
        Stop::Ours(error) => error,
    })
}

/// The directory hash under which a local model folder would be published, whatever else lies in it.
pub fn publishable_hash(dir: &Path) -> Result<String> {
    FileHashes::default().files_hash(&publishable_paths(dir)?)
}

/// The files of a model folder that publishing uploads and validators fetch, in the order of the hash.
pub fn publishable_paths(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(publishable_files(dir)?.iter().map(|name| dir.join(name)).collect())
}

/// The files of a model folder that publishing uploads and validators fetch: plain names, in the order of the hash.
pub fn publishable_files(dir: &Path) -> Result<Vec<String>> {
    let is_there = |name: &str| dir.join(name).is_file();
    let place = dir.display().to_string();
    let files = files_before_shards(&place, is_there).map_err(input)?;
    let mut names: Vec<String> = files.iter().map(|&name| name.to_owned()).collect();
    if files.contains(&INDEX_FILE) {
        let shards = shard_names(dir)?;
        if let Some(missing) = shards.iter().find(|name| !is_there(name)) {
            return Err(input(format!("{place} has no {missing}, which {INDEX_FILE} names.")));
        }
        names.extend(shards);
    }
    // The order of code points is that of UTF-8's bytes.
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// What ends a fetch early.
pub(super) enum Stop {
    Model(Unreadable),
    Ours(anyhow::Error),
}

impl From<anyhow::Error> for Stop {
    /// What the hub has not, or does not show us, it does not show validators either.
    fn from(error: anyhow::Error) -> Self {
        match failure(&error) {
            Some(Failure::No(_)) => refused(sentence(&error)),
            _ => Self::Ours(error),
        }
    }
}

pub(super) fn refused(sentence: impl Into<String>) -> Stop {
    Stop::Model(Unreadable::Refused(sentence.into()))
}

fn try_fetch(
    hub: &dyn Hub,
    cache: &Cache,
    metadata: &ModelMetadata,
    criteria: &Criteria,
    hotkey: Option<&str>,
) -> Result<PathBuf, Stop> {
    let id = &metadata.id;
    let repo_id = id.repo_id();
    names::repository(&repo_id).map_err(refused)?;
    let (Some(commit), Some(hash)) = (&id.commit, &id.hash) else {
        return Err(refused(format!("The commitment to {repo_id} names no commit or no hash.")));
    };
    if !names::is_commit(commit) {
        // A branch can be fetched, but validators look for the files under the name that was committed.
        return Err(refused(format!("{commit:?}, which the commitment to {repo_id} names, is no commit.")));
    }
    let files = hub.files(&repo_id, commit)?;
    let wanted = Wanted { hub, repo_id: &repo_id, commit, hash: Some(hash), hotkey, files };
    let bytes = wanted.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
    if bytes > criteria.max_repo_bytes {
        let (actual, limit) = (count(bytes), count(criteria.max_repo_bytes));
        return Err(refused(format!("The repository {repo_id} has {actual} bytes; it may have {limit}.")));
    }
    let dir = cache.get(&wanted)?;
    let judgement = judge(&dir, criteria);
    if let Some(sentences) = judgement.sentences(Verdict::Refused) {
        return Err(refused(sentences));
    }
    if let Some(sentences) = judgement.sentences(Verdict::NotImplemented) {
        return Err(Stop::Model(Unreadable::NotImplemented(sentences)));
    }
    Ok(dir)
}

/// A model that is to be brought here.
pub(super) struct Wanted<'a> {
    pub(super) hub: &'a dyn Hub,
    pub(super) repo_id: &'a str,
    pub(super) commit: &'a str,
    /// The hash that the files must have; `None`: any.
    pub(super) hash: Option<&'a str>,
    /// The hotkey whose hash together with the files' may be named instead.
    hotkey: Option<&'a str>,
    /// All files of the repository at the commit.
    pub(super) files: Vec<RemoteFile>,
}

impl Wanted<'_> {
    pub(super) fn is_of(&self, hash: &str) -> bool {
        let is_bound = |wanted: &str| self.hotkey.is_some_and(|hotkey| text_pair_hash(hash, hotkey) == wanted);
        self.hash.is_none_or(|wanted| hash == wanted || is_bound(wanted))
    }

    /// Where it is, for a sentence.
    pub(super) fn place(&self) -> String {
        format!("{} at the commit {}", self.repo_id, self.commit)
    }

    /// The files that validators fetch, but for the shards that an index names.
    pub(super) fn before_shards(&self) -> Result<Vec<&RemoteFile>, Stop> {
        let names = files_before_shards(&self.place(), |name| self.find(name).is_some()).map_err(refused)?;
        Ok(names.into_iter().filter_map(|name| self.find(name)).collect())
    }

    /// The shards that the index in a folder names, beside the `others`; none where there is no index among those.
    pub(super) fn shards(&self, dir: &Path, others: &[&RemoteFile]) -> Result<Vec<&RemoteFile>, Stop> {
        if !others.iter().any(|file| file.path == INDEX_FILE) {
            return Ok(Vec::new());
        }
        let place = self.place();
        let names = shard_names(dir).map_err(|error| match failure(&error) {
            Some(_) => refused(format!("{place}: {}", sentence(&error))),
            None => Stop::Ours(error),
        })?;
        let find = |name: &String| {
            self.find(name).ok_or_else(|| refused(format!("{place} has no {name:?}, which {INDEX_FILE} names.")))
        };
        let shards = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        Ok(shards.into_iter().filter(|shard| others.iter().all(|other| other.path != shard.path)).collect())
    }

    fn find(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == name)
    }
}

/// What validators fetch of a repository, but for the shards that an index names. `place` tells the user where it is.
fn files_before_shards(place: &str, is_there: impl Fn(&str) -> bool) -> Result<Vec<&'static str>, String> {
    if !is_there(CONFIG_FILE) {
        return Err(format!("{place} has no {CONFIG_FILE}: it is no model."));
    }
    let Some(weights) = [WEIGHTS_FILE, INDEX_FILE].into_iter().find(|name| is_there(name)) else {
        let has_pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().any(&is_there);
        let reason = if has_pickle { "; pytorch_model.bin is not fetched, only safetensors files are" } else { "" };
        return Err(format!("{place} has neither {WEIGHTS_FILE} nor {INDEX_FILE}{reason}."));
    };
    let generation = is_there(GENERATION_FILE).then_some(GENERATION_FILE);
    Ok([CONFIG_FILE].into_iter().chain(generation).chain([weights]).collect())
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
