//! The cases of the decision, each with losses so plain that the answer is known.

#![allow(clippy::unwrap_used)]

use super::testing::{CANDIDATE_BLOCK, Scene, flat, noisy, scaled};
use super::{Decision, Prospect, Verdict, mean};
use crate::hub::hash::text_pair_hash;
use crate::recipe::GateRule;

const UNREADABLE: &str = "the repository is gone";

pub(super) fn publish(hotkey: &str) -> Verdict {
    Verdict::Publish { hotkey: hotkey.to_owned() }
}

pub(super) fn only_prospect(decision: &Decision) -> &Prospect {
    assert_eq!(decision.prospects.len(), 1);
    &decision.prospects[0]
}

/// `(stay, publish)` of the only own hotkey.
fn shares(scene: &Scene) -> (f64, f64) {
    let decision = scene.decide();
    let prospect = only_prospect(&decision);
    (prospect.stay, prospect.publish)
}

/// Shares are 32-bit floats underneath, however small.
pub(super) fn assert_near(value: f64, expected: f64) {
    assert!((value / expected - 1.0).abs() < 1e-5, "{value}, not {expected}");
}

/// A temperature at which low win rates are paid visibly.
pub(super) const WARM: f64 = 0.5;
/// The temperature of March 2024.
const COLD: f64 = 0.04;

/// The share of a model with one win rate among others.
pub(super) fn softmax_share(temperature: f64, win_rate: f64, others: &[f64]) -> f64 {
    let power = |rate: &f64| (rate / temperature).exp();
    power(&win_rate) / (power(&win_rate) + others.iter().map(power).sum::<f64>())
}

#[test]
fn what_is_deployed_already_always_stays() {
    let mut scene = Scene::new(flat(2.0)).deployed(0, 100, Ok(flat(3.0))).hotkey(5).rival(1, 200, Ok(flat(2.5)));
    assert_eq!(scene.decide().verdict, publish("key-0"));
    scene.options.allow_copies = true;
    // The hash itself, and the hash that is bound to the hotkey.
    for hash in ["hash-0".to_owned(), text_pair_hash("hash-0", "key-0")] {
        let committed = scene.models[0].entry.metadata.id.hash.replace(hash);
        scene.candidate.hash = "hash-0".to_owned();
        for rule in [GateRule::Pay, GateRule::BeatsLeader] {
            scene.options.rule = rule;
            let decision = scene.decide();
            assert_eq!(decision.verdict, Verdict::Stay);
            assert!(decision.reason.contains("already deployed under `key-0` (uid 0)"), "{}", decision.reason);
            assert!(decision.prospects.iter().all(|prospect| !prospect.opens));
        }
        scene.models[0].entry.metadata.id.hash = committed;
    }
}

#[test]
fn an_improvement_that_just_pays_for_the_lost_block_stays() {
    let own = noisy(1, 3.0);
    let scene = Scene::new(scaled(&own, 0.990_025)).deployed(0, 100, Ok(own));
    let scene = (1..6).fold(scene, |scene, uid| {
        scene.rival(uid, 100 + u64::from(uid), Ok(noisy(10 + u64::from(uid), 3.0 + 0.01 * f64::from(uid))))
    });
    let decision = scene.decide();
    assert_eq!(decision.verdict, Verdict::Stay);
    assert!(only_prospect(&decision).stay > 0.2);
    let gains = &only_prospect(&decision).gains;
    assert!(gains.iter().all(|gain| gain.abs() < 1e-2) && mean(gains).abs() < 1e-3, "{gains:?}");
}

#[test]
fn an_own_block_newest_of_all_has_nothing_to_lose_by_any_real_improvement() {
    let own = noisy(1, 3.0);
    let rivals = |scene: Scene| scene.rival(1, 100, Ok(noisy(2, 3.0))).rival(2, 200, Ok(noisy(3, 3.0)));
    let decision = rivals(Scene::new(scaled(&own, 0.995)).deployed(0, 300, Ok(own.clone()))).decide();
    assert_eq!(decision.verdict, publish("key-0"));
    assert!(only_prospect(&decision).gains.iter().all(|&gain| gain > 0.0));
    // No improvement, no gain.
    let decision = rivals(Scene::new(own.clone()).deployed(0, 300, Ok(own))).decide();
    assert_eq!((decision.verdict.clone(), only_prospect(&decision).gain), (Verdict::Stay, 0.0));
}

