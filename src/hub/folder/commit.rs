//! How commits are made in the hub folder: from a folder of the user's, or as a change of the newest one.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{BUFFER_BYTES, Entry, FolderHub, LINE_FILE, LOCK_FILE, PRIVATE_FILE, TEMPORARY};
use super::{below, is_folder, is_folder_below, list, no};
use crate::disk::is_out_of_space;
use crate::error::{Failure, input};
use crate::hex;
use crate::hub::{ATTRIBUTES_FILE, CARD_FILE, Hub, Upload, names};
use crate::lock;
use crate::model::weights::{FileSum, HashedReader, HashedWriter, is_plain_name};
use crate::regular_file;

/// A commit that is told by what it changes.
#[derive(Debug)]
pub struct Change<'a> {
    /// The repository, which is there.
    pub repo_id: &'a str,
    /// The commit that must be the newest; `None`: whichever is.
    pub parent: Option<&'a str>,
    /// Files that are new, or take the place of others, by their plain names.
    pub add: &'a BTreeMap<String, Addition>,
    /// Files that go.
    pub delete: &'a [String],
    /// The message of the commit.
    pub message: &'a str,
}

/// A file that a commit adds.
#[derive(Clone, Debug)]
pub enum Addition {
    /// Its content.
    Bytes(bytes::Bytes),
    /// A file on the hub's disk that nobody writes to, and what it holds. The commit's is a link to it, so that a model of
    /// 3 GB takes no time.
    File(PathBuf, FileSum),
}

/// What became of a change.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is this commit.
    Made(String),
    /// Another commit than the parent is the newest.
    Stale,
    /// There is no such file to delete.
    Missing(String),
}

/// What becomes a file of a commit.
enum Source<'a> {
    Copy(PathBuf),
    Bytes(&'a [u8]),
    /// As [`Addition::File`].
    Link(PathBuf, FileSum),
}

