//! Large files: which of them the hub wants, and by which way; by the plain one, they are sent from here.
//!
//! The hub is asked for all files at once, by their hashes. Those that it has are not sent again, so an upload that was cut
//! off goes on with the next file, whichever process began it. A file goes up in one PUT with its length, and where that is
//! cut off it starts anew, for storages take no half ones.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use anyhow::Result;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;

use super::account::write_error;
use super::answer::{Refusal, shown};
use super::call::Call;
use super::fault::Fault;
use super::http::Http;
use super::source::{Source, Trouble};
use super::upload::{BRANCH, Setback};
use crate::error::Failure;
use crate::hub::progress::Teller;

const LFS_JSON: &str = "application/vnd.git-lfs+json";
/// What the hub tells of a model's files, with signed addresses.
const MAX_BYTES: usize = 16 << 20;

/// How the large files go up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// By plain requests, to where the hub says.
    Basic(Vec<Order>),
    /// By Xet, which splits files into chunks and sends those that the hub does not have.
    Xet,
}

/// A file that the hub wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    oid: String,
    upload: Action,
    verify: Option<Action>,
}

/// A request that the hub wants made.
#[derive(Debug, PartialEq, Eq)]
struct Action {
    url: Url,
    headers: HeaderMap,
}

#[derive(Deserialize)]
struct Batch {
    transfer: Option<String>,
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    error: Option<ObjectError>,
    actions: Option<Actions>,
}

#[derive(Deserialize)]
struct ObjectError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Told>,
    verify: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, String>>,
}

/// Asks the hub which of some files it wants, and how.
pub(super) async fn ask(http: &Http, repo_id: &str, sources: &[&Source], what: &str) -> Result<Transfer> {
    if sources.is_empty() {
        return Ok(Transfer::Basic(Vec::new()));
    }
    // Two names may have the same content, which is one object.
    let mut wanted: Vec<_> = sources.iter().map(|source| (source.oid.as_str(), source.bytes)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let objects: Vec<_> = wanted.iter().map(|(oid, bytes)| json!({"oid": oid, "size": bytes})).collect();
    let question = json!({
        "operation": "upload",
        "transfers": ["basic", "xet"],
        "objects": objects,
        "hash_algo": "sha256",
        "ref": {"name": BRANCH},
    });
    let (namespace, name) = repo_id.split_once('/').unwrap_or((repo_id, ""));
    let url = http.url([namespace, &format!("{name}.git"), "info", "lfs", "objects", "batch"]);
    let mut call = Call::new(Method::POST, url).with_bytes(LFS_JSON, question.to_string().into());
    call.headers.insert(ACCEPT, HeaderValue::from_static(LFS_JSON));
    let batch: Batch = http.ask(&call, MAX_BYTES).await.map_err(|fault| write_error(http, fault, what))?;
    match batch.transfer.as_deref() {
        Some("xet") => Ok(Transfer::Xet),
        None | Some("basic") => {
            let orders = wanted.iter().map(|(oid, _)| order(http, &batch, oid, what));
            Ok(Transfer::Basic(orders.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()))
        }
        Some(other) => {
            Err(misunderstood(http, what, &format!("wants files by a way {:?} that was not offered", shown(other))))
        }
    }
}

/// What is to be done for one object; nothing, if the hub has it.
fn order(http: &Http, batch: &Batch, oid: &str, what: &str) -> Result<Option<Order>> {
    let Some(object) = batch.objects.iter().find(|object| object.oid.eq_ignore_ascii_case(oid)) else {
        return Err(misunderstood(http, what, "does not say whether it wants each of the files"));
    };
    if let Some(error) = &object.error {
        let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
        return Err(write_error(http, Fault::Refused(Refusal::told(status, &error.message)), what));
    }
    let Some(actions) = &object.actions else { return Ok(None) };
    let Some(upload) = &actions.upload else { return Ok(None) };
    let action = |told: &Told| {
        Action::new(http, told).ok_or_else(|| {
            misunderstood(http, what, "sends files to an address that is none, or to an unencrypted one")
        })
    };
    let (upload, verify) = (action(upload)?, actions.verify.as_ref().map(action).transpose()?);
    Ok(Some(Order { oid: oid.to_owned(), upload, verify }))
}

impl Action {
    /// `None`: it leads nowhere, or would make public on the way what the hub itself keeps secret.
    fn new(http: &Http, told: &Told) -> Option<Self> {
        let url = Url::parse(&told.href).ok().filter(|url| url.has_host())?;
        let is_as_safe = url.scheme() == "https" || (url.scheme() == "http" && http.endpoint().starts_with("http:"));
        let mut headers = HeaderMap::new();
        for (name, value) in told.header.iter().flatten() {
            let name = HeaderName::try_from(name).ok()?;
            // The length is the file's, and how the connection is used is not for the hub to say.
            if !["content-length", "transfer-encoding", "connection", "host", "expect", "te", "upgrade"]
                .contains(&name.as_str())
            {
                headers.insert(name, HeaderValue::try_from(value).ok()?);
            }
        }
        is_as_safe.then_some(Self { url, headers })
    }
}

/// Sends a file that the hub wants. `done_bytes` of all were there before.
pub(super) async fn send(
    http: &Http,
    order: Order,
    source: &Source,
    teller: &Teller,
    (done_bytes, total_bytes): (u64, u64),
) -> Result<(), Setback> {
    let Order { upload: Action { url, mut headers }, verify, .. } = order;
    headers.insert(CONTENT_LENGTH, source.bytes.into());
    let mut call = Call { headers, ..Call::new(Method::PUT, url) }.once();
    let trouble = Trouble::default();
    call.body = Some({
        let (source, trouble, sent) = (source.clone(), Trouble::clone(&trouble), Arc::clone(&call.sent));
        let teller = teller.clone();
        Box::new(move || {
            let (teller, sent) = (teller.clone(), sent.clone());
            let mut gone = 0;
            let taken = move |bytes| {
                gone += bytes;
                sent.fetch_add(bytes, Ordering::Relaxed);
                teller.tell(done_bytes + gone, total_bytes);
            };
            source.body(taken, &trouble)
        })
    });
    let what = format!("{} could not be uploaded", source.path().display());
    let sent = http.send(&call).await;
    if let Some(error) = trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(Setback::Over(error));
    }
    // Should the answer be lost, or the address be good no more, the hub is asked again which files it wants, and where.
    sent.map_err(|fault| {
        let has_run_out =
            matches!(&fault, Fault::Refused(refusal) if matches!(refusal.status.as_u16(), 401 | 403 | 404 | 410));
        match Setback::of(http, fault, &what) {
            Setback::Over(error) if has_run_out => Setback::Again(error, None),
            setback => setback,
        }
    })?;
    let Some(Action { url, headers }) = verify else { return Ok(()) };
    let claim = json!({"oid": source.oid, "size": source.bytes}).to_string();
    let mut call = Call::new(Method::POST, url).with_bytes(LFS_JSON, claim.into());
    call.headers.extend(headers);
    call.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(LFS_JSON));
    http.send(&call).await.map_err(|fault| Setback::of(http, fault, &what))?;
    Ok(())
}

impl Order {
    /// The file that it wants, one of those with this content.
    pub(super) fn source<'a>(&self, sources: &[&'a Source]) -> Option<&'a Source> {
        sources.iter().find(|source| source.oid == self.oid).copied()
    }
}

fn misunderstood(http: &Http, what: &str, why: &str) -> anyhow::Error {
    Failure::Unreachable(format!("{what}: {} {why}", http.endpoint())).into()
}
