//! What the chain's consensus and its own incentives do to a decision.

#![allow(clippy::unwrap_used)]

use super::testing::{CANDIDATE_BLOCK, Scene, flat, noisy, scaled};
use super::{ChainGain, Decision, ValidatorRecord, Verdict};
use crate::rules::Keep;

/// Uid 0 is ours and the worst; the candidate would be the best. Uid 1 wins two thirds now, uid 2 a third less.
fn scene() -> Scene {
    Scene::new(flat(1.0)).deployed(0, 300, Ok(flat(4.0))).rival(1, 100, Ok(flat(2.0))).rival(2, 200, Ok(flat(3.0)))
}

/// Weights that a validator which sees the losses of [`scene`] sets: all but a trace to uid 1.
const LIKE_OURS: [(u16, u16); 1] = [(1, 65_535)];

fn is_published(decision: &Decision) -> bool {
    matches!(decision.verdict, Verdict::Publish { .. })
}

fn chain_gain(decision: &Decision) -> ChainGain {
    decision.prospects[0].chain_gain.unwrap()
}

fn frozen(decision: &Decision) -> Vec<u16> {
    let validators = decision.network.iter().flat_map(|network| &network.validators);
    validators.filter(|validator| validator.is_frozen).map(|validator| validator.uid).collect()
}

#[test]
fn without_an_active_validator_one_alone_decides_and_that_is_said() {
    let decision = scene().decide();
    assert!(is_published(&decision) && decision.network.is_none() && decision.prospects[0].chain_gain.is_none());
    assert!(decision.warnings.iter().any(|warning| warning.starts_with("No validator is active")));
    let out_of_date = scene().validator(10, 5, &[]);
    assert!(out_of_date.decide().network.is_none());
}

#[test]
fn validators_that_follow_give_the_whole_incentive() {
    let decision = scene().validator(10, 5, &LIKE_OURS).validator(11, 5, &LIKE_OURS).decide();
    assert!(is_published(&decision));
    let gain = chain_gain(&decision);
    assert!(gain.median > 0.99 && gain.fifth_percentile > 0.99, "{gain:?}");
    let validators = decision.network.as_ref().map(|network| network.validators.as_slice()).unwrap();
    let [ValidatorRecord { uid: 10, stake: 5, distance: Some(distance), is_frozen: false, holds_copy: false }, _] =
        validators
    else {
        panic!("{validators:?}")
    };
    assert!(*distance < 1e-5, "{distance}");
}

/// An owner's key, or one that burns what it is paid.
#[test]
fn weight_on_a_place_without_a_model_freezes_a_validator_and_spoils_the_picture() {
    let mut scene = scene().hotkey(7).validator(10, 5, &[(7, 65_535)]);
    assert_eq!(frozen(&scene.decide()), [10]);
    scene.incentives = [(7, 65_535)].into();
    scene.validators.get_mut(&10).unwrap().row = LIKE_OURS.to_vec();
    let decision = scene.decide();
    assert!(frozen(&decision).is_empty() && !is_published(&decision));
    assert!(decision.reason.contains("picture"), "{}", decision.reason);
    assert_eq!(decision.backtest.map(|backtest| backtest.difference), Some(1.0));
}

/// Validators that hold a copy of what is gone pay it on: that says nothing against our picture of the others.
#[test]
fn a_deployed_model_that_is_gone_and_still_paid_does_not_keep_its_successor_back() {
    let scene = Scene::new(flat(1.0)).deployed(0, 300, Err("gone")).rival(1, 100, Ok(flat(2.0)));
    let mut scene = scene.validator(10, 5, &[(0, 40_000), (1, 65_535)]);
    scene.incentives = [(0, 25_000), (1, 40_000)].into();
    let decision = scene.decide();
    assert!(is_published(&decision) && frozen(&decision).is_empty(), "{}", decision.reason);
    // What the copy is paid is no part of the gain.
    assert!((0.5..0.7).contains(&chain_gain(&decision).median), "{:?}", chain_gain(&decision));
}

/// Weights count for whoever was registered before they were set, and those that we foretell are set later than all.
#[test]
fn a_hotkey_that_was_registered_just_now_is_paid_by_the_weights_to_come() {
    let mut scene = scene().validator(10, 5, &LIKE_OURS);
    scene.registered_at = CANDIDATE_BLOCK - 5;
    let decision = scene.decide();
    assert!(is_published(&decision) && chain_gain(&decision).median > 0.99, "{:?}", chain_gain(&decision));
}

