#![allow(clippy::unwrap_used)]

use super::*;
use crate::chain::{CommitLimit, WeightsLimits};
use crate::golden;

fn neuron(uid: u16, registered_at: u64, emission: u64) -> Neuron {
    Neuron {
        uid,
        hotkey: format!("h{uid}"),
        registered_at,
        stake: 0,
        incentive: 0,
        validator_permit: false,
        last_update: 0,
        emission,
    }
}

/// At block 10,000, with an immunity of 4,096 blocks.
fn snapshot(neurons: Vec<Neuron>) -> Snapshot {
    Snapshot {
        block: 10_000,
        tempo: 360,
        immunity_period: 4_096,
        activity_cutoff: 5_000,
        neurons,
        ..Snapshot::default()
    }
}

fn status(snapshot: &Snapshot, max_uids: u16) -> Status {
    Status {
        block: snapshot.block,
        runtime: None,
        netuid: 9,
        tempo: snapshot.tempo,
        immunity_period: snapshot.immunity_period,
        num_uids: snapshot.neurons.len() as u16,
        max_uids,
        registration_cost: Some(3 * UNITS_PER_TAO),
        currency: Currency::Tao,
        commit_limit: CommitLimit::Blocks(100),
        weights: WeightsLimits {
            rate_limit: 100,
            min_allowed: 1,
            max_share: 65_535,
            version_key: 0,
            commit_reveal: false,
        },
    }
}

fn ranks(snapshot: &Snapshot) -> Vec<Option<(usize, usize)>> {
    let status = status(snapshot, 4);
    let rank = |neuron: &Neuron| Standing::of(snapshot, &status, &neuron.hotkey).unwrap().rank;
    snapshot.neurons.iter().map(rank).collect()
}

#[test]
fn whoever_earns_least_without_immunity_is_replaced_first_and_of_equals_the_eldest() {
    let mut snapshot = snapshot(vec![
        neuron(0, 10, 7),
        neuron(1, 5_905, 0), // immune for one more block
        neuron(2, 5_904, 0), // no longer
        neuron(3, 20, 0),
        neuron(4, 20, 0),
    ]);
    assert_eq!(ranks(&snapshot), [Some((4, 4)), None, Some((3, 4)), Some((1, 4)), Some((2, 4))]);
    let standing = Standing::of(&snapshot, &status(&snapshot, 8), "h1").unwrap();
    assert_eq!((standing.immunity_ends, standing.immunity_left, standing.free_places), (10_001, 1, 3));
    assert_eq!(immunity_ends(&snapshot, "h2"), Some(10_000));
    assert_eq!(Standing::of(&snapshot, &status(&snapshot, 8), "h9"), None);
    assert_eq!(immunity_ends(&snapshot, "h9"), None);
    // All are immune: then that protects nobody.
    snapshot.immunity_period = 20_000;
    assert_eq!(ranks(&snapshot), [Some((5, 5)), Some((4, 5)), Some((3, 5)), Some((1, 5)), Some((2, 5))]);
}

/// The chain's own scores, by which it chose in March 2024, are in the order of what it paid.
#[test]
fn golden_pruning_scores_have_the_order_of_the_ranks() {
    for case in golden::cases("chain/a_yuma.json", "scenarios") {
        let numbers = |key: &str| serde_json::from_value::<Vec<u64>>(case["after"][key].clone()).unwrap();
        let neurons = std::iter::zip(0.., numbers("emission")).map(|(uid, emission)| neuron(uid, 0, emission));
        let snapshot = snapshot(neurons.collect());
        let scores = numbers("pruning_scores");
        let in_turn: Vec<u64> = turns(&snapshot).iter().map(|neuron| scores[usize::from(neuron.uid)]).collect();
        assert_eq!(in_turn.len(), snapshot.neurons.len());
        assert!(in_turn.is_sorted(), "{}: {in_turn:?}", case["name"]);
    }
}

