//! Repositories as a whole: whether one is there, made, hidden or shown.

use anyhow::Result;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::account::write_error;
use super::http::{Call, Fault, Http};
use super::listing::is_absence;
use crate::error::{Failure, input};
use crate::hub::names;

const JSON: &str = "application/json";
/// What the hub tells of a repository beside its files.
const MAX_BYTES: usize = 16 << 20;

/// A repository that is there.
#[derive(Debug, Deserialize)]
pub(super) struct Repository {
    id: Option<String>,
    /// Its newest commit, if it has one.
    #[serde(rename = "sha")]
    pub(super) commit: Option<String>,
}

/// Looks at a repository; `None` if it is not there, or not for us to see.
///
/// # Errors
/// It is there by another name: it was renamed, and the hub only sends there who asks by the old one.
pub(super) async fn look(http: &Http, repo_id: &str) -> Result<Option<Repository>> {
    let (namespace, name) = names::repository(repo_id).map_err(input)?;
    let repository: Repository = match http.get_json(http.url(["api", "models", namespace, name]), MAX_BYTES).await {
        Ok(repository) => repository,
        Err(fault) if is_absence(&fault) => return Ok(None),
        Err(fault) => return Err(http.error(fault, &format!("{repo_id} could not be looked at"))),
    };
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
        // It is there already, perhaps because the answer to an earlier request was lost.
        Err(Fault::Refused(refusal)) if refusal.status == StatusCode::CONFLICT => Ok(()),
        Err(fault) => Err(write_error(http, fault, &format!("{repo_id} could not be created"))),
    }
}

/// Hides a repository from all but its owner, or shows it.
pub(super) async fn set_private(http: &Http, repo_id: &str, private: bool) -> Result<()> {
    let (namespace, name) = names::repository(repo_id).map_err(input)?;
    let url = http.url(["api", "models", namespace, name, "settings"]);
    let call = Call::new(Method::PUT, url).with_bytes(JSON, json!({"private": private}).to_string().into());
    let what = if private { "hidden" } else { "made public" };
    match http.send(&call).await {
        Ok(_) => Ok(()),
        Err(Fault::Refused(refusal)) if refusal.status == StatusCode::NOT_FOUND => {
            Err(Failure::No(format!("There is no repository {repo_id} at {}.", http.endpoint())).into())
        }
        Err(fault) => Err(write_error(http, fault, &format!("{repo_id} could not be {what}"))),
    }
}
