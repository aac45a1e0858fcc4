//! The embedded hub: a folder.
//!
//! ```text
//! HUB/namespace/name/COMMIT/        the files of a commit, which nobody may write to
//! HUB/namespace/name/commits.jsonl  the line of commits with the sums of their files, oldest first
//! HUB/namespace/name/.lock          held by the process that makes a commit
//! HUB/namespace/name/.private       is there if only the owner sees the repository, where others can tell
//! ```
//! A commit exists if its folder is there and the line names it. Its name is the SHA-256 of its parent, its files and
//! its message, so an upload that was killed and is repeated makes the commit that the first would have made. The files
//! are written under a temporary name and synced, the line is replaced, and with the last rename the commit is there;
//! what a killed upload leaves behind, the next one removes. No link inside the hub is followed.

mod commit;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::commit::{Addition, Change, Changed};
use super::{Checksum, Hub, RemoteFile, Sha256Sum, Upload, names};
use crate::disk::Disk;
use crate::error::{Failure, input};
use crate::hex;
use crate::model::weights::{FileSum, is_plain_name};
use crate::regular_file;

const LINE_FILE: &str = "commits.jsonl";
const LOCK_FILE: &str = ".lock";
const PRIVATE_FILE: &str = ".private";
/// Start of the names of what is being made or deleted; nothing below such a name is ever needed again.
const TEMPORARY: &str = ".tmp-";
/// More commits than a miner makes in his life.
const MAX_LINE_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 20;
/// How long an upload waits for another one to the same repository.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder that holds repositories.
#[derive(Debug)]
pub struct FolderHub {
    dir: PathBuf,
    disk: Disk,
    patience: Duration,
}

/// A commit in the line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) commit: String,
    pub(crate) message: String,
    /// SHA-256 of its files in hexadecimal; those of old commits are not written down.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sums: BTreeMap<String, String>,
}

