//! What is certain of a gain, when the gate knows enough, and how the probability of error is shared.

#![allow(clippy::unwrap_used)]

use super::Verdict;
use super::look::{Look, next_look};
use super::testing::{Scene, flat, noisy, scaled};
use super::tests::{WARM, assert_near, only_prospect, publish, softmax_share};

#[test]
fn a_few_steps_give_no_certainty_beside_a_rival() {
    let mut scene = Scene::new(flat(1.0)).hotkey(0).rival(1, 100, Ok(flat(3.0)));
    assert_eq!(scene.decide().verdict, publish("key-0"));
    // A step without a batch is none.
    scene.candidate.losses.truncate(45);
    scene.candidate.losses[7].clear();
    let decision = scene.decide();
    assert_eq!((decision.verdict.clone(), decision.num_steps, decision.settled), (Verdict::Stay, 44, false));
    assert_eq!(decision.reason, "Too few steps to be certain: 44 of at least 45.");
    assert_near(only_prospect(&decision).gain, 1.0);
    assert_eq!(only_prospect(&decision).lower_bound, None);
    // With so few nothing could ever be certain, so that none is worth its costs.
    scene.max_steps = 44;
    scene.candidate.losses.truncate(3);
    let decision = scene.decide();
    assert!(decision.settled && decision.reason.contains("`gate.max_pages` allows 44"), "{}", decision.reason);
}

#[test]
fn what_is_hopeless_settles_at_the_first_look_and_what_is_open_does_not() {
    let rivals = |scene: Scene| scene.rival(1, 100, Ok(noisy(2, 3.0))).rival(2, 200, Ok(noisy(3, 3.0)));
    let at = |factor: f64, num_steps: usize| {
        let own = noisy(1, 3.0);
        let mut scene = rivals(Scene::new(scaled(&own, factor)).deployed(0, 50, Ok(own)));
        scene.candidate.losses.truncate(num_steps);
        let decision = scene.decide();
        (matches!(decision.verdict, Verdict::Publish { .. }), decision.settled)
    };
    // The own block is the oldest: its loss alone costs more than an equal model brings.
    assert_eq!(at(1.0, 5), (false, false));
    assert_eq!(at(1.0, 6), (false, true));
    assert_eq!(at(0.98, 6), (false, false));
    assert_eq!(at(0.98, 44), (false, false));
    assert_eq!(at(0.98, 45), (true, true));
}

#[test]
fn the_last_step_that_may_be_scored_settles() {
    let own = noisy(1, 3.0);
    let mut scene = Scene::new(scaled(&own, 0.989)).deployed(0, 50, Ok(own)).rival(1, 100, Ok(noisy(2, 3.0)));
    // What must be exceeded is the mean itself: no number of steps makes that certain, or hopeless.
    scene.options.min_gain = only_prospect(&scene.decide()).gain;
    let decision = scene.decide();
    assert_eq!((decision.verdict, decision.settled), (Verdict::Stay, false));
    let last = Scene { max_steps: 80, ..scene };
    let decision = last.decide();
    assert_eq!((decision.verdict, decision.settled), (Verdict::Stay, true));
}

#[test]
fn looks_are_few_and_end_at_the_last_step() {
    let looks = |max_steps: usize| {
        let mut looks = vec![next_look(0, max_steps)];
        while looks[looks.len() - 1] < max_steps {
            looks.push(next_look(looks[looks.len() - 1], max_steps));
        }
        looks
    };
    assert_eq!(looks(100), [6, 30, 40, 50, 60, 70, 80, 90, 100]);
    assert_eq!(looks(33), [6, 30, 33]);
    assert_eq!(looks(4), [4]);
    assert_eq!(next_look(7, 100), 30);
    assert_eq!(next_look(45, 100), 50);
}

#[test]
fn an_exact_bound_is_less_certain_of_the_same_steps() {
    let mut scene = Scene::new(flat(2.1)).hotkey(0).rival(1, 100, Ok(flat(2.0))).rival(2, 200, Ok(flat(3.0)));
    scene.rules.validator.temperature = WARM;
    let share = softmax_share(WARM, 0.5, &[1.0, 0.0]);
    assert_near(only_prospect(&scene.decide()).lower_bound.unwrap(), share);
    assert_eq!(scene.decide().verdict, publish("key-0"));
    // 60 bets of at most 3/4 of the stake: more is known than 0.01, but not that it is so much.
    scene.options.exact = true;
    let decision = scene.decide();
    let bound = only_prospect(&decision).lower_bound.unwrap();
    assert!((0.01..share - 0.05).contains(&bound), "{bound}");
    assert_eq!((decision.verdict.clone(), decision.least_steps), (publish("key-0"), 6));
    assert!(decision.paragraph().contains("by an exact bound more than"), "{}", decision.paragraph());
    scene.options.min_gain = 0.2;
    assert_eq!(scene.decide().verdict, Verdict::Stay);
    scene.options.exact = false;
    assert_eq!(scene.decide().verdict, publish("key-0"));
}

#[test]
fn candidates_and_hotkeys_share_the_probability_of_error() {
    let own = noisy(1, 3.0);
    let mut scene = Scene::new(scaled(&own, 0.983)).deployed(0, 100, Ok(own)).rival(1, 200, Ok(noisy(2, 3.0)));
    let mut total = 0.0;
    for (num_tested, alpha) in [(1, 0.05 / 2.0), (2, 0.05 / 6.0), (3, 0.05 / 12.0), (4, 0.05 / 20.0)] {
        scene.num_tested = num_tested;
        let decision = scene.decide();
        assert!((decision.alpha - alpha).abs() < 1e-12 && decision.confidence == 1.0 - decision.alpha);
        let prospect = only_prospect(&decision);
        let look = Look::at(&prospect.gains, prospect.min_gain, alpha, false);
        assert!((prospect.lower_bound.unwrap() - look.lower_bound.unwrap()).abs() < 1e-9);
        total += alpha;
    }
    assert!(total < 0.05);
    scene.num_tested = 1;
    let (first, lower) = (scene.decide(), only_prospect(&scene.decide()).lower_bound.unwrap());
    assert_eq!(first.verdict, publish("key-0"));
    // A later candidate with the very same gains needs more.
    scene.options.min_gain = lower - 1e-6;
    assert_eq!(scene.decide().verdict, publish("key-0"));
    scene.num_tested = 2;
    assert_eq!(scene.decide().verdict, Verdict::Stay);
    scene.num_tested = 1_000;
    let decision = scene.decide();
    assert_eq!((decision.least_steps, decision.settled), (100, false));
    scene.max_steps = 99;
    assert!(scene.decide().settled);
    scene.max_steps = 100;
    scene.num_tested = 1;
    assert!((scene.hotkey(5).hotkey(6).decide().alpha - 0.025 / 3.0).abs() < 1e-12);
}
