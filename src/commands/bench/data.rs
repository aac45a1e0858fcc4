//! `assay bench data`: how fast text becomes tokens, and how fast it comes from parquet shards and from token shards.
//!
//! Figures are per core: what was done, over the processor time that this process has taken for it, so that neither neighbours
//! on the machine nor the server of the shards, a process of its own, count.

use ::parquet::basic::{Compression, ZstdLevel};
use anyhow::{Context, Result};
use serde_json::{Map, json};

use super::parquet::{self, Fetched};
use super::tokenize::{self, Tokenized};
use super::tokens;
use crate::cli::bench::BenchDataArgs;
use crate::interrupt;
use crate::metrics::printer::Printer;

/// What eight H100 take in when they train a model of the size that the subnet allows.
const TOKENS_PER_S: f64 = 1e6;

/// Runs the command.
pub(super) fn run(args: &BenchDataArgs, printer: &Printer) -> Result<()> {
    interrupt::install()?;
    let dir = tempfile::tempdir().context("no temporary folder can be made")?;
    // First, while nothing else has taken memory.
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let fetch = |name, codec| parquet::measure(name, codec, args.rows as usize, dir.path());
    let fetched = [fetch("zstd", zstd)?, fetch("snappy", Compression::SNAPPY)?];
    let tokens = tokens::measure(dir.path())?;
    let tokenized = tokenize::measure()?;
    // The slower text: a run's is no better than that.
    let tokenizing = tokenized.iter().map(|text| TOKENS_PER_S / text.speed.per_core()).fold(0.0, f64::max);
    let bytes_per_token = tokenized[0].bytes_per_token;
    let reading = fetched.iter().map(|text| TOKENS_PER_S * bytes_per_token / text.speed.per_core()).fold(0.0, f64::max);
    if args.json {
        let shards: Map<_, _> = fetched.iter().map(|text| (text.name.to_owned(), text.json())).collect();
        let texts: Map<_, _> = tokenized.iter().map(|text| (text.name.to_owned(), text.json())).collect();
        let report = json!({
            "tokenize": texts,
            "parquet": shards,
            "token_shards": { "bytes_per_s_per_core": tokens.per_core() },
            "cores": { "tokens_per_s": TOKENS_PER_S, "tokenize": tokenizing, "read": reading },
        });
        return printer.result(&report.to_string());
    }
    let mut lines: Vec<String> = tokenized.iter().map(Tokenized::to_string).collect();
    lines.extend(fetched.iter().map(Fetched::to_string));
    lines.push(format!("{:<16} {:>6.2} GB/s per core", "token shards", tokens.per_core() / 1e9));
    lines.push(format!(
        "8 x H100 that train on 1 M tokens/s need {tokenizing:.2} cores to tokenize and {reading:.3} to read shards"
    ));
    printer.result(&lines.join("\n"))
}
