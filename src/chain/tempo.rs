//! When a subnet's epochs run, and what they come to in a day.

const SECONDS_PER_DAY: f64 = 86_400.0;

/// The first block from `block` on at which a subnet's epoch runs; `None` if there is none.
pub fn next_epoch(netuid: u16, tempo: u64, block: u64) -> Option<u64> {
    // On the chain: where (block + netuid + 1) % (tempo + 1) == tempo.
    let (period, shift) = (tempo.checked_add(1)?, u64::from(netuid) + 2);
    block.checked_add(shift)?.checked_next_multiple_of(period)?.checked_sub(shift)
}

/// The first block from `block` on at which an epoch runs, where one runs at `next` and then one every `tempo` blocks;
/// `None` if there is none.
pub fn next_epoch_from(next: u64, tempo: u64, block: u64) -> Option<u64> {
    let later = block.saturating_sub(next);
    next.checked_add(later.checked_next_multiple_of(tempo)?)
}

/// Seconds from one epoch to the next.
pub fn seconds_per_epoch(tempo: u64, seconds_per_block: f64) -> f64 {
    tempo.saturating_add(1) as f64 * seconds_per_block
}

/// What an amount that is paid once an epoch comes to in a day.
pub fn per_day(amount_per_epoch: f64, seconds_per_epoch: f64) -> f64 {
    amount_per_epoch * SECONDS_PER_DAY / seconds_per_epoch
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_subnet_has_its_own_blocks() {
        for (netuid, tempo) in [(0, 99), (1, 99), (9, 0), (9, 1), (37, 360)] {
            let runs = |block: &u64| (block + u64::from(netuid) + 1) % (tempo + 1) == tempo;
            let expected: Vec<u64> = (0..2_000).filter(runs).collect();
            let found = std::iter::successors(next_epoch(netuid, tempo, 0), |&at| next_epoch(netuid, tempo, at + 1));
            assert_eq!(found.take(expected.len()).collect::<Vec<_>>(), expected, "netuid {netuid}, tempo {tempo}");
        }
        assert_eq!((next_epoch(9, u64::MAX, 5), next_epoch(9, 360, u64::MAX)), (None, None));
    }

    #[test]
    fn epochs_that_are_noted_follow_each_other_a_tempo_apart() {
        let found = [0, 700, 701, 1_061].map(|block| next_epoch_from(700, 360, block));
        assert_eq!(found, [Some(700), Some(700), Some(1_060), Some(1_420)]);
        assert_eq!((next_epoch_from(700, 0, 701), next_epoch_from(7, 360, u64::MAX)), (None, None));
    }

    #[test]
    fn a_day_has_twenty_epochs_of_359_blocks() {
        assert_eq!(per_day(2.5, seconds_per_epoch(359, 12.0)), 50.0);
    }
}
