//! The hub and the chain that a recipe names, open; the embedded ones are made where they are missing and wanted.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::chain::ledger::Ledger;
use crate::chain::subtensor::{self, Subtensor};
use crate::chain::wallet::{self, Access, Keyring};
use crate::chain::{Chain, Hotkey};
use crate::data;
use crate::error::input;
use crate::hub::Hub;
use crate::hub::fetch::Cache;
use crate::hub::file_hashes::FileHashes;
use crate::hub::folder::FolderHub;
use crate::hub::huggingface::{self, HuggingFace};
use crate::local;
use crate::metrics::printer::Printer;
use crate::metrics::transfers;
use crate::publish::repair;
use crate::recipe::{self, HubKind, LOCAL_DIR};
use crate::rules::Rules;
use crate::score::cache::LossCache;

/// Where models are published and committed.
pub struct Network {
    /// Where models live.
    pub hub: Box<dyn Hub>,
    /// Where their metadata lives.
    pub chain: Box<dyn Chain>,
    /// The own hotkeys, as the chain spells them.
    pub hotkeys: Vec<Hotkey>,
    /// Where downloaded models are kept.
    pub cache: Cache,
    /// Losses that were computed before.
    pub losses: LossCache,
}

impl Network {
    /// Opens what is there, and shows what a publish that was cut off has left hidden.
    pub fn open(hub: &recipe::Hub, chain: &recipe::Chain, printer: &Printer) -> Result<Self> {
        let (chain, hotkeys) = open_chain(chain)?;
        repair(hub, chain.as_ref(), Some(&hotkeys), printer);
        let losses = LossCache::beside(&hub.cache);
        Ok(Self {
            hub: open_hub(hub, losses.hashes(), printer)?,
            chain,
            hotkeys,
            cache: Cache::with_hashes(&hub.cache, losses.hashes().clone())
                .with_budget(hub.cache_gb.map(|gigabytes| (gigabytes * 1e9) as u64)),
            losses,
        })
    }

    /// Adds the hotkeys of a recipe to the own ones, as far as they can be told without their keys.
    pub fn add_own(&mut self, chain: &recipe::Chain) {
        let spelled = |hotkey: &Hotkey| match chain.is_local() {
            true => Some(hotkey.clone()),
            false => keyring(chain).add(&wallet_dir(chain), hotkey).ok(),
        };
        for hotkey in chain.hotkeys().iter().filter_map(spelled) {
            if !self.hotkeys.contains(&hotkey) {
                self.hotkeys.push(hotkey);
            }
        }
    }

    /// The only own hotkey; an error that tells how to choose where there are several.
    pub fn only_hotkey(&self) -> Result<&Hotkey> {
        only(&self.hotkeys, "name one by --hotkey, or by chain.hotkeys of a recipe")
    }

    /// Opens what is there; an embedded network that is missing is made first, with the own hotkeys registered.
    pub fn open_or_make(hub: &recipe::Hub, chain: &recipe::Chain, printer: &Printer) -> Result<Self> {
        if needs_making(chain) {
            printer.note(&make(hub, chain, &local::Options::default())?);
        }
        Self::open(hub, chain, printer)
    }
}

/// The only one of some hotkeys; `remedy` tells how to name one where there is none.
pub fn only<'a>(hotkeys: &'a [String], remedy: &str) -> Result<&'a String> {
    match hotkeys {
        [hotkey] => Ok(hotkey),
        [] => Err(input(format!("no hotkey is named: {remedy}"))),
        several => Err(input(format!("there are several hotkeys ({}): choose one by --hotkey", several.join(", ")))),
    }
}

/// Whether the recipe names an embedded network that is not there.
pub fn needs_making(chain: &recipe::Chain) -> bool {
    chain.is_local() && !chain.ledger.exists()
}

