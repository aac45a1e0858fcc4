//! Where models live: the seam [`Hub`], and how models are named and identified: the directory hash that miners commit
//! to the chain ([`hash`], which [`file_hashes`] remembers) and the model id that carries it ([`model_id`]).
//!
//! Hash and id reproduce the reference's Python exactly, down to the order of file names that are not UTF-8: a hash that
//! differs in one bit is a model that no validator evaluates. The embedded hub is a [`folder`], the real one is
//! [`huggingface`]; [`fetch`] brings a published model here, to a [`cache`], and refuses it where a validator would;
//! [`judge`] holds a model folder against the criteria.

pub mod cache;
pub mod fetch;
pub mod file_hashes;
pub mod folder;
pub mod hash;
pub mod huggingface;
pub mod judge;
mod known_hash;
pub mod model_id;
pub mod names;
pub mod progress;
pub(crate) mod room;
#[cfg(test)]
pub(crate) mod testing;

use std::path::Path;

use anyhow::Result;

/// A file of a repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path inside the repository, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// What the hub says its content hashes to; `None` where it says nothing.
    pub sum: Option<Checksum>,
}

impl RemoteFile {
    /// A file of which the hub says no more than its size.
    pub fn new(path: impl Into<String>, bytes: u64) -> Self {
        Self { path: path.into(), bytes, sum: None }
    }
}

/// What tells the content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256 of the content, which hubs keep of large files.
    Sha256([u8; 32]),
    /// SHA-1 of git's object: the content after `blob LENGTH\0`.
    GitBlob([u8; 20]),
}

/// SHA-256 of a file's content.
pub type Sha256Sum = [u8; 32];

/// A commit that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// The repository, `namespace/name`; it is made if need be.
    pub repo_id: &'a str,
    /// The folder of the files.
    pub dir: &'a Path,
    /// Their names in it, plain ones, and in the repository.
    pub names: &'a [&'a str],
    /// The text of the repository's page, its README.md; `None`: there is none.
    pub card: Option<&'a str>,
    /// The message of the commit.
    pub message: &'a str,
    /// Whether a repository that is made for it is one that only its owner sees.
    pub private: bool,
}

impl<'a> Upload<'a> {
    /// Files without a page, for the world to see.
    pub fn new(repo_id: &'a str, dir: &'a Path, names: &'a [&'a str], message: &'a str) -> Self {
        Self { repo_id, dir, names, card: None, message, private: false }
    }
}

/// The file of a repository's page.
pub const CARD_FILE: &str = "README.md";
/// A file that hubs put into each repository by themselves.
pub const ATTRIBUTES_FILE: &str = ".gitattributes";

/// A hub: repositories `namespace/name`, each a line of immutable commits named by 40 hexadecimal digits.
///
/// Errors are those of [`crate::error::Failure`] where the kind matters: `Unreachable` when the hub would not answer,
/// `No` when a repository, commit or file is not there or not for us to see, `Input` when the user must mend something
/// (a name that is none, a hub that cannot be written, a token that is refused). Names come from strangers: whatever they
/// hold, nothing outside the hub is read or written.
pub trait Hub: Send + Sync {
    /// What it is, in messages: "the hub folder checkpoints/local/hub".
    fn describe(&self) -> String;

    /// Checks, without changing anything, whether a repository can be written, or made if it is not there.
    fn check_writable(&self, repo_id: &str) -> Result<()>;

    /// The newest commit of a repository; `None` if there is no such repository or it has none.
    fn newest_commit(&self, repo_id: &str) -> Result<Option<String>>;

    /// All commits of a repository, newest first; none if there is no such repository.
    fn commits(&self, repo_id: &str) -> Result<Vec<String>>;

    /// The files of a repository at a commit, sorted by path.
    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>>;

    /// Brings some files of a commit, as [`files`](Self::files) lists them, into an existing folder, each to its own path
    /// below it, and returns what their contents hash to. What an earlier call has left of a file may be gone on with.
    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>>;

    /// Makes a commit that holds exactly these files, beside the page and what the hub puts into each repository, and
    /// returns it. If the newest commit holds just the same files with the same content, whatever its page, nothing is made
    /// and that commit is returned, so that an upload which was cut off after its end can be repeated.
    fn upload(&self, upload: &Upload<'_>) -> Result<String>;

    /// Whether only its owner sees a repository; `None` if there is no such repository.
    fn is_private(&self, repo_id: &str) -> Result<Option<bool>>;

    /// Hides a repository that is there from all but its owner, or shows it.
    fn set_private(&self, repo_id: &str, private: bool) -> Result<()>;
}
