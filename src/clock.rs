//! Time as a seam: what waits for it, or writes it down, takes a [`Clock`], so that tests can let hours pass at once.

use std::thread;
use std::time::{Duration, SystemTime};

/// Tells the time and waits.
pub trait Clock: Send + Sync {
    /// Milliseconds of Unix time.
    fn unix_ms(&self) -> u64;

    /// Waits so long, or less if an orderly end is asked for meanwhile.
    fn sleep(&self, duration: Duration);
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// How often a sleeper looks whether an orderly end is asked for.
const PERIOD: Duration = Duration::from_millis(50);

impl Clock for SystemClock {
    /// 0 where the clock stands before 1970.
    fn unix_ms(&self) -> u64 {
        let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) {
        let mut left = duration;
        while !left.is_zero() && !crate::interrupt::requested() {
            let now = left.min(PERIOD);
            thread::sleep(now);
            left -= now;
        }
    }
}
