//! What the gate decides among thirty models with noisy losses, and how often it errs.

#![allow(clippy::unwrap_used)]

use std::iter;

use rayon::prelude::*;

use super::look::next_look;
use super::testing::{Losses, Scene, normals};
use super::{Verdict, mean};
use crate::ops::random::derive;

/// Share when staying, share when publishing, gain and lower bound.
fn pay(scene: &Scene) -> (f64, f64, f64, f64) {
    let decision = scene.decide();
    let prospect = &decision.prospects[0];
    (prospect.stay, prospect.publish, prospect.gain, prospect.lower_bound.unwrap())
}

fn publishes(scene: &Scene) -> bool {
    matches!(scene.decide().verdict, Verdict::Publish { .. })
}

/// An own block that is older than all others costs 0.9975 % when it is given away.
#[test]
fn a_leader_with_the_oldest_block_loses_by_a_small_improvement_and_gains_by_a_large_one() {
    let (stay, publish, gain, _) = pay(&Scene::field(0, 0.994));
    assert!((0.3..0.5).contains(&stay) && publish < 0.75 * stay && gain < -0.1, "0.6 %: {stay} to {publish}");
    let (stay, publish, gain, _) = pay(&Scene::field(0, 0.99));
    assert!(gain.abs() < 0.02, "1.0 %: {stay} to {publish}");
    let (stay, publish, gain, bound) = pay(&Scene::field(0, 0.98));
    assert!(publish > 0.6 && gain > 0.2 && bound > 0.1, "2.0 %: {stay} to {publish}");
}

#[test]
fn from_the_oldest_block_1_5_percent_better_publishes_and_0_3_percent_better_stays() {
    assert!(publishes(&Scene::field(0, 0.985)));
    let stays = Scene::field(0, 0.997);
    assert!(!publishes(&stays));
    let (stay, publish, ..) = pay(&stays);
    assert!(publish < 0.6 * stay, "{stay} to {publish}");
}

#[test]
fn a_miner_of_rank_15_publishes_a_model_slightly_worse_than_the_leader() {
    // Rank 15 lies 3.1 % behind the leader: 2.7 % better is still 0.3 % worse than he.
    let scene = Scene::field(15, 0.973);
    let mean_loss = |losses: &Losses| mean(&losses.concat());
    let leader = mean_loss(scene.models[0].losses.as_ref().unwrap());
    assert!(mean_loss(&scene.candidate.losses) > 1.001 * leader);
    assert!(publishes(&scene));
    let (stay, publish, ..) = pay(&scene);
    assert!(stay < 0.01 && publish > 0.04, "{stay} to {publish}");
}

/// Fields of a small subnet, so that hundreds of decisions take seconds: ten models, three pages of a dozen batches.
struct Subnet {
    /// Makes the candidate's luck on a page, of mean 0 and deviation 1, of a normally distributed number; bad if positive.
    luck: fn(f64) -> f64,
}

impl Subnet {
    const NUM_RIVALS: u16 = 9;
    const NUM_PAGES: usize = 3;
    const PAGE_BATCHES: usize = 12;

    /// Luck of 0.4 % on each page and of 1 % on each batch.
    fn losses(&self, seed: u64, level: f64, num_steps: usize, is_candidate: bool) -> Losses {
        let pages = normals(derive(seed, 0), Self::NUM_PAGES * num_steps);
        let batches = normals(derive(seed, 1), Self::NUM_PAGES * Self::PAGE_BATCHES * num_steps);
        let luck = |page: f64| if is_candidate { (self.luck)(page) } else { page };
        let page = |(page, batches): (&f64, &[f64])| {
            let losses = batches.iter().map(|batch| level * (0.004 * luck(*page) + 0.01 * batch).exp());
            losses.collect::<Vec<_>>()
        };
        let pages: Vec<Vec<f64>> = iter::zip(&pages, batches.chunks(Self::PAGE_BATCHES)).map(page).collect();
        pages.chunks(Self::NUM_PAGES).map(|pages| pages.concat()).collect()
    }

