//! How long nodes are waited for.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use subxt::ext::futures::future::{Either, select};

use crate::interrupt;

/// The time limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a connection.
    pub(super) dial: Duration,
    /// For the answer to a request.
    pub(super) request: Duration,
    /// For the first connection, with all tries.
    pub(super) start: Duration,
    /// For an operation, with all tries.
    pub(super) operation: Duration,
    /// For news of an extrinsic that was handed in, before it is looked for.
    pub(super) news: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(10),
            request: Duration::from_secs(20),
            start: Duration::from_secs(10),
            operation: Duration::from_secs(60),
            news: Duration::from_secs(90),
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pause before a try: twice as long each time, and up to half as long again by chance, so that many who lost the same
/// node do not come back at once.
pub(super) fn pause(tries: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE);
    let chance = (RandomState::new().hash_one(tries) % 1024) as f64 / 1024.0;
    whole.mul_f64(1.0 + chance / 2.0)
}

/// Waits for something; `None` if an orderly end is asked for first.
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    let interrupted = std::pin::pin!(async {
        while !interrupt::requested() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    match select(std::pin::pin!(work), interrupted).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
