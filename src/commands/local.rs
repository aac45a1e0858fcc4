//! `assay local`: the embedded network, a hub folder and a ledger on this machine, and a server of shards of text, for
//! practice and for tests.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::Place;
use crate::chain::ledger::Ledger;
use crate::chain::{Chain, UNITS_PER_TAO, account};
use crate::cli::{LocalArgs, LocalCommand};
use crate::clock::{Clock, SystemClock};
use crate::error::input;
use crate::figures::count;
use crate::hub::Hub;
use crate::hub::folder::FolderHub;
use crate::interrupt;
use crate::local;
use crate::local::dataset::{self, DatasetServer};
use crate::local::hub::{self, HubServer};
use crate::local::rpc::{self, Devnet, Spec};
use crate::lock;
use crate::metrics::printer::Printer;
use crate::network;

/// As many blocks follow before one is final, so that clients learn to wait for it.
const FINALITY_LAG: u32 = 1;

/// Runs the command.
pub fn run(args: &LocalArgs, printer: &Printer) -> Result<()> {
    match &args.command {
        LocalCommand::Init { block_seconds, network } => {
            let place = Place::of(network)?;
            let options = local::Options { block_ms: (block_seconds * 1000.0).round() as u64 };
            printer.result(&network::make(&place.hub, &place.chain, &options)?)
        }
        LocalCommand::Serve { rpc, hub, dataset, shards, dir, spec, token } => {
            interrupt::install()?;
            let dataset = dataset.zip(shards.as_deref());
            let _dataset = dataset.map(|(port, shards)| serve_dataset(port, shards, printer)).transpose()?;
            let _hub = hub.map(|port| serve_hub(port, dir, token.clone(), printer)).transpose()?;
            let _chain = rpc.map(|port| serve_chain(port, dir, *spec, printer)).transpose()?;
            while !interrupt::requested() {
                SystemClock.sleep(Duration::from_secs(60));
            }
            Ok(())
        }
        LocalCommand::Register { hotkey, stake, network } => {
            let place = Place::of(network)?;
            let ledger = Ledger::open(&place.chain.ledger)?;
            // A name of that length is an address that was mistyped.
            if hotkey.starts_with('5') && hotkey.len() >= 46 {
                account::parse(hotkey).map_err(input)?;
            }
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

/// Serves the hub folder, which is made if it is not there, until the server is dropped.
fn serve_hub(port: u16, dir: &Path, token: Option<String>, printer: &Printer) -> Result<HubServer> {
    let (hub, _) = network::local_sections(dir);
    let hub = Arc::new(FolderHub::create(&hub.dir)?);
    let server = HubServer::start(Arc::clone(&hub), port, hub::Options { token, ..hub::Options::default() })?;
    let (hub, endpoint) = (hub.describe(), server.endpoint());
    printer.result(&format!(
        "Serving {hub} until Ctrl-C, as `endpoint: {endpoint}` in recipes and HF_ENDPOINT={endpoint} for other programs."
    ))?;
    Ok(server)
}

/// Serves the shards of a folder until the server is dropped.
fn serve_dataset(port: u16, dir: &Path, printer: &Printer) -> Result<DatasetServer> {
    let server = DatasetServer::start(dir, port, dataset::Options::default())?;
    let (num_shards, endpoint) = (count(server.num_shards() as u64), server.endpoint());
    printer.result(&format!(
        "Serving {num_shards} shards of {} as a data set of any name until Ctrl-C: `data.endpoint: {endpoint}` and \
         `data.rows_endpoint: {endpoint}` in recipes, HF_ENDPOINT={endpoint} for other programs.",
        dir.display()
    ))?;
    Ok(server)
}

/// Serves the ledger until the node is dropped. The lock goes after it.
fn serve_chain(port: u16, dir: &Path, spec: u32, printer: &Printer) -> Result<(Devnet, File)> {
    let spec = Spec::of(spec)?;
    let (_, chain) = network::local_sections(dir);
    let ledger = Arc::new(Ledger::open(&chain.ledger)?);
    let lock = lock_serving(&chain.ledger, &ledger.describe())?;
    let devnet = Devnet::start_lagging(Arc::clone(&ledger), port, spec, FINALITY_LAG)?;
    let snapshot = ledger.snapshot()?;
    let mut text = format!(
        "Serving {} at ws://{}, block {}, as version {} of Bittensor's chain, until Ctrl-C. Registered:",
        ledger.describe(),
        devnet.address(),
        count(snapshot.block),
        spec.version()
    );
    for neuron in &snapshot.neurons {
        let address = rpc::account(&neuron.hotkey)?.to_string();
        let key = match address == neuron.hotkey {
            true => address,
            false => format!("{} (the key //{0}), {address}", neuron.hotkey),
        };
        text.push_str(&format!("\n  uid {}: {key}", neuron.uid));
    }
    printer.result(&text)?;
    Ok((devnet, lock))
}

/// Keeps a second node from the ledger, whose transactions this one would not know of. The lock is a file of its own:
/// SQLite loses its locks when anybody else closes the ledger's.
fn lock_serving(ledger: &Path, name: &str) -> Result<File> {
    let mut path = ledger.canonicalize()?.into_os_string();
    path.push(".serve-lock");
    lock::take(Path::new(&path), |holder| format!("{name} is served by {holder}: stop that, or use its address"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_ledger_is_served_by_one_at_a_time_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("ledger.sqlite"), dir.path().join("link"));
        std::fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let lock = lock_serving(&path, "the ledger L").unwrap();
        let error = lock_serving(&link, "the ledger L").unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        let holder = format!("the ledger L is served by process {}: stop that", std::process::id());
        assert!(error.to_string().contains(&holder), "{error}");
        drop(lock);
        lock_serving(&link, "the ledger L").unwrap();
    }

    #[test]
    fn at_least_one_service_is_asked_for() {
        use clap::Parser;
        let parses =
            |args: &[&str]| crate::cli::Cli::try_parse_from([&["assay", "local", "serve"], args].concat()).is_ok();
        assert!(
            parses(&["--rpc", "0"]) && parses(&["--hub", "0"]) && parses(&["--rpc", "0", "--hub", "0", "--token", "t"])
        );
        assert!(parses(&["--dataset", "0", "--shards", "d"]));
        assert!(!parses(&[]) && !parses(&["--rpc", "0", "--token", "t"]));
        assert!(!parses(&["--dataset", "0"]) && !parses(&["--rpc", "0", "--shards", "d"]));
    }
}
