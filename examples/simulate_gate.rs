//! How often the gate errs and how often it opens: a simulated subnet of thirty models, many runs of twenty candidates.
//!
//! ```console
//! cargo run --release --example simulate_gate            # full size, minutes
//! RUNS=100 cargo run --release --example simulate_gate   # a first impression
//! ```
//!
//! A model's loss on a batch is its level, times the luck it has on the batch's page (0.4 %), times that on the batch (1 %);
//! a page has 43 batches, a step three pages. The candidate's luck on pages is normal, or rarely bad (step gains skewed to
//! the left), or rarely good (to the right), or normal but for rare steps that are bad altogether. Where we stand: with
//! nothing deployed, with the sixth best model, or with the leader's, which has the oldest block; the candidate then shares
//! nothing with it, or, as a model that was trained on from it, nine tenths of its luck on pages. The candidate's level is
//! set so that its mean gain δ, over many drawn steps, is what is asked for: 0 and `min_gain`, where every publish is false,
//! or twice that, where none is.
//!
//! Steps are drawn from a pool whose duels among rivals are counted once: all that a candidate changes is his own duels. What
//! is known after a look is computed by the gate's own [`Look`]; consensus and backtest, which can only forbid, are left out.
//! That the gains are the gate's is checked on some steps.

use std::iter;
use std::time::Instant;

use anyhow::{Result, ensure};
use assay::chain::Snapshot;
use assay::figures::duration;
use assay::gate::look::{Look, next_look};
use assay::gate::roster::Entry;
use assay::gate::{self, Candidate, Inputs, Model, OwnHotkey};
use assay::hub::model_id::{ModelId, ModelMetadata};
use assay::metrics::printer::Printer;
use assay::ops::random::{derive, fill_normal, uniform};
use assay::recipe;
use assay::rules::Rules;
use assay::score::duel::is_win;
use assay::score::weights::softmax;
use rayon::prelude::*;

const NUM_RIVALS: usize = 29;
const PAGES_PER_STEP: usize = 3;
const BATCHES_PER_PAGE: usize = 43;
const NUM_BATCHES: usize = PAGES_PER_STEP * BATCHES_PER_PAGE;
const PAGE_LUCK: f32 = 0.004;
const BATCH_LUCK: f32 = 0.01;
const MAX_STEPS: usize = 100;
const POOL_STEPS: u64 = 4_000;
const CANDIDATES_PER_RUN: u64 = 20;
const MIN_GAIN: f64 = 0.02;
const ALPHA: f64 = 0.05;

/// How luck on pages is distributed, of mean 0 and deviation 1; bad luck is positive.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Normal,
    RarelyBad,
    RarelyGood,
    /// Normal on pages, and one step in ten 2 % worse on all of them.
    BadSteps,
}

/// Where we stand.
#[derive(Clone, Copy, Debug)]
enum Place {
    Nothing,
    Sixth,
    Leader,
    LeaderTrainedOn,
}

/// The part of its luck on pages that a candidate has from the deployed model.
const INHERITED: f32 = 0.9;

/// A step's losses and duels of everybody but the candidate.
struct Step {
    /// Each rival's losses, lowered as an earlier block's are, by batch.
    favoured: Vec<f64>,
    /// Wins of each rival over the others.
    wins: Vec<u64>,
    /// Our share when staying.
    stay: f64,
    /// Luck on pages that the candidate inherits, if any.
    inherited: Option<[f32; PAGES_PER_STEP]>,
}

fn page_luck(key: u64, luck: Luck) -> [f32; PAGES_PER_STEP] {
    let mut pages = [0.0; PAGES_PER_STEP];
    match luck {
        Luck::Normal => fill_normal(derive(key, 1), 1.0, &mut pages),
        Luck::BadSteps => {
            fill_normal(derive(key, 1), 1.0, &mut pages);
            let step = if uniform(derive(key, 2), 0, 0) < 0.1 { 4.5 } else { -0.5 };
            pages.iter_mut().for_each(|page| *page += step);
        }
        Luck::RarelyBad | Luck::RarelyGood => {
            for (page, index) in iter::zip(&mut pages, 0..) {
                let exponential = -(1.0 - uniform(derive(key, 1), 0, index)).ln() - 1.0;
                *page = if matches!(luck, Luck::RarelyBad) { exponential } else { -exponential };
            }
        }
    }
    pages
}

