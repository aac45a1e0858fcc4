//! Uploads: whatever is cut off on the way, in the end there is one commit with the files, or a sentence why not.
//!
//! Each attempt begins by looking: if the newest commit holds the files, the upload is done, whoever or whichever earlier
//! attempt made it. Otherwise the large files that the hub lacks are sent, and a commit is asked for on top of the one that
//! was seen. The hub refuses it if there is another one by then, so that no two attempts can both succeed; and where the
//! answer to any request that changes something is lost, the next attempt looks again.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::account::write_error;
use super::call::Call;
use super::fault::Fault;
use super::http::Http;
use super::lfs::{self, Transfer};
use super::source::Source;
use super::{HuggingFace, commit, repository, xet};
use crate::error::input;
use crate::hub::{ATTRIBUTES_FILE, CARD_FILE, RemoteFile, Upload, names, progress};

/// The line of commits.
pub(super) const BRANCH: &str = "main";
const JSON: &str = "application/json";
const MAX_BYTES: usize = 4 << 20;
/// A larger file is a large one, whatever the hub takes it for: the others are sent as text in one request.
const MAX_REGULAR_BYTES: u64 = 10 << 20;

/// Why an attempt came to nothing.
pub(super) enum Setback {
    /// It may be done, or may be done the next time, after a pause that was asked for.
    Again(anyhow::Error, Option<Duration>),
    /// It will not be done.
    Over(anyhow::Error),
}

impl From<anyhow::Error> for Setback {
    fn from(error: anyhow::Error) -> Self {
        Self::Over(error)
    }
}

impl Setback {
    /// What follows from the end of a request that was made but once.
    pub(super) fn of(http: &Http, fault: Fault, what: &str) -> Self {
        let is_again = match &fault {
            Fault::Lost(_) | Fault::TooLong(_) => true,
            Fault::Refused(refusal) => match refusal.status.as_u16() {
                // These were waited for already.
                429 | 503 => false,
                // Another commit was made since.
                409 | 412 => true,
                _ => !refusal.is_final(),
            },
            Fault::BadToken | Fault::Interrupted => false,
        };
        let error = write_error(http, fault, what);
        if is_again { Self::Again(error, None) } else { Self::Over(error) }
    }
}

/// An upload on its way.
pub(super) struct Uploader<'a> {
    pub(super) hub: &'a HuggingFace,
    pub(super) upload: &'a Upload<'a>,
    pub(super) sources: Vec<Source>,
    /// The large files that have gone up.
    sent: BTreeSet<String>,
    pub(super) transfer: progress::Transfer,
}

/// The newest commit, on top of which the next one is made.
pub(super) struct Parent {
    /// `None`: there is none yet.
    pub(super) commit: Option<String>,
    files: Vec<RemoteFile>,
}

impl<'a> Uploader<'a> {
    /// Checks and hashes the files.
    pub(super) fn new(hub: &'a HuggingFace, upload: &'a Upload<'a>) -> Result<Self> {
        names::repository(upload.repo_id).map_err(input)?;
        let sources = Source::all(upload.dir, upload.names, &hub.hashes)?;
        if sources.is_empty() {
            return Err(input(format!("There is no file to upload to {}.", upload.repo_id)));
        }
        let transfer = hub.http.observer.transfer(format!("uploading {}", upload.repo_id));
        Ok(Self { hub, upload, sources, sent: BTreeSet::new(), transfer })
    }

    /// Makes the commit, and returns it.
    pub(super) async fn run(mut self) -> Result<String> {
        let mut tries = 1;
        loop {
            let num_sent = self.sent.len();
            let (error, asked) = match self.attempt().await {
                Ok(commit) => return Ok(commit),
                Err(Setback::Over(error)) => return Err(error),
                Err(Setback::Again(error, asked)) => (error, asked),
            };
            // Who gets on does not give up; what is sent again, because the hub has lost it, gets nobody on.
            tries = if self.sent.len() > num_sent { 1 } else { tries + 1 };
            let patience = &self.hub.http.patience;
            let pause = patience.pause_of(tries, asked);
            if tries > patience.tries || pause > patience.longest_pause {
                return Err(error);
            }
            let rested = self.hub.http.rest_because(pause, &format!("{error:#}")).await;
            rested.map_err(|fault| self.error(fault))?;
        }
    }

