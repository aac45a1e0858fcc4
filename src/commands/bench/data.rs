//! `assay bench data`: how fast text becomes tokens, and how fast it comes from parquet shards and from token shards.
//!
//! Figures are per core: what was done, over the processor time that this process has taken for it, so that neither neighbours
//! on the machine nor the server of the shards, a process of its own, count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::parquet::basic::{Compression, ZstdLevel};
use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, json};

use super::parquet::{self, Fetched};
use super::tokenize::{self, Tokenized};
use super::tokens;
use crate::cli::bench::BenchDataArgs;
use crate::data::packing::Packing;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Ahead, Reading};
use crate::error::Failure;
use crate::interrupt;
use crate::metrics::printer::Printer;

/// What eight H100 take in when they train a model of the size that the subnet allows.
const TOKENS_PER_S: f64 = 1e6;
/// What is short is done again until so much processor time is spent.
const MIN_CPU: Duration = Duration::from_secs(2);

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

/// Text is read as by one rank of a run that reads it in its own order.
pub(super) fn reading() -> Result<Reading> {
    Ok(Reading {
        tokenizer: Arc::new(Tokenizer::gpt2()?),
        packing: Packing { max_document_tokens: Some(1_024), shuffle_seed: None, interleave: 1 },
        ahead: Ahead { readers: 1, bytes: 1 << 20 },
        tokenizer_threads: 1,
        stages: Arc::default(),
    })
}

/// How much was done in which time.
pub(super) struct Speed {
    pub(super) amount: u64,
    /// On all cores together.
    cpu: Duration,
    /// On the clock.
    wall: Duration,
}

impl Speed {
    /// Of a work that is done once, and says how much it was.
    pub(super) fn once(work: impl FnOnce() -> Result<u64>) -> Result<Self> {
        check_interrupt()?;
        let (cpu, wall) = (cpu_time(), Instant::now());
        let amount = work()?;
        Ok(Self { amount, cpu: cpu_time().saturating_sub(cpu), wall: wall.elapsed() })
    }

    /// Of a work that can be done again and again. The first time, when memory is taken and caches are filled, does not count.
    pub(super) fn measure(mut work: impl FnMut() -> Result<u64>) -> Result<Self> {
        work()?;
        let mut speed = Self { amount: 0, cpu: Duration::ZERO, wall: Duration::ZERO };
        while speed.cpu < MIN_CPU {
            let Self { amount, cpu, wall } = Self::once(&mut work)?;
            speed.amount += amount;
            speed.cpu += cpu;
            speed.wall += wall;
        }
        Ok(speed)
    }

    /// In a second of processor time.
    pub(super) fn per_core(&self) -> f64 {
        self.amount as f64 / self.cpu.as_secs_f64()
    }

    /// In a second on the clock.
    pub(super) fn per_second(&self) -> f64 {
        self.amount as f64 / self.wall.as_secs_f64()
    }
}

/// The processor time that this process has taken so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Ends the command if the user wants it.
pub(super) fn check_interrupt() -> Result<()> {
    if interrupt::requested() {
        return Err(Failure::Interrupted("stopped before all was measured".to_owned()).into());
    }
    Ok(())
}
