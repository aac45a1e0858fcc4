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

/// Blocks over which is measured, where the node keeps so many.
const SPAN: u64 = 100;

/// What the program says of itself, or else [`OF_FINNEY`].
pub(super) fn said(runtime: &Runtime) -> Attempt<f64> {
    let half: Option<u64> = runtime.constant("Timestamp", "MinimumPeriod")?;
    let said = half.map(|half| half.saturating_mul(2) as f64 / 1000.0);
    Ok(said.filter(is_plausible).unwrap_or(OF_FINNEY))
}

/// The seconds from one block to the next, by the times of a block and one before it; `None` where the node keeps none.
pub(super) async fn measured(link: &Link, hash: H256) -> Result<Option<f64>, Fault> {
    let number = link.number(hash).await?;
    // The first block has no time.
    let [far, near] = [SPAN, 1].map(|span| number.saturating_sub(span).max(1));
    let (far_hash, near_hash) = try_join(link.block_hash(far), link.block_hash(near)).await?;
    let before = far_hash.map(|hash| (far, hash)).or(near_hash.map(|hash| (near, hash)));
    let Some((before, before_hash)) = before.filter(|(before, _)| *before < number) else { return Ok(None) };
    let (now, then) = try_join(time(link, hash), time(link, before_hash)).await?;
    let (Some(now), Some(then)) = (now, then) else { return Ok(None) };
    let seconds = now.saturating_sub(then) as f64 / 1000.0 / (number - before) as f64;
    Ok(Some(seconds).filter(is_plausible))
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
