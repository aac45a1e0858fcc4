//! Repositories: made, shown, hidden; their branch and their commits; and who the user is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::{BRANCH, Place, Visitor, World};
use super::attributes;
use super::files::link;
use crate::hub::huggingface::ANY_NAMESPACE;
use crate::hub::{ATTRIBUTES_FILE, Hub};
use crate::local::http::blocking;
use crate::local::refusal::Refusal;

/// Namespace of a repository that is made without one, and the name of the user.
const USER: &str = "local";
/// Commits of a page, at most.
const MAX_PAGE: usize = 100;

/// `GET /api/whoami-v2`.
pub(super) async fn whoami(visitor: Visitor) -> Result<Json<Value>, Refusal> {
    visitor.check_user()?;
    Ok(Json(json!({
        "type": "user", "id": "0", "name": USER, "fullname": USER, "isPro": false,
        "orgs": [{ "type": "org", "id": "1", "name": ANY_NAMESPACE, "fullname": "every namespace", "roleInOrg": "admin" }],
        "auth": { "type": "access_token", "accessToken": { "displayName": USER, "role": "write" } },
    })))
}

/// What a card is checked for.
#[derive(Deserialize)]
pub(super) struct Card {
    content: String,
}

/// `POST /api/validate-yaml`: whether what stands between the first two lines of dashes of a page is YAML.
pub(super) async fn validate_yaml(Json(card): Json<Card>) -> Response {
    let head = card.content.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---"));
    match head.map_or(Ok(Value::Null), |(head, _)| serde_yaml::from_str::<Value>(head)) {
        Ok(_) => Json(json!({ "errors": [], "warnings": [] })).into_response(),
        Err(error) => {
            let answer = json!({ "errors": [{ "message": error.to_string() }], "warnings": [] });
            (StatusCode::BAD_REQUEST, Json(answer)).into_response()
        }
    }
}

/// Who may see a repository: older programs send `private`, newer ones `visibility`.
#[derive(Deserialize)]
pub(super) struct Visibility {
    private: Option<bool>,
    visibility: Option<String>,
}

impl Visibility {
    fn private(&self) -> Result<Option<bool>, Refusal> {
        match self.visibility.as_deref() {
            None => Ok(self.private),
            Some("private") => Ok(Some(true)),
            Some("public") => Ok(Some(false)),
            Some(other) => Err(Refusal::bad(format!("A repository is public or private here, and not {other}."))),
        }
    }
}

/// A repository that is to be made.
#[derive(Deserialize)]
pub(super) struct Wanted {
    name: String,
    organization: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(flatten)]
    visibility: Visibility,
}

/// `POST /api/repos/create`. It has a first commit, with the file that hubs put into each.
pub(super) async fn create(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Json(wanted): Json<Wanted>,
) -> Result<Response, Refusal> {
    visitor.check_user()?;
    if wanted.kind.as_deref().is_some_and(|kind| kind != "model") {
        return Err(Refusal::bad("Only models have repositories here."));
    }
    blocking(move || {
        let repo_id = format!("{}/{}", wanted.organization.as_deref().unwrap_or(USER), wanted.name);
        let is_private = wanted.visibility.private()?.unwrap_or(false);
        let text = attributes::text();
        let is_new = world.hub.create_repository(&repo_id, is_private, &[(ATTRIBUTES_FILE, text.as_bytes())])?;
        let mut answer =
            json!({ "url": format!("{}/{repo_id}", visitor.endpoint), "name": repo_id, "private": is_private });
        if is_new {
            return Ok(Json(answer).into_response());
        }
        answer["error"] = json!("You already created this model repo");
        Ok((StatusCode::CONFLICT, Json(answer)).into_response())
    })
    .await
}

/// `PUT /api/models/{repo}/settings`.
pub(super) async fn settings(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    Json(visibility): Json<Visibility>,
) -> Result<Json<Value>, Refusal> {
    blocking(move || {
        let repo_id = place.repo_id();
        world.check_visible(&visitor, &repo_id)?;
        visitor.check_user()?;
        let private = visibility.private()?.ok_or_else(|| Refusal::bad("Only `private` can be set here."))?;
        world.hub.set_private(&repo_id, private)?;
        Ok(Json(json!({ "private": private })))
    })
    .await
}

