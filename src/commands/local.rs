//! `assay local`: the embedded network, a hub folder and a ledger on this machine, for practice and for tests.

use anyhow::Result;

use super::Place;
use crate::chain::UNITS_PER_TAO;
use crate::chain::ledger::Ledger;
use crate::cli::{LocalArgs, LocalCommand};
use crate::local;
use crate::metrics::printer::Printer;
use crate::network;

/// Runs the command.
pub fn run(args: &LocalArgs, printer: &Printer) -> Result<()> {
    match &args.command {
        LocalCommand::Init { block_seconds, network } => {
            let place = Place::of(network)?;
            let options = local::Options { block_ms: (block_seconds * 1000.0).round() as u64 };
            printer.result(&network::make(&place.hub, &place.chain, &options)?)
        }
        LocalCommand::Serve { .. } => anyhow::bail!("not there yet"),
        LocalCommand::Register { hotkey, stake, network } => {
            let place = Place::of(network)?;
            let ledger = Ledger::open(&place.chain.ledger)?;
            let uid = ledger.register(hotkey)?;
            let path = place.chain.ledger.display();
            let Some(stake) = *stake else { return printer.result(&format!("{hotkey} has uid {uid} in {path}.")) };
            ledger.set_stake(uid, stake)?;
            ledger.set_permit(uid, true)?;
            let tao = stake as f64 / UNITS_PER_TAO as f64;
            printer.result(&format!("{hotkey} has uid {uid} in {path}, a stake of {tao} TAO, and a validator permit."))
        }
    }
}
