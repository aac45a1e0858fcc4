//! Data sets of a hub: the commit of a revision, its files, and ranges of these.
//!
//! A range is gone on with where its connection was cut. What comes is held against what the hub lists: the size of the
//! whole file, and the ETag that earlier answers had. Whether the bytes are right, their reader has to tell.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::answer::{check_is_no_page, content_length, lost, shown, unless_interrupted};
use super::call::Call;
use super::download::PROGRESS_BYTES;
use super::fault::Fault;
use super::listing::DATA_SET;
use super::pace::Pace;
use super::repository::is_absence;
use super::throttle::Throttle;
use super::{HuggingFace, Options};
use crate::error::input;
use crate::hub::progress::Told;
use crate::hub::{RemoteFile, names};

/// What the hub tells of a data set, with the names of its files.
const MAX_INFO_BYTES: usize = 16 << 20;
/// No more ETags of a file are told apart.
const MAX_ETAGS: usize = 8;

/// A data set at a commit, of which everything is read.
pub(crate) struct Dataset {
    hub: HuggingFace,
    id: String,
    commit: String,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

impl Dataset {
    /// The data set `namespace/name` at a branch, tag or commit, for which the hub is asked.
    ///
    /// # Errors
    /// `Input`: there is no such data set or revision, or none for us to see.
    pub(crate) fn open(options: Options, id: &str, revision: &str) -> Result<Self> {
        names::repository(id).map_err(|_| input(format!("{id:?} is no data set; write it as namespace/name.")))?;
        let hub = HuggingFace::new(options)?;
        let what = format!("the revision {:?} of the data set {id} could not be asked for", shown(revision));
        let url = hub.http.url(["api", "datasets"].into_iter().chain(id.split('/')).chain(["revision", revision]));
        let answer = hub.runtime.block_on(hub.http.get_json::<Revision>(url, MAX_INFO_BYTES));
        let Revision { sha: commit } = answer.map_err(|fault| match is_absence(&fault) {
            true => input(format!(
                "{} has no data set {id} with a revision {:?}, or none for us to see; one that is not public needs a token.",
                hub.http.endpoint(),
                shown(revision)
            )),
            false => hub.http.error(fault, &what),
        })?;
        if !names::is_commit(&commit) {
            return Err(hub.http.error(Fault::Lost("what it names is no commit".to_owned()), &what));
        }
        Ok(Self { hub, id: id.to_owned(), commit })
    }

    /// `namespace/name`.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The commit: 40 hexadecimal digits.
    pub(crate) fn commit(&self) -> &str {
        &self.commit
    }

    /// All its files, sorted by path.
    pub(crate) fn files(&self) -> Result<Vec<RemoteFile>> {
        let what = format!("the files of {} at the commit {} could not be listed", self.id, self.commit);
        let segments = ["api", "datasets"].into_iter().chain(self.id.split('/')).chain(["tree", &self.commit]);
        self.hub.runtime.block_on(self.hub.list_tree(self.hub.http.url(segments), DATA_SET, &what))
    }

