//! `assay bench`: how fast this machine trains or scores a model of a given shape, on random weights and tokens
//! (`bench/model.rs`), what its GPU can do (`bench/card.rs`), and how fast it reads text (`bench/data.rs`).

mod card;
mod data;
mod model;
mod operations;
mod parquet;
mod speed;
mod tokenize;
mod tokens;
mod web_text;

use anyhow::Result;

use crate::cli::bench::{BenchArgs, BenchCommand};
use crate::metrics::printer::Printer;
use model::Work;

/// Runs the command.
pub fn run(args: &BenchArgs, printer: &Printer) -> Result<()> {
    match &args.what {
        BenchCommand::Train(args) => model::run(Work::Train, args, printer),
        BenchCommand::Score(args) => model::run(Work::Score, args, printer),
        BenchCommand::Card(args) => card::run(args, printer),
        BenchCommand::Data(args) => data::run(args, printer),
    }
}
