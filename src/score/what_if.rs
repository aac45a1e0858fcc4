//! What an epoch would pay if a model won more often, or less: from weights back to win rates, and forth again.
//!
//! A validator's weights are a softmax of win rates, so the logarithms of a row's weights are those win rates but for one
//! constant. It is chosen such that the rates of n models sum to n / 2, for in nearly every match somebody wins. Setting
//! one model's rate moves all others by one amount, so that the sum stays what it must be.
//!
//! This is an estimate: weights on the chain are a moving average over steps, models whose weight rounds to 0 are not
//! seen, and rivals do not lose alike.

use super::weights::{as_sent, softmax};
use super::yuma::Input;

/// The win rates that a validator's weights speak of, as (uid, rate); a uid without weight has none. Rates are relative,
/// and may leave the range from 0 to 1.
pub fn win_rates(weights: &[(u16, u16)], temperature: f64) -> Vec<(u16, f64)> {
    let logs = weights.iter().filter(|(_, weight)| *weight > 0).map(|&(uid, weight)| (uid, f64::from(weight).ln()));
    let logs: Vec<(u16, f64)> = logs.collect();
    let mean = logs.iter().map(|(_, log)| log).sum::<f64>() / logs.len() as f64;
    logs.into_iter().map(|(uid, log)| (uid, 0.5 + temperature * (log - mean))).collect()
}

/// The weights that a validator would set if one model's win rate became another; a model without weight joins the others.
/// A model that meets nobody has all the weight, whatever its win rate.
pub fn with_win_rate(weights: &[(u16, u16)], uid: u16, win_rate: f64, temperature: f64) -> Vec<(u16, u16)> {
    let mut rates: Vec<(u16, f64)> = win_rates(weights, temperature);
    rates.retain(|(other, _)| *other != uid);
    let num_others = rates.len() as f64;
    let sum: f64 = rates.iter().map(|(_, rate)| rate).sum();
    let shift = ((num_others + 1.0) / 2.0 - win_rate - sum) / num_others;
    rates.iter_mut().for_each(|(_, rate)| *rate += shift);
    rates.push((uid, win_rate));
    rates.sort_by_key(|(uid, _)| *uid);

    let (uids, rates): (Vec<u16>, Vec<f64>) = rates.into_iter().unzip();
    let shares = softmax(&rates, temperature);
    as_sent(std::iter::zip(uids, shares))
}