#[test]
fn with_nothing_deployed_and_no_rivals_a_lone_model_gets_everything() {
    let mut scene = Scene::new(flat(9.0)).hotkey(0);
    scene.candidate.losses.truncate(1);
    let decision = scene.decide();
    assert_eq!(decision.verdict, publish("key-0"));
    let prospect = only_prospect(&decision);
    assert_eq!((prospect.stay, prospect.publish, prospect.lower_bound), (0.0, 1.0, Some(1.0)));
    assert!(prospect.without_rivals && decision.settled);
}

#[test]
fn with_the_own_model_deployed_and_no_rivals_everything_is_ours_already() {
    let mut scene = Scene::new(flat(1.0)).deployed(0, 100, Ok(flat(9.0)));
    scene.options.min_gain = 0.0;
    let decision = scene.decide();
    assert_eq!((decision.verdict.clone(), decision.settled), (Verdict::Stay, true));
    assert_eq!((only_prospect(&decision).stay, only_prospect(&decision).publish), (1.0, 1.0));
}

#[test]
fn a_deployed_model_that_cannot_be_read_earns_nothing_but_is_said_to_be_paid_by_those_with_a_copy() {
    let scene = Scene::new(flat(3.0)).deployed(0, 100, Err(UNREADABLE)).rival(1, 200, Ok(flat(3.0)));
    let decision = scene.decide();
    // The candidate is later than the rival and equally good, so the rival wins every batch either way.
    assert_eq!(only_prospect(&decision).stay, 0.0);
    assert_near(only_prospect(&decision).publish, softmax_share(COLD, 0.0, &[1.0]));
    let warning = "Validators cannot read our model under `key-0` (uid 0) (the repository is gone), so it counts as \
                   earning nothing; those that hold a copy still pay it.";
    assert!(decision.warnings.contains(&warning.to_owned()), "{:?}", decision.warnings);
    // A rival that cannot be read takes part: it loses all, and still draws its share.
    let scene = Scene::new(flat(3.0)).hotkey(0).rival(1, 200, Err(UNREADABLE)).rival(2, 300, Ok(flat(2.0)));
    assert_near(shares(&scene).1, softmax_share(COLD, 0.5, &[0.0, 1.0]));
}

#[test]
fn a_deployed_model_outside_every_roster_earns_nothing_and_meets_nobody() {
    let mut scene = Scene::new(flat(2.0)).deployed(0, 100, Ok(flat(1.0))).rival(1, 200, Ok(flat(3.0)));
    scene.models[0].entry.evaluated = false;
    let decision = scene.decide();
    assert_eq!(decision.verdict, publish("key-0"));
    assert_eq!((only_prospect(&decision).stay, only_prospect(&decision).num_models), (0.0, 2));
    assert_near(only_prospect(&decision).publish, 1.0);
    let warning = "No validator evaluates our model under `key-0` (uid 0), so it counts as earning nothing.";
    assert!(decision.warnings.contains(&warning.to_owned()), "{:?}", decision.warnings);
}

#[test]
fn a_copy_of_a_rivals_model_has_its_pay_told_and_is_refused_unless_allowed() {
    let mut scene = Scene::new(flat(2.0)).hotkey(0).rival(7, 100, Ok(flat(2.0))).rival(8, 200, Ok(flat(3.0)));
    scene.candidate.hash = "hash-7".to_owned();
    scene.rules.validator.temperature = WARM;
    let decision = scene.decide();
    assert_eq!(decision.verdict, Verdict::Stay);
    assert_eq!(decision.reason, "The candidate is byte for byte the model of uid 7, and `gate.allow_copies` is off.");
    // The earlier block wins: the candidate beats only uid 8.
    assert_near(only_prospect(&decision).publish, softmax_share(WARM, 0.5, &[1.0, 0.0]));
    assert!(decision.paragraph().contains("from 0.0000 to 0.2447"), "{}", decision.paragraph());
    scene.options.allow_copies = true;
    assert_eq!(scene.decide().verdict, publish("key-0"));
}

