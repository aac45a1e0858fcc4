//! Commits to hubs that take large files by Xet: through the `hf-hub` crate, which sends the chunks that the hub lacks and
//! then makes the commit.
//!
//! It is told everything, so that no environment variable decides where it sends and as whom, and it gets no second try:
//! whether there is one is decided where the whole upload is ([`super::upload`]). It would put a whole model into one
//! request where a hub has no Xet, and is used only where the hub has just offered it.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::CommitOperation;
use hf_hub::{HFClient, HFError};
use reqwest::redirect::Policy;
use tokio::runtime::{Builder, Runtime};

use super::answer::{Refusal, lost, shown, unless_interrupted};
use super::commit::named;
use super::fault::Fault;
use super::http::{Http, USER_AGENT};
use super::upload::{BRANCH, Parent, Setback, Uploader};
use crate::hub::progress::Teller;
use crate::hub::{CARD_FILE, names};

/// So much longer than other answers that of a commit may take.
const COMMIT_TAKES: u32 = 5;

/// Sends the files and asks for a commit on top of another, which must be the newest; returns its name.
pub(super) async fn commit(uploader: &Uploader<'_>, parent: &Parent) -> Result<String, Setback> {
    let (http, upload, what) = (&uploader.hub.http, uploader.upload, uploader.what());
    let (namespace, name) = names::repository(upload.repo_id).map_err(anyhow::Error::msg).context("checked before")?;
    uploader.check_unchanged()?;
    let mut operations: Vec<_> =
        uploader.sources.iter().map(|source| CommitOperation::add_file(&source.name, source.path())).collect();
    operations.extend(upload.card.map(|card| CommitOperation::add_bytes(CARD_FILE, card.as_bytes().to_vec())));
    operations.extend(uploader.surplus(parent).map(CommitOperation::delete));

    let attempt = Attempt::new(uploader.transfer.teller())?;
    let progress = hf_hub::progress::Progress::new(Watcher(Arc::clone(&attempt.teller)));
    let repository = client(http)?.model(namespace, name);
    let (message, parent) = (upload.message.to_owned(), parent.commit.clone());
    let send = async move {
        let commit = repository.create_commit().operations(operations).commit_message(message).revision(BRANCH);
        Box::pin(commit.maybe_parent_commit(parent).progress(progress).send()).await
    };
    let answered = unless_interrupted(attempt.run(send)).await;
    drop(attempt);
    if answered.is_ok() {
        // It reads the files again, and what it has read is in the commit.
        uploader.check_unchanged()?;
    }
    let fault = match answered {
        Ok(Ok(commit)) => match named(commit.commit_oid.as_deref()) {
            Ok(commit) => return Ok(commit),
            Err(fault) => fault,
        },
        // A file of ours that cannot be read.
        Ok(Err(HFError::Io(error))) => return Err(anyhow::Error::new(error).context(what).into()),
        Ok(Err(error)) => fault(error),
        Err(fault) => fault,
    };
    // It does not wait by itself.
    let asked = match &fault {
        Fault::Refused(refusal) if matches!(refusal.status.as_u16(), 429 | 503) => Some(refusal.asked_pause),
        _ => None,
    };
    match (Setback::of(http, fault, &what), asked) {
        (Setback::Over(error), Some(pause)) => Err(Setback::Again(error, pause)),
        (setback, _) => Err(setback),
    }
}

/// An attempt, all of whose tasks end with it: after a failure, `hf-hub` would leave one that tells its progress for ever.
struct Attempt {
    /// None while it is dropped.
    runtime: Option<Runtime>,
    /// Who is told how far it is, until it ends.
    teller: Arc<Mutex<Option<Teller>>>,
}

impl Attempt {
    fn new(teller: &Teller) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("hub-xet").enable_all().build();
        let runtime = runtime.context("the threads that upload cannot be started")?;
        Ok(Self { runtime: Some(runtime), teller: Arc::new(Mutex::new(Some(teller.clone()))) })
    }

    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, Fault> {
        let broken = || Fault::Lost("the upload by Xet broke off".to_owned());
        let runtime = self.runtime.as_ref().ok_or_else(broken)?;
        runtime.spawn(work).await.map_err(|_| broken())
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        *self.teller.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Not to be waited for where other tasks run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn client(http: &Http) -> anyhow::Result<HFClient> {
    let patience = &http.patience;
    // What it sends through this client is small; chunks go through Xet's own.
    let client = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(patience.connect)
        // A commit is answered once the hub has seen all the chunks of its files.
        .read_timeout(patience.answer * COMMIT_TAKES)
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

/// What went wrong.
fn fault(error: HFError) -> Fault {
    match error {
        HFError::RateLimited { context, retry_after } => {
            let message = context.server_message.as_deref().unwrap_or_default();
            Fault::Refused(Refusal { asked_pause: retry_after, ..Refusal::told(context.status, message) })
        }
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RepoNotFound { context: Some(context), .. } => {
            let message = context.server_message.as_deref().unwrap_or_default();
            let is_hubs = context.error_code.is_some() || context.server_message.is_some();
            Fault::Refused(Refusal { is_hubs, ..Refusal::told(context.status, message) })
        }
        HFError::Request { source, .. } => lost(source),
        error => Fault::Lost(shown(&error.to_string())),
    }
}

/// Tells how far `hf-hub` is.
struct Watcher(Arc<Mutex<Option<Teller>>>);

impl ProgressHandler for Watcher {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, total_bytes, .. }) = event
            && let Some(teller) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner)
        {
            teller.tell(*bytes_completed, *total_bytes);
        }
    }
}
