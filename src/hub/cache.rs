//! A folder in which fetched models are kept. Several processes may share it.
//!
//! ```text
//! CACHE/namespace--name/COMMIT/        just the files that validators fetch, whole
//! CACHE/namespace--name/.part-COMMIT/  what has come of a model so far
//! CACHE/namespace--name/.hash-COMMIT   what a commit's files hash to, where a commitment says something else of them
//! CACHE/namespace--name/.lock          held by the process that looks at these models or brings one
//! ```
//! A model gets its name in the cache when its hash is right, and is hashed again whenever one of its files was touched
//! ([`FileHashes`]), so no killed process passes anything off as a model; a damaged disk does only where it leaves a file's
//! times alone. What has come of a model stays for the next try where the hub, the disk or the user has ended one, until
//! another commit of the repository is fetched. How much lies here is `room`'s affair.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rustix::fs::Access;

use super::fetch::{Stop, Wanted, refused};
use super::file_hashes::FileHashes;
use super::hash::sums_hash;
use super::known_hash::KnownHash;
use super::model_id::ModelId;
use super::{RemoteFile, Sha256Sum, names};
use crate::disk::{Disk, is_out_of_space};
use crate::error::{Failure, input};
use crate::lock;

/// Below a repository's folder: held by the process that looks at its models or brings one.
pub(crate) const LOCK_FILE: &str = ".lock";
/// Start of the names of what is being made or deleted; nothing below such a name is ever needed again.
pub(crate) const TEMPORARY: &str = ".tmp-";
/// Start of the names of models of which a part has come.
pub(crate) const PART: &str = ".part-";
/// How long to wait for another process that brings a model of the same repository.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A folder in which fetched models are kept; several processes may share it.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    pub(super) hashes: FileHashes,
    pub(super) disk: Disk,
    pub(super) budget: Option<u64>,
    /// Folders of the models that are in use.
    pub(super) in_use: Mutex<BTreeSet<PathBuf>>,
}

impl Cache {
    /// A cache in a folder, which is made when the first model is fetched. Every model is hashed at every call.
    pub fn new(dir: &Path) -> Self {
        Self::with_hashes(dir, FileHashes::default())
    }

    /// A cache whose files are hashed again only if they may have changed.
    pub fn with_hashes(dir: &Path, hashes: FileHashes) -> Self {
        Self { dir: dir.to_owned(), hashes, disk: Disk::default(), budget: None, in_use: Mutex::default() }
    }

    /// The same with a bound on the bytes of its models, beyond which the longest unused are deleted; `None`: no bound.
    #[must_use]
    pub fn with_budget(self, bytes: Option<u64>) -> Self {
        Self { budget: bytes, ..self }
    }

    /// One on a disk that can be made to fail.
    #[cfg(test)]
    pub(crate) fn on_disk(dir: &Path, disk: Disk) -> Self {
        Self { disk, ..Self::new(dir) }
    }

