//! Arguments of `data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Arguments of `data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DataCommand,
}

/// What can be done with a recipe's text.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Write the tokens that training would read, in its order, to files that `data.source: tokens` reads.
    ///
    /// A folder that was begun is gone on with after its last whole shard. The files are those of llm.c. Training on them
    /// brings the same rows as training on the text itself, whatever the number of GPUs; after the last token it begins again.
    Prepare {
        /// The recipe, a YAML file.
        recipe: PathBuf,
        /// Override a key of the recipe: `--set data.interleave=16`. May be given several times.
        #[arg(long, value_name = "PATH=VALUE")]
        set: Vec<String>,
        /// The folder that the shards go to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Tokens in all; default what the recipe trains on.
        #[arg(long, value_name = "N", value_parser = super::parse_tokens)]
        tokens: Option<u64>,
        /// Tokens of one file.
        #[arg(long, value_name = "N", default_value_t = crate::data::tokens::SHARD_TOKENS, value_parser = super::parse_shard_tokens)]
        shard_tokens: u64,
    },
    /// Read the beginning of a recipe's text: documents, tokens, lengths, and how fast each stage of reading is. Of token
    /// shards: whether they are what was written.
    Stat {
        /// The recipe, a YAML file.
        recipe: PathBuf,
        /// Override a key of the recipe: `--set data.source=sample`. May be given several times.
        #[arg(long, value_name = "PATH=VALUE")]
        set: Vec<String>,
        /// Documents to read at most.
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = super::parse_tokens)]
        documents: u64,
        /// One JSON object on stdout.
        #[arg(long)]
        json: bool,
    },
}