impl FolderHub {
    /// As [`Hub::upload`].
    pub(super) fn upload_folder(&self, upload: &Upload<'_>) -> Result<String> {
        let &Upload { repo_id, dir, names, .. } = upload;
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
        self.make_folders(&repository)?;
        self.locked(repo_id, &repository, || {
            self.commit_folder(&repository, dir, &names, upload).map_err(|error| {
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
        })
    }

    fn commit_folder(&self, repository: &Path, dir: &Path, names: &[&str], upload: &Upload<'_>) -> Result<String> {
        let line = self.line(repository)?;
        match line.last() {
            Some(newest) if holds(&repository.join(&newest.commit), dir, names)? => return Ok(newest.commit.clone()),
            Some(_) => {}
            None => self.hide_new(repository, upload.private)?,
        }
        let mut tree: Vec<_> = names.iter().map(|&name| (name, Source::Copy(dir.join(name)))).collect();
        tree.extend(upload.card.map(|card| (CARD_FILE, Source::Bytes(card.as_bytes()))));
        self.commit(repository, line, &tree, upload.message)
    }

    /// Makes a repository with a first commit of these files; false if it is there and has one.
    pub fn create_repository(&self, repo_id: &str, private: bool, first: &[(&str, &[u8])]) -> Result<bool> {
        self.check_writable(repo_id)?;
        let repository = self.repository(repo_id)?;
        self.make_folders(&repository)?;
        self.locked(repo_id, &repository, || {
            let line = self.line(&repository)?;
            if !line.is_empty() {
                return Ok(false);
            }
            self.hide_new(&repository, private)?;
            let tree: Vec<_> = first.iter().map(|&(name, content)| (name, Source::Bytes(content))).collect();
            self.commit(&repository, line, &tree, "initial commit").map(|_| true)
        })
    }

    /// Makes a commit out of the newest one. It is made even where it changes nothing, as on Hugging Face.
    pub fn change(&self, change: &Change<'_>) -> Result<Changed> {
        let &Change { repo_id, parent, add, delete, message } = change;
        let repository = self.repository(repo_id)?;
        if !is_folder_below(&self.dir, &repository) {
            return Err(no(format!("There is no repository {repo_id} in {}.", self.describe())));
        }
        self.locked(repo_id, &repository, || {
            let line = self.line(&repository)?;
            let newest = line.last();
            if parent.is_some() && parent != newest.map(|newest| newest.commit.as_str()) {
                return Ok(Changed::Stale);
            }
            let mut tree = BTreeMap::new();
            if let Some(newest) = newest {
                let dir = repository.join(&newest.commit);
                for file in list(&dir)? {
                    let path = dir.join(&file.path);
                    let sum = match newest.sums.get(&file.path) {
                        Some(sha256) => FileSum { bytes: file.bytes, sha256: sha256.clone() },
                        None => HashedReader::open(&path)?.finish()?,
                    };
                    tree.insert(file.path, Source::Link(path, sum));
                }
            }
            for name in delete {
                if tree.remove(name).is_none() {
                    return Ok(Changed::Missing(name.clone()));
                }
            }
            for (name, addition) in add {
                if !is_plain_name(name) {
                    return Err(input(format!("{name:?} is no plain name of a file.")));
                }
                let source = match addition {
                    Addition::Bytes(content) => Source::Bytes(content),
                    Addition::File(path, sum) => Source::Link(path.clone(), sum.clone()),
                };
                tree.insert(name.clone(), source);
            }
            let tree: Vec<_> = tree.iter().map(|(name, source)| (name.as_str(), source)).collect();
            self.commit(&repository, line, &tree, message).map(Changed::Made)
        })
    }

    /// Works on a repository while nobody else does, and removes what is temporary before and after.
    fn locked<T>(&self, repo_id: &str, repository: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(_lock) = lock::wait(&repository.join(LOCK_FILE), self.patience)? else {
            let hub = self.describe();
            let sentence = format!("Another process is uploading to {repo_id} in {hub}; try again when it is done.");
            return Err(Failure::Unreachable(sentence).into());
        };
        self.remove_temporary(repository)?;
        let done = work();
        // Best effort: what cannot be removed now is removed by the next one.
        let _ = self.remove_temporary(repository);
        done
    }

    /// Makes the folders of a repository, where they are not there.
    fn make_folders(&self, repository: &Path) -> Result<()> {
        for folder in below(&self.dir, repository) {
            // Another process may make it at the same time.
            match self.disk.create_dir(folder) {
                Err(error) if !is_folder(folder) => return Err(error),
                Err(_) => {}
                Ok(()) => self.disk.sync_dir(folder.parent().unwrap_or(&self.dir))?,
            }
        }
        Ok(())
    }

    /// Hides or shows a repository that has no commit yet: whoever made its folder, as he wanted it, may have been killed.
    fn hide_new(&self, repository: &Path, private: bool) -> Result<()> {
        match fs::symlink_metadata(repository.join(PRIVATE_FILE)).is_ok() == private {
            true => Ok(()),
            false => self.mark(repository, private),
        }
    }

    /// Adds a commit to the line. The caller holds the lock and has removed what is temporary.
    fn commit<'a>(
        &self,
        repository: &Path,
        mut line: Vec<Entry>,
        tree: &[(&str, impl Borrow<Source<'a>>)],
        message: &str,
    ) -> Result<String> {
        let temporary = repository.join(format!("{TEMPORARY}commit"));
        self.disk.create_dir(&temporary)?;
        let mut sums = Vec::with_capacity(tree.len());
        for (name, source) in tree {
            let target = temporary.join(name);
            sums.push((*name, self.disk.write(&target, || place(source.borrow(), &target))?));
        }
        self.disk.sync_dir(&temporary)?;
        let commit = commit_name(line.last().map(|entry| entry.commit.as_str()), &sums, message)?;
        let commit_dir = repository.join(&commit);
        if fs::symlink_metadata(&commit_dir).is_ok() {
            // It stood in no line: the line was lost, or somebody put it there.
            self.disk.rename(&commit_dir, &repository.join(format!("{TEMPORARY}stray")))?;
        }
        let sums = sums.into_iter().map(|(name, sum)| (name.to_owned(), sum.sha256)).collect();
        line.push(Entry { commit: commit.clone(), message: message.to_owned(), sums });
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
}

/// Makes a file of a commit, which nobody may write to.
fn place(source: &Source<'_>, target: &Path) -> Result<FileSum> {
    let sum = match source {
        Source::Copy(path) => copy(path, target)?,
        Source::Bytes(content) => write_whole(content, target)?,
        // Where the disk knows no links, a copy does as well.
        Source::Link(path, sum) => match fs::hard_link(path, target) {
            Ok(()) => sum.clone(),
            Err(_) => copy(path, target)?,
        },
    };
    let read_only = fs::set_permissions(target, Permissions::from_mode(0o444));
    read_only.with_context(|| format!("cannot write {}", target.display()))?;
    Ok(sum)
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

/// Copies a file to a new one, and waits until it is on disk.
fn copy(from: &Path, to: &Path) -> Result<FileSum> {
    let context = || format!("cannot read {}", from.display());
    let mut source = regular_file::open(from).with_context(context)?;
    let mut writer = HashedWriter::create(to)?;
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
    Ok(hex::digits(&digest[..names::COMMIT_DIGITS / 2]))
}