    /// A third place with a middling block, and a candidate for it.
    fn scene(&self, seed: u64, candidate: f64, num_steps: usize) -> Scene {
        let losses = |model: u16, level: f64| {
            self.losses(derive(derive(seed, 7), model.into()), level, num_steps, model == u16::MAX)
        };
        let level = |rank: u16| 3.0 * (1.0 + 0.015 * f64::from(rank));
        let scene = Scene::new(losses(u16::MAX, candidate)).deployed(0, 1_500, Ok(losses(0, level(2))));
        let mut scene = (1..=Self::NUM_RIVALS).fold(scene, |scene, uid| {
            let rank = if uid <= 2 { uid - 1 } else { uid };
            scene.rival(uid, 1_000 + 100 * u64::from(uid), Ok(losses(uid, level(rank))))
        });
        scene.options.min_gain = 0.02;
        scene
    }

    /// The candidate's level at which its mean gain, over some thousand steps, is what is asked for.
    fn calibrated(&self, gain: f64) -> f64 {
        let gain_at = |level: f64| {
            let gains = (0..40).into_par_iter().map(|seed| {
                let mut scene = self.scene(derive(99, seed), level, 50);
                scene.rules.validator.sample_min = 100;
                scene.decide().prospects[0].gain
            });
            gains.sum::<f64>() / 40.0
        };
        let (mut good, mut bad) = (2.8, 3.3);
        for _ in 0..12 {
            let middle = (good + bad) / 2.0;
            if gain_at(middle) > gain { good = middle } else { bad = middle }
        }
        (good + bad) / 2.0
    }

    /// Asks about a candidate as often as the gate wants to.
    fn publishes(&self, seed: u64, level: f64, num_tested: u64) -> bool {
        let scene = Scene { num_tested, ..self.scene(seed, level, 100) };
        let mut num_steps = 0;
        loop {
            num_steps = next_look(num_steps, scene.max_steps);
            let mut seen = scene.clone();
            seen.candidate.losses.truncate(num_steps);
            let decision = seen.decide();
            if decision.settled {
                return matches!(decision.verdict, Verdict::Publish { .. });
            }
        }
    }
}

const SUBNETS: [Subnet; 3] = [
    Subnet { luck: |number| number },
    // Both have mean 0 and deviation 1, and a skewness of 2 and of -2: bad pages are rare, then good ones.
    Subnet { luck: |number| (LOGNORMAL * number).exp().mul_add(LOGNORMAL_SCALE, -LOGNORMAL_SHIFT) },
    Subnet { luck: |number| -((LOGNORMAL * number).exp().mul_add(LOGNORMAL_SCALE, -LOGNORMAL_SHIFT)) },
];

/// Of exp(0.55 number): the mean is exp(0.55² / 2), the variance that squared times (exp(0.55²) - 1).
const LOGNORMAL: f64 = 0.55;
const LOGNORMAL_SHIFT: f64 = 1.6825442;
const LOGNORMAL_SCALE: f64 = 1.4463701;

/// Twenty candidates that gain exactly `min_gain` in each of 25 runs: 1,500 decisions that each may be false, at most one run
/// in twenty. The full size is `examples/simulate_gate.rs`.
#[test]
fn of_many_worthless_candidates_hardly_one_is_published() {
    for (number, subnet) in iter::zip(0.., &SUBNETS) {
        let level = subnet.calibrated(0.02);
        let errs = |run: &u64| {
            (1..=20).any(|nth| subnet.publishes(derive(derive(derive(1_000, number), *run), nth), level, nth))
        };
        let num_runs_with_errors = (0..25).into_par_iter().filter(errs).count();
        assert!(num_runs_with_errors <= 1, "generator {number}: {num_runs_with_errors} of 25 runs");
    }
}

#[test]
fn of_candidates_that_gain_twice_what_they_must_nearly_all_are_published() {
    for (number, subnet) in iter::zip(0.., &SUBNETS) {
        let level = subnet.calibrated(0.04);
        let published = (0..100).into_par_iter().filter(|run| subnet.publishes(derive(2_000 + number, *run), level, 1));
        let num_published = published.count();
        assert!(num_published >= 95, "generator {number}: {num_published} of 100");
    }
}
