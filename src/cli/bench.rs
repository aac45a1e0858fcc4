//! Arguments of `bench`.

use clap::{Args, Subcommand};

use super::{BackendChoice, parse_size, parse_threads};
use crate::model::family::Family;
use crate::recipe::DeviceChoice;
use crate::rules::ScoreDtype;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What `bench` measures.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Whole optimizer steps: forward, backward, clipping, AdamW.
    Train(BenchModelArgs),
    /// Losses of rows, as a validator computes them.
    Score(BenchModelArgs),
    /// Reading text: tokenizing it, and fetching it from parquet shards, which a server in a process of its own gives.
    ///
    /// Figures are per core, by the processor time that this process takes.
    Data(BenchDataArgs),
}

/// The shape of a model, and how it is computed.
#[derive(Debug, Args)]
pub struct BenchModelArgs {
    /// Number of blocks.
    #[arg(long, default_value_t = 4, value_parser = parse_size)]
    pub layers: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 256, value_parser = parse_size)]
    pub width: usize,
    /// Number of attention heads.
    #[arg(long, default_value_t = 4, value_parser = parse_size)]
    pub heads: usize,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 50_257, value_parser = parse_size)]
    pub vocab: usize,
    /// Tokens per row.
    #[arg(long, default_value_t = 256, value_parser = parse_size)]
    pub seq: usize,
    /// Rows per step.
    #[arg(long, default_value_t = 8, value_parser = parse_size)]
    pub batch: usize,
    /// Steps to measure, after one that is not.
    #[arg(long, default_value_t = 5, value_parser = parse_size)]
    pub steps: usize,
    /// Family of the model.
    #[arg(long, value_enum, default_value_t)]
    pub family: Family,
    /// Number format of scoring on a GPU; the CPU scores in f32, and training has its own.
    #[arg(long, value_enum, default_value_t)]
    pub dtype: ScoreDtype,
    /// Which implementation to measure.
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// Let a GPU's matrix products compute the MLP's function in training, where they can: an experiment.
    #[arg(long)]
    pub gelu_epilogue: bool,
    /// CPU threads; default all cores.
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

/// How much text is read.
#[derive(Debug, Args)]
pub struct BenchDataArgs {
    /// Rows of the parquet shards, which are made in a temporary folder, where each takes about 1 kB.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(2_000..))]
    pub rows: u32,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}
