//! Who asks, for which repository, and at which commit.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::files::Sums;
use super::objects::Objects;
use super::{Options, Xet};
use crate::hub::folder::FolderHub;
use crate::hub::{Hub, names};
use crate::local::refusal::Refusal;

/// The only branch.
pub(super) const BRANCH: &str = "main";

/// What all requests share.
pub(super) struct World {
    pub(super) hub: Arc<FolderHub>,
    pub(super) objects: Objects,
    pub(super) sums: Sums,
    /// For those who send much: the others wait for their turn.
    pub(super) turns: Semaphore,
    pub(super) options: Options,
}

/// Where an address leads: the parts that its route has.
#[derive(Deserialize)]
pub(super) struct Place {
    namespace: String,
    name: String,
    revision: Option<String>,
    path: Option<String>,
}

/// Who asks.
pub(super) struct Visitor {
    has_token: bool,
    /// The address by which he knows the server, without a slash at its end.
    pub(super) endpoint: String,
}

impl World {
    /// Refuses who may not see a repository, or asks for one that is not there.
    pub(super) fn check_visible(&self, visitor: &Visitor, repo_id: &str) -> Result<(), Refusal> {
        match self.hub.is_private(repo_id)? {
            Some(is_private) if visitor.has_token || !is_private => Ok(()),
            _ => Err(Refusal::no_repository(visitor.has_token)),
        }
    }

    /// The commit of a revision; `None`: the branch has none yet.
    pub(super) fn commit(&self, repo_id: &str, revision: &str) -> Result<Option<String>, Refusal> {
        if revision == BRANCH {
            return Ok(self.hub.newest_commit(repo_id)?);
        }
        let is_there = names::is_commit(revision) && self.hub.commits(repo_id)?.iter().any(|commit| commit == revision);
        if is_there { Ok(Some(revision.to_owned())) } else { Err(Refusal::no_revision(revision)) }
    }

    /// The repository and the commit that an address leads to, for who may see them.
    pub(super) fn asked(&self, visitor: &Visitor, place: &Place) -> Result<(String, Option<String>), Refusal> {
        let repo_id = place.repo_id();
        self.check_visible(visitor, &repo_id)?;
        let commit = self.commit(&repo_id, place.revision())?;
        Ok((repo_id, commit))
    }

    pub(super) fn xet(&self) -> Option<&dyn Xet> {
        self.options.xet.as_deref()
    }
}

impl Place {
    /// The repository, `namespace/name`.
    pub(super) fn repo_id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The repository of an address that calls it `namespace/name.git`.
    pub(super) fn git_repo_id(&self) -> Result<String, Refusal> {
        let name = self.name.strip_suffix(".git").ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "Not found"))?;
        Ok(format!("{}/{name}", self.namespace))
    }

    /// The revision, which is the branch where the route has none.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(BRANCH)
    }

    /// The path in the repository, empty where the route has none.
    pub(super) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_default()
    }
}

impl Visitor {
    /// Refuses who has no token.
    pub(super) fn check_user(&self) -> Result<(), Refusal> {
        let refused = || Refusal::new(StatusCode::UNAUTHORIZED, "Invalid username or password.");
        if self.has_token { Ok(()) } else { Err(refused()) }
    }
}

impl FromRequestParts<Arc<World>> for Visitor {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, world: &Arc<World>) -> Result<Self, Refusal> {
        let text = |name| parts.headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let token = text(header::AUTHORIZATION).map(|value| value.strip_prefix("Bearer ").unwrap_or_default().trim());
        let is_taken = match (token, &world.options.token) {
            (None, _) => true,
            (Some(token), Some(only)) => token == only,
            (Some(token), None) => !token.is_empty(),
        };
        if !is_taken {
            // As Hugging Face answers to a token that it does not know, even where none is needed.
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "Invalid credentials in Authorization header"));
        }
        let endpoint = format!("http://{}", text(header::HOST).unwrap_or_default());
        Ok(Self { has_token: token.is_some(), endpoint })
    }
}
