//! What tests put into the server: who watches requests and disturbs them, and a store that takes files by Xet.

use std::path::Path;

use anyhow::Result;
use axum::http::Method;
use axum::response::Response;

/// When something of a request is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Before anything is done for it.
    Request,
    /// When it is done, before its answer is sent.
    Answer,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Fate {
    /// What would without an observer.
    GoOn,
    /// The connection ends without an answer, as if one of the two programs were killed.
    Cut,
    /// This is the answer.
    Say(Box<Response>),
}

/// Watches requests, for tests.
pub trait Observer: Send + Sync {
    /// Is told of each request twice. `path` is without the query.
    fn sees(&self, moment: Moment, method: &Method, path: &str) -> Fate;
}

/// A store that takes and gives files by Hugging Face's Xet protocol, for tests.
pub trait Xet: Send + Sync {
    /// How its clients reach it.
    fn access(&self) -> XetAccess;

    /// The Xet hash of the file with a SHA-256 in hexadecimal; `None` if the store has none such.
    fn hash(&self, sha256: &str) -> Option<String>;

    /// Writes the file with a SHA-256 to a path; false if the store has none such.
    fn fetch(&self, sha256: &str, to: &Path) -> Result<bool>;
}

/// How clients reach a [`Xet`] store.
#[derive(Clone, Debug)]
pub struct XetAccess {
    /// Its address.
    pub cas_url: String,
    /// The token for it.
    pub access_token: String,
    /// Unix time in seconds when the token ends.
    pub expires: u64,
}
