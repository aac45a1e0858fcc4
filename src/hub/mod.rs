//! Where models live: the seam [`Hub`], and how models are named and identified: the directory hash that miners commit
//! to the chain ([`hash`], which [`file_hashes`] remembers) and the model id that carries it ([`model_id`]).
//!
//! Hash and id reproduce the reference's Python exactly, down to the order of file names that are not UTF-8: a hash that
//! differs in one bit is a model that no validator evaluates. The embedded hub is a [`folder`]; [`fetch`] brings a
//! published model here and refuses it where a validator would; [`judge`] holds a model folder against the criteria.

pub mod fetch;
pub mod file_hashes;
pub mod folder;
pub mod hash;
pub mod judge;
pub mod model_id;
pub mod names;

use std::path::Path;

use anyhow::Result;

/// A file of a repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path inside the repository, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// A hub: repositories `namespace/name`, each a line of immutable commits named by 40 hexadecimal digits.
///
/// Errors are those of [`crate::error::Failure`] where the kind matters: `Unreachable` when the hub would not answer,
/// `No` when a repository, commit or file is not there or not for us to see, `Input` when the user must mend something
/// (a name that is none, a hub that cannot be written). Names come from strangers: whatever they hold, nothing outside
/// the hub is read or written.
pub trait Hub: Send + Sync {
    /// What it is, in messages: "the hub folder checkpoints/local/hub".
    fn describe(&self) -> String;

    /// Whether the world can see it.
    fn is_real(&self) -> bool;

    /// Checks, without changing anything, whether a repository can be written, or made if it is not there.
    fn check_writable(&self, repo_id: &str) -> Result<()>;

    /// The newest commit of a repository; `None` if there is no such repository or it has none.
    fn newest_commit(&self, repo_id: &str) -> Result<Option<String>>;

    /// All commits of a repository, newest first; none if there is no such repository.
    fn commits(&self, repo_id: &str) -> Result<Vec<String>>;

    /// The files of a repository at a commit, sorted by path.
    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>>;

    /// Copies some files of a commit into an existing folder, each to its own path below it.
    fn download(&self, repo_id: &str, commit: &str, paths: &[&str], into: &Path) -> Result<()>;

    /// Makes a commit that holds exactly these files of a folder (plain names), and the repository if need be; returns
    /// the commit. If the newest commit holds just the same files with the same content, nothing is made and that
    /// commit is returned, so that an upload which was cut off after its end can be repeated.
    fn upload(&self, repo_id: &str, dir: &Path, names: &[&str], message: &str) -> Result<String>;
}