impl FolderHub {
    /// Opens a hub that is there.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(input(format!(
                "There is no hub at {}: `assay local init --local DIR` makes one, with its ledger.",
                dir.display()
            )));
        }
        Ok(Self { dir: dir.to_owned(), disk: Disk::default(), patience: PATIENCE })
    }

    /// Opens a hub, which is made if it is not there.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create the hub {}", dir.display()))?;
        Self::open(dir)
    }

    /// Where a repository lies, whether it is there or not.
    fn repository(&self, repo_id: &str) -> Result<PathBuf> {
        let (namespace, name) = names::repository(repo_id).map_err(input)?;
        Ok(self.dir.join(namespace).join(name))
    }

    /// The line of commits of a repository, oldest first, with those left out whose folder is not there.
    fn line(&self, repository: &Path) -> Result<Vec<Entry>> {
        if !is_folder_below(&self.dir, repository) {
            return Ok(Vec::new());
        }
        let path = repository.join(LINE_FILE);
        let context = || format!("cannot read {}", path.display());
        let Some(file) = regular_file::open_no_link(&path).with_context(context)? else { return Ok(Vec::new()) };
        let mut text = String::new();
        file.take(MAX_LINE_BYTES + 1).read_to_string(&mut text).with_context(context)?;
        if text.len() as u64 > MAX_LINE_BYTES {
            bail!("{} is larger than {} MiB: it is damaged.", path.display(), MAX_LINE_BYTES >> 20);
        }
        let parse = |(index, line): (usize, &str)| match serde_json::from_str::<Entry>(line) {
            Ok(entry) if names::is_commit(&entry.commit) => Ok(entry),
            _ => bail!("{} is damaged at line {}", path.display(), index + 1),
        };
        let mut entries = text.lines().enumerate().map(parse).collect::<Result<Vec<_>>>()?;
        entries.retain(|entry| is_folder(&repository.join(&entry.commit)));
        Ok(entries)
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The commits of a repository, oldest first; none if there is no such repository.
    pub(crate) fn log(&self, repo_id: &str) -> Result<Vec<Entry>> {
        self.line(&self.repository(repo_id)?)
    }

    /// Where a file of a repository lies that has this content and stands in some commit.
    pub(crate) fn find_content(&self, repo_id: &str, sum: &FileSum) -> Result<Option<PathBuf>> {
        let repository = self.repository(repo_id)?;
        for entry in self.line(&repository)?.iter().rev() {
            let dir = repository.join(&entry.commit);
            for (name, _) in entry.sums.iter().filter(|(_, sha256)| **sha256 == sum.sha256) {
                let metadata = fs::symlink_metadata(dir.join(name));
                if metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == sum.bytes) {
                    return Ok(Some(dir.join(name)));
                }
            }
        }
        Ok(None)
    }

    /// When a commit was made.
    pub(crate) fn commit_time(&self, repo_id: &str, commit: &str) -> Result<SystemTime> {
        let dir = self.repository(repo_id)?.join(commit);
        let time = fs::metadata(&dir).and_then(|metadata| metadata.modified());
        time.with_context(|| format!("cannot read {}", dir.display()))
    }

    /// Opens a file of a commit; `None` where it holds none of that name.
    pub(crate) fn open_file(&self, repo_id: &str, commit: &str, name: &str) -> Result<Option<File>> {
        open_in(&self.commit_dir(repo_id, commit)?.0, name)
    }

    /// The folder of a commit that exists, and what the line says of it.
    fn commit_dir(&self, repo_id: &str, commit: &str) -> Result<(PathBuf, Entry)> {
        let repository = self.repository(repo_id)?;
        if !names::is_commit(commit) {
            let digits = names::COMMIT_DIGITS;
            return Err(input(format!("{commit:?} is no commit, which has {digits} hexadecimal digits.")));
        }
        if !is_folder_below(&self.dir, &repository) {
            return Err(no(format!("There is no repository {repo_id} in {}.", self.describe())));
        }
        let Some(entry) = self.line(&repository)?.into_iter().find(|entry| entry.commit == commit) else {
            return Err(no(format!("{repo_id} has no commit {commit} in {}.", self.describe())));
        };
        Ok((repository.join(commit), entry))
    }

    /// Puts the mark of a private repository, or takes it away.
    fn mark(&self, repository: &Path, private: bool) -> Result<()> {
        let marker = repository.join(PRIVATE_FILE);
        match private {
            true => self.disk.write(&marker, || {
                fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))
            })?,
            false => self.disk.remove(&marker)?,
        }
        self.disk.sync_dir(repository)
    }

    fn remove_temporary(&self, repository: &Path) -> Result<()> {
        self.disk.remove_all(repository, TEMPORARY)
    }
}

impl Hub for FolderHub {
    fn describe(&self) -> String {
        format!("the hub folder {}", self.dir.display())
    }

    fn check_writable(&self, repo_id: &str) -> Result<()> {
        let repository = self.repository(repo_id)?;
        let refuse = |path: &Path, why: &str| {
            let (hub, path) = (self.describe(), path.display());
            Err(input(format!("{repo_id} cannot be written in {hub}: {path} {why}.")))
        };
        let mut nearest = self.dir.as_path();
        for folder in below(&self.dir, &repository) {
            match fs::symlink_metadata(folder) {
                Ok(metadata) if metadata.is_dir() => nearest = folder,
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Ok(_) => return refuse(folder, "is no folder; move it away"),
                Err(error) => return refuse(folder, &format!("cannot be looked at ({error})")),
            }
        }
        if let Err(error) = rustix::fs::access(nearest, Access::WRITE_OK | Access::EXEC_OK) {
            return refuse(nearest, &format!("is not ours to write ({})", io::Error::from(error)));
        }
        for file in [LOCK_FILE, LINE_FILE].map(|name| repository.join(name)) {
            let Ok(metadata) = fs::symlink_metadata(&file) else { continue };
            if !metadata.is_file() {
                return refuse(&file, "is no regular file; move it away");
            }
            if let Err(error) = rustix::fs::access(&file, Access::WRITE_OK) {
                return refuse(&file, &format!("is not ours to write ({})", io::Error::from(error)));
            }
        }
        Ok(())
    }

    fn newest_commit(&self, repo_id: &str) -> Result<Option<String>> {
        Ok(self.line(&self.repository(repo_id)?)?.pop().map(|entry| entry.commit))
    }