/// Losses of a step, by batch.
fn losses(key: u64, level: f32, pages: &[f32; PAGES_PER_STEP]) -> Vec<f32> {
    let mut noise = vec![0.0; NUM_BATCHES];
    fill_normal(derive(key, 0), BATCH_LUCK, &mut noise);
    let page_of = |batch: usize| pages[batch / BATCHES_PER_PAGE];
    noise.iter().enumerate().map(|(batch, noise)| level * (PAGE_LUCK * page_of(batch) + noise).exp()).collect()
}

/// Ranks of the rivals and our own, if we are in: by level, 1 at the top.
fn level(rank: usize, spacing: f32) -> f32 {
    3.0 * (1.0 + spacing * rank as f32)
}

fn share(rates: &[f64], rules: &Rules) -> f64 {
    f64::from(softmax(rates, rules.validator.temperature)[NUM_RIVALS])
}

/// Ranks of the rivals, and our own if something is deployed.
fn ranks(place: Place) -> (Vec<usize>, Option<usize>) {
    let own = match place {
        Place::Nothing => None,
        Place::Sixth => Some(5),
        Place::Leader | Place::LeaderTrainedOn => Some(0),
    };
    ((0..30).filter(|rank| Some(*rank) != own).take(NUM_RIVALS).collect(), own)
}

/// The leader's is the oldest; the others are mixed.
fn block(rank: usize) -> u64 {
    if rank == 0 { 1_000 } else { 2_000 + (rank as u64 * 7) % 29 }
}

/// Losses of a deployed model in a step of the pool, and its luck on the pages.
fn deployed(step: u64, rank: usize, spacing: f32) -> (Vec<f32>, [f32; PAGES_PER_STEP]) {
    let key = derive(derive(9, step), rank as u64);
    let pages = page_luck(key, Luck::Normal);
    (losses(key, level(rank, spacing), &pages), pages)
}

fn pool(place: Place, spacing: f32, rules: &Rules) -> Vec<Step> {
    let (ranks, own_rank) = ranks(place);
    (0..POOL_STEPS)
        .into_par_iter()
        .map(|step| {
            let rivals: Vec<Vec<f32>> = ranks.iter().map(|&rank| deployed(step, rank, spacing).0).collect();
            let beats = |one: (usize, &[f32]), other: (usize, &[f32])| {
                let (block, other_block) = (Some(block(one.0)), Some(block(other.0)));
                let wins = |(loss, other): (&f32, &f32)| {
                    is_win((*loss).into(), (*other).into(), block, other_block, rules.epsilon)
                };
                iter::zip(one.1, other.1).filter(|pair| wins(*pair)).count() as u64
            };
            let all: Vec<(usize, &[f32])> =
                iter::zip(&ranks, &rivals).map(|(rank, losses)| (*rank, &losses[..])).collect();
            let among = |own: (usize, &[f32])| {
                all.iter().filter(|rival| rival.0 != own.0).map(|rival| beats(own, *rival)).sum()
            };
            let wins: Vec<u64> = all.iter().map(|rival| among(*rival)).collect();
            let stay = own_rank.map_or(0.0, |rank| {
                let (losses, _) = deployed(step, rank, spacing);
                let own = (rank, &losses[..]);
                let total = |(rival, wins): (&(usize, &[f32]), &u64)| rate(wins + beats(*rival, own));
                let rates: Vec<f64> = iter::zip(&all, &wins).map(total).chain([rate(among(own))]).collect();
                share(&rates, rules)
            });
            let favoured = rivals.concat().iter().map(|loss| f64::from(*loss) * (1.0 - rules.epsilon)).collect();
            let inherited = matches!(place, Place::LeaderTrainedOn).then(|| deployed(step, 0, spacing).1);
            Step { favoured, wins, stay, inherited }
        })
        .collect()
}

