#![allow(clippy::unwrap_used)]

use std::time::Instant;

use serde_json::Value;

use super::*;
use crate::golden;

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Numbers too large for JSON are texts there.
fn amounts(value: &Value) -> Vec<u64> {
    list::<String>(value).iter().map(|text| text.parse().unwrap()).collect()
}

/// A row for each uid, of an object with those that are not empty.
fn rows(value: &Value, len: usize) -> Vec<Vec<(u16, u16)>> {
    (0..len).map(|uid| value.get(uid.to_string()).map(list).unwrap_or_default()).collect()
}

#[test]
fn golden_epochs_of_the_runtime() {
    let cases = golden::cases("chain/a_yuma.json", "scenarios");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let (given, after, len) = (&case["input"], &case["after"], case["n"].as_u64().unwrap() as usize);
        let number = |key: &str| given[key].as_u64().unwrap();
        let input = Input {
            block: case["block"].as_u64().unwrap(),
            activity_cutoff: number("activity_cutoff"),
            consensus: ConsensusParams {
                kappa: number("kappa") as u16,
                bonds_moving_average: number("bonds_moving_average"),
                max_validators: number("max_allowed_validators") as u16,
                emission: number("emission"),
            },
            stake: amounts(&given["stake"]),
            validator_permit: list(&given["validator_permit"]),
            last_update: list(&given["last_update"]),
            registered_at: list(&given["block_at_registration"]),
            weights: rows(&given["weights"], len),
            bonds: rows(&given["bonds"], len),
        };
        let loaded: Vec<Value> = list(&after["loaded_emission"]);
        let loaded = |key: &str| loaded.iter().map(|pay| pay[key].as_u64().unwrap()).collect();
        // Not within a unit, but to the last bit.
        let expected = Epoch {
            active: list(&after["active"]),
            rank: list(&after["rank"]),
            trust: list(&after["trust"]),
            consensus: list(&after["consensus"]),
            incentive: list(&after["incentive"]),
            dividends: list(&after["dividends"]),
            validator_trust: list(&after["validator_trust"]),
            pruning_scores: list(&after["pruning_scores"]),
            server_emission: loaded("server"),
            validator_emission: loaded("validator"),
            emission: list(&after["emission"]),
            validator_permit: list(&after["validator_permit"]),
            bonds: rows(&after["bonds"], len),
        };
        assert_eq!(epoch(&input), expected, "{}", case["name"]);
        let shares = incentives(&input);
        for (share, &incentive) in std::iter::zip(&shares, &expected.incentive) {
            assert!((share * 65_535.0 - f64::from(incentive)).abs() <= 1.0, "{} {shares:?}", case["name"]);
        }
    }
}

/// Validators with these stakes (uids from 0), which set weights at block 90, and `num_miners` miners after them.
fn subnet(stake: &[u64], num_miners: usize, weights: &[&[(u16, u16)]]) -> Input {
    let len = stake.len() + num_miners;
    let per_validator = |index: usize| index < stake.len();
    Input {
        block: 100,
        activity_cutoff: 50,
        consensus: ConsensusParams::default(),
        stake: (0..len).map(|uid| stake.get(uid).copied().unwrap_or(0)).collect(),
        validator_permit: (0..len).map(per_validator).collect(),
        last_update: vec![90; len],
        registered_at: vec![0; len],
        weights: (0..len).map(|uid| weights.get(uid).map(|row| row.to_vec()).unwrap_or_default()).collect(),
        bonds: vec![Vec::new(); len],
    }
}

