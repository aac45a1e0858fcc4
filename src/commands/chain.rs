//! `assay chain`: a subnet's chain, for people and scripts.

use anyhow::{Result, bail};

use crate::cli::chain::ChainArgs;
use crate::metrics::printer::Printer;

/// Runs the command.
pub fn run(args: &ChainArgs, printer: &Printer) -> Result<()> {
    let _ = (args, printer);
    bail!("not there yet")
}