/// What the next epoch would start from if every validator that counts found that win rate, and had set weights since.
/// A validator without weights to any present miner stays as it is.
pub fn next_epoch(input: &Input, uid: u16, win_rate: f64, temperature: f64) -> Input {
    let mut next = input.clone();
    for validator in input.validators() {
        let row = input.current_weights(validator);
        if row.is_empty() || validator == usize::from(uid) {
            continue;
        }
        next.weights[validator] = with_win_rate(&row, uid, win_rate, temperature);
        // Set after the registration of whoever is in there; what the old ones said of former holders is gone.
        let is_there = |(miner, _): &(u16, u16)| usize::from(*miner) < input.len();
        next.bonds[validator].retain(|entry| is_there(entry) && input.is_current(validator, entry.0));
        next.last_update[validator] = input.block.max(input.registered_at[usize::from(uid)].saturating_add(1));
    }
    next
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::yuma;
    use super::*;
    use crate::chain::{ConsensusParams, FULL_SHARE};

    /// 65,535 / e, 65,535 / √e, rounded.
    const AN_ETH: u16 = 24_109;
    const A_ROOT: u16 = 39_749;

    fn assert_rates(found: Vec<(u16, f64)>, expected: &[(u16, f64)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in std::iter::zip(&found, expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn weights_are_read_back_as_win_rates_around_a_half() {
        // A weight e times as large is a win rate larger by the temperature.
        let weights = [(5, FULL_SHARE), (6, AN_ETH), (7, 0)];
        assert_rates(win_rates(&weights, 0.04), &[(5, 0.52), (6, 0.48)]);
        assert_rates(win_rates(&weights, 0.01), &[(5, 0.505), (6, 0.495)]);
        assert_rates(win_rates(&[(3, 7)], 0.04), &[(3, 0.5)]);
        assert_rates(win_rates(&[], 0.04), &[]);
    }

    #[test]
    fn a_win_rate_of_one_model_moves_all_others_alike() {
        let weights = [(5, FULL_SHARE), (6, AN_ETH)];
        // The two change places.
        assert_eq!(with_win_rate(&weights, 6, 0.52, 0.04), [(5, AN_ETH), (6, FULL_SHARE)]);
        // As it is.
        assert_eq!(with_win_rate(&weights, 5, 0.52, 0.04), weights);
        // A third one, at a half, takes nothing from the others' sum of 1, whatever its place in the order of uids.
        assert_eq!(with_win_rate(&weights, 2, 0.5, 0.04), [(2, A_ROOT), (5, FULL_SHARE), (6, AN_ETH)]);
        // With 0.53 it takes 0.03 from them: 0.505 and 0.465 stay, so 65,535 e^(-0.025 / 0.04) and e^(-0.065 / 0.04).
        assert_eq!(with_win_rate(&weights, 9, 0.53, 0.04), [(5, 35_078), (6, 12_905), (9, FULL_SHARE)]);
        // The loser of every match is not heard of: e^-25.
        assert_eq!(with_win_rate(&weights, 5, 0.0, 0.04), [(6, FULL_SHARE)]);
        assert_eq!(with_win_rate(&[(5, 3)], 5, 0.0, 0.04), [(5, FULL_SHARE)]);
    }

    /// Two validators that agree, one of them asleep in the end, and miners 2 and 3.
    fn input() -> Input {
        let row = vec![(2, FULL_SHARE), (3, AN_ETH)];
        Input {
            block: 100,
            activity_cutoff: 50,
            consensus: ConsensusParams::default(),
            stake: vec![60, 40, 0, 0, 0],
            validator_permit: vec![true, true, false, false, false],
            last_update: vec![90, 90, 0, 0, 0],
            registered_at: vec![0, 0, 0, 0, 95],
            weights: vec![row.clone(), row, vec![], vec![], vec![]],
            bonds: vec![Vec::new(); 5],
        }
    }

    #[test]
    fn an_epoch_is_foretold_for_a_model_that_no_validator_has_met() {
        let now = input();
        let e = std::f64::consts::E;
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        close(yuma::incentives(&now)[2], e / (e + 1.0));
        // Uid 4 was registered after the validators spoke. It joins half-way between the others: 1 : √e : e.
        let shares = yuma::incentives(&next_epoch(&now, 4, 0.5, 0.04));
        close(shares[4], e.sqrt() / (e + e.sqrt() + 1.0));
        close(shares[2], e / (e + e.sqrt() + 1.0));
        // The counterpart of what is foretold is what is: nothing changes where the rate is the present one.
        assert_eq!(yuma::incentives(&next_epoch(&now, 3, 0.48, 0.04)), yuma::incentives(&now));
    }

    #[test]
    fn validators_that_do_not_count_and_the_model_s_own_do_not_change_their_minds() {
        let mut asleep = input();
        asleep.last_update[1] = 49;
        let next = next_epoch(&asleep, 4, 1.0, 0.04);
        assert_eq!((&next.weights[1], next.last_update[1]), (&asleep.weights[1], 49));
        assert_ne!(next.weights[0], asleep.weights[0]);
        // Uid 1 competes itself: it gives itself no weight that counts.
        let next = next_epoch(&input(), 1, 1.0, 0.04);
        assert_eq!(next.weights[1], input().weights[1]);
        assert_eq!(next.weights[0], [(1, FULL_SHARE)]);
        // What was said of uid 2 was said of its former holder, and is not said of the new one now.
        let mut renewed = input();
        renewed.registered_at[2] = 95;
        renewed.bonds[0] = vec![(2, 9), (3, 9), (77, 9)];
        let next = next_epoch(&renewed, 4, 0.5, 0.04);
        assert_eq!(next.weights[0], [(3, FULL_SHARE), (4, FULL_SHARE)]);
        assert_eq!(next.bonds[0], [(3, 9)]);
    }
}
