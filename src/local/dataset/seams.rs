//! What tests put into the server: who watches requests, and what he may do to them.

use std::time::Duration;

use axum::Json;
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// What becomes of a request.
#[derive(Debug)]
pub enum Fate {
    /// What would without an observer.
    GoOn,
    /// The connection ends without an answer.
    Cut,
    /// The connection ends after so many bytes of the answer's body, of which the last ones may not arrive.
    CutAfter(u64),
    /// There is never an answer.
    Never,
    /// This is the answer.
    Say(Box<Response>),
    /// So many bytes of the body come at once, and so long after those before them.
    Slow {
        /// Bytes at once.
        bytes: usize,
        /// The time before them.
        pause: Duration,
    },
    /// All bits of the body's byte at this place are flipped; places beyond its end begin anew.
    Flip(u64),
    /// All bits of the body are flipped.
    Garbage,
    /// So many bytes of the body's end are missing, and the answer does not say so.
    Shorter(u64),
    /// So many zeros come after the body, and the answer counts them.
    Longer(u64),
    /// The answer has this entity tag, as if the file had changed.
    Etag(String),
}

impl Fate {
    /// A refusal with that status, and with `Retry-After` if it says when to come again.
    pub fn refuse(status: StatusCode, retry_after: Option<&str>) -> Self {
        let mut answer = (status, Json(json!({ "error": status.canonical_reason() }))).into_response();
        if let Some(when) = retry_after.and_then(|when| when.parse().ok()) {
            answer.headers_mut().insert(header::RETRY_AFTER, when);
        }
        Self::Say(Box::new(answer))
    }

    /// What the viewer says while it still prepares a page.
    pub fn not_ready() -> Self {
        let sentence = "The server is busier than usual and the response is not ready yet. Please retry later.";
        let code = (HeaderName::from_static("x-error-code"), "ResponseNotReady");
        let answer = (StatusCode::INTERNAL_SERVER_ERROR, [code], Json(json!({ "error": sentence })));
        Self::Say(Box::new(answer.into_response()))
    }
}

/// Watches requests, for tests. A function is one.
pub trait Observer: Send + Sync {
    /// Is told of each request before anything is done for it.
    fn sees(&self, request: &Parts) -> Fate;
}

impl<F: Fn(&Parts) -> Fate + Send + Sync> Observer for F {
    fn sees(&self, request: &Parts) -> Fate {
        self(request)
    }
}