#[test]
fn copies_of_the_leader_compete_like_any_other_model() {
    let mut scene = Scene::new(flat(2.5)).hotkey(0).rival(1, 100, Ok(flat(2.0))).rival(2, 200, Ok(flat(2.0)));
    scene = scene.rival(3, 300, Ok(flat(2.0)));
    for model in &mut scene.models[1..] {
        model.entry.metadata.id.hash = Some("hash-1".to_owned());
    }
    assert_eq!(only_prospect(&scene.decide()).num_models, 4);
    // The first of the equals wins all, the second two thirds, the third one, the candidate none.
    assert_near(shares(&scene).1, softmax_share(COLD, 0.0, &[1.0, 2.0 / 3.0, 1.0 / 3.0]));
}

#[test]
fn equal_blocks_favour_nobody_and_equal_losses_win_nothing() {
    let scene = |loss| Scene::new(flat(loss)).hotkey(0).rival(1, CANDIDATE_BLOCK, Ok(flat(3.0)));
    assert_eq!(shares(&scene(3.0)), (0.0, 0.5));
    assert_near(shares(&scene(2.999)).1, softmax_share(COLD, 1.0, &[0.0]));
    assert_near(shares(&scene(3.001)).1, softmax_share(COLD, 0.0, &[1.0]));
    let mut later = scene(2.999);
    later.own[0].candidate_block += 1;
    assert_near(shares(&later).1, softmax_share(COLD, 0.0, &[1.0]));
}

#[test]
fn batches_that_are_not_finite_are_won_by_whoever_has_a_finite_loss() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let mut scene = Scene::new(vec![vec![2.0, nan, inf, inf]; 2]).hotkey(0);
    scene = scene.rival(1, 100, Ok(vec![vec![3.0, 3.0, 3.0, inf]; 2]));
    let decision = scene.decide();
    // The candidate wins a quarter, the rival a quarter: against NaN nobody wins, against infinity whoever is finite.
    assert_near(only_prospect(&decision).publish, 0.5);
    assert_eq!(decision.warnings[0], "The candidate's loss is not finite on 6 of 8 batches, which it cannot win.");
}

#[test]
fn a_candidate_without_a_finite_loss_is_never_published() {
    for loss in [f64::INFINITY, f64::NAN] {
        let scene = Scene::new(flat(loss)).hotkey(0);
        let decision = scene.decide();
        assert_eq!(only_prospect(&decision).publish, 1.0);
        assert_eq!(decision.verdict, Verdict::Stay);
        assert!(decision.reason.starts_with("The candidate has no finite loss"), "{}", decision.reason);
    }
    for losses in [vec![], vec![vec![]]] {
        let decision = Scene::new(losses).hotkey(0).rival(1, 100, Ok(flat(1.0))).decide();
        assert_eq!((decision.verdict, decision.num_steps), (Verdict::Stay, 0));
    }
}

