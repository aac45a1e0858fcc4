//! `assay wallet`: Bittensor's key files.

use anyhow::{Result, bail};

use crate::cli::wallet::WalletArgs;
use crate::metrics::printer::Printer;

/// Runs the command.
pub fn run(args: &WalletArgs, printer: &Printer) -> Result<()> {
    let _ = (args, printer);
    bail!("not there yet")
}
