//! What the embedded chain and the real one say alike when they refuse.

use crate::error::{Failure, input};
use crate::figures::duration;
use crate::hub::model_id::MAX_COMMITMENT_BYTES;

/// That a commitment has too many bytes.
pub(crate) fn too_long(num_bytes: usize) -> anyhow::Error {
    input(format!(
        "the commitment has {num_bytes} bytes, and the chain takes {MAX_COMMITMENT_BYTES}: give the repository a shorter name"
    ))
}

/// That a hotkey must wait until the block `next`. `act`: "commit"; `limit`: "the rate limit of 100 blocks lets it commit
/// again".
pub(crate) fn too_soon(
    hotkey: &str,
    act: &str,
    block: u64,
    limit: &str,
    next: u64,
    seconds_per_block: f64,
) -> anyhow::Error {
    let wait = duration(next.saturating_sub(block) as f64 * seconds_per_block);
    Failure::No(format!(
        "the hotkey `{hotkey}` cannot {act} at block {block}: {limit} at block {next}, in about {wait}"
    ))
    .into()
}