fn rate(wins: u64) -> f64 {
    wins as f64 / (NUM_RIVALS * NUM_BATCHES) as f64
}

/// The candidate's losses in a step of the pool.
fn candidate(step: &Step, level: f32, luck: Luck, key: u64) -> Vec<f64> {
    let mut pages = page_luck(key, luck);
    for (page, inherited) in iter::zip(&mut pages, step.inherited.iter().flatten()) {
        *page = INHERITED * inherited + (1.0 - INHERITED * INHERITED).sqrt() * *page;
    }
    losses(key, level, &pages).into_iter().map(f64::from).collect()
}

/// Our gain of a step if a candidate takes our place at the newest block.
fn gain(step: &Step, level: f32, luck: Luck, key: u64, rules: &Rules) -> f64 {
    let candidate = candidate(step, level, luck, key);
    let mut rates = [0.0; NUM_RIVALS + 1];
    let mut own = 0;
    for (rival, favoured) in step.favoured.chunks_exact(NUM_BATCHES).enumerate() {
        let pairs = || iter::zip(&candidate, favoured);
        own += pairs().map(|(own, rival)| u32::from(own < rival)).sum::<u32>();
        let lost = pairs().map(|(own, rival)| u32::from(rival < own)).sum::<u32>();
        rates[rival] = rate(step.wins[rival] + u64::from(lost));
    }
    rates[NUM_RIVALS] = rate(own.into());
    share(&rates, rules) - step.stay
}

/// Mean, deviation and skewness of a candidate's gain over the pool.
fn moments(pool: &[Step], level: f32, luck: Luck, draws: usize, rules: &Rules) -> (f64, f64, f64) {
    let gains: Vec<f64> = (0..pool.len() * draws)
        .into_par_iter()
        .map(|index| gain(&pool[index / draws], level, luck, derive(77, index as u64), rules))
        .collect();
    let mean =
        |power: i32, about: f64| gains.iter().map(|gain| (gain - about).powi(power)).sum::<f64>() / gains.len() as f64;
    let first = mean(1, 0.0);
    let deviation = mean(2, first).sqrt();
    (first, deviation, mean(3, first) / deviation.powi(3))
}

/// The level at which the mean gain is what is asked for; `None` if there is none.
fn calibrate(pool: &[Step], target: f64, luck: Luck, rules: &Rules) -> Option<f32> {
    let (mut good, mut bad) = (3.0 * 0.9, 3.0 * 1.1);
    let mean = |level: f32, draws: usize| moments(pool, level, luck, draws, rules).0;
    if mean(bad, 1) > target {
        return None;
    }
    // Coarsely first; the last steps are what the mean of many draws says.
    for halving in 0..16 {
        let middle = (good + bad) / 2.0;
        let draws = if halving < 6 { 1 } else { 5 };
        if mean(middle, draws) > target { good = middle } else { bad = middle }
    }
    Some((good + bad) / 2.0)
}

/// Looks at a candidate until the gate knows; the steps used, if it opens.
fn opens(pool: &[Step], level: f32, luck: Luck, key: u64, num_tested: u64, rules: &Rules) -> (bool, usize) {
    let nth = num_tested as f64;
    let alpha = ALPHA / (nth * (nth + 1.0));
    let mut gains = Vec::with_capacity(MAX_STEPS);
    loop {
        let until = next_look(gains.len(), MAX_STEPS);
        for index in gains.len() as u64..until as u64 {
            let step = (f64::from(uniform(derive(key, 0), 0, index)) * pool.len() as f64) as usize;
            gains.push(gain(&pool[step], level, luck, derive(derive(key, 1), index), rules));
        }
        let look = Look::at(&gains, MIN_GAIN, alpha, false);
        if look.lower_bound.is_some_and(|bound| bound > MIN_GAIN) {
            return (true, gains.len());
        }
        if look.hopeless || gains.len() == MAX_STEPS {
            return (false, gains.len());
        }
    }
}

