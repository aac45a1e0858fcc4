//! Files of a commit, brought here: gone on with by range where a connection was cut, never longer than the hub has said, and
//! held against its sums.
//!
//! Network and disk overlap: what comes goes through a short channel to the thread that hashes and writes it. What the hub
//! lists and what it sends are two sayings of the hub, so that nothing follows about the model where they differ: the error
//! is that of a hub which would not answer, and no verdict on the model.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::mpsc::{self, Sender};

use super::HuggingFace;
use super::answer::{check_is_no_page, content_length, lost, shown, unless_interrupted};
use super::call::Call;
use super::fault::Fault;
use super::listing::check_names;
use super::pace::Pace;
use super::part::{Part, Tell};
use super::throttle::Throttle;
use crate::error::Failure;
use crate::figures::count;
use crate::hub::{RemoteFile, Sha256Sum};
use crate::model::weights::is_plain_name;

/// Parts of a body, each of at most about 400 KB, that wait for the disk.
const PARTS_AHEAD: usize = 16;
/// Once so many bytes have come, a cut is the first one again.
pub(super) const PROGRESS_BYTES: u64 = 64 << 10;

/// Why a file did not come in full.
enum Cut {
    /// Our disk, or something to be told as it is.
    Ours(anyhow::Error),
    /// The hub or the way to it.
    Fault(Fault),
    /// The same, and another connection may bring the rest.
    Again(Fault),
    /// The hub sends another file than it has listed.
    Contradiction(String),
}

impl HuggingFace {
    /// Brings a file of a commit into a folder, and returns what it hashes to. Meanwhile `tell` hears how many bytes are here.
    pub(super) fn bring(
        &self,
        repo_id: &str,
        commit: &str,
        file: &RemoteFile,
        into: &Path,
        tell: Tell<'_>,
    ) -> Result<Sha256Sum> {
        check_names(repo_id, Some(commit))?;
        if !is_plain_name(&file.path) {
            let sentence = format!(
                "{repo_id} has a file {:?} at the commit {commit}, which is no name of a file here.",
                shown(&file.path)
            );
            return Err(Failure::No(sentence).into());
        }
        let what = format!("{} of {repo_id} at the commit {commit} could not be downloaded", shown(&file.path));
        let url = self.http.url(repo_id.split('/').chain(["resolve", commit, &file.path]));
        let mut part = Part::open(into.join(&file.path), file)?;
        let mut reason = String::new();
        for _ in 0..2 {
            match self.fill(&url, &mut part, tell) {
                Ok(()) => match part.sum() {
                    Some(sum) => return Ok(sum),
                    None => reason = "its checksum is another than the one that the hub tells".to_owned(),
                },
                Err(Cut::Contradiction(told)) => reason = told,
                Err(Cut::Ours(error)) => return Err(error),
                Err(Cut::Fault(fault) | Cut::Again(fault)) => return Err(self.http.reading_error(fault, &what)),
            }
            part.restart()?;
        }
        part.remove()?;
        let hub = self.http.endpoint();
        Err(Failure::Unreachable(format!("{what}: {hub} sends another file than it lists ({reason}), twice")).into())
    }

    /// Downloads what is missing of a file.
    fn fill(&self, url: &Url, part: &mut Part<'_>, tell: Tell<'_>) -> Result<(), Cut> {
        let patience = &self.http.patience;
        let (mut etag, mut tries, mut furthest) = (None, 1, part.len());
        while part.missing() > 0 {
            let fault = match self.stream(url, part, &mut etag, tell) {
                Err(Cut::Again(fault)) => fault,
                ended => return ended,
            };
            if part.len() >= furthest.saturating_add(PROGRESS_BYTES) {
                (tries, furthest) = (1, part.len());
            } else if tries >= patience.tries {
                return Err(Cut::Fault(fault));
            }
            self.runtime.block_on(self.http.rest(patience.pause(tries), &fault)).map_err(Cut::Fault)?;
            tries += 1;
        }
        Ok(())
    }

