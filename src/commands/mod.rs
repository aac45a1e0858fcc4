//! One file per verb of the command line. A command prints through the `Printer` it is handed and returns an error whose
//! kind decides the exit code.

pub mod bench;
pub mod check;
pub mod compare;
pub mod emission;
pub mod inspect;
pub mod local;
mod machine;
pub mod publish;
pub mod score;
pub mod train;
pub mod validate;

use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::{BackendChoice, NetworkArgs};
use crate::network;
use crate::recipe::{self, Backend, Resolved};

/// Fixes the number of threads of this process: part of what determines a run's bits.
pub(crate) fn set_threads(threads: Option<usize>) -> Result<()> {
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = threads {
        pool = pool.num_threads(threads);
    }
    pool.build_global().context("the threads could not be started")
}

/// The folder itself, or the nearest above it that is there.
pub(crate) fn existing_folder(dir: &Path) -> &Path {
    dir.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."))
}

/// Where hub, chain and rules are, by a recipe or by the folder of the embedded network.
pub(crate) struct Place {
    /// The recipe, if one was named.
    pub(crate) resolved: Option<Resolved>,
    /// The hub.
    pub(crate) hub: recipe::Hub,
    /// The chain.
    pub(crate) chain: recipe::Chain,
}

impl Place {
    /// Reads the recipe, if there is one.
    pub(crate) fn of(args: &NetworkArgs) -> Result<Self> {
        let Some(path) = &args.recipe else {
            let (hub, chain) = network::local_sections(&args.local);
            return Ok(Self { resolved: None, hub, chain });
        };
        let resolved = recipe::load_resolved(path, &args.set)?;
        let (hub, chain) = (resolved.recipe.hub.clone(), resolved.recipe.chain.clone());
        Ok(Self { resolved: Some(resolved), hub, chain })
    }
}

impl From<BackendChoice> for Backend {
    fn from(choice: BackendChoice) -> Self {
        match choice {
            BackendChoice::Native => Self::Native,
            BackendChoice::Candle => Self::Candle,
        }
    }
}
