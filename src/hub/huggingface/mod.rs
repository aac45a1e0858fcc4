//! The hub of Hugging Face, or another server that speaks as it does (`assay local serve --hub`).
//!
//! What is read is read by requests of our own: sizes first, then files, gone on with by range after a cut, and held against
//! the sums that the hub tells. What is written is written through the `hf-hub` crate, but for large files where the hub
//! takes them by plain PUT, which that crate does not do.

mod answer;
mod download;
mod http;
mod listing;
mod part;
mod pause;
mod remembered;
mod throttle;
mod token;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

use super::file_hashes::FileHashes;
use super::{Hub, RemoteFile, Sha256Sum, Upload};
use http::Http;
pub use pause::Patience;
use throttle::Throttle;
pub use token::{Token, looks_like_token};

/// Where Hugging Face is.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Which hub, and how it is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its address.
    pub endpoint: String,
    /// Who we are; `None`: nobody, who sees what is public.
    pub token: Option<Token>,
    /// Bytes that all downloads may take together in a second; `None`: as many as come.
    pub max_bytes_per_second: Option<u64>,
    /// Hashes of files that are known.
    pub hashes: FileHashes,
    /// How long is waited.
    pub patience: Patience,
}

/// A hub that is asked over HTTP.
pub struct HuggingFace {
    runtime: Runtime,
    http: Http,
    throttle: Arc<Throttle>,
    hashes: FileHashes,
}

impl HuggingFace {
    /// A client of a hub, which is not asked yet.
    pub fn new(options: Options) -> Result<Self> {
        let http = Http::new(&options.endpoint, options.token, options.patience)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("hub")
            .enable_all()
            .build()
            .context("the threads that ask the hub cannot be started")?;
        let throttle = Arc::new(Throttle::new(options.max_bytes_per_second));
        Ok(Self { runtime, http, throttle, hashes: options.hashes })
    }
}

impl Hub for HuggingFace {
    fn describe(&self) -> String {
        format!("the hub {}", self.http.endpoint())
    }

    fn is_real(&self) -> bool {
        true
    }

    fn check_writable(&self, _repo_id: &str) -> Result<()> {
        bail!("not yet")
    }

    fn newest_commit(&self, repo_id: &str) -> Result<Option<String>> {
        self.runtime.block_on(self.ask_newest_commit(repo_id))
    }

    fn commits(&self, repo_id: &str) -> Result<Vec<String>> {
        self.runtime.block_on(self.list_commits(repo_id))
    }

    fn files(&self, repo_id: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        self.runtime.block_on(self.list_files(repo_id, commit))
    }

    fn download(&self, repo_id: &str, commit: &str, files: &[&RemoteFile], into: &Path) -> Result<Vec<Sha256Sum>> {
        files.iter().map(|file| self.bring(repo_id, commit, file, into)).collect()
    }

    fn upload(&self, _upload: &Upload<'_>) -> Result<String> {
        bail!("not yet")
    }

    fn is_private(&self, repo_id: &str) -> Result<Option<bool>> {
        self.runtime.block_on(self.ask_is_private(repo_id))
    }

    fn set_private(&self, _repo_id: &str, _private: bool) -> Result<()> {
        bail!("not yet")
    }
}

#[cfg(test)]
mod tests;
