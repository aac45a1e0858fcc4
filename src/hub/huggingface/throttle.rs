//! A bound on the bytes that all downloads of a hub take together in a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What came while nobody asked may be taken at once, up to the share of so long.
const BURST: Duration = Duration::from_millis(250);

/// Lets bytes pass at a rate.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_second: Option<u64>,
    /// When all that was let pass so far is paid for.
    paid_at: Mutex<Instant>,
}

impl Throttle {
    /// `None`: no bound.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, paid_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes that have come are paid for.
    pub(super) async fn pass(&self, bytes: usize) {
        let now = Instant::now();
        let pause = self.charge(bytes, now).saturating_duration_since(now);
        // A pause of nothing would last until the clock ticks, a millisecond for each part.
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn charge(&self, bytes: usize, now: Instant) -> Instant {
        let Some(rate) = self.bytes_per_second else { return now };
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *paid_at = (*paid_at).max(earliest) + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        *paid_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_together_keep_to_the_rate() {
        let throttle = Throttle::new(Some(1_000_000));
        let start = Instant::now() + Duration::from_secs(10);
        // As if it had been idle: a quarter of a second's share is free.
        assert_eq!(throttle.charge(250_000, start), start);
        assert_eq!(throttle.charge(500_000, start), start + Duration::from_millis(500));
        assert_eq!(throttle.charge(500_000, start), start + Duration::from_secs(1));
        assert_eq!(throttle.charge(0, start + Duration::from_secs(60)), start + Duration::from_millis(59_750));
        assert_eq!(Throttle::new(None).charge(usize::MAX, start), start);
    }
}