#[test]
fn a_place_that_is_lost_before_it_is_paid_suffices_with_any_gain() {
    let mut scene = Scene::new(flat(3.0)).hotkey(0).rival(1, CANDIDATE_BLOCK, Ok(flat(3.0)));
    scene.options.min_gain = 0.6;
    assert_eq!(scene.decide().verdict, Verdict::Stay);
    // Weights are set within 50 blocks, and paid within a tempo of 360.
    let adoption = CANDIDATE_BLOCK + 410;
    scene.own[0].immune_until = adoption;
    assert_eq!(scene.decide().verdict, Verdict::Stay);
    scene.own[0].immune_until = adoption - 1;
    let decision = scene.decide();
    assert_eq!(decision.verdict, publish("key-0"));
    let prospect = only_prospect(&decision);
    assert_eq!((prospect.place_at_risk, prospect.adoption_block, prospect.min_gain), (true, adoption, 0.0));
    assert!(decision.reason.contains("the place can be lost before it is paid"), "{}", decision.reason);
    // Something is deployed: then not.
    let mut scene = Scene::new(flat(3.0)).deployed(0, 100, Ok(flat(4.0))).rival(1, CANDIDATE_BLOCK, Ok(flat(3.0)));
    scene.options.min_gain = 0.6;
    scene.own[0].immune_until = 0;
    assert_eq!(scene.decide().verdict, Verdict::Stay);
}

#[test]
fn a_hotkey_that_has_just_published_does_not_open() {
    let mut scene = Scene::new(flat(2.0)).deployed(0, CANDIDATE_BLOCK - 100, Ok(flat(3.0)));
    scene = scene.rival(1, CANDIDATE_BLOCK - 10, Ok(flat(2.5)));
    scene.options.cooldown_blocks = 100;
    assert_eq!(scene.decide().verdict, publish("key-0"));
    scene.options.cooldown_blocks = 101;
    let decision = scene.decide();
    assert_eq!((decision.verdict.clone(), decision.settled), (Verdict::Stay, true));
    assert_eq!(only_prospect(&decision).cooldown_until, Some(CANDIDATE_BLOCK + 1));
    assert!(decision.reason.contains("before block 2,500,001"), "{}", decision.reason);
    // Another hotkey is free, and has the probability of error for itself.
    let decision = scene.hotkey(5).decide();
    assert_eq!(decision.verdict, publish("key-5"));
    assert!((decision.alpha - 0.025).abs() < 1e-12);
}

#[test]
fn the_worst_are_dropped_after_a_step_and_a_new_model_gets_that_one() {
    let mut scene = Scene::new(flat(4.0)).hotkey(0);
    scene = scene.rival(1, 100, Ok(flat(2.0))).rival(2, 200, Ok(flat(3.0)));
    scene.rules.validator.sample_min = 2;
    let decision = scene.decide();
    let gains = &only_prospect(&decision).gains;
    assert_near(gains[0], softmax_share(COLD, 0.0, &[1.0, 0.5]));
    assert!(gains[0] > 0.0);
    assert!(gains[1..].iter().all(|gain| *gain == 0.0), "{gains:?}");
    // Equal at the cut: the lower uid goes on. It beats nobody, so the rival has all but a trace.
    let mut scene = Scene::new(flat(3.0)).hotkey(1).rival(2, CANDIDATE_BLOCK, Ok(flat(3.0)));
    scene = scene.rival(3, 100, Ok(flat(2.0)));
    scene.rules.validator.sample_min = 2;
    assert!(only_prospect(&scene.decide()).gains[2] > 0.0);
    scene.own[0].uid = 9;
    assert_eq!(only_prospect(&scene.decide()).gains[2], 0.0);
}

#[test]
fn the_best_hotkey_is_taken_and_other_own_models_stay_and_compete() {
    let scene = Scene::new(flat(2.0)).deployed(4, 100, Ok(flat(2.1))).deployed(2, 200, Ok(flat(4.0)));
    let mut scene = scene.rival(3, 150, Ok(flat(2.2))).hotkey(6);
    scene.rules.validator.temperature = WARM;
    let decision = scene.decide();
    let places: Vec<_> = decision.prospects.iter().map(|prospect| (prospect.uid, prospect.num_models)).collect();
    assert_eq!(places, [(2, 3), (4, 3), (6, 4)]);
    // All but the rival's share is ours. Uid 4 wins all, the rival half; the candidate then beats both.
    let [bad, good, free] = decision.prospects.as_slice() else { unreachable!() };
    assert_near(1.0 - bad.stay, softmax_share(WARM, 0.5, &[1.0, 0.0]));
    assert_near(1.0 - bad.publish, softmax_share(WARM, 0.0, &[1.0, 0.5]));
    assert_near(1.0 - good.publish, softmax_share(WARM, 0.5, &[1.0, 0.0]));
    assert_near(1.0 - free.publish, softmax_share(WARM, 1.0 / 3.0, &[1.0, 2.0 / 3.0, 0.0]));
    assert_eq!(good.gain, 0.0);
    assert_eq!(decision.verdict, publish("key-2"));
    assert_eq!(decision.best(), Some(bad));
}

