//! Repositories as a whole: whether one is there, made, hidden or shown.

use anyhow::Result;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::write_error;
use super::call::Call;
use super::fault::Fault;
use super::http::Http;
use crate::error::{Failure, input};
use crate::hub::names;

const JSON: &str = "application/json";
/// What the hub tells of a repository, with the names of its files and its page.
const MAX_BYTES: usize = 16 << 20;

/// A repository that is there.
#[derive(Debug, Deserialize)]
pub(super) struct Repository {
    id: Option<String>,
    /// Its newest commit, if it has one.
    #[serde(rename = "sha")]
    pub(super) commit: Option<String>,
    /// Whether only its owner sees it.
    pub(super) private: Option<bool>,
    /// Whether one has to accept terms to get its files: `false`, or how.
    gated: Option<Value>,
}

impl Repository {
    /// # Errors
    /// `Input`: its files are only for those who accept its terms.
    pub(super) fn check_open(&self, repo_id: &str) -> Result<()> {
        match &self.gated {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(_) => Err(input(format!(
                "{repo_id} is gated, and validators cannot accept its terms; turn that off in the repository's settings."
            ))),
        }
    }
}

/// Asks for a repository, or for one of its revisions below; `None` if it is not there, or not for us to see.
pub(super) async fn ask(http: &Http, repo_id: &str, below: &[&str]) -> Result<Option<Repository>, Fault> {
    match http.get_json(http.model_url(repo_id, below), MAX_BYTES).await {
        Ok(repository) => Ok(Some(repository)),
        Err(fault) if is_absence(&fault) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Whether the hub says that there is no such repository, or none that has commits. Of one that we may not know of it says
/// just that, whoever asks.
pub(super) fn is_absence(fault: &Fault) -> bool {
    let Fault::Refused(refusal) = fault else { return false };
    let is_known_word = refusal.code.as_deref().is_none_or(|code| matches!(code, "RepoNotFound" | "RevisionNotFound"));
    refusal.is_hubs && is_known_word && matches!(refusal.status, StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED)
}

/// Looks at a repository of ours; `None` if it is not there, or not for us to see.
///
/// # Errors
/// It is there by another name: it was renamed, and the hub only sends there who asks by the old one.
pub(super) async fn look(http: &Http, repo_id: &str) -> Result<Option<Repository>> {
    names::repository(repo_id).map_err(input)?;
    let asked = ask(http, repo_id, &[]).await;
    let asked = asked.map_err(|fault| http.error(fault, &format!("{repo_id} could not be looked at")))?;
    let Some(repository) = asked else { return Ok(None) };
    if let Some(id) = repository.id.as_deref().filter(|id| *id != repo_id && names::repository(id).is_ok()) {
        let hub = http.endpoint();
        return Err(input(format!(
            "{repo_id} is called {id} at {hub} now; write that name into the recipe (hub.repo)."
        )));
    }
    if repository.commit.as_deref().is_some_and(|commit| !names::is_commit(commit)) {
        let hub = http.endpoint();
        return Err(Failure::Unreachable(format!("{repo_id}: what {hub} calls its newest commit is none")).into());
    }
    Ok(Some(repository))
}

/// Makes a repository, unless it is there.
pub(super) async fn create(http: &Http, repo_id: &str, private: bool) -> Result<()> {
    let (namespace, name) = names::repository(repo_id).map_err(input)?;
    let wish = json!({"type": "model", "name": name, "organization": namespace, "private": private});
    let call = Call::new(Method::POST, http.url(["api", "repos", "create"])).with_bytes(JSON, wish.to_string().into());
    match http.send(&call).await {
        Ok(_) => Ok(()),
        // It is there already, perhaps because the answer to an earlier request was lost, or as somebody else made it.
        Err(Fault::Refused(refusal)) if refusal.is_hubs && refusal.status == StatusCode::CONFLICT => match private {
            true => set_private(http, repo_id, true).await,
            false => Ok(()),
        },
        Err(fault) => Err(write_error(http, fault, &format!("{repo_id} could not be created"))),
    }
}

/// Hides a repository from all but its owner, or shows it.
pub(super) async fn set_private(http: &Http, repo_id: &str, private: bool) -> Result<()> {
    names::repository(repo_id).map_err(input)?;
    let call = Call::new(Method::PUT, http.model_url(repo_id, &["settings"]))
        .with_bytes(JSON, json!({"private": private}).to_string().into());
    let what = if private { "hidden" } else { "made public" };
    match http.send(&call).await {
        Ok(_) => Ok(()),
        Err(Fault::Refused(refusal)) if refusal.is_hubs && refusal.status == StatusCode::NOT_FOUND => {
            Err(Failure::No(format!("There is no repository {repo_id} at {}.", http.endpoint())).into())
        }
        Err(fault) => Err(write_error(http, fault, &format!("{repo_id} could not be {what}"))),
    }
}
