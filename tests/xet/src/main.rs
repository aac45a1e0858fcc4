//! Hugging Face's own test store for Xet (`xet-client`, feature `simulation`) as a process of its own.
//!
//! ```text
//! xet-store DIR
//! ```
//! The first line that it writes is its address. Then each line that it reads is answered by one: `hash SHA256` with the Xet
//! hash of the file, and `fetch SHA256 PATH` with `ok` once the file is written there; `-` says that it has none such. It
//! ends with its input.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, Cursor, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use xet_client::cas_client::{DeletionControlableClient, DirectAccessClient, LocalClient, LocalServer};
use xet_client::cas_types::FileRange;
use xet_core_structures::merklehash::MerkleHash;
use xet_core_structures::metadata_shard::file_structs::MDBFileInfo;
use xet_core_structures::metadata_shard::streaming_shard::MDBMinimalShard;
use xet_runtime::core::XetContext;

const PART_BYTES: u64 = 64 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let dir = std::env::args().nth(1).context("give a folder")?;
    let store = LocalClient::new(XetContext::default()?, dir).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let server = LocalServer::from_client(store.clone(), Some(store.clone()), "127.0.0.1".to_owned(), port);
    let (_stop, stopped) = oneshot::channel();
    tokio::spawn(async move { server.serve_until_stopped(listener, stopped).await });
    say(&format!("http://127.0.0.1:{port}"))?;

    let (lines, mut questions) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(question) = questions.recv().await {
        say(&answer(&store, &question).await?)?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

async fn answer(store: &Arc<LocalClient>, question: &str) -> Result<String> {
    let words: Vec<&str> = question.splitn(3, ' ').collect();
    let sha256 = words.get(1).context("which file?")?;
    let Some(hash) = files(store).await?.remove(*sha256) else { return Ok("-".to_owned()) };
    match words.as_slice() {
        ["hash", _] => Ok(hash.hex()),
        ["fetch", _, path] => {
            let mut file = File::create(path)?;
            let bytes = store.get_file_size(&hash).await?;
            let mut start = 0;
            while start < bytes {
                let end = bytes.min(start + PART_BYTES);
                file.write_all(&store.get_file_data(&hash, Some(FileRange::new(start, end))).await?)?;
                start = end;
            }
            Ok("ok".to_owned())
        }
        _ => bail!("{question:?} is no question"),
    }
}

/// The Xet hashes of all files by their SHA-256, as those who uploaded them have said.
async fn files(store: &Arc<LocalClient>) -> Result<HashMap<String, MerkleHash>> {
    let mut files = HashMap::new();
    for shard in store.list_shard_entries().await? {
        let shard = MDBMinimalShard::from_reader(&mut Cursor::new(store.get_shard_bytes(&shard).await?), true, false)?;
        for file in (0..shard.num_files()).filter_map(|index| shard.file(index)) {
            let file = MDBFileInfo::from(file);
            files.extend(file.metadata_ext.map(|told| (told.sha256.hex(), file.metadata.file_hash)));
        }
    }
    Ok(files)
}
