//! Text from parquet shards over HTTP, as training reads it.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use fastrand::Rng;
use parquet::basic::Compression;
use serde_json::{Value, json};

use super::speed::{Speed, check_interrupt};
use super::web_text::WebText;
use crate::data::parquet::testing::write_shard;
use crate::data::parquet::{self as shards, Options, Parquet, Place};
use crate::data::set_aside::SetAside;
use crate::data::source::Source;
use crate::hub::file_hashes::FileHashes;
use crate::hub::huggingface;
use crate::hub::progress::Observer;
use crate::train::meter::peak_memory_mib;

/// Shards that the rows are spread over.
const NUM_SHARDS: usize = 4;
/// As RefinedWeb has them.
const ROWS_PER_GROUP: usize = 1_000;
/// Requests under way, as by default.
const NUM_READERS: usize = 4;
/// The rows are drawn from so many documents.
const NUM_DOCUMENTS: usize = 10_000;
const SEED: u64 = 10;

/// What came of the shards of one codec.
pub(super) struct Fetched {
    pub(super) name: &'static str,
    /// Bytes of text a second.
    pub(super) speed: Speed,
    /// The most memory that was resident meanwhile.
    peak_mib: Option<f64>,
}

impl Fetched {
    pub(super) fn json(&self) -> Value {
        json!({
            "bytes_per_s_per_core": self.speed.per_core(), "bytes_per_s": self.speed.per_second(),
            "bytes": self.speed.amount, "peak_mib": self.peak_mib,
        })
    }
}

impl fmt::Display for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, speed) = (self.name, &self.speed);
        let [per_core, per_second, all] =
            [speed.per_core(), speed.per_second(), speed.amount as f64].map(|bytes| bytes / 1e6);
        write!(f, "parquet {name:<8} {per_core:>6.0} MB/s of text per core ({all:.0} MB at {per_second:.0} MB/s")?;
        match self.peak_mib {
            Some(peak) => write!(f, ", at most {peak:.0} MiB resident)"),
            None => write!(f, ")"),
        }
    }
}

/// Makes shards of so many rows in a folder, serves them, and reads all their text.
pub(super) fn measure(name: &'static str, codec: Compression, num_rows: usize, dir: &Path) -> Result<Fetched> {
    let folder = dir.join(name);
    let num_bytes = write(&folder, codec, num_rows)?;
    let server = Server::start(&folder)?;
    reset_peak();
    let speed = Speed::once(|| read_all(&server.endpoint, &dir.join(format!("{name}-cache"))))?;
    let read = speed.amount;
    if read != num_bytes {
        bail!("{read} bytes of text were read from shards with {num_bytes}");
    }
    drop(server);
    std::fs::remove_dir_all(&folder).ok();
    Ok(Fetched { name, speed, peak_mib: peak_memory_mib() })
}

/// Bytes of text in the shards that it writes.
fn write(folder: &Path, codec: Compression, num_rows: usize) -> Result<u64> {
    std::fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let documents: Vec<String> = WebText::new(SEED)?.take(NUM_DOCUMENTS.min(num_rows)).collect();
    let (mut random, mut num_bytes) = (Rng::with_seed(SEED), 0);
    for shard in 0..NUM_SHARDS {
        check_interrupt()?;
        let rows = num_rows * shard / NUM_SHARDS..num_rows * (shard + 1) / NUM_SHARDS;
        let texts = rows.map(|_| {
            let text = documents[random.usize(0..documents.len())].as_bytes();
            num_bytes += text.len() as u64;
            Some(text)
        });
        write_shard(&folder.join(format!("train-{shard:05}.parquet")), texts, ROWS_PER_GROUP, codec)?;
    }
    Ok(num_bytes)
}

/// Reads the text of all shards, what is held out too; how many bytes.
fn read_all(endpoint: &str, cache: &Path) -> Result<u64> {
    let hub = huggingface::Options {
        endpoint: endpoint.to_owned(),
        token: None,
        max_bytes_per_second: None,
        hashes: FileHashes::default(),
        patience: huggingface::Patience::default(),
        observer: Observer::default(),
    };
    let place = Place::Hub { dataset: "any/name".to_owned(), revision: "main".to_owned(), options: Box::new(hub) };
    let options = Options {
        text_key: "content".to_owned(),
        shards: Vec::new(),
        set_aside: SetAside::new(100),
        cache: cache.to_owned(),
        stages: Arc::default(),
    };
    let (training, held_out) = shards::open(place, options)?;
    Ok(read(&training)? + read(&held_out)?)
}

fn read(text: &Parquet) -> Result<u64> {
    let next = AtomicU64::new(0);
    let read_some = || -> Result<u64> {
        let mut num_bytes = 0;
        loop {
            check_interrupt()?;
            let shard = next.fetch_add(1, Ordering::Relaxed);
            if shard >= text.num_shards() {
                return Ok(num_bytes);
            }
            for document in text.documents(shard, 0, None)? {
                num_bytes += document?.len() as u64;
            }
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..NUM_READERS).map(|_| scope.spawn(read_some)).collect();
        let panicked = |_| anyhow!("a thread that reads shards has panicked");
        readers.into_iter().map(|reader| reader.join().map_err(panicked)?).sum()
    })
}

/// Lets the peak of resident memory begin anew, where the system can do that.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").ok();
}

/// A process of this program that serves shards; it ends when this is dropped.
struct Server {
    process: Child,
    endpoint: String,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut command = Command::new(program);
        command.args(["local", "serve", "--dataset", "0", "--shards"]).arg(folder);
        let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut server = Self { process: process.context("the server cannot be started")?, endpoint: String::new() };
        let mut line = String::new();
        if let Some(output) = server.process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let endpoint = line.split_once("HF_ENDPOINT=").and_then(|(_, rest)| rest.split_whitespace().next());
        server.endpoint = endpoint.context("the server did not start")?.to_owned();
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