/// What is to be told of a repository.
#[derive(Deserialize)]
pub(super) struct Detail {
    /// Whether of its files more than their names.
    #[serde(default)]
    blobs: Option<String>,
}

/// `GET /api/models/{repo}[/revision/{revision}]`.
pub(super) async fn info(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    Query(detail): Query<Detail>,
) -> Result<Json<Value>, Refusal> {
    blocking(move || {
        let (repo_id, commit) = world.asked(&visitor, &place)?;
        let with_blobs = detail.blobs.is_some_and(|blobs| !["0", "false", "False"].contains(&blobs.as_str()));
        let mut siblings = Vec::new();
        if let Some(commit) = &commit {
            for file in world.hub.files(&repo_id, commit)? {
                siblings.push(match with_blobs {
                    true => world.item(&repo_id, commit, &file)?.sibling(),
                    false => json!({ "rfilename": file.path }),
                });
            }
        }
        Ok(Json(json!({
            "_id": repo_id, "id": repo_id, "modelId": repo_id, "author": repo_id.split('/').next(), "sha": commit,
            "private": world.hub.is_private(&repo_id)?, "gated": false, "disabled": false, "downloads": 0, "likes": 0,
            "tags": [], "siblings": siblings,
        })))
    })
    .await
}

/// `GET /api/models/{repo}/refs`.
pub(super) async fn refs(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
) -> Result<Json<Value>, Refusal> {
    blocking(move || {
        let repo_id = place.repo_id();
        world.check_visible(&visitor, &repo_id)?;
        let newest = world.hub.newest_commit(&repo_id)?;
        let branch = |commit| json!({ "name": BRANCH, "ref": format!("refs/heads/{BRANCH}"), "targetCommit": commit });
        let branches: Vec<_> = newest.into_iter().map(branch).collect();
        Ok(Json(json!({ "branches": branches, "tags": [], "converts": [] })))
    })
    .await
}

/// Which page of the commits.
#[derive(Deserialize)]
pub(super) struct Page {
    p: Option<usize>,
    limit: Option<usize>,
}

/// `GET /api/models/{repo}/commits/{revision}`, newest first.
pub(super) async fn commits(
    State(world): State<Arc<World>>,
    visitor: Visitor,
    Path(place): Path<Place>,
    Query(page): Query<Page>,
) -> Result<(HeaderMap, Json<Value>), Refusal> {
    blocking(move || {
        let (repo_id, commit) = world.asked(&visitor, &place)?;
        let mut log = world.hub.log(&repo_id)?;
        log.reverse();
        let first = log.iter().position(|entry| Some(&entry.commit) == commit.as_ref()).unwrap_or(log.len());
        let log = &log[first..];
        let (number, limit) = (page.p.unwrap_or_default(), page.limit.unwrap_or(50).clamp(1, MAX_PAGE));
        let start = number.saturating_mul(limit).min(log.len());
        let end = log.len().min(start.saturating_add(limit));
        let mut commits = Vec::with_capacity(end - start);
        for entry in &log[start..end] {
            let (title, message) = entry.message.split_once('\n').unwrap_or((&entry.message, ""));
            commits.push(json!({
                "id": entry.commit, "title": title, "message": message.trim(), "authors": [{ "user": USER }],
                "date": date(world.hub.commit_time(&repo_id, &entry.commit)?),
            }));
        }
        let next = || {
            let revision = commit.as_deref().unwrap_or(BRANCH);
            format!("{}/api/models/{repo_id}/commits/{revision}?limit={limit}&p={}", visitor.endpoint, number + 1)
        };
        let headers = if end < log.len() { link(&next()) } else { HeaderMap::new() };
        Ok((headers, Json(commits.into())))
    })
    .await
}

/// A time as `2024-03-09T12:34:56.000Z`.
fn date(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // The calendar repeats after 400 years of 146,097 days; counted from March, a leap day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_709_987_696), "2024-03-09T12:34:56.000Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }
}