#[test]
fn of_equally_good_hotkeys_the_lowest_uid_is_taken_and_without_any_nothing_is_published() {
    let scene = Scene::new(flat(2.0)).hotkey(9).hotkey(5).hotkey(7).rival(1, 100, Ok(flat(3.0)));
    assert_eq!(scene.decide().verdict, publish("key-5"));
    let decision = Scene::new(flat(2.0)).decide();
    assert_eq!(decision.verdict, Verdict::Stay);
    assert_eq!(decision.reason, "There is no registered hotkey to publish under.");
}

#[test]
fn beats_leader_asks_for_a_win_and_not_for_pay() {
    // Second place is paid, but does not beat the leader.
    let second = Scene::new(flat(2.1)).hotkey(0).rival(1, 100, Ok(flat(2.0))).rival(2, 200, Ok(flat(3.0)));
    let mut second = Scene { leader: Some(1), ..second };
    second.options.min_gain = 0.0;
    assert_eq!(second.decide().verdict, publish("key-0"));
    second.options.rule = GateRule::BeatsLeader;
    let decision = second.decide();
    assert_eq!(decision.verdict, Verdict::Stay);
    let duel = only_prospect(&decision).duel.clone().unwrap();
    assert_eq!((duel.uid, duel.wins, duel.wealth, duel.is_certain), (1, 0.0, 1.0, false));
    assert!((duel.needed_wealth - 40.0).abs() < 1e-9 && decision.settled);
    // A leader that is ours and first: a win of 0.6 % does not pay, and is a win all the same.
    let mut leading = Scene { leader: Some(0), ..Scene::field(0, 0.994) };
    leading.candidate.losses = scaled(leading.models[0].losses.as_ref().unwrap(), 0.994);
    assert_eq!(leading.decide().verdict, Verdict::Stay);
    leading.options.rule = GateRule::BeatsLeader;
    let decision = leading.decide();
    assert_eq!(decision.verdict, publish("key-0"));
    let duel = only_prospect(&decision).duel.clone().unwrap();
    assert_eq!((duel.uid, duel.wins, duel.is_certain), (0, 1.0, true));
    assert!(duel.wealth > 40.0, "{}", duel.wealth);
    assert!(only_prospect(&decision).gain < -0.1);
}

#[test]
fn beats_leader_without_a_readable_leader_asks_for_a_win_against_everybody() {
    let scene = |loss| {
        let scene = Scene::new(flat(loss)).hotkey(0).rival(1, 100, Err(UNREADABLE));
        let mut scene = Scene { leader: Some(1), ..scene.rival(2, 200, Ok(flat(2.0))).rival(3, 300, Ok(flat(3.0))) };
        scene.options.rule = GateRule::BeatsLeader;
        scene
    };
    assert_eq!(scene(1.9).decide().verdict, publish("key-0"));
    let decision = scene(2.5).decide();
    assert_eq!(decision.verdict, Verdict::Stay);
    assert_eq!(only_prospect(&decision).duel.as_ref().map(|duel| duel.uid), Some(2));
    assert!(decision.warnings.iter().any(|warning| warning.starts_with("The leader (uid 1) has no model")));
    let mut alone = scene(9.0);
    alone.models.truncate(1);
    assert_eq!(alone.decide().verdict, publish("key-0"));
}

