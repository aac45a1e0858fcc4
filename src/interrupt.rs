//! Ctrl-C and SIGTERM as a flag that long work looks at.
//!
//! The first signal asks for an orderly end: the training loop saves a checkpoint and the program exits with 130.
//! A second one ends the process at once, for a user who does not want to wait. Work for which nobody waits any more, on a
//! thread of its own, is ended in the same way by a `Stop`.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Signals that come so soon after the first one mean the same: `timeout` and batch systems signal a program and then its
/// whole group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Installs the handler for SIGINT, SIGTERM and SIGHUP, unless it is there.
pub fn install() -> anyhow::Result<()> {
    static IS_INSTALLED: AtomicBool = AtomicBool::new(false);
    if IS_INSTALLED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let mut first = None;
    ctrlc::set_handler(move || {
        SIGNALS.fetch_add(1, Ordering::SeqCst);
        if first.get_or_insert_with(Instant::now).elapsed() >= SAME_SIGNAL {
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// Whether an orderly end was asked for, of all or of this thread.
pub fn requested() -> bool {
    SIGNALS.load(Ordering::SeqCst) > 0 || STOP.with_borrow(Stop::is_set)
}

thread_local! {
    static STOP: RefCell<Stop> = RefCell::default();
}

/// Asks some threads for an orderly end. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The one that this thread looks at.
    pub(crate) fn of_this_thread() -> Self {
        STOP.with_borrow(Self::clone)
    }

    /// Lets this thread look at it from now on.
    pub(crate) fn watch(&self) {
        STOP.set(self.clone());
    }

    /// Whether the end was asked for.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Sets a stop when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct StopOnDrop(pub(crate) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}
