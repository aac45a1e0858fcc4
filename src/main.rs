//! The command line program: parse, dispatch, exit code.

use std::process::ExitCode;

use assay::cli::{Cli, Command};
use assay::metrics::printer::Printer;
use assay::{commands, error};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.quiet);
    match run(&cli, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            ExitCode::from(error::exit_code(&error))
        }
    }
}

fn run(cli: &Cli, printer: &Printer) -> anyhow::Result<()> {
    match &cli.command {
        Command::Train(args) => commands::train::run(args, printer),
        Command::Check(args) => commands::check::run(args, printer),
        Command::Score(args) => commands::score::run(args, printer),
        Command::Inspect(args) => commands::inspect::run(args, printer),
        Command::Compare(args) => commands::compare::run(args, printer),
        Command::Publish(args) => commands::publish::run(args, printer),
        Command::Emission(args) => commands::emission::run(args, printer),
        Command::Validate(args) => commands::validate::run(args, printer),
        Command::Local(args) => commands::local::run(args, printer),
        Command::Chain(args) => commands::chain::run(args, printer),
        Command::Wallet(args) => commands::wallet::run(args, printer),
        Command::Data(args) => commands::data::run(args, printer),
        Command::Bench(args) => commands::bench::run(args, printer),
    }
}