#[test]
fn a_candidate_that_validators_would_not_take_is_not_published_and_why_is_said() {
    let mut scene = scene();
    scene.unfit = Some("It is too large.".to_owned());
    let decision = scene.decide();
    assert!(!is_published(&decision) && decision.settled);
    assert_eq!(decision.reason, "It is too large.");
}

/// A vote of the stake: what two thirds of it do not see is not paid, whatever it would bring with the others.
#[test]
fn validators_far_from_what_we_foretell_are_frozen_and_can_outvote_the_others() {
    let scene = scene().validator(10, 1_000, &LIKE_OURS).validator(12, 4_000, &[(2, 65_535)]);
    let decision = scene.decide();
    assert_eq!(frozen(&decision), [12]);
    assert!(decision.prospects[0].lower_bound.unwrap() > 0.9);
    assert!(chain_gain(&decision).median < 0.25, "{:?}", chain_gain(&decision));
    let warning =
        "The weights of 1 active validator (uid 12) are far from what we foretell, and are taken to stay as they are.";
    assert!(decision.warnings.contains(&warning.to_owned()), "{:?}", decision.warnings);
    // All are frozen: nothing that we publish changes anything.
    let decision = scene_of_frozen(scene).decide();
    assert_eq!((frozen(&decision), chain_gain(&decision).median), (vec![10, 12], 0.0));
    assert!(!is_published(&decision));
    assert!(decision.reason.starts_with("By the chain's consensus"), "{}", decision.reason);
}

fn scene_of_frozen(mut scene: Scene) -> Scene {
    scene.validators.get_mut(&10).unwrap().row = vec![(2, 65_535)];
    scene
}

#[test]
fn a_distance_of_half_is_still_ours() {
    // All to uid 1 is foretold: 0.49 and 0.51 of it elsewhere.
    for (elsewhere, expected) in [(49, vec![]), (51, vec![10])] {
        let decision = scene().validator(10, 1, &[(1, 100 - elsewhere), (2, elsewhere)]).decide();
        assert_eq!(frozen(&decision), expected, "{elsewhere} %");
    }
}

/// A validator cannot have given weight to what was committed after it set weights.
#[test]
fn a_validator_is_judged_by_what_it_could_know() {
    let mut scene = scene().validator(10, 1, &[(2, 65_535)]);
    assert_eq!(frozen(&scene.decide()), [10]);
    // The best model is newer than the weights: of the others it knew but the right one.
    scene.models[1].entry.metadata.block = (CANDIDATE_BLOCK - 8).try_into().unwrap();
    assert_eq!(frozen(&scene.decide()), Vec::<u16>::new());
    // Everything is newer: there is nothing to compare.
    for model in &mut scene.models {
        model.entry.metadata.block = (CANDIDATE_BLOCK - 8).try_into().unwrap();
    }
    scene.incentives = [(1, 100), (2, 65_435)].into();
    let decision = scene.decide();
    assert_eq!(decision.network.as_ref().unwrap().validators[0].distance, None);
    assert_eq!((frozen(&decision), decision.backtest), (vec![], None));
}

#[test]
fn a_picture_that_does_not_match_the_network_publishes_nothing() {
    let scene = |incentives: [(u16, u16); 3]| {
        let mut scene = scene().validator(10, 1, &LIKE_OURS);
        scene.incentives = incentives.into();
        scene
    };
    let decision = scene([(0, 0), (1, 60_000), (2, 5_535)]).decide();
    let backtest = decision.backtest.clone().unwrap();
    assert!(backtest.holds && (backtest.difference - 5_535.0 / 65_535.0).abs() < 1e-4, "{backtest:?}");
    assert_eq!(backtest.miners.iter().map(|miner| miner.uid).collect::<Vec<_>>(), [1, 2]);
    assert!(is_published(&decision));
    let mut other = scene([(0, 0), (1, 30_000), (2, 35_535)]);
    let decision = other.decide();
    assert!(!is_published(&decision) && decision.settled);
    let reason = "Our picture does not match the network: what it foretells for the best miners is off by up to 0.5422, and \
                  `gate.tolerance` is 0.1000.";
    assert_eq!(decision.reason, reason);
    let backtest = decision.backtest.clone().unwrap();
    assert_eq!(backtest.miners[0].uid, 2);
    assert!(decision.paragraph().contains("staying foretells uid 2 0.0000 for 0.5422"), "{}", decision.paragraph());
    // A few steps may err: more are asked for.
    other.candidate.losses.truncate(6);
    assert!(!other.decide().settled);
    other.options.tolerance = 0.6;
    other.candidate.losses = flat(1.0);
    assert!(is_published(&other.decide()));
}