#[test]
fn a_validator_with_less_stake_than_kappa_cannot_pay_alone() {
    // Kappa is a little less than a half: with exactly a half both minorities reach it.
    let weights: &[&[(u16, u16)]] = &[&[(2, 9)], &[(3, 9)]];
    assert_eq!(incentives(&subnet(&[49, 51], 2, weights)), [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(incentives(&subnet(&[51, 49], 2, weights)), [0.0, 0.0, 1.0, 0.0]);
    assert_eq!(incentives(&subnet(&[50, 50], 2, weights)), [0.0, 0.0, 0.5, 0.5]);
    let mut none = subnet(&[30, 30, 40], 3, &[&[(3, 9)], &[(4, 9)], &[(5, 9)]]);
    assert_eq!(incentives(&none), [0.0; 6], "three that do not agree pay nobody");
    none.consensus.kappa = 0;
    assert_eq!(
        incentives(&none)[3..].iter().map(|share| (share * 100.0).round()).collect::<Vec<_>>(),
        [30.0, 30.0, 40.0]
    );
}

#[test]
fn weights_to_oneself_to_a_new_holder_and_of_those_who_sleep_do_not_count() {
    let given: &[&[(u16, u16)]] = &[&[(0, 60_000), (2, 100), (3, 300)], &[(2, 100), (3, 300)]];
    let input = subnet(&[10, 10], 2, given);
    assert_eq!(incentives(&input), [0.0, 0.0, 0.25, 0.75]);
    let mut renewed = input.clone();
    renewed.registered_at[3] = 90;
    assert_eq!(incentives(&renewed), [0.0, 0.0, 1.0, 0.0]);
    let mut asleep = input.clone();
    asleep.weights[1] = vec![(2, 1)];
    asleep.last_update[0] = 49;
    assert_eq!(incentives(&asleep), [0.0, 0.0, 1.0, 0.0]);
    asleep.last_update[0] = 50;
    assert_ne!(incentives(&asleep), [0.0, 0.0, 1.0, 0.0]);
    let mut forbidden = input;
    forbidden.weights[1] = vec![(2, 1)];
    forbidden.validator_permit[0] = false;
    assert_eq!(incentives(&forbidden), [0.0, 0.0, 1.0, 0.0]);
}

/// Pseudo-random numbers (xorshift).
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |end| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % end
    }
}

/// A subnet whose validators give weight and hold bonds at random, the validators among the miners.
fn at_random(seed: u64, len: u16, num_validators: u16) -> Input {
    let mut below = random(seed);
    let mut input = subnet(&[], usize::from(len), &[]);
    for uid in 0..num_validators {
        let uid = usize::from(uid * (len / num_validators));
        input.validator_permit[uid] = true;
        input.stake[uid] = 1 + below(1 << 50);
        for matrix in [&mut input.weights, &mut input.bonds] {
            let named: Vec<u16> = (0..len).filter(|_| below(3) > 0).collect();
            matrix[uid] = named.into_iter().map(|miner| (miner, below(65_536) as u16)).collect();
        }
    }
    for uid in 0..usize::from(len) {
        input.registered_at[uid] = below(95);
    }
    input
}

#[test]
fn another_order_of_uids_orders_the_epoch_alike() {
    for seed in 1..=20 {
        let input = at_random(seed, 24, 6);
        let len = input.len();
        // To the new uid from the old one.
        let new = |uid: usize| (uid * 7 + 5) % len;
        fn moved<T: Clone>(values: &[T], new: impl Fn(usize) -> usize) -> Vec<T> {
            let mut result = values.to_vec();
            values.iter().enumerate().for_each(|(uid, value)| result[new(uid)] = value.clone());
            result
        }
        let rows = |rows: &[Vec<(u16, u16)>]| {
            let row = |row: &Vec<(u16, u16)>| {
                let mut row: Vec<_> = row.iter().map(|&(uid, value)| (new(uid.into()) as u16, value)).collect();
                row.sort_unstable();
                row
            };
            moved(&rows.iter().map(row).collect::<Vec<_>>(), new)
        };
        let other = Input {
            stake: moved(&input.stake, new),
            validator_permit: moved(&input.validator_permit, new),
            last_update: moved(&input.last_update, new),
            registered_at: moved(&input.registered_at, new),
            weights: rows(&input.weights),
            bonds: rows(&input.bonds),
            ..input.clone()
        };
        let (expected, found) = (epoch(&input), epoch(&other));
        assert!(expected.incentive.iter().filter(|incentive| **incentive > 0).count() > 5, "seed {seed}");
        assert_eq!(found.incentive, moved(&expected.incentive, new), "seed {seed}");
        assert_eq!(found.consensus, moved(&expected.consensus, new));
        assert_eq!(found.dividends, moved(&expected.dividends, new));
        assert_eq!(found.emission, moved(&expected.emission, new));
        assert_eq!(found.bonds, rows(&expected.bonds));
    }
}

#[test]
fn shares_sum_to_1_and_pay_to_the_emission() {
    for seed in 1..=20 {
        let input = at_random(seed, 64, 16);
        let sum: f64 = incentives(&input).iter().sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        let epoch = epoch(&input);
        let paid: u64 = std::iter::zip(&epoch.server_emission, &epoch.validator_emission).map(|(a, b)| a + b).sum();
        let servers: u64 = epoch.server_emission.iter().sum();
        let emission = input.consensus.emission;
        // What rounding keeps back: less than 2⁻³² of it for each uid and operation.
        assert!((emission - emission / 1_000_000..=emission).contains(&paid), "{paid}");
        assert!(servers.abs_diff(emission / 2) < emission / 1_000_000, "{servers}");
    }
}