/// Makes sure that the gains of some steps are what the gate itself finds.
fn check(place: Place, spacing: f32, pool: &[Step], rules: &Rules) -> Result<()> {
    let (ranks, own_rank) = ranks(place);
    let (level, luck, own_uid) = (level(0, spacing), Luck::Normal, own_rank.unwrap_or(99) as u16);
    for (step, key) in iter::zip(pool, 0..10) {
        let model = |&rank: &usize| -> Result<Model> {
            let id = ModelId { namespace: "a".into(), name: "b".into(), commit: None, hash: None };
            let metadata = ModelMetadata { id, block: block(rank).try_into()? };
            let is_own = own_rank == Some(rank);
            let entry = Entry { uid: rank as u16, hotkey: format!("key-{rank}"), metadata, is_own, evaluated: true };
            let losses = deployed(key, rank, spacing).0.into_iter().map(f64::from).collect();
            Ok(Model { entry, losses: Ok(vec![losses]) })
        };
        let own = OwnHotkey { hotkey: "own".into(), uid: own_uid, candidate_block: 10_000, immune_until: u64::MAX };
        let decision = gate::decide(&Inputs {
            rules,
            options: &recipe::Gate::default(),
            snapshot: &Snapshot::default(),
            models: ranks.iter().chain(&own_rank).map(model).collect::<Result<_>>()?,
            own: vec![own],
            candidate: Candidate { hash: "c".into(), losses: vec![candidate(step, level, luck, key)] },
            num_tested: 1,
            max_steps: MAX_STEPS,
            unfit: None,
        });
        let (ours, of_the_gate) = (gain(step, level, luck, key, rules), decision.prospects[0].gain);
        ensure!((ours - of_the_gate).abs() < 1e-6, "{place:?}: a gain of {ours} here, of {of_the_gate} by the gate");
    }
    Ok(())
}

fn main() -> Result<()> {
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(Ok(default), |value| value.parse());
    let (num_runs, spacing) = (number("RUNS", 1_000)?, number("SPACING", 50)? as f32 / 10_000.0);
    let (rules, printer, started) = (Rules::default(), Printer::new(false), Instant::now());
    for place in [Place::Nothing, Place::Sixth, Place::Leader, Place::LeaderTrainedOn] {
        let pool = pool(place, spacing, &rules);
        check(place, spacing, &pool, &rules)?;
        let stay = pool.iter().map(|step| step.stay).sum::<f64>() / pool.len() as f64;
        for luck in [Luck::Normal, Luck::RarelyBad, Luck::RarelyGood, Luck::BadSteps] {
            for target in [0.0, MIN_GAIN, 2.0 * MIN_GAIN] {
                let Some(level) = calibrate(&pool, target, luck, &rules) else { continue };
                let (mean, deviation, skewness) = moments(&pool, level, luck, 10, &rules);
                let is_null = target <= MIN_GAIN;
                let key = |run: u64, nth: u64| derive(derive(5, run), nth);
                let runs: Vec<(bool, usize)> = (0..num_runs)
                    .into_par_iter()
                    .map(|run| {
                        let last = if is_null { CANDIDATES_PER_RUN } else { 1 };
                        let outcomes = (1..=last).map(|nth| opens(&pool, level, luck, key(run, nth), nth, &rules));
                        let mut steps = 0;
                        let opened = outcomes.inspect(|(_, used)| steps = *used).any(|(opens, _)| opens);
                        (opened, steps)
                    })
                    .collect();
                let mut pages: Vec<usize> = runs.iter().map(|(_, steps)| steps * PAGES_PER_STEP).collect();
                pages.sort_unstable();
                let part = runs.iter().filter(|(opened, _)| *opened).count() as f64 / runs.len() as f64;
                printer.result(&format!(
                    "{place:?} (stay {stay:.3}), {luck:?}: level {level:.4}, gain {mean:+.4} deviation {deviation:.4} \
                     skewness {skewness:+.2}: {} {part:.4}, median pages {}, after {}",
                    if is_null { "runs with a false publish" } else { "published" },
                    pages[pages.len() / 2],
                    duration(started.elapsed().as_secs_f64()),
                ))?;
            }
        }
    }
    Ok(())
}
