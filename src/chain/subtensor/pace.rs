//! How fast blocks follow each other.

use subxt::ext::codec::Decode;
use subxt::ext::frame_decode::storage::encode_storage_key_prefix;
use subxt::ext::futures::future::try_join;
use subxt::utils::H256;

use super::link::Link;
use super::runtime::Runtime;
use super::trouble::{Attempt, Fault};

/// Seconds from one block to the next on Bittensor's networks.
pub(super) const OF_FINNEY: f64 = 12.0;

/// Blocks over which is measured: the first of these that the node has kept.
const SPANS: [u64; 3] = [100, 10, 1];

/// What the program says of itself, or else [`OF_FINNEY`].
pub(super) fn said(runtime: &Runtime) -> Attempt<f64> {
    let half: Option<u64> = runtime.constant("Timestamp", "MinimumPeriod")?;
    let said = half.map(|half| half.saturating_mul(2) as f64 / 1000.0);
    Ok(said.filter(is_plausible).unwrap_or(OF_FINNEY))
}

/// The seconds from one block to the next, by the times of a block and one before it; `None` where the node keeps none.
pub(super) async fn measured(link: &Link, hash: H256) -> Result<Option<f64>, Fault> {
    let number = link.number(hash).await?;
    for span in SPANS {
        // The first block has no time.
        let before = number.saturating_sub(span).max(1);
        if before >= number {
            continue;
        }
        match between(link, (before, number), hash).await {
            Ok(Some(seconds)) => return Ok(Some(seconds).filter(is_plausible)),
            // Many nodes keep no more than what stood at the last blocks, and refuse to tell of others.
            Ok(None) | Err(Fault::Refused { .. }) => (),
            Err(fault) => return Err(fault),
        }
    }
    Ok(None)
}

async fn between(link: &Link, (before, number): (u64, u64), hash: H256) -> Result<Option<f64>, Fault> {
    let (before_hash, now) = try_join(link.block_hash(before), time(link, hash)).await?;
    let Some(before_hash) = before_hash else { return Ok(None) };
    let (Some(now), Some(then)) = (now, time(link, before_hash).await?) else { return Ok(None) };
    Ok(Some(now.saturating_sub(then) as f64 / 1000.0 / (number - before) as f64))
}

/// The time of a block, in milliseconds of Unix time. It is where it always was, so that it can be read before the program
/// is known.
async fn time(link: &Link, block: H256) -> Result<Option<u64>, Fault> {
    let keys = [encode_storage_key_prefix("Timestamp", "Now").to_vec()];
    let value = link.values(&keys, block).await?.into_iter().flatten().next();
    Ok(value.and_then(|bytes| u64::decode(&mut &*bytes).ok()))
}

fn is_plausible(seconds: &f64) -> bool {
    (0.001..=600.0).contains(seconds)
}