/// Shows what a publish that was cut off has left hidden. Whatever keeps it from that is told, and keeps nobody from his work.
pub fn repair(hub: &recipe::Hub, chain: &dyn Chain, own: Option<&[Hotkey]>, printer: &Printer) {
    let repaired = repair::pending(chain).and_then(|hotkeys| {
        if !hotkeys.is_empty() {
            repair::show(open_hub(hub, &FileHashes::default(), printer)?.as_ref(), chain, &hotkeys, own, printer);
        }
        Ok(())
    });
    if let Err(error) = repaired {
        printer.warn(&format!("whether a model that was published is still hidden could not be looked at: {error:#}"));
    }
}

/// Opens the hub; whether a real one answers is not asked yet.
pub fn open_hub(hub: &recipe::Hub, hashes: &FileHashes, printer: &Printer) -> Result<Box<dyn Hub>> {
    if hub.kind == HubKind::Folder {
        return Ok(Box::new(FolderHub::open(&hub.dir)?));
    }
    let options = huggingface::Options::of(hub, hashes.clone(), transfers::observer(printer))?;
    Ok(Box::new(HuggingFace::new(options)?))
}

/// Opens the chain that is there, and says how it spells the own hotkeys. A real one may ask for their passwords when they
/// first sign.
pub fn open_chain(chain: &recipe::Chain) -> Result<(Box<dyn Chain>, Vec<Hotkey>)> {
    if chain.is_local() {
        return Ok((Box::new(Ledger::open(&chain.ledger)?), chain.hotkeys()));
    }
    let mut keyring = keyring(chain);
    let wallet = wallet_dir(chain);
    let hotkeys = chain.hotkeys().iter().map(|hotkey| keyring.add(&wallet, hotkey)).collect::<Result<_>>()?;
    Ok((Box::new(connect(chain, keyring)?), hotkeys))
}

/// Connects to a real chain with keys that may be others than the recipe's.
pub fn connect(chain: &recipe::Chain, keyring: Keyring) -> Result<Subtensor> {
    let network = match chain.network {
        Some(recipe::Network::Finney) => Some(subtensor::FINNEY),
        Some(recipe::Network::Test) => Some(subtensor::TEST),
        Some(recipe::Network::Local) | None => None,
    };
    let options = subtensor::Options {
        network,
        endpoints: chain.endpoints().to_vec(),
        netuid: chain.netuid,
        state_dir: subtensor::default_state_dir(),
    };
    Subtensor::connect(options, keyring)
}

/// An empty keyring that opens key files as the recipe says.
pub fn keyring(chain: &recipe::Chain) -> Keyring {
    Keyring::new(Access { allow_readable_by_others: chain.allow_readable_keys })
}

/// The folder of the recipe's wallet.
pub fn wallet_dir(chain: &recipe::Chain) -> PathBuf {
    let wallets = match &chain.wallet_dir {
        None => wallet::default_dir(),
        // As a shell would, which never sees it.
        Some(dir) => match dir.strip_prefix("~") {
            Ok(below) => std::env::home_dir().unwrap_or_default().join(below),
            Err(_) => dir.clone(),
        },
    };
    wallets.join(&chain.wallet)
}

/// Makes the embedded network, unless it is there; returns what was done.
pub fn make(hub: &recipe::Hub, chain: &recipe::Chain, options: &local::Options) -> Result<String> {
    let text = data::open_sample(Rules::default().criteria.sequence_length)?;
    let folder = FolderHub::create(&hub.dir)?;
    let report = local::init(&folder, &chain.ledger, &chain.hotkeys(), &text, options)?;
    Ok(report.to_string())
}

/// The hub and chain sections of the embedded network in a folder.
pub fn local_sections(dir: &Path) -> (recipe::Hub, recipe::Chain) {
    let (mut hub, mut chain) = (recipe::Hub::default(), recipe::Chain::default());
    for path in [&mut hub.dir, &mut hub.cache, &mut chain.ledger] {
        let name = path.strip_prefix(LOCAL_DIR).expect("the defaults lie there").to_owned();
        *path = dir.join(name);
    }
    (hub, chain)
}