    /// Checks, without changing anything, that a model of so many bytes can come here.
    ///
    /// # Errors
    /// `Input`: the folder cannot be written or made, or its disk has no room.
    pub fn check_takes(&self, bytes: u64) -> Result<()> {
        let place = self.dir.display();
        let above = self.dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
        if !above.is_dir() || rustix::fs::access(above, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            return Err(input(format!(
                "the cache of models, {place}, is no folder that can be written: set hub.cache to another one"
            )));
        }
        if let Some(free) = shortage(above, bytes) {
            let [bytes, free] = [bytes, free].map(crate::figures::bytes);
            return Err(input(format!(
                "the cache of models, {place}, has {free} free, and {bytes} are needed to look at what the hub gives back: free \
                 some space, or set hub.cache to another disk"
            )));
        }
        Ok(())
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

    /// The folder of a model whose hash is right, brought here if need be.
    pub(super) fn get(&self, wanted: &Wanted<'_>) -> Result<PathBuf, Stop> {
        let repo_id = wanted.repo_id;
        let repository = self.repository(repo_id);
        fs::create_dir_all(&repository).with_context(|| format!("cannot create {}", repository.display()))?;
        let Some(_lock) = lock::wait(&repository.join(LOCK_FILE), PATIENCE)? else {
            let sentence = format!("Another process has been fetching {repo_id} to {} for long.", self.dir.display());
            return Err(Stop::Ours(Failure::Unreachable(sentence).into()));
        };
        self.disk.remove_all(&repository, TEMPORARY)?;
        let dir = repository.join(wanted.commit);
        if dir.is_dir() && self.is_right(wanted, &dir) {
            touch(&dir);
            return Ok(dir);
        }
        let part = repository.join(format!("{PART}{}", wanted.commit));
        self.remove_other_parts(&repository, &part)?;
        let placed = self.bring(wanted, &repository, &part).and_then(|files| self.place(&files, &part, &dir));
        // Best effort: what cannot be removed now is removed by the next fetch.
        if matches!(placed, Err(Stop::Model(_))) {
            let _ = self.disk.remove(&part);
        }
        let _ = self.disk.remove_all(&repository, TEMPORARY);
        placed?;
        touch(&dir);
        self.make_room(0, &repository);
        Ok(dir)
    }

    /// Whether a model in the cache is the one that is wanted. Where its hash is not known, its files are held against what
    /// the hub says of them.
    fn is_right(&self, wanted: &Wanted<'_>, dir: &Path) -> bool {
        if wanted.hash.is_some() {
            return self.hashes.directory_hash(dir).is_ok_and(|hash| wanted.is_of(&hash));
        }
        let Ok(mut files) = wanted.before_shards() else { return false };
        let Ok(shards) = wanted.shards(dir, &files) else { return false };
        files.extend(shards);
        files.iter().all(|file| self.hashes.is_of(&dir.join(&file.path), file))
    }

    /// Brings the files of a model into the folder of its part, and checks their hash.
    fn bring<'a>(
        &self,
        wanted: &'a Wanted<'_>,
        repository: &Path,
        part: &Path,
    ) -> Result<Vec<(&'a RemoteFile, Sha256Sum)>, Stop> {
        let mut files = wanted.before_shards()?;
        let known = KnownHash::of(wanted, repository, &self.disk);
        let refusal = |hash: &str| {
            let named = wanted.hash.unwrap_or_default();
            refused(format!("{} has the hash {hash}; the commitment says {named:?}.", wanted.place()))
        };
        if let Some(hash) = known.read().filter(|hash| !wanted.is_of(hash)) {
            return Err(refusal(&hash));
        }
        match fs::symlink_metadata(part) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                self.disk.remove(part)?;
                self.disk.create_dir(part)?;
            }
            Err(_) => self.disk.create_dir(part)?,
        }
        let mut sums = self.download(wanted, &files, repository, part)?;
        let shards = wanted.shards(part, &files)?;
        sums.extend(self.download(wanted, &shards, repository, part)?);
        files.extend(shards);
        let mut brought: Vec<_> = std::iter::zip(files, sums).collect();
        // The order of code points is that of UTF-8's bytes.
        brought.sort_unstable_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        self.remove_strays(&brought, part)?;
        let hash = sums_hash(&brought.iter().map(|(_, sum)| *sum).collect::<Vec<_>>());
        if !wanted.is_of(&hash) {
            if brought.iter().all(|(file, _)| file.sum.is_some()) {
                known.write(&hash)?;
            }
            return Err(refusal(&hash));
        }
        Ok(brought)
    }

    fn download(
        &self,
        wanted: &Wanted<'_>,
        files: &[&RemoteFile],
        repository: &Path,
        into: &Path,
    ) -> Result<Vec<Sha256Sum>> {
        let Some(first) = files.first() else { return Ok(Vec::new()) };
        // Room is made for the very part that lies here, however old it is.
        touch(into);
        let there = |file: &&RemoteFile| fs::symlink_metadata(into.join(&file.path)).map_or(0, |there| there.len());
        let missing = files.iter().map(|file| file.bytes.saturating_sub(there(file))).fold(0, u64::saturating_add);
        self.make_room(missing, repository);
        let download = || wanted.hub.download(wanted.repo_id, wanted.commit, files, into);
        let written = || self.disk.write(&into.join(&first.path), download);
        let downloaded = self.check_space(missing, wanted).and_then(|()| written()).and_then(|sums| {
            ensure!(sums.len() == files.len(), "the hub does not tell the sum of each file that was downloaded");
            Ok(sums)
        });
        downloaded.map_err(|error| {
            let (repo_id, dir) = (wanted.repo_id, self.dir.display());
            if is_out_of_space(&error) {
                error.context(format!(
                    "No space left in the cache {dir} for {repo_id}. Delete models there or name another cache"
                ))
            } else {
                error
            }
        })
    }

    /// Gives a model that has come in full its name.
    fn place(&self, files: &[(&RemoteFile, Sha256Sum)], part: &Path, dir: &Path) -> Result<(), Stop> {
        // Not waited for until it is on disk, which takes longer than the network: a file that a power cut has torn has
        // another size than the one that is remembered, is hashed again for that, and then brought again.
        touch(part);
        if fs::symlink_metadata(dir).is_ok() {
            let name = format!("{TEMPORARY}damaged");
            self.disk.rename(dir, &dir.with_file_name(name))?;
        }
        self.disk.rename(part, dir)?;
        for (file, sum) in files {
            self.hashes.learn(&dir.join(&file.path), sum)?;
        }
        Ok(())
    }

    fn remove_other_parts(&self, repository: &Path, part: &Path) -> Result<()> {
        let context = || format!("cannot list {}", repository.display());
        for entry in fs::read_dir(repository).with_context(context)? {
            let path = entry.with_context(context)?.path();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if name.starts_with(PART.as_bytes()) && path != part {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what is no file of the model from the folder of its part.
    fn remove_strays(&self, files: &[(&RemoteFile, Sha256Sum)], part: &Path) -> Result<()> {
        let context = || format!("cannot list {}", part.display());
        for entry in fs::read_dir(part).with_context(context)? {
            let path = entry.with_context(context)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if !files.iter().any(|(file, _)| Some(file.path.as_str()) == name) {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    /// An error where a download would not fit on the disk.
    fn check_space(&self, missing: u64, wanted: &Wanted<'_>) -> Result<()> {
        let Some(free) = shortage(&self.dir, missing) else { return Ok(()) };
        let [missing, free] = [missing, free].map(crate::figures::bytes);
        let sentence = format!("{} needs {missing} more, and {free} are free", wanted.place());
        Err(io::Error::new(io::ErrorKind::StorageFull, sentence).into())
    }
}

/// How many bytes are free on a folder's disk, if they are fewer than those needed. Some file systems do not count.
fn shortage(dir: &Path, needed: u64) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok().filter(|stat| stat.f_blocks != 0)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    (free < needed).then_some(free)
}

/// Notes that a model was used now. That it cannot be noted harms nothing but the choice of what is deleted first.
fn touch(dir: &Path) {
    let _ = File::open(dir).and_then(|folder| folder.set_modified(SystemTime::now()));
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
