//! The embedded hub: a folder.
//!
//! ```text
//! HUB/namespace/name/COMMIT/        the files of a commit, which nobody may write to
//! HUB/namespace/name/commits.jsonl  the line of commits, oldest first
//! HUB/namespace/name/.lock          held by the process that makes a commit
//! HUB/namespace/name/.private       is there if only the owner sees the repository, where others can tell
//! ```
//! A commit exists if its folder is there and the line names it. Its name is the SHA-256 of its parent, its files and
//! its message, so an upload that was killed and is repeated makes the commit that the first would have made. The files
//! are written under a temporary name and synced, the line is replaced, and with the last rename the commit is there;
//! what a killed upload leaves behind, the next one removes. No link inside the hub is followed.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ATTRIBUTES_FILE, CARD_FILE, Hub, RemoteFile, Sha256Sum, Upload, names};
use crate::disk::{Disk, is_out_of_space};
use crate::error::{Failure, input};
use crate::lock;
use crate::model::weights::{FileSum, HashedWriter, is_plain_name};
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
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    commit: String,
    message: String,
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

    /// The folder of a commit that exists.
    fn commit_dir(&self, repo_id: &str, commit: &str) -> Result<PathBuf> {
        let repository = self.repository(repo_id)?;
        if !names::is_commit(commit) {
            let digits = names::COMMIT_DIGITS;
            return Err(input(format!("{commit:?} is no commit, which has {digits} hexadecimal digits.")));
        }
        if !is_folder_below(&self.dir, &repository) {
            return Err(no(format!("There is no repository {repo_id} in {}.", self.describe())));
        }
        if !self.line(&repository)?.iter().any(|entry| entry.commit == commit) {
            return Err(no(format!("{repo_id} has no commit {commit} in {}.", self.describe())));
        }
        Ok(repository.join(commit))
    }

    /// Makes the folders of a repository, where it is not there: a private one, if so.
    fn make_repository(&self, repository: &Path, private: bool) -> Result<()> {
        let is_new = !is_folder_below(&self.dir, repository);
        for folder in below(&self.dir, repository) {
            // Another process may make it at the same time.
            match self.disk.create_dir(folder) {
                Err(error) if !is_folder(folder) => return Err(error),
                Err(_) => {}
                Ok(()) => self.disk.sync_dir(folder.parent().unwrap_or(&self.dir))?,
            }
        }
        let marker = repository.join(PRIVATE_FILE);
        if is_new && private && fs::symlink_metadata(&marker).is_err() {
            self.disk.write(&marker, || {
                fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))
            })?;
        }
        Ok(())
    }

    /// Adds a commit to the line. The caller holds the lock and has removed what is temporary.
    fn commit(
        &self,
        repository: &Path,
        dir: &Path,
        names: &[&str],
        card: Option<&str>,
        message: &str,
    ) -> Result<String> {
        let mut line = self.line(repository)?;
        if let Some(newest) = line.last()
            && holds(&repository.join(&newest.commit), dir, names)?
        {
            return Ok(newest.commit.clone());
        }
        let temporary = repository.join(format!("{TEMPORARY}commit"));
        self.disk.create_dir(&temporary)?;
        let mut tree = Vec::with_capacity(names.len());
        for &name in names {
            let target = temporary.join(name);
            tree.push((name, self.disk.write(&target, || copy(&dir.join(name), &target))?));
        }
        if let Some(card) = card {
            let target = temporary.join(CARD_FILE);
            tree.push((CARD_FILE, self.disk.write(&target, || write_whole(card.as_bytes(), &target))?));
        }
        self.disk.sync_dir(&temporary)?;
        let commit = commit_name(line.last().map(|entry| entry.commit.as_str()), &tree, message)?;
        let commit_dir = repository.join(&commit);
        if fs::symlink_metadata(&commit_dir).is_ok() {
            // It stood in no line: the line was lost, or somebody put it there.
            self.disk.rename(&commit_dir, &repository.join(format!("{TEMPORARY}stray")))?;
        }
        line.push(Entry { commit: commit.clone(), message: message.to_owned() });
        self.write_line(repository, &line)?;
        self.disk.rename(&temporary, &commit_dir)?;
        self.disk.sync_dir(repository)?;
        Ok(commit)
    }

    fn write_line(&self, repository: &Path, line: &[Entry]) -> Result<()> {
        let mut text = Vec::new();
        for entry in line {
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
        }
        let temporary = repository.join(format!("{TEMPORARY}{LINE_FILE}"));
        self.disk.write(&temporary, || write_whole(&text, &temporary))?;
        self.disk.rename(&temporary, &repository.join(LINE_FILE))?;
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

    fn is_real(&self) -> bool {
        false
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
        list(&self.commit_dir(repo_id, commit)?)
    }

    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        let commit_dir = self.commit_dir(repo_id, commit)?;
        let mut sums = Vec::with_capacity(files.len());
        for RemoteFile { path, .. } in files {
            let stored = if is_plain_name(path) {
                regular_file::open_no_link(&commit_dir.join(path)).with_context(|| format!("cannot read {path}"))?
            } else {
                None
            };
            let Some(mut stored) = stored else {
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
        let &Upload { repo_id, dir, names, card, message, private } = upload;
        self.check_writable(repo_id)?;
        let repository = self.repository(repo_id)?;
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Err(input(format!("There is no file to upload to {repo_id}.")));
        }
        for name in &names {
            if !is_plain_name(name) || !dir.join(name).is_file() {
                return Err(input(format!("{name:?} is no file of {}.", dir.display())));
            }
        }
        self.make_repository(&repository, private)?;
        let Some(_lock) = lock::wait(&repository.join(LOCK_FILE), self.patience)? else {
            let hub = self.describe();
            let sentence = format!("Another process is uploading to {repo_id} in {hub}; try again when it is done.");
            return Err(Failure::Unreachable(sentence).into());
        };
        self.remove_temporary(&repository)?;
        let made = self.commit(&repository, dir, &names, card, message);
        // Best effort: what cannot be removed now is removed by the next upload.
        let _ = self.remove_temporary(&repository);
        made.map_err(|error| {
            let hub = self.describe();
            if is_out_of_space(&error) {
                error.context(format!(
                    "No space left in {hub} for {}: nothing was uploaded to {repo_id}. Free some space and try again",
                    dir.display()
                ))
            } else {
                error.context(format!("{} could not be uploaded to {repo_id} in {hub}", dir.display()))
            }
        })
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
        let marker = self.repository(repo_id)?.join(PRIVATE_FILE);
        match (is_private, private) {
            (false, true) => self.disk.write(&marker, || {
                File::create_new(&marker).with_context(|| format!("cannot write {}", marker.display())).map(drop)
            }),
            (true, false) => self.disk.remove(&marker),
            _ => Ok(()),
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

/// Whether a commit holds just these files (sorted) of a folder, with the same content, beside what is no part of a model.
fn holds(commit_dir: &Path, dir: &Path, names: &[&str]) -> Result<bool> {
    let mut stored = list(commit_dir)?;
    stored.retain(|file| {
        ![CARD_FILE, ATTRIBUTES_FILE].contains(&file.path.as_str()) || names.contains(&file.path.as_str())
    });
    if !stored.iter().map(|file| file.path.as_str()).eq(names.iter().copied()) {
        return Ok(false);
    }
    for file in stored {
        let (path, stored_path) = (dir.join(&file.path), commit_dir.join(&file.path));
        let context = || format!("cannot compare {} and {}", path.display(), stored_path.display());
        let ours = regular_file::open(&path).with_context(context)?;
        let Some(theirs) = regular_file::open_no_link(&stored_path).with_context(context)? else { return Ok(false) };
        if ours.metadata().with_context(context)?.len() != file.bytes
            || !same_content(ours, theirs, file.bytes).with_context(context)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether two files of the same size hold the same bytes; ends at the first difference, so two models are told apart
/// by their first block.
fn same_content(mut first: File, mut second: File, bytes: u64) -> io::Result<bool> {
    let mut buffers = [vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(BUFFER_BYTES as u64) as usize;
        let [ours, theirs] = buffers.each_mut().map(|buffer| &mut buffer[..len]);
        first.read_exact(ours)?;
        second.read_exact(theirs)?;
        if ours != theirs {
            return Ok(false);
        }
        left -= len as u64;
    }
    Ok(true)
}

/// Writes a new file, and waits until it is on disk.
fn write_whole(bytes: &[u8], to: &Path) -> Result<FileSum> {
    let mut writer = HashedWriter::create(to)?;
    writer.write_bytes(bytes)?;
    writer.finish()
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

/// Copies a file to a new one that nobody may write to, and waits until it is on disk.
fn copy(from: &Path, to: &Path) -> Result<FileSum> {
    let context = || format!("cannot read {}", from.display());
    let mut source = regular_file::open(from).with_context(context)?;
    let mut writer = HashedWriter::create(to)?;
    fs::set_permissions(to, Permissions::from_mode(0o444)).with_context(|| format!("cannot write {}", to.display()))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return writer.finish(),
            Ok(len) => writer.write_bytes(&buffer[..len])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
}

/// The name of a commit. What is hashed is JSON, in which no two commits have the same text.
fn commit_name(parent: Option<&str>, tree: &[(&str, FileSum)], message: &str) -> Result<String> {
    let tree: Vec<_> = tree.iter().map(|(name, sum)| (name, sum.bytes, &sum.sha256)).collect();
    let digest = Sha256::digest(serde_json::to_vec(&(parent, tree, message))?);
    let mut commit = String::new();
    for byte in &digest[..names::COMMIT_DIGITS / 2] {
        write!(commit, "{byte:02x}")?;
    }
    Ok(commit)
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
