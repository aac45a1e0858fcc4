//! The command line's types, no logic. Each verb's arguments go to the file of the same name in `commands/`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Train language models for Bittensor subnet 9, and judge them as its validators would.
#[derive(Debug, Parser)]
#[command(name = "assay", version, about, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print answers, warnings and errors only.
    #[arg(long, global = true)]
    pub quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model from a recipe; a run that was interrupted goes on where it stopped.
    Train(TrainArgs),
    /// Check a recipe against the subnet's rules, and tell what it would cost.
    Check(CheckArgs),
    /// Compute a model's losses as a validator would.
    Score(ScoreArgs),
    /// Tell what a model folder holds and whether the subnet would accept it.
    Inspect(InspectArgs),
    /// Measure how fast this machine trains or scores.
    Bench(BenchArgs),
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe, a YAML file.
    pub recipe: PathBuf,
    /// Override a key of the recipe: `--set train.steps=100`. May be given several times.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Go on with a run; an error if there is none to go on with.
    #[arg(long, conflicts_with = "fresh")]
    pub resume: bool,
    /// Start from nothing; an earlier run of that name is moved aside, not deleted.
    #[arg(long)]
    pub fresh: bool,
    /// Check everything, recipe, data and machine, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The recipe, a YAML file.
    pub recipe: PathBuf,
    /// Override a key of the recipe: `--set model.width=512`. May be given several times.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Say where each figure comes from.
    #[arg(long)]
    pub explain: bool,
}

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// A Hugging Face model folder.
    pub model: PathBuf,
    /// A JSON list of lists of token ids to score; default: the held-out pages of the embedded text.
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// How many rows of the embedded text's held-out pages to score.
    #[arg(long, default_value_t = 16, conflicts_with = "tokens", value_parser = clap::value_parser!(u32).range(1..))]
    pub rows: u32,
    /// Which implementation computes the losses.
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
    /// CPU threads; default all cores.
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// One JSON object on stdout: `{"losses": […]}`.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A Hugging Face model folder.
    pub model: PathBuf,
    /// Apply the rules of this block of the chain; default: those of March 2024.
    #[arg(long)]
    pub block: Option<u64>,
    /// Length in tokens of the rows that the model must be able to read, for rules of your own.
    #[arg(long, value_name = "TOKENS", value_parser = parse_size)]
    pub sequence_length: Option<usize>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum)]
    pub what: BenchKind,
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
    /// Which implementation to measure.
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
    /// CPU threads; default all cores.
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

/// What `bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchKind {
    /// Whole optimizer steps: forward, backward, clipping, AdamW.
    Train,
    /// Losses of rows, as a validator computes them.
    Score,
}

/// Implementations of the decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// Our own operations.
    #[default]
    Native,
    /// The definition in candle.
    Candle,
}

/// More than any model has, and small enough that products of a few of them do not overflow.
const MAX_SIZE: usize = 1 << 20;

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if (1..=MAX_SIZE).contains(&size) => Ok(size),
        _ => Err(format!("expected a whole number from 1 to {MAX_SIZE}")),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=1024).contains(&threads) => Ok(threads),
        _ => Err("expected a whole number from 1 to 1024".to_owned()),
    }
}
