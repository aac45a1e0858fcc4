//! One file per verb of the command line. A command prints through the `Printer` it is handed and returns an error whose
//! kind decides the exit code.

pub mod bench;
pub mod check;
pub mod inspect;
pub mod score;
pub mod train;

use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::BackendChoice;
use crate::recipe::Backend;

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

impl From<BackendChoice> for Backend {
    fn from(choice: BackendChoice) -> Self {
        match choice {
            BackendChoice::Native => Self::Native,
            BackendChoice::Candle => Self::Candle,
        }
    }
}
