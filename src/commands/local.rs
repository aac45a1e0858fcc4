//! `assay local`: the embedded network, a hub folder and a ledger on this machine, for practice and for tests.

use anyhow::Result;

use super::Place;
use crate::chain::ledger::Ledger;
use crate::cli::{LocalArgs, LocalCommand};
use crate::metrics::printer::Printer;
use crate::network;

/// Runs the command.
pub fn run(args: &LocalArgs, printer: &Printer) -> Result<()> {
    match &args.command {
        LocalCommand::Init { network } => {
            let place = Place::of(network)?;
            printer.result(&network::make(&place.hub, &place.chain)?)
        }
        LocalCommand::Register { hotkey, network } => {
            let place = Place::of(network)?;
            let uid = Ledger::open(&place.chain.ledger)?.register(hotkey)?;
            printer.result(&format!("{hotkey} has uid {uid} in {}.", place.chain.ledger.display()))
        }
    }
}