#[test]
fn only_validators_that_count_back_a_miner() {
    let validator =
        |uid, stake, last_update| Neuron { stake, validator_permit: true, last_update, ..neuron(uid, 0, 0) };
    let mut snapshot = snapshot(vec![
        validator(0, 300, 9_000),
        validator(1, 100, 9_999),
        validator(2, 800, 4_999), // asleep
        validator(3, 500, 200),   // before the miner came, and asleep
        neuron(4, 300, 0),
        neuron(5, 300, 0),
        Neuron { validator_permit: false, ..validator(6, 900, 9_000) },
        validator(7, 600, 9_500),
    ]);
    let row = |of_four: u16, of_five: u16| vec![(4, of_four), (5, of_five)];
    snapshot.weights = [
        (0, row(10, 30)),
        (1, vec![(1, 500), (4, 65_535)]), // what it gives itself does not count
        (2, row(1, 1)),
        (3, row(1, 1)),
        (6, row(1, 1)),
        (7, row(0, 9)),
    ]
    .into();
    let standing = Standing::of(&snapshot, &status(&snapshot, 8), "h4").unwrap();
    let shares: Vec<_> = standing.backers.iter().map(|b| (b.neuron.uid, b.weight_share, b.stake_share)).collect();
    assert_eq!(shares, [(0, 0.25, 0.3), (1, 1.0, 0.1)]);
}

#[test]
fn pay_is_told_by_the_day_and_pays_for_a_registration_after_some_or_never() {
    let snapshot = Snapshot { tempo: 359, ..snapshot(vec![neuron(0, 0, UNITS_PER_TAO / 2), neuron(1, 0, 0)]) };
    let mut status = status(&snapshot, 4);
    let pay = |status: &Status, uid: usize| Pay::of(&snapshot.neurons[uid], status, 12.0);
    // 20 epochs a day, of half a TAO.
    assert_eq!(pay(&status, 0), Pay { per_day: 10.0, tao_per_day: 10.0, break_even_days: Some(0.3) });
    assert_eq!(pay(&status, 1), Pay { per_day: 0.0, tao_per_day: 0.0, break_even_days: None });
    status.currency = Currency::Alpha { price: 0.25 };
    assert_eq!(pay(&status, 0), Pay { per_day: 10.0, tao_per_day: 2.5, break_even_days: Some(1.2) });
    status.registration_cost = None;
    assert_eq!(pay(&status, 0).break_even_days, None);
}

#[test]
fn a_model_is_adopted_by_the_first_epoch_a_tempo_later() {
    // Epochs run where (block + 10) % 361 == 360: at 9,736, 10,097, 10,458.
    let mut snapshot = snapshot(vec![]);
    let adopted = |snapshot: &Snapshot, committed_at| adopted_at(snapshot, 9, committed_at);
    assert_eq!([9_736, 9_737].map(|block| adopted(&snapshot, block)), [Some(10_097); 2]);
    assert_eq!((adopted(&snapshot, 9_738), adopted(&snapshot, u64::MAX)), (Some(10_458), None));
    assert_eq!(adopted(&Snapshot { tempo: u64::MAX, ..snapshot.clone() }, 1), None);
    // Where the chain says when the next is, it is that one and those a tempo apart from it.
    let noted = Snapshot { next_epoch: Some(10_020), ..snapshot.clone() };
    assert_eq!([9_660, 9_661, 10_020].map(|block| adopted(&noted, block)), [Some(10_020), Some(10_380), Some(10_380)]);

    // Immunity ends right at the epoch's block, and a block later.
    snapshot.neurons = vec![neuron(0, 10_458 - 4_096, 0), neuron(1, 10_459 - 4_096, 0), neuron(2, 0, 5)];
    assert_eq!(is_adopted_in_time(&snapshot, 9, "h0", 10_000), Some(false));
    assert_eq!(is_adopted_in_time(&snapshot, 9, "h1", 10_000), Some(true));
    assert_eq!(is_adopted_in_time(&snapshot, 9, "h9", 10_000), None);
}

#[test]
fn a_warning_is_given_where_the_place_may_be_lost_before_pay_and_not_else() {
    let snapshot = snapshot(vec![neuron(0, 6_000, 0), neuron(1, 9_000, 0), neuron(2, 0, 0), neuron(3, 0, 5)]);
    let warned = |max_uids, hotkey: &str| warning(&snapshot, &status(&snapshot, max_uids), 12.0, hotkey, 10_000);
    let ending = warned(4, "h0").unwrap();
    assert!(ending.contains("h0 (uid 0) ends at block 10,096, in about 19 min 12 s"), "{ending}");
    assert!(ending.contains("committed at block 10,000 is paid at block 10,458 at the earliest"), "{ending}");
    let ended = warned(4, "h2").unwrap();
    assert!(ended.contains("of the 2 hotkeys that newcomers can replace it is number 1"), "{ended}");
    // Immune for long, earning, a stranger, and where places are free.
    assert_eq!((warned(4, "h1"), warned(4, "h3"), warned(4, "h9"), warned(5, "h0")), (None, None, None, None));
}