    /// Downloads what is missing of a file over one connection.
    fn stream(
        &self,
        url: &Url,
        part: &mut Part<'_>,
        etag: &mut Option<HeaderValue>,
        tell: Tell<'_>,
    ) -> Result<(), Cut> {
        let mut call = Call::new(Method::GET, url.clone());
        call.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if part.len() > 0 {
            let range = format!("bytes={}-", part.len());
            call.headers.insert(RANGE, range.parse().expect("digits are a header"));
            call.headers.extend(etag.clone().map(|etag| (IF_RANGE, etag)));
        }
        let answer = match self.runtime.block_on(self.http.send(&call)) {
            Ok(answer) => answer,
            Err(Fault::Refused(refusal)) if refusal.status == StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Cut::Contradiction("it is shorter than listed".to_owned()));
            }
            // The hub says yes and sends elsewhere, where the answer is no; it may send elsewhere the next time.
            Err(Fault::Refused(refusal)) if !refusal.is_hubs && refusal.is_final() => {
                return Err(Cut::Again(Fault::Refused(refusal)));
            }
            Err(fault) => return Err(Cut::Fault(fault)),
        };
        let headers = answer.headers();
        check_is_no_page(headers).map_err(Cut::Again)?;
        let (is_whole, missing) = match answer.status() {
            StatusCode::PARTIAL_CONTENT if is_rest(headers, part.len()) => (false, part.missing()),
            // For it has changed, or this server knows no ranges.
            StatusCode::OK => (true, part.len() + part.missing()),
            status => {
                let reason = format!("it answers {status} with another part than was asked for");
                return Err(Cut::Again(Fault::Lost(reason)));
            }
        };
        if let Some(length) = content_length(headers).filter(|length| *length != missing) {
            let reason = format!("{} bytes where {} are missing", count(length), count(missing));
            // Somebody on the way may have said that, and what is here may be good.
            let is_doubtful = is_whole && part.len() > 0;
            return Err(if is_doubtful { Cut::Again(Fault::Lost(reason)) } else { Cut::Contradiction(reason) });
        }
        if is_whole {
            part.restart().map_err(Cut::Ours)?;
        }
        *etag = headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned();
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        let received = receive(answer, part.missing(), sender, Arc::clone(&self.throttle), self.http.patience.stall);
        // As a task it runs where the connection does, and the two do not wake each other from thread to thread.
        let received = self.runtime.spawn(unless_interrupted(received));
        if let Err(error) = part.take(receiver, tell) {
            received.abort();
            return Err(Cut::Ours(error));
        }
        match self.runtime.block_on(received).expect("receiving does not panic") {
            Ok(false) => Err(Cut::Contradiction("it is longer than listed".to_owned())),
            Err(Fault::Interrupted) => Err(Cut::Fault(Fault::Interrupted)),
            _ if part.missing() == 0 => Ok(()),
            Ok(true) => Err(Cut::Again(Fault::Lost("the connection ended early".to_owned()))),
            Err(fault) => Err(Cut::Again(fault)),
        }
    }
}

/// Hands on what comes of a body, at most `missing` bytes; whether that was all.
async fn receive(
    mut answer: Response,
    mut missing: u64,
    parts: Sender<Bytes>,
    throttle: Arc<Throttle>,
    stall: Duration,
) -> Result<bool, Fault> {
    let mut pace = Pace::new(stall);
    while let Some(bytes) = answer.chunk().await.map_err(lost)? {
        let Some(left) = missing.checked_sub(bytes.len() as u64) else { return Ok(false) };
        missing = left;
        pace.keep(bytes.len())?;
        throttle.pass(bytes.len()).await;
        if parts.send(bytes).await.is_err() {
            // The disk has failed, which the writer tells.
            return Ok(true);
        }
    }
    Ok(true)
}

/// Whether a part of a file is its end from there on.
fn is_rest(headers: &HeaderMap, start: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    first == Some(start)
}
