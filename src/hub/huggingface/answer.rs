//! Answers: read within bounds, and what is said of those that are no.

use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LINK};
use reqwest::{Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::fault::Fault;
use super::pause::asked_pause;
use crate::interrupt;

/// How much of an error's text is told.
const MAX_MESSAGE_CHARS: usize = 300;
/// No error's text is longer.
const MAX_ERROR_BYTES: usize = 1 << 16;
/// It is not waited for any longer: its status has told the most.
const LONGEST_ERROR_READ: Duration = Duration::from_secs(10);
/// A body that is not there within this time trickles.
const LONGEST_READ: Duration = Duration::from_secs(300);
/// How often it is looked whether an orderly end is asked for.
const GLANCE: Duration = Duration::from_millis(100);

/// An answer that is no.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Its status.
    pub(super) status: StatusCode,
    /// The hub's word for it, such as `RepoNotFound`.
    pub(super) code: Option<String>,
    /// Its text, cut and without what could not be shown.
    pub(super) message: String,
    /// Whether it is one as hubs give it, and not of whoever else sits at the address or is on the way to it.
    pub(super) is_hubs: bool,
    /// How long it asks to wait.
    pub(super) asked_pause: Option<Duration>,
}

impl Refusal {
    /// What an answer says; `is_at_hub`: it came from the hub's own address.
    pub(super) async fn of(answer: Response, is_at_hub: bool) -> Self {
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, code, told) = (answer.status(), header("x-error-code"), header("x-error-message"));
        let asked_pause = asked_pause(answer.headers(), SystemTime::now());
        let text = tokio::time::timeout(LONGEST_ERROR_READ, read(answer, MAX_ERROR_BYTES)).await;
        let text = text.ok().and_then(Result::ok).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let error = json["error"].as_str();
        let is_hubs = is_at_hub && (code.is_some() || told.is_some() || error.is_some());
        let message = shown(told.as_deref().or(error).unwrap_or_default());
        Self { status, code: code.map(|code| shown(&code)), message, is_hubs, asked_pause }
    }

    /// One that the hub tells inside an answer.
    pub(super) fn told(status: StatusCode, message: &str) -> Self {
        Self { status, code: None, message: shown(message), is_hubs: true, asked_pause: None }
    }

    /// Whether the same would be said again, and not only at this moment. A hub without room (507) stays without.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self.status.as_u16(), 408 | 429 | 500 | 502..=506 | 508..=599)
    }
}

/// What a stranger says, as it can be shown: without control characters, and not for ever.
pub(super) fn shown(text: &str) -> String {
    let printable = text.chars().filter(|character| !character.is_control());
    printable.take(MAX_MESSAGE_CHARS).collect()
}

/// The whole body of an answer, of at most so many bytes.
pub(super) async fn read(mut answer: Response, max_bytes: usize) -> Result<Vec<u8>, Fault> {
    let whole = async {
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(lost)? {
            if bytes.len() + part.len() > max_bytes {
                return Err(Fault::TooLong(max_bytes));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    };
    let too_slow = |_| Fault::Lost(format!("its answer takes more than {} s", LONGEST_READ.as_secs()));
    unless_interrupted(async { tokio::time::timeout(LONGEST_READ, whole).await.map_err(too_slow)? }).await
}

/// What a body says, which is JSON.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| Fault::Lost(format!("its answer cannot be understood: {error}")))
}

/// A page for people is what a hotel's network answers, or a server that is no hub.
pub(super) fn check_is_no_page(headers: &HeaderMap) -> Result<(), Fault> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match kind.trim_start().to_ascii_lowercase().starts_with("text/html") {
        true => Err(Fault::Lost("it answers with a web page, as no hub does".to_owned())),
        false => Ok(()),
    }
}

/// How many bytes a body has, where its answer says so.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where a list goes on that an answer from `url` begins, by its Link; a fault where that is another server.
pub(super) fn next_page(url: &Url, headers: &HeaderMap) -> Result<Option<Url>, Fault> {
    let links = headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok()).flat_map(|links| links.split(','));
    let next = links.filter_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| matches!(parameter.trim(), "rel=\"next\"" | "rel=next");
        parameters.split(';').any(is_next).then_some(target)
    });
    let Some(target) = next.into_iter().next() else { return Ok(None) };
    let next = url.join(target).ok().filter(|next| next.origin() == url.origin());
    next.map(Some).ok_or_else(|| Fault::Lost("its list goes on at another server".to_owned()))
}

/// What went wrong with a connection, without the address, which may carry a signature.
pub(super) fn lost(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    Fault::Lost(shown(&text))
}

/// Waits; a fault where an orderly end is asked for meanwhile.
pub(super) async fn sleep(pause: Duration) -> Result<(), Fault> {
    unless_interrupted(async {
        tokio::time::sleep(pause).await;
        Ok(())
    })
    .await
}

/// Does something, unless an orderly end is asked for meanwhile, of all or of the thread that calls this.
pub(super) fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, Fault>>,
) -> impl Future<Output = Result<T, Fault>> {
    let stop = interrupt::Stop::of_this_thread();
    let interrupted = async move {
        while !interrupt::requested() && !stop.is_set() {
            tokio::time::sleep(GLANCE).await;
        }
    };
    async move {
        tokio::select! {
            done = work => done,
            () = interrupted => Err(Fault::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_list_goes_on_at_the_same_server_only() {
        let url = Url::parse("http://hub:80/api/tree").unwrap();
        let next = |link: &str| {
            let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
            next_page(&url, &headers).map(|next| next.map(String::from))
        };
        let expected = Some("http://hub/api/tree?cursor=a".to_owned());
        for good in [
            "<http://hub/api/tree?cursor=a>; rel=\"next\"",
            "</api/tree?cursor=a>;rel=next",
            "<http://hub/1>; rel=\"prev\", <?cursor=a>; rel=\"next\"",
        ] {
            assert_eq!(next(good).unwrap(), expected, "{good}");
        }
        for last in ["", "<http://hub/x>", "<http://hub/x>; rel=\"prev\"", "http://hub/x; rel=\"next\"", "<", "<>"] {
            assert_eq!(next(last).unwrap(), None, "{last}");
        }
        for elsewhere in ["http://other/x", "https://hub/x", "http://hub:81/x", "//other/x", "file:///x", "http://"] {
            assert!(next(&format!("<{elsewhere}>; rel=\"next\"")).is_err(), "{elsewhere}");
        }
    }

    #[test]
    fn what_strangers_say_is_cut_and_cannot_move_the_cursor() {
        assert_eq!(shown("no\u{1b}[2J such\r\nthing"), "no[2J suchthing");
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), MAX_MESSAGE_CHARS);
    }
}