#[test]
fn bonds_become_what_is_supported_step_by_step() {
    // Validator 1 begins to support what validator 0 alone has: its bonds grow by a tenth of the way, as 0.9 stays.
    let mut input = subnet(&[50, 50], 1, &[&[(2, 9)], &[(2, 9)]]);
    input.bonds[0] = vec![(2, 65_535)];
    let first = epoch(&input);
    // 0.95 against 0.05 of the miner; of the largest: 1 and 1/19.
    assert_eq!(first.bonds[0], [(2, 65_535)]);
    assert!(first.bonds[1][0].1.abs_diff(65_535 / 19) <= 1, "{:?}", first.bonds[1]);
    assert!(first.dividends[1].abs_diff(65_535 / 20) <= 1, "{:?}", first.dividends);
    for _ in 0..200 {
        input.bonds = epoch(&input).bonds;
    }
    let last = epoch(&input);
    assert!(last.dividends[0].abs_diff(last.dividends[1]) <= 10, "{:?}", last.dividends);
}

#[test]
fn what_no_chain_would_hold_is_computed_without_a_panic() {
    assert_eq!(epoch(&Input::default()), Epoch::default());
    assert_eq!(incentives(&Input::default()), [0.0; 0]);
    assert_eq!(Input::of(&Snapshot::default()), Input { consensus: ConsensusParams::default(), ..Input::default() });

    let far: &[(u16, u16)] = &[(2, 9), (3, 9), (u16::MAX, 9)];
    let mut input = subnet(&[u64::MAX, u64::MAX], 1, &[far, far]);
    input.bonds[0] = far.to_vec();
    input.consensus.emission = u64::MAX;
    let result = epoch(&input);
    assert_eq!((result.incentive, result.dividends[0] > result.dividends[1]), (vec![0, 0, 65_535], true));
    assert_eq!(result.bonds.iter().flatten().map(|(uid, _)| *uid).collect::<Vec<_>>(), [2, 2]);

    let twice = vec![(2, u16::MAX); 70_000];
    input.weights = vec![twice.clone(), twice.clone(), twice.clone()];
    input.bonds = vec![twice.clone(), twice.clone(), twice];
    input.consensus =
        ConsensusParams { kappa: u16::MAX, bonds_moving_average: u64::MAX, max_validators: 0, emission: 1 };
    assert_eq!(epoch(&input).incentive, [0, 0, 65_535]);

    let without_stake = subnet(&[0, 0], 1, &[&[(2, 9)], &[(2, 9)]]);
    assert_eq!(incentives(&without_stake), [0.0; 3]);
    assert_eq!(epoch(&without_stake).emission, [0; 3]);
    let zeros = subnet(&[1, 1], 2, &[&[(2, 0), (3, 0)], &[(2, 0)]]);
    assert_eq!(incentives(&zeros), [0.0; 4]);
    let mut late = subnet(&[1], 1, &[&[(1, 1)]]);
    (late.last_update[0], late.activity_cutoff, late.block) = (u64::MAX, u64::MAX, u64::MAX);
    assert_eq!(incentives(&late), [0.0, 1.0]);
}

#[test]
fn a_weight_on_a_place_that_nobody_holds_does_not_count() {
    let neuron = |uid: u16, stake| crate::chain::Neuron {
        uid,
        hotkey: format!("key-{uid}"),
        registered_at: 10,
        stake,
        incentive: 0,
        validator_permit: uid == 0,
        last_update: 90,
        emission: 0,
    };
    let snapshot = Snapshot {
        block: 100,
        activity_cutoff: 50,
        neurons: vec![neuron(0, 7), neuron(2, 0)],
        weights: [(0, vec![(1, 65_535), (2, 1)])].into(),
        bonds: [(0, vec![(2, 3)])].into(),
        ..Snapshot::default()
    };
    let input = Input::of(&snapshot);
    assert_eq!((input.stake.as_slice(), &input.bonds[0]), ([7, 0, 0].as_slice(), &vec![(2, 3)]));
    assert_eq!(incentives(&input), [0.0, 0.0, 1.0]);
}

/// The limit is loose, for machines differ: some 0.4 ms each on one core, and the gate asks for 400.
#[test]
fn hundreds_of_epochs_of_a_full_subnet_take_no_time_to_speak_of() {
    let input = at_random(1, 256, 64);
    let started = Instant::now();
    for _ in 0..20 {
        assert!(incentives(&input).iter().sum::<f64>() > 0.99);
    }
    let each = started.elapsed().as_secs_f64() / 20.0;
    assert!(each < 0.05, "{each} s");
}
