//! Ctrl-C and SIGTERM as a flag that long work looks at.
//!
//! The first signal asks for an orderly end: the training loop saves a checkpoint and the program exits with 130.
//! A second one ends the process at once, for a user who does not want to wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Installs the handler for SIGINT, SIGTERM and SIGHUP, unless it is there.
pub fn install() -> anyhow::Result<()> {
    static IS_INSTALLED: AtomicBool = AtomicBool::new(false);
    if IS_INSTALLED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        if SIGNALS.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// Whether an orderly end was asked for.
pub fn requested() -> bool {
    SIGNALS.load(Ordering::SeqCst) > 0
}