    fn commits(&self, repo_id: &str) -> Result<Vec<String>> {
        Ok(self.line(&self.repository(repo_id)?)?.into_iter().rev().map(|entry| entry.commit).collect())
    }

    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        let (dir, entry) = self.commit_dir(repo_id, commit)?;
        let mut files = list(&dir)?;
        for file in &mut files {
            file.sum = entry.sums.get(&file.path).and_then(|sum| parse_sum(sum)).map(Checksum::Sha256);
        }
        Ok(files)
    }

    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        let (commit_dir, _) = self.commit_dir(repo_id, commit)?;
        let mut sums = Vec::with_capacity(files.len());
        for RemoteFile { path, .. } in files {
            let Some(mut stored) = open_in(&commit_dir, path)? else {
                let hub = self.describe();
                return Err(no(format!("{repo_id} holds no file {path:?} at the commit {commit} in {hub}.")));
            };
            let target = into.join(path);
            // What an earlier copy has left is no use: to read it would take as long as to copy the file.
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).custom_flags(OFlags::NOFOLLOW.bits() as i32);
            let copied = options.open(&target).and_then(|mut file| copy_hashed(&mut stored, &mut file));
            sums.push(copied.with_context(|| format!("cannot copy {path} of {repo_id} to {}", target.display()))?);
        }
        Ok(sums)
    }

    fn upload(&self, upload: &Upload<'_>) -> Result<String> {
        self.upload_folder(upload)
    }

    fn is_private(&self, repo_id: &str) -> Result<Option<bool>> {
        let repository = self.repository(repo_id)?;
        let is_there = is_folder_below(&self.dir, &repository);
        Ok(is_there.then(|| fs::symlink_metadata(repository.join(PRIVATE_FILE)).is_ok()))
    }

    fn set_private(&self, repo_id: &str, private: bool) -> Result<()> {
        let Some(is_private) = self.is_private(repo_id)? else {
            return Err(no(format!("There is no repository {repo_id} in {}.", self.describe())));
        };
        match is_private == private {
            true => Ok(()),
            false => self.mark(&self.repository(repo_id)?, private),
        }
    }
}

fn no(sentence: String) -> anyhow::Error {
    Failure::No(sentence).into()
}

/// The folders below `dir` on the way to `path`, outermost first, `path` itself the last.
fn below<'a>(dir: &Path, path: &'a Path) -> Vec<&'a Path> {
    let mut folders: Vec<&Path> = path.ancestors().take_while(|ancestor| *ancestor != dir).collect();
    folders.reverse();
    folders
}

/// Whether a folder is there, and no link on the way to it from `dir`.
fn is_folder_below(dir: &Path, path: &Path) -> bool {
    below(dir, path).into_iter().all(is_folder)
}

/// Whether a folder is there, and not a link to one.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Opens a file of a commit's folder; `None` where it holds none of that name.
fn open_in(commit_dir: &Path, name: &str) -> Result<Option<File>> {
    if !is_plain_name(name) {
        return Ok(None);
    }
    regular_file::open_no_link(&commit_dir.join(name)).with_context(|| format!("cannot read {name}"))
}

/// The files of a commit, sorted. Links, and whatever else never came through an upload, are none.
fn list(commit_dir: &Path) -> Result<Vec<RemoteFile>> {
    let context = || format!("cannot list {}", commit_dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(commit_dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        let metadata = entry.metadata().with_context(context)?;
        if let (true, Ok(path)) = (metadata.is_file(), entry.file_name().into_string()) {
            files.push(RemoteFile::new(path, metadata.len()));
        }
    }
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Copies what is left of a file, and says what it hashes to.
fn copy_hashed(from: &mut File, to: &mut File) -> io::Result<Sha256Sum> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut digest = Sha256::new();
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize().into()),
            Ok(len) => {
                digest.update(&buffer[..len]);
                to.write_all(&buffer[..len])?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A SHA-256 that is written in hexadecimal.
fn parse_sum(text: &str) -> Option<Sha256Sum> {
    hex::read(text)?.try_into().ok()
}

#[cfg(test)]
mod tests;