    /// Bytes of a file as [`files`](Self::files) lists it: all of a range inside it. `what` is what they are, in messages.
    pub(crate) fn read(&self, file: &RemoteFile, etag: &SeenEtags, range: Range<u64>, what: &str) -> Result<Bytes> {
        let HuggingFace { runtime, http, .. } = &self.hub;
        let segments = ["datasets"].into_iter().chain(self.id.split('/')).chain(["resolve", &self.commit]);
        let url = http.url(segments.chain(file.path.split('/')));
        let cannot = |fault| http.error(fault, &format!("{what} could not be read"));
        let mut got = Vec::new();
        let (mut tries, mut furthest) = (1, 0);
        loop {
            let rest = range.start + got.len() as u64..range.end;
            if rest.is_empty() {
                return Ok(got.into());
            }
            let fault = match runtime.block_on(self.ask(&url, file, etag, &rest)) {
                Ok(answer) => {
                    let len = (range.end - range.start) as usize;
                    let (throttle, stall) = (Arc::clone(&self.hub.throttle), http.patience.stall);
                    // As a task it runs where the connection does, and the two do not wake each other from thread to thread.
                    let received = runtime.spawn(unless_interrupted(receive(answer, got, len, throttle, stall)));
                    let received = runtime.block_on(received).expect("receiving does not panic");
                    let fault;
                    (got, fault) = received.map_err(cannot)?;
                    fault
                }
                Err(Answer::Final(fault)) => return Err(cannot(fault)),
                Err(Answer::Wrong(reason)) => {
                    // What is here may be of another file.
                    got.clear();
                    Some(Fault::Lost(reason))
                }
                Err(Answer::Again(fault)) => Some(fault),
            };
            let Some(fault) = fault.filter(|_| got.len() as u64 != range.end - range.start) else { continue };
            if got.len() as u64 >= furthest + PROGRESS_BYTES {
                (tries, furthest) = (1, got.len() as u64);
            } else if tries >= http.patience.tries {
                // Those so far may have been the wrong ones, which whoever tries again should not be held to.
                etag.forget();
                return Err(cannot(fault));
            }
            runtime.block_on(http.rest(http.patience.pause(tries), &fault)).map_err(cannot)?;
            tries += 1;
        }
    }

    /// Waits before something is read again that came damaged (`reason`) so many times.
    ///
    /// # Errors
    /// `Input`: it was often enough, and stays so.
    pub(crate) fn rest(&self, tries: u32, what: &str, reason: &str) -> Result<()> {
        let HuggingFace { runtime, http, .. } = &self.hub;
        let damaged = format!("{what} comes damaged from {}: {reason}", http.endpoint());
        if tries >= http.patience.tries {
            return Err(input(format!(
                "{damaged}, {tries} times in a row. Leave that file out by data.shards, or read another data.revision; what is \
                 kept of its index may be wrong as well: it is below data.cache, and may be deleted."
            )));
        }
        let rest = http.rest_because(http.patience.pause(tries), &damaged);
        runtime.block_on(rest).map_err(|fault| http.error(fault, &format!("{what} could not be read")))
    }

    /// Tells whoever listens.
    pub(crate) fn tell(&self, told: Told<'_>) {
        self.hub.http.observer.tell(told);
    }

    /// Asks for a range of a file; the answer has just that.
    async fn ask(
        &self,
        url: &Url,
        file: &RemoteFile,
        etag: &SeenEtags,
        range: &Range<u64>,
    ) -> Result<Response, Answer> {
        let mut call = Call::new(Method::GET, url.clone());
        call.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let last = range.end - 1;
        call.headers.insert(RANGE, format!("bytes={}-{last}", range.start).parse().expect("digits are a header"));
        let answer = match self.hub.http.send(&call).await {
            Ok(answer) => answer,
            Err(Fault::Refused(refusal)) if refusal.status == StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Answer::Wrong("it is shorter than listed".to_owned()));
            }
            // The hub says yes and sends elsewhere, where the answer is no; it may send elsewhere the next time.
            Err(Fault::Refused(refusal)) if !refusal.is_hubs && refusal.is_final() => {
                return Err(Answer::Again(Fault::Refused(refusal)));
            }
            Err(fault) => return Err(Answer::Final(fault)),
        };
        let headers = answer.headers();
        check_is_no_page(headers).map_err(Answer::Again)?;
        let is_whole = *range == (0..file.bytes);
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => check_range(headers, range, file.bytes).map_err(Answer::Wrong)?,
            StatusCode::OK if is_whole => {}
            status => {
                let reason = format!("it answers {status} with another part than was asked for");
                return Err(Answer::Again(Fault::Lost(reason)));
            }
        }
        if let Some(length) = content_length(headers).filter(|length| *length != range.end - range.start) {
            return Err(Answer::Again(Fault::Lost(format!(
                "{length} bytes where {} were asked for",
                last + 1 - range.start
            ))));
        }
        etag.check(headers.get(ETAG)).map_err(Answer::Wrong)?;
        Ok(answer)
    }
}