#[test]
fn the_same_inputs_give_the_same_bytes_in_any_order() {
    let scene =
        Scene::field(3, 0.98).deployed(40, 77, Err(UNREADABLE)).deployed(41, 78, Err("hash mismatch")).hotkey(50);
    let scene = scene.rival(42, 79, Err("private")).rival(43, 80, Err("private")).rival(44, 81, Err("gone"));
    let mut scene = scene.validator(60, 9, &[(0, 9), (1, 5)]).validator(61, 7, &[(2, 9)]);
    scene.candidate.hash = "twice".to_owned();
    for uid in [1, 2] {
        scene.models[uid].entry.metadata.id.hash = Some("twice".to_owned());
    }
    let bytes = |scene: &Scene| {
        let decision = scene.decide();
        (serde_json::to_vec(&decision).unwrap(), decision.paragraph())
    };
    let first = bytes(&scene);
    assert_eq!(bytes(&scene), first);
    scene.options.rule = GateRule::BeatsLeader;
    assert_ne!(bytes(&scene), first);
    scene.options.rule = GateRule::Pay;
    scene.models.reverse();
    scene.own.reverse();
    assert_eq!(bytes(&scene), first);
    scene.models.rotate_left(11);
    assert_eq!(bytes(&scene), first);
}

#[test]
fn a_publish_in_plain_words() {
    let own = noisy(1, 3.0);
    let scene = Scene::new(scaled(&own, 0.98)).deployed(0, 100, Ok(own)).rival(1, 200, Ok(noisy(2, 3.0)));
    let scene = Scene { leader: Some(1), ..scene.rival(2, 300, Err("private\u{1b}[31m.")) };
    let words = "Publish under `key-0`. The lower bound of the gain exceeds `gate.min_gain`, 0.0100. Over 80 steps (12,000 batches) \
                 among 3 models, publishing under `key-0` (uid 0) changes our share of the miners' incentive from \
                 0.7056 to 0.9287: δ is +0.2232, and by an asymptotic bound more than +0.1679 with 97.50 % confidence, \
                 α = 2.50e-2. The mean loss of the candidate is 2.9393, of our deployed one 2.9993, of the leader's (uid 1) \
                 3.0003. 1 rival model that cannot be read loses every batch (uid 2: private[31m). No validator is \
                 active, so that nothing is known of their consensus: the gain at one of them alone decides.";
    assert_eq!(scene.decide().paragraph(), words);
}

#[test]
fn a_stay_in_plain_words() {
    let own = noisy(1, 3.0);
    let scene = Scene::new(scaled(&own, 0.997)).deployed(0, 100, Ok(own)).rival(1, 200, Ok(noisy(2, 3.0)));
    let scene = scene.validator(50, 1_000, &[(0, 60_000), (1, 20_000)]);
    let scene = Scene { incentives: [(0, 51_000), (1, 14_535)].into(), num_tested: 3, ..scene };
    let decision = scene.decide();
    let gain = only_prospect(&decision).chain_gain.unwrap();
    let [first, second] = decision.backtest.as_ref().unwrap().miners.as_slice() else { unreachable!() };
    assert!((gain.median + 0.413).abs() < 0.001 && (first.foretold - 0.7695).abs() < 0.001);
    let words = format!(
        "Stay. The gain as good as certainly does not exceed `gate.min_gain`, 0.0100. Over 80 steps (12,000 batches) among 2 \
         models, publishing under `key-0` (uid 0) changes our share of the miners' incentive from 0.7786 to 0.3718: δ is \
         -0.4068, and by an asymptotic bound more than -0.5035 with 99.583 % confidence, α = 4.17e-3, as candidate number 3 \
         since the last publish. By the consensus of the active validator, drawn 200 times, it is {:+.4} on the median and \
         {:+.4} at the 5th percentile. Of the shares that the chain pays the best miners, staying foretells uid 0 {:.4} for \
         0.7782, uid 1 {:.4} for 0.2218. The mean loss of the candidate is 2.9903, of our deployed one 2.9993, of the \
         leader's (uid 0) 2.9993.",
        gain.median, gain.fifth_percentile, first.foretold, second.foretold
    );
    assert_eq!(decision.paragraph(), words);
}