    async fn attempt(&mut self) -> Result<String, Setback> {
        let parent = self.parent().await?;
        if let Some(commit) = &parent.commit
            && self.is_at(&parent.files)?
        {
            return Ok(commit.clone());
        }
        let modes = self.large().await?;
        let (large, small): (Vec<_>, Vec<_>) = self.sources.iter().zip(modes).partition(|(_, is_large)| *is_large);
        let [large, small] = [large, small].map(|files| files.into_iter().map(|(file, _)| file).collect::<Vec<_>>());
        match lfs::ask(&self.hub.http, self.upload.repo_id, &large, &self.what()).await? {
            Transfer::Xet => xet::commit(self, &parent).await,
            Transfer::Basic(orders) => {
                let total_bytes = large.iter().map(|file| file.bytes).sum();
                let missing = orders.iter().filter_map(|order| order.source(&large)).map(|file| file.bytes);
                let mut done_bytes = total_bytes - missing.sum::<u64>().min(total_bytes);
                for order in orders {
                    let Some(source) = order.source(&large) else { continue };
                    let bytes = (done_bytes, total_bytes);
                    lfs::send(&self.hub.http, order, source, self.transfer.teller(), bytes).await?;
                    done_bytes += source.bytes;
                    self.sent.insert(source.oid.clone());
                }
                commit::make(self, &parent, &large, &small).await
            }
        }
    }

    /// The newest commit and its files. The repository is made where it is not there.
    async fn parent(&self) -> Result<Parent> {
        let repo_id = self.upload.repo_id;
        let mut repository = repository::look(&self.hub.http, repo_id).await?;
        if repository.is_none() {
            repository::create(&self.hub.http, repo_id, self.upload.private).await?;
            // Hubs put a first commit into each.
            repository = repository::look(&self.hub.http, repo_id).await?;
        }
        let commit = repository.and_then(|repository| repository.commit);
        let files = match &commit {
            Some(commit) => self.hub.list_files(repo_id, commit).await?,
            None => Vec::new(),
        };
        Ok(Parent { commit, files })
    }

    /// Whether a commit holds just the files, beside what is no part of a model.
    fn is_at(&self, files: &[RemoteFile]) -> Result<bool> {
        let is_ours = |file: &&RemoteFile| self.sources.iter().any(|source| source.name == file.path);
        let is_extra = |file: &&RemoteFile| [CARD_FILE, ATTRIBUTES_FILE].contains(&file.path.as_str());
        let mut files: Vec<_> = files.iter().filter(|file| is_ours(file) || !is_extra(file)).collect();
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if files.len() != self.sources.len() {
            return Ok(false);
        }
        for (source, file) in self.sources.iter().zip(files) {
            if !source.is_at(file)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Of each file, whether it is one that the hub keeps as a large one, and not as text in the history.
    async fn large(&self) -> Result<Vec<bool>> {
        #[derive(Deserialize)]
        struct Modes {
            files: Vec<Mode>,
        }
        #[derive(Deserialize)]
        struct Mode {
            path: String,
            #[serde(rename = "uploadMode")]
            mode: String,
        }
        let mut files = Vec::new();
        for source in &self.sources {
            let sample = STANDARD.encode(source.sample()?);
            files.push(json!({"path": source.name, "size": source.bytes, "sample": sample}));
        }
        let url = self.hub.http.model_url(self.upload.repo_id, &["preupload", BRANCH]);
        let call = Call::new(Method::POST, url).with_bytes(JSON, json!({"files": files}).to_string().into());
        let modes: Modes = self.hub.http.ask(&call, MAX_BYTES).await.map_err(|fault| self.error(fault))?;
        let is_large = |source: &Source| {
            let is_lfs = modes.files.iter().any(|file| file.path == source.name && file.mode == "lfs");
            source.bytes > MAX_REGULAR_BYTES || (is_lfs && source.bytes > 0)
        };
        Ok(self.sources.iter().map(is_large).collect())
    }

    /// Files of a commit that are no part of the next one.
    pub(super) fn surplus<'b>(&self, parent: &'b Parent) -> impl Iterator<Item = &'b str> {
        let stays = |path: &str| {
            path == ATTRIBUTES_FILE
                || (path == CARD_FILE && self.upload.card.is_some())
                || self.sources.iter().any(|source| source.name == path)
        };
        parent.files.iter().map(|file| file.path.as_str()).filter(move |path| !stays(path))
    }

    /// # Errors
    /// A file has been written to since the upload began.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.sources.iter().try_for_each(Source::check_unchanged)
    }

    /// The beginning of an error's sentence.
    pub(super) fn what(&self) -> String {
        format!("{} could not be uploaded to {}", self.upload.dir.display(), self.upload.repo_id)
    }

    fn error(&self, fault: Fault) -> anyhow::Error {
        write_error(&self.hub.http, fault, &self.what())
    }
}
