//! Answers that are no, in the words of Hugging Face: a status, a code in `X-Error-Code`, and a sentence.

use std::fmt;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::disk::is_out_of_space;
use crate::error::{Failure, failure};

const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");
/// The commit that an answer is about.
pub(super) const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");

/// An answer that is no.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: Option<&'static str>,
    message: String,
    /// The commit that was looked at.
    commit: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: None, message: message.into(), commit: None }
    }

    /// The request itself is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A repository that is not there, or not for who asks to see: he cannot tell which.
    pub(super) fn no_repository(has_token: bool) -> Self {
        if has_token {
            Self::new(StatusCode::NOT_FOUND, "Repository not found").with_code("RepoNotFound")
        } else {
            Self::new(StatusCode::UNAUTHORIZED, "Invalid username or password.").with_code("RepoNotFound")
        }
    }

    pub(super) fn no_revision(revision: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Invalid rev id: {revision}")).with_code("RevisionNotFound")
    }

    pub(super) fn no_entry(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).with_code("EntryNotFound")
    }

    /// With the commit that was looked at, which clients remember.
    pub(super) fn at(self, commit: &str) -> Self {
        Self { commit: Some(commit.to_owned()), ..self }
    }

    /// With a code that clients tell refusals by.
    pub(super) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        let status = match failure(&error) {
            _ if is_out_of_space(&error) => StatusCode::INSUFFICIENT_STORAGE,
            Some(Failure::Input(_)) => StatusCode::BAD_REQUEST,
            Some(Failure::No(_)) => StatusCode::NOT_FOUND,
            Some(Failure::Unreachable(_) | Failure::Interrupted(_)) => StatusCode::SERVICE_UNAVAILABLE,
            None => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, format!("{error:#}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // A header holds neither line ends nor what is not ASCII; the body has the sentence as it is.
        let show = |character: char| if matches!(character, ' '..='~') { character } else { '?' };
        let shown: String = self.message.chars().map(show).collect();
        let headers = [(ERROR_CODE, self.code), (ERROR_MESSAGE, Some(&shown)), (REPO_COMMIT, self.commit.as_deref())];
        let mut answer = (self.status, Json(json!({ "error": self.message }))).into_response();
        for (name, text) in headers {
            if let Some(value) = text.and_then(|text| HeaderValue::from_str(text).ok()) {
                answer.headers_mut().insert(name, value);
            }
        }
        answer
    }
}
