//! The hub and the chain that a recipe names, open; the embedded ones are made where they are missing and wanted.

use std::path::Path;

use anyhow::Result;

use crate::chain::Chain;
use crate::chain::ledger::Ledger;
use crate::data;
use crate::hub::Hub;
use crate::hub::fetch::Cache;
use crate::hub::folder::FolderHub;
use crate::local;
use crate::metrics::printer::Printer;
use crate::recipe::{self, HubKind, LOCAL_DIR};
use crate::rules::Rules;
use crate::score::cache::LossCache;

/// Where models are published and committed.
pub struct Network {
    /// Where models live.
    pub hub: Box<dyn Hub>,
    /// Where their metadata lives.
    pub chain: Box<dyn Chain>,
    /// Where downloaded models are kept.
    pub cache: Cache,
    /// Losses that were computed before.
    pub losses: LossCache,
}

impl Network {
    /// Opens what is there.
    pub fn open(hub: &recipe::Hub, chain: &recipe::Chain) -> Result<Self> {
        let recipe::Network::Local = chain.network;
        let ledger = Ledger::open(&chain.ledger)?;
        let HubKind::Folder = hub.kind;
        let losses = LossCache::beside(&hub.cache);
        Ok(Self {
            hub: Box::new(FolderHub::open(&hub.dir)?),
            chain: Box::new(ledger),
            cache: Cache::with_hashes(&hub.cache, losses.hashes().clone()),
            losses,
        })
    }

    /// Opens what is there; an embedded network that is missing is made first, with the own hotkeys registered.
    pub fn open_or_make(hub: &recipe::Hub, chain: &recipe::Chain, printer: &Printer) -> Result<Self> {
        if needs_making(chain) {
            printer.note(&make(hub, chain)?);
        }
        Self::open(hub, chain)
    }
}

/// Whether the recipe names an embedded network that is not there.
pub fn needs_making(chain: &recipe::Chain) -> bool {
    let recipe::Network::Local = chain.network;
    !chain.ledger.exists()
}

/// Makes the embedded network, unless it is there; returns what was done.
pub fn make(hub: &recipe::Hub, chain: &recipe::Chain) -> Result<String> {
    let text = data::open_sample(Rules::default().criteria.sequence_length)?;
    let folder = FolderHub::create(&hub.dir)?;
    let report = local::init(&folder, &chain.ledger, &chain.hotkeys, &text, &local::Options::default())?;
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
