//! How slowly a body may come.

use std::time::{Duration, Instant};

use super::fault::Fault;

/// A connection that brings fewer bytes in a second trickles, and is cut.
const LEAST_BYTES_PER_SECOND: f64 = 1024.0;

/// Watches the bytes of a body.
pub(super) struct Pace {
    window: Duration,
    since: Instant,
    bytes: usize,
}

impl Pace {
    /// Over stretches of at least so long.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, since: Instant::now(), bytes: 0 }
    }

    /// Hears of bytes that have come; a fault if they were too few for too long.
    pub(super) fn keep(&mut self, bytes: usize) -> Result<(), Fault> {
        self.bytes += bytes;
        if self.since.elapsed() >= self.window {
            let seconds = self.window.as_secs_f64();
            if (self.bytes as f64) < seconds * LEAST_BYTES_PER_SECOND {
                return Err(Fault::Lost(format!("{} bytes came in {seconds} s", self.bytes)));
            }
            (self.since, self.bytes) = (Instant::now(), 0);
        }
        Ok(())
    }
}