/// Each validator meets pages of its own: a gain that is certain in the mean can be a loss for one in this epoch.
#[test]
fn one_validator_alone_is_too_uncertain_for_a_gain_that_is_rare() {
    let rival = noisy(2, 3.0);
    let mut candidate = noisy(3, 3.3);
    for step in (0..candidate.len()).step_by(3) {
        candidate[step] = rival[step].iter().map(|loss| 0.9 * loss).collect();
    }
    let own = scaled(&candidate, 1.0).into_iter().enumerate().map(|(step, losses)| match step % 3 {
        0 => losses.iter().map(|loss| 1.2 * loss).collect(),
        // Elsewhere the deployed model is a little better.
        _ => losses.iter().map(|loss| 0.97 * loss).collect(),
    });
    let mut scene = Scene::new(candidate).deployed(0, 50, Ok(own.collect())).rival(1, 100, Ok(rival));
    scene.rules.validator.temperature = 0.2;
    let alone = scene.clone().decide();
    assert!(is_published(&alone), "{}", alone.paragraph());
    let decision = scene.validator(10, 1, &[(1, 65_535)]).decide();
    let gain = chain_gain(&decision);
    assert!(gain.median > 0.1 && gain.fifth_percentile <= 0.0, "{gain:?}");
    assert_eq!(decision.reason, "By the chain's consensus a loss is not unlikely enough.");
}

/// Both worlds are drawn alike: a candidate that does as the deployed model does changes nothing in any draw.
#[test]
fn the_draws_of_both_worlds_are_the_same() {
    let own = noisy(1, 3.0);
    let scene = Scene::new(own.clone()).deployed(0, 300, Ok(own)).rival(1, 100, Ok(noisy(2, 3.0)));
    let decision = scene.validator(10, 1, &[(0, 50), (1, 50)]).decide();
    assert!(frozen(&decision).is_empty() && decision.prospects[0].stay > 0.01);
    assert_eq!(chain_gain(&decision), ChainGain { median: 0.0, fifth_percentile: 0.0 });
}

/// Who has a copy of a model that is gone goes on paying it, and would not pay more for another.
#[test]
fn a_validator_with_a_copy_of_an_own_model_that_is_gone_still_pays_it() {
    let scene = Scene::new(flat(1.0)).deployed(0, 300, Err("the repository is gone")).rival(1, 100, Ok(flat(2.0)));
    assert!(is_published(&scene.clone().validator(10, 1, &LIKE_OURS).decide()));
    let decision = scene.validator(10, 1, &[(0, 65_535)]).decide();
    assert!(decision.network.as_ref().unwrap().validators[0].holds_copy && frozen(&decision).is_empty());
    assert!(decision.prospects[0].lower_bound.unwrap() > 0.9 && chain_gain(&decision).median.abs() < 1e-3);
    assert!(!is_published(&decision));
}

#[test]
fn a_place_at_risk_asks_for_a_median_above_nothing() {
    let mut scene = Scene::new(flat(1.0)).hotkey(0).rival(1, 100, Ok(flat(2.0))).rival(2, 200, Ok(flat(3.0)));
    scene.own[0].immune_until = 0;
    scene.options.min_gain = 0.9;
    // Most of the stake does not follow, but has always given uid 0 something.
    let scene = scene.validator(10, 400, &LIKE_OURS).validator(12, 1_000, &[(0, 30_000), (2, 35_000)]);
    let decision = scene.decide();
    assert_eq!(frozen(&decision), [12]);
    assert!(decision.prospects[0].place_at_risk && chain_gain(&decision).median < 0.9, "{:?}", chain_gain(&decision));
    assert!(is_published(&decision), "{}", decision.paragraph());
    let mut safe = scene;
    safe.own[0].immune_until = u64::MAX;
    assert!(!is_published(&safe.decide()));
}

/// All models of a world begin together, so that after the first step their weights rank as their win rates.
#[test]
fn both_rules_keep_the_same_models_of_a_world() {
    let mut scene = Scene::field(3, 0.98);
    scene.rules.validator.sample_min = 10;
    let gains = |scene: &Scene| scene.decide().prospects[0].gains.clone();
    let by_win_rate = gains(&scene);
    scene.rules.validator.keep = Keep::WeightThenWinRate { from_weight: 0.001 };
    assert_eq!(gains(&scene), by_win_rate);
    scene.rules.validator.sample_min = 31;
    assert_ne!(gains(&scene), by_win_rate);
}
