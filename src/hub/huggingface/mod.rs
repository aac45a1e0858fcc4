//! The hub of Hugging Face, or another server that speaks as it does (`assay local serve --hub`).
//!
//! What is read is read by requests of our own: sizes first, then files, gone on with by range after a cut, and held against
//! the sums that the hub tells. What is written is written so too (`upload.rs`), and through the `hf-hub` crate where the hub
//! takes large files by Xet (`xet.rs`).

mod account;
mod answer;
mod call;
mod commit;
pub(crate) mod dataset;
mod download;
mod fault;
mod http;
mod lfs;
mod listing;
mod pace;
mod part;
mod pause;
mod remembered;
mod repository;
mod source;
mod throttle;
mod token;
mod upload;
mod viewer;
mod xet;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use super::file_hashes::FileHashes;
use super::progress::Observer;
use super::{Hub, RemoteFile, Sha256Sum, Upload};
use crate::recipe;
pub(crate) use account::ANY_NAMESPACE;
use http::Http;
pub use pause::Patience;
use throttle::Throttle;
pub use token::{Token, looks_like_token};
use upload::Uploader;
pub use viewer::{PAGE_ROWS, Unanswered, VIEWER_ENDPOINT, Viewer};

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
    /// Who is told how far up- and downloads are, and why nothing moves.
    pub observer: Observer,
}

impl Options {
    /// What a recipe and the environment say, with the token of this machine.
    pub fn of(hub: &recipe::Hub, hashes: FileHashes, observer: Observer) -> Result<Self> {
        let of_environment = || std::env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty());
        let endpoint = hub.endpoint.clone().or_else(of_environment);
        Ok(Self {
            endpoint: endpoint.unwrap_or_else(|| ENDPOINT.to_owned()),
            token: Token::for_endpoint(hub.endpoint.as_deref(), ENDPOINT)?,
            max_bytes_per_second: hub.download_mb_per_second.map(|megabytes| (megabytes * 1e6) as u64),
            hashes,
            patience: Patience::default(),
            observer,
        })
    }
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
        let http = Http::new(&options.endpoint, options.token, options.patience, options.observer)?;
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

    fn check_writable(&self, repo_id: &str) -> Result<()> {
        self.runtime.block_on(async {
            let there = repository::look(&self.http, repo_id).await?;
            there.iter().try_for_each(|there| there.check_open(repo_id))?;
            account::check_may_write(&self.http, repo_id, there.is_none()).await
        })
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
        let transfer = self.http.observer.transfer(format!("downloading {repo_id}"));
        let total_bytes = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        let mut before = 0;
        let bring = |file: &&RemoteFile| {
            let tell = |len: u64| transfer.teller().tell(before + len, total_bytes);
            let sum = self.bring(repo_id, commit, file, into, &tell)?;
            before += file.bytes;
            Ok(sum)
        };
        files.iter().map(bring).collect()
    }

    fn upload(&self, upload: &Upload<'_>) -> Result<String> {
        let uploader = Uploader::new(self, upload)?;
        self.runtime.block_on(uploader.run())
    }

    fn is_private(&self, repo_id: &str) -> Result<Option<bool>> {
        self.runtime.block_on(self.ask_is_private(repo_id))
    }

    fn set_private(&self, repo_id: &str, private: bool) -> Result<()> {
        self.runtime.block_on(repository::set_private(&self.http, repo_id, private))
    }
}

#[cfg(test)]
pub(crate) mod tests;
