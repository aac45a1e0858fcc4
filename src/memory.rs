//! Memory that scoring a model takes, held against what there is, before any of it is taken.
//!
//! The limit on parameters does not bound what a model's activations take: a Llama two wide whose MLP is 100,000,000 wide
//! has 600 M parameters, and one row of it takes more than a terabyte.

use std::fs;

use anyhow::{Result, bail};

use crate::error::input;
use crate::figures::{bytes, count};
use crate::model::arch::Arch;
use crate::model::decoder::memory::scoring_bytes;

/// The memory of the largest card that a validator of the subnet had, an A100 or H100: what needs more, nobody scored.
const LARGEST_CARD: u128 = 80 << 30;

/// Memory that programs may still take, if the system says.
pub fn free() -> Option<u128> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u128 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Whether a model can be scored on rows of up to so many tokens; `on_gpu`: only its weights are in this machine's memory.
///
/// # Errors
/// Of kind [`crate::error::Failure::Input`] if it is the model's fault, for no validator could have scored it; of no kind if
/// this machine has not enough.
pub fn check_scoring(arch: &Arch, row_len: usize, on_gpu: bool) -> Result<()> {
    check_against(arch, row_len, on_gpu, free())
}

fn check_against(arch: &Arch, row_len: usize, on_gpu: bool, free: Option<u128>) -> Result<()> {
    let weights = 4 * arch.num_parameters();
    let with_threads = |threads| weights.saturating_add(scoring_bytes(arch, row_len, threads));
    // How many threads this machine has is nothing of the model's.
    let needed = with_threads(1);
    if needed > LARGEST_CARD {
        return Err(input(format!(
            "to score the model on a row of {} tokens takes {} of memory, more than the {} of the largest card that a \
             validator had",
            count(row_len as u64),
            bytes(needed),
            bytes(LARGEST_CARD)
        )));
    }
    let needed = if on_gpu { weights } else { with_threads(rayon::current_num_threads()) };
    if let Some(free) = free.filter(|&free| needed > free) {
        bail!(
            "to score the model on a row of {} tokens takes {} of memory, and this machine has {} free: end other programs, \
             or score it on a larger machine",
            count(row_len as u64),
            bytes(needed),
            bytes(free)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Map;

    use super::*;
    use crate::error::exit_code;
    use crate::model::config::{Sizes, new_arch};
    use crate::model::family::Family;

    fn llama(width: usize, mlp_width: usize) -> Arch {
        let sizes = Sizes { vocab_size: 50_257, context: 1_024, width, layers: 1, heads: 1, kv_heads: None, mlp_width };
        new_arch(Family::Llama, sizes, &Map::new()).unwrap()
    }

    #[test]
    fn what_no_card_could_score_is_the_models_fault_and_what_we_lack_is_not() {
        let absurd = llama(2, 100_000_000);
        assert!(absurd.num_parameters() < 772_000_000);
        for on_gpu in [false, true] {
            let error = check_against(&absurd, 1_024, on_gpu, Some(u128::MAX)).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains("a row of 1,024 tokens") && error.to_string().contains("largest card"));
        }
        let usual = llama(256, 1_024);
        check_against(&usual, 1_024, false, None).unwrap();
        check_against(&usual, 1_024, false, Some(8 << 30)).unwrap();
        let error = check_against(&usual, 1_024, false, Some(1 << 20)).unwrap_err();
        assert_eq!(exit_code(&error), 1);
        assert!(error.to_string().contains("this machine has"), "{error}");
        // On a card, the activations are not in this machine's memory.
        let weights = 4 * usual.num_parameters();
        check_against(&usual, 1_024, true, Some(weights)).unwrap();
        assert!(check_against(&usual, 1_024, false, Some(weights)).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_tells_how_much_is_free() {
        assert!(free().unwrap() > 0);
    }
}
