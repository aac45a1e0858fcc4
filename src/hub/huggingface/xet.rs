//! Commits to hubs that take large files by Xet: through the `hf-hub` crate, which sends the chunks that the hub lacks and
//! then makes the commit.
//!
//! It is told everything, so that no environment variable decides where it sends and as whom, and it gets no second try:
//! whether there is one is decided where the whole upload is ([`super::upload`]). It would put a whole model into one
//! request where a hub has no Xet, and is used only where the hub has just offered it.

use std::time::Duration;

use anyhow::Context;
use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::CommitOperation;
use hf_hub::{HFClient, HFError};
use reqwest::redirect::Policy;

use super::commit::named;
use super::http::{Fault, Http, Refusal, USER_AGENT, lost, shown, unless_interrupted};
use super::upload::{BRANCH, Parent, Setback, Uploader};
use crate::hub::progress::{Observer, Progress};
use crate::hub::{CARD_FILE, names};

/// Sends the files and asks for a commit on top of another, which must be the newest; returns its name.
pub(super) async fn commit(uploader: &Uploader<'_>, parent: &Parent) -> Result<String, Setback> {
    let (http, upload, what) = (&uploader.hub.http, uploader.upload, uploader.what());
    let (namespace, name) = names::repository(upload.repo_id).map_err(anyhow::Error::msg).context("checked before")?;
    uploader.check_unchanged()?;
    let mut operations: Vec<_> =
        uploader.sources.iter().map(|source| CommitOperation::add_file(&source.name, source.path())).collect();
    operations.extend(upload.card.map(|card| CommitOperation::add_bytes(CARD_FILE, card.as_bytes().to_vec())));
    operations.extend(uploader.surplus(parent).map(CommitOperation::delete));
    let watcher = Watcher { observer: uploader.hub.observer.clone(), what: format!("uploading {}", upload.repo_id) };

    let repository = client(http)?.model(namespace, name);
    let commit = repository
        .create_commit()
        .operations(operations)
        .commit_message(upload.message)
        .revision(BRANCH)
        .maybe_parent_commit(parent.commit.clone())
        .progress(hf_hub::progress::Progress::new(watcher));
    let answered = unless_interrupted(async { Ok(Box::pin(commit.send()).await) }).await;
    // It reads the files again, and what it has read is in the commit.
    let is_unchanged = uploader.check_unchanged();
    let answer = answered.map_err(|fault| Setback::of(http, fault, &what))?;
    let (fault, asked) = match answer {
        Ok(answer) => {
            is_unchanged?;
            match named(answer.commit_oid.as_deref()) {
                Ok(commit) => return Ok(commit),
                Err(fault) => (fault, None),
            }
        }
        Err(error) => fault(error),
    };
    match Setback::of(http, fault, &what) {
        // It does not wait by itself.
        Setback::Over(error) if asked.is_some() => Err(Setback::Again(error, asked)),
        setback => Err(setback),
    }
}

fn client(http: &Http) -> anyhow::Result<HFClient> {
    let patience = &http.patience;
    // What it sends through this client is small; chunks go through Xet's own.
    let client = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(patience.connect)
        .read_timeout(patience.answer)
        .redirect(Policy::none())
        .build();
    let token = http.token().map(|token| token.secret().to_owned());
    HFClient::builder()
        .client(client.context("no connections can be made")?)
        .endpoint(http.endpoint())
        // Without one it would look for one by itself; this one is refused.
        .token(token.unwrap_or_else(|| "none".to_owned()))
        .user_agent(USER_AGENT)
        .cache_dir(std::env::temp_dir())
        .cache_enabled(false)
        .retry_max_attempts(0)
        .build()
        .context("the hub's client cannot be made")
}

/// What went wrong, and how long was asked to wait.
fn fault(error: HFError) -> (Fault, Option<Duration>) {
    let pause = match &error {
        HFError::RateLimited { retry_after, .. } => Some(retry_after.unwrap_or_default()),
        _ => None,
    };
    let fault = match error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RateLimited { context, .. }
        | HFError::RepoNotFound { context: Some(context), .. } => {
            let message = context.server_message.as_deref().unwrap_or_default();
            Fault::Refused(Refusal::told(context.status, message))
        }
        HFError::Request { source, .. } => lost(source),
        error => Fault::Lost(shown(&error.to_string())),
    };
    (fault, pause)
}

/// Tells the observer what hf-hub tells.
struct Watcher {
    observer: Observer,
    what: String,
}

impl ProgressHandler for Watcher {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, total_bytes, .. }) = event {
            let (done_bytes, total_bytes) = (*bytes_completed, *total_bytes);
            self.observer.tell(Progress { what: &self.what, done_bytes, total_bytes });
        }
    }
}
