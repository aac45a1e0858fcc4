//! The commit of an upload: one request, with small files in it and large ones by their hashes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::fault::Fault;
use super::source::Source;
use super::upload::{BRANCH, Parent, Setback, Uploader};
use crate::error::input;
use crate::hub::{CARD_FILE, names};

const ND_JSON: &str = "application/x-ndjson";
const MAX_BYTES: usize = 1 << 20;
/// Small files of a model are a few kilobytes; what does not fit here is no configuration.
const MAX_REQUEST_BYTES: u64 = 32 << 20;

/// Asks for a commit on top of another, which must be the newest, and returns its name.
pub(super) async fn make(
    uploader: &Uploader<'_>,
    parent: &Parent,
    large: &[&Source],
    small: &[&Source],
) -> Result<String, Setback> {
    let (http, upload, what) = (&uploader.hub.http, uploader.upload, uploader.what());
    uploader.check_unchanged()?;
    let bytes = small.iter().map(|source| source.bytes).sum::<u64>();
    if bytes > MAX_REQUEST_BYTES {
        return Err(input(format!("{what}: the hub takes no {bytes} bytes as small files.")).into());
    }
    let mut header = json!({"summary": upload.message, "description": ""});
    if let Some(parent) = &parent.commit {
        header["parentCommit"] = json!(parent);
    }
    let mut lines = vec![line("header", &header)];
    if let Some(card) = upload.card {
        lines.push(regular(CARD_FILE, card.as_bytes()));
    }
    for source in small {
        lines.push(regular(&source.name, &source.read()?));
    }
    for source in large {
        let file = json!({"path": source.name, "algo": "sha256", "oid": source.oid, "size": source.bytes});
        lines.push(line("lfsFile", &file));
    }
    lines.extend(uploader.surplus(parent).map(|path| line("deletedFile", &json!({"path": path}))));

    let url = http.model_url(upload.repo_id, &["commit", BRANCH]);
    let call = Call::new(Method::POST, url).with_bytes(ND_JSON, lines.concat().into()).once();
    let answered = async {
        let answer: Commit = http.ask(&call, MAX_BYTES).await?;
        named(answer.oid.as_deref())
    };
    answered.await.map_err(|fault| Setback::of(http, fault, &what))
}

#[derive(Deserialize)]
struct Commit {
    #[serde(rename = "commitOid")]
    oid: Option<String>,
}

/// The commit that an answer names.
pub(super) fn named(oid: Option<&str>) -> Result<String, Fault> {
    let oid = oid.filter(|oid| names::is_commit(oid));
    oid.map(str::to_owned).ok_or_else(|| Fault::Lost("its answer names no commit".to_owned()))
}

fn regular(name: &str, content: &[u8]) -> String {
    line("file", &json!({"path": name, "encoding": "base64", "content": STANDARD.encode(content)}))
}

fn line(key: &str, value: &Value) -> String {
    format!("{}\n", json!({"key": key, "value": value}))
}
