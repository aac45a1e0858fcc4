//! Arguments of `bench`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Map;

use super::{BackendChoice, parse_size, parse_threads};
use crate::error::input;
use crate::model::arch::Arch;
use crate::model::config::{self, Sizes};
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
    /// What a GPU can do: copies, matrix products and attention, and the products of a model's training step one by one.
    Card(BenchCardArgs),
    /// Reading text: tokenizing it, and fetching it from parquet shards, which a server in a process of its own gives.
    ///
    /// Figures are per core, by the processor time that this process takes.
    Data(BenchDataArgs),
}

/// The shape of a model, and of what it reads at a time.
#[derive(Clone, Debug, Args)]
pub struct ShapeArgs {
    /// Family of the model.
    #[arg(long, value_enum, default_value_t)]
    pub family: Family,
    /// Number of blocks.
    #[arg(long, default_value_t = 4, value_parser = parse_size)]
    pub layers: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 256, value_parser = parse_size)]
    pub width: usize,
    /// Number of attention heads.
    #[arg(long, default_value_t = 4, value_parser = parse_size)]
    pub heads: usize,
    /// Width of the MLP; default as the family has it.
    #[arg(long, value_parser = parse_size)]
    pub mlp_width: Option<usize>,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 50_257, value_parser = parse_size)]
    pub vocab: usize,
    /// Tokens per row.
    #[arg(long, default_value_t = 256, value_parser = parse_size)]
    pub seq: usize,
    /// Rows per step.
    #[arg(long, default_value_t = 8, value_parser = parse_size)]
    pub batch: usize,
}

impl ShapeArgs {
    /// The architecture.
    ///
    /// # Errors
    /// There is none of these sizes.
    pub fn arch(&self) -> Result<Arch> {
        if !self.width.is_multiple_of(self.heads) {
            let (width, heads) = (self.width, self.heads);
            return Err(input(format!("--width {width} is not a multiple of --heads {heads}: give one that is")));
        }
        let sizes = Sizes {
            vocab_size: self.vocab,
            context: self.seq,
            width: self.width,
            layers: self.layers,
            heads: self.heads,
            kv_heads: None,
            mlp_width: self.mlp_width.unwrap_or_else(|| self.family.mlp_width(self.width)),
        };
        config::new_arch(self.family, sizes, &Map::new()).map_err(input)
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }
}

/// A model, and how it is computed.
#[derive(Debug, Args)]
pub struct BenchModelArgs {
    /// The model.
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Steps to measure, after one that is not.
    #[arg(long, default_value_t = 5, value_parser = parse_size)]
    pub steps: usize,
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
    /// List the operations of one step more on the GPU: time, arithmetic, bytes, and the least time they could take.
    #[arg(long)]
    pub profile: bool,
    /// Compute nothing: list what a step would do on a card of this name (as nvidia-smi tells it), and the least time.
    #[arg(long, value_name = "CARD", conflicts_with_all = ["device", "steps", "backend"])]
    pub paper: Option<String>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

/// What of a GPU is measured.
#[derive(Debug, Args)]
pub struct BenchCardArgs {
    /// The model whose training step is looked at; attention has its heads.
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Which GPU.
    #[arg(long, value_name = "DEVICE", default_value = "cuda:0")]
    pub device: DeviceChoice,
    /// How many of cuBLASLt's algorithms are tried for each product, up to 8.
    #[arg(long, default_value_t = 8, value_parser = parse_size)]
    pub algorithms: usize,
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