/// Why there is no good answer to a request for a range.
enum Answer {
    /// Nor will there be.
    Final(Fault),
    /// But perhaps to the next one.
    Again(Fault),
    /// The same, and it is of another file than the answers before, or they were.
    Wrong(String),
}

/// The ETags that a file's answers had, and how often, the most frequent one first. A single answer may be wrong, be it the
/// first one: right is the ETag that most of them had. Of many, the oldest of the least frequent is forgotten.
#[derive(Debug, Default)]
pub(crate) struct SeenEtags(Mutex<Vec<(HeaderValue, u64)>>);

impl SeenEtags {
    /// Forgets them, after what came was damaged: they may be those of the damaged answers.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn check(&self, etag: Option<&HeaderValue>) -> Result<(), String> {
        let Some(etag) = etag else { return Ok(()) };
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = match seen.iter().position(|(other, _)| other == etag) {
            Some(number) => seen.remove(number).1 + 1,
            None => 1,
        };
        seen.truncate(MAX_ETAGS - 1);
        let is_most_frequent = seen.iter().all(|(_, count)| *count < mine);
        let number = seen.partition_point(|(_, count)| *count > mine);
        seen.insert(number, (etag.clone(), mine));
        match is_most_frequent {
            true => Ok(()),
            false => Err("its ETag has changed, as that of a file at a commit does not".to_owned()),
        }
    }
}

/// Whether an answer is the range that was asked for, of a file as large as listed.
fn check_range(headers: &HeaderMap, range: &Range<u64>, file_bytes: u64) -> Result<(), String> {
    let told = headers.get(CONTENT_RANGE).and_then(|told| told.to_str().ok()).unwrap_or_default();
    let wanted = format!("bytes {}-{}/{file_bytes}", range.start, range.end - 1);
    match told.trim() == wanted {
        true => Ok(()),
        false => Err(format!("it answers with the range {:?} where {wanted:?} was asked for", shown(told))),
    }
}

/// Adds what comes of a body to what is here of `len` bytes. The fault, if there is one, leaves that.
async fn receive(
    mut answer: Response,
    mut got: Vec<u8>,
    len: usize,
    throttle: Arc<Throttle>,
    stall: Duration,
) -> Result<(Vec<u8>, Option<Fault>), Fault> {
    got.reserve_exact(len - got.len());
    let mut pace = Pace::new(stall);
    let fault = loop {
        let bytes = match answer.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) if got.len() < len => break Some(Fault::Lost("the connection ended early".to_owned())),
            Ok(None) => break None,
            Err(error) => break Some(lost(error)),
        };
        if bytes.len() > len - got.len() {
            got.clear();
            break Some(Fault::Lost("it sends more than was asked for".to_owned()));
        }
        got.extend_from_slice(&bytes);
        if let Err(fault) = pace.keep(bytes.len()) {
            break Some(fault);
        }
        throttle.pass(bytes.len()).await;
    };
    Ok((got, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_etag_of_most_answers_is_right() {
        let seen = SeenEtags::default();
        let mut check = |name: &'static str| seen.check(Some(&HeaderValue::from_static(name))).is_ok();
        // The first answer is the wrong one.
        assert_eq!(["b", "a", "a", "b", "a", "b", "a"].map(&mut check), [true, false, true, false, true, false, true]);
        // Each answer another one.
        assert!(["c", "d", "e", "f", "g", "h", "i", "j", "k"].iter().all(|name| !check(name)));
        assert!(check("a") && seen.check(None).is_ok());
        assert_eq!(seen.0.lock().map(|seen| seen.len()).ok(), Some(MAX_ETAGS));
        // One that comes late is right in the end.
        assert_eq!((0..6).map(|_| check("z")).collect::<Vec<_>>(), [false, false, false, false, false, true]);
    }
}
