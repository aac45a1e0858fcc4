//! Brings a published model here, and refuses it where a validator would before scoring it.
//!
//! ```text
//! CACHE/namespace--name/COMMIT/  just the files that validators fetch, whole
//! CACHE/namespace--name/.lock    held by the process that looks at these models or brings one
//! ```
//! As the reference: the size of the whole repository first, then the download, then hash, parameters and class. The
//! hub is asked even if the model is in the cache, for a validator that has no copy yet asks it too. A model gets its
//! name in the cache when its hash is right, and is hashed again whenever one of its files was touched ([`FileHashes`]), so
//! no killed process passes anything off as a model; a damaged disk does only where it leaves a file's times alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use thiserror::Error;

use super::file_hashes::FileHashes;
use super::hash::{directory_hash, text_pair_hash};
use super::judge::{Verdict, judge, sentence};
use super::model_id::{ModelId, ModelMetadata};
use super::{Hub, RemoteFile, names};
use crate::disk::{Disk, is_out_of_space};
use crate::error::{Failure, failure, input};
use crate::figures::count;
use crate::lock;
use crate::model::config::{CONFIG_FILE, GENERATION_FILE};
use crate::model::weights::{INDEX_FILE, WEIGHTS_FILE, shard_names};
use crate::rules::Criteria;

/// Below a repository's folder: held by the process that looks at its models or brings one.
pub(crate) const LOCK_FILE: &str = ".lock";
/// Start of the names of what is being made or deleted; nothing below such a name is ever needed again.
pub(crate) const TEMPORARY: &str = ".tmp-";
/// How long to wait for another process that brings a model of the same repository.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A folder in which fetched models are kept; several processes may share it.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    hashes: FileHashes,
    disk: Disk,
}

impl Cache {
    /// A cache in a folder, which is made when the first model is fetched. Every model is hashed at every call.
    pub fn new(dir: &Path) -> Self {
        Self::with_hashes(dir, FileHashes::default())
    }

    /// A cache whose files are hashed again only if they may have changed.
    pub fn with_hashes(dir: &Path, hashes: FileHashes) -> Self {
        Self { dir: dir.to_owned(), hashes, disk: Disk::default() }
    }

    /// One on a disk that can be made to fail.
    #[cfg(test)]
    pub(crate) fn on_disk(dir: &Path, disk: Disk) -> Self {
        Self { disk, ..Self::new(dir) }
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of a model that was fetched; `None` for one that cannot have been.
    pub(crate) fn folder(&self, id: &ModelId) -> Option<PathBuf> {
        let commit = id.commit.as_deref().filter(|commit| names::is_commit(commit))?;
        names::repository(&id.repo_id()).ok()?;
        Some(self.repository(&id.repo_id()).join(commit))
    }

    /// The folder of all commits of a repository, whose name must be one.
    fn repository(&self, repo_id: &str) -> PathBuf {
        self.dir.join(repo_id.replace('/', "--"))
    }
}

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
enum Stop {
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

fn refused(sentence: impl Into<String>) -> Stop {
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
struct Wanted<'a> {
    hub: &'a dyn Hub,
    repo_id: &'a str,
    commit: &'a str,
    /// The hash that the files must have; `None`: any.
    hash: Option<&'a str>,
    /// The hotkey whose hash together with the files' may be named instead.
    hotkey: Option<&'a str>,
    /// All files of the repository at the commit.
    files: Vec<RemoteFile>,
}

impl Wanted<'_> {
    fn is_of(&self, hash: &str) -> bool {
        let is_bound = |wanted: &str| self.hotkey.is_some_and(|hotkey| text_pair_hash(hash, hotkey) == wanted);
        self.hash.is_none_or(|wanted| hash == wanted || is_bound(wanted))
    }

    fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.path == name)
    }
}

impl Cache {
    /// The folder of a model whose hash is right, brought here if need be.
    fn get(&self, wanted: &Wanted<'_>) -> Result<PathBuf, Stop> {
        let repo_id = wanted.repo_id;
        let repository = self.repository(repo_id);
        fs::create_dir_all(&repository).with_context(|| format!("cannot create {}", repository.display()))?;
        let Some(_lock) = lock::wait(&repository.join(LOCK_FILE), PATIENCE)? else {
            let sentence = format!("Another process has been fetching {repo_id} to {} for long.", self.dir.display());
            return Err(Stop::Ours(Failure::Unreachable(sentence).into()));
        };
        self.disk.remove_all(&repository, TEMPORARY)?;
        let dir = repository.join(wanted.commit);
        if dir.is_dir() && self.hashes.directory_hash(&dir).is_ok_and(|hash| wanted.is_of(&hash)) {
            return Ok(dir);
        }
        let temporary = repository.join(format!("{TEMPORARY}commit"));
        let placed = self.bring(wanted, &temporary).and_then(|()| {
            if fs::symlink_metadata(&dir).is_ok() {
                self.disk.rename(&dir, &repository.join(format!("{TEMPORARY}damaged")))?;
            }
            Ok(self.disk.rename(&temporary, &dir)?)
        });
        // Best effort: what cannot be removed now is removed by the next fetch.
        let _ = self.disk.remove_all(&repository, TEMPORARY);
        placed.map(|()| dir)
    }

    /// Brings the files of a model into a new folder and checks their hash.
    fn bring(&self, wanted: &Wanted<'_>, into: &Path) -> Result<(), Stop> {
        let place = format!("{} at the commit {}", wanted.repo_id, wanted.commit);
        let files = files_before_shards(&place, |name| wanted.has(name)).map_err(refused)?;
        self.disk.create_dir(into)?;
        self.download(wanted, &files, into)?;
        if files.contains(&INDEX_FILE) {
            let shards = shard_names(into).map_err(|error| match failure(&error) {
                Some(_) => refused(format!("{place}: {}", sentence(&error))),
                None => Stop::Ours(error),
            })?;
            if let Some(missing) = shards.iter().find(|name| !wanted.has(name)) {
                return Err(refused(format!("{place} has no {missing:?}, which {INDEX_FILE} names.")));
            }
            let shards: Vec<_> = shards.iter().map(String::as_str).filter(|name| !files.contains(name)).collect();
            self.download(wanted, &shards, into)?;
        }
        let hash = directory_hash(into)?;
        match wanted.hash {
            Some(named) if !wanted.is_of(&hash) => {
                Err(refused(format!("{place} has the hash {hash}; the commitment says {named:?}.")))
            }
            _ => Ok(()),
        }
    }

    fn download(&self, wanted: &Wanted<'_>, names: &[&str], into: &Path) -> Result<()> {
        for name in names {
            let file: Vec<&RemoteFile> = wanted.files.iter().filter(|file| file.path == *name).take(1).collect();
            let download = || wanted.hub.download(wanted.repo_id, wanted.commit, &file, into).map(drop);
            self.disk.write(&into.join(name), download).map_err(|error| {
                let (repo_id, dir) = (wanted.repo_id, self.dir.display());
                if is_out_of_space(&error) {
                    error.context(format!(
                        "No space left in the cache {dir} for {repo_id}. Delete models there or name another cache"
                    ))
                } else {
                    error
                }
            })?;
        }
        Ok(())
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
