//! Single turns: what goes wrong in them, what is sent, and what the versions do differently.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::warm::warm;
use super::super::{Event, Outcome};
use super::world::{GENESIS_BLOCK, World, archs};
use crate::chain::Chain;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::exit_code;
use crate::hub::hash::text_pair_hash;
use crate::rules::VALIDATORS;
use crate::score::weights::as_sent;

/// A subnet with so many miners of models that all can be read: those with higher uids have worse ones.
fn with_miners(num: usize) -> World {
    let world = World::new();
    for (index, arch) in archs()[..num].iter().enumerate() {
        let repo_id = format!("miner{}/model", index + 1);
        world.factors.borrow_mut().insert(repo_id.clone(), 1.0 + 0.2 * index as f64);
        let text = world.upload(&repo_id, arch, 1);
        world.miner(&format!("miner-{}", index + 1), &text, 10);
    }
    world
}

fn use_version(world: &mut World, index: usize) {
    let (sample_min, sample_max) = (world.rules.validator.sample_min, world.rules.validator.sample_max);
    world.rules.validator = VALIDATORS[index].clone();
    (world.rules.validator.sample_min, world.rules.validator.sample_max) = (sample_min, sample_max);
}

fn checked(events: &[Event]) -> Vec<(u16, Outcome)> {
    let outcome = |event: &Event| match event {
        Event::Checked { uid, outcome } => Some((*uid, outcome.clone())),
        _ => None,
    };
    events.iter().filter_map(outcome).collect()
}

fn uids(events: &[Event]) -> Vec<u16> {
    checked(events).into_iter().map(|(uid, _)| uid).collect()
}

fn evaluated(events: &[Event]) -> Vec<u16> {
    let uid = |event: &Event| match event {
        Event::Evaluated { uid } => Some(*uid),
        _ => None,
    };
    events.iter().filter_map(uid).collect()
}

fn pass(world: &World, seconds: u64) {
    world.clock.sleep(Duration::from_secs(seconds));
}

#[test]
fn a_step_that_fails_decides_nothing_but_that_who_waited_is_kept() {
    let world = with_miners(2);
    world.failing_draws.store(1, Ordering::SeqCst);
    let before = world.clock.unix_ms();
    let (events, outcome) = world.try_steps(1);
    let error = outcome.unwrap_err();
    assert_eq!(exit_code(&error), 1);
    assert!(format!("{error:#}").contains("dataset's service"), "{error:#}");
    // Nobody waits after the last turn, and that nothing was weighed is an error.
    assert_eq!(world.clock.unix_ms(), before);
    assert!(evaluated(&events).is_empty() && world.rows().is_empty());
    let told = world.told.text();
    assert!(
        told.contains("step 1 failed and decides nothing: no pages could be drawn: the dataset's service"),
        "{told}"
    );
    let state = world.state();
    assert_eq!(state.judge.weights, [0.0; 3]);
    assert!(state.judge.pending.is_empty());
    assert_eq!((state.judge.kept.iter().collect::<Vec<_>>(), state.step), (vec![1, 2], 1));
    // The next one goes on with other pages.
    assert_eq!(evaluated(&world.steps(1)), [1, 2]);
    assert_eq!(world.rows()[0]["step"], 2);
    assert_eq!(world.state().judge.weights.iter().sum::<f32>(), 0.5);
}

#[test]
fn a_model_that_cannot_be_scored_here_loses_every_batch_and_the_step_goes_on() {
    let world = with_miners(2);
    world.unscorable.borrow_mut().insert("miner1/model".to_owned());
    world.steps(2);
    let rows = world.rows();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["uid_data"]["1"], "inf");
    assert!(rows[0]["uid_data"]["2"].is_f64());
    world.unscorable.borrow_mut().clear();
    world.steps(1);
    assert!(world.rows()[2]["uid_data"]["1"].is_f64());
    let told = world.told.text();
    assert_eq!(told.matches("uid 1: all its losses are infinite. the card's memory is full").count(), 1, "{told}");
}

#[test]
fn with_nothing_to_evaluate_it_waits_five_minutes() {
    let world = World::new();
    let before = world.clock.unix_ms();
    let error = world.try_steps(3).1.unwrap_err();
    assert_eq!(exit_code(&error), 4);
    assert!(error.to_string().contains("no model to evaluate"), "{error}");
    // Nobody waits after the last turn.
    assert_eq!(world.clock.unix_ms() - before, 600_000);
    assert!(world.rows().is_empty());
    assert_eq!(world.state().step, 3);
}

#[test]
fn weights_are_sent_after_50_blocks_and_only_if_that_is_wanted() {
    let mut world = with_miners(2);
    world.sets_weights = false;
    // 40 seconds a step, 50 blocks of 12 seconds.
    assert!(!world.steps(16).contains(&Event::WeightsSet));
    assert!(world.ledger().snapshot().unwrap().weights.is_empty());
    world.sets_weights = true;
    let events = world.steps(16);
    assert_eq!(events.iter().filter(|event| **event == Event::WeightsSet).count(), 1);
    let position = events.iter().position(|event| *event == Event::WeightsSet).unwrap();
    let num_steps = events[..position].iter().filter(|event| **event == Event::Weighed).count();
    // The first epoch ended with the 15th step, so that the second does with the 30th: the 14th of these.
    assert_eq!(num_steps, 14);
    let sent = world.ledger().snapshot().unwrap().weights.remove(&0).unwrap();
    let of_step = &world.rows()[29]["weight_data"];
    let weight = |uid: u16| of_step[uid.to_string()].as_f64().unwrap() as f32;
    assert_eq!(sent, as_sent([(1, weight(1)), (2, weight(2))]));
    assert_eq!(sent[0], (1, u16::MAX));
}

#[test]
fn weights_that_cannot_be_sent_are_told_and_the_next_epoch_begins() {
    let world = with_miners(1);
    world.ledger().deregister("validator").unwrap();
    let events = world.steps(31);
    assert!(!events.contains(&Event::WeightsSet));
    let told = world.told.text();
    assert!(told.contains("the weights could not be set and are sent again in 50 blocks"), "{told}");
    // 20 seconds a step: the epoch ended with the 30th.
    assert_eq!(world.state().epoch_block, Some(GENESIS_BLOCK + 1_000 + 50));
}

#[test]
fn a_model_that_takes_too_long_loses_every_batch() {
    let mut world = with_miners(1);
    world.seconds_per_model = Some(20);
    world.steps(1);
    world.seconds_per_model = Some(19);
    world.steps(1);
    let rows = world.rows();
    assert!(rows[0]["uid_data"]["1"].is_f64());
    assert_eq!(rows[1]["uid_data"]["1"], "inf");
    assert!(world.told.text().contains("uid 1: miner1/model took more than 19 s"));
}

#[test]
fn the_subnet_is_taken_as_it_was_while_the_chain_does_not_answer() {
    let world = with_miners(2);
    world.is_cut_off.store(true, Ordering::SeqCst);
    let error = world.start(&Disk::default(), |validator| validator.run(Some(1), &|_| Ok(()))).unwrap_err();
    assert_eq!(exit_code(&error), 3);
    world.is_cut_off.store(false, Ordering::SeqCst);
    let cut_off_later = |event: &Event| {
        world.is_cut_off.fetch_or(*event == Event::Recorded, Ordering::SeqCst);
        Ok(())
    };
    world.start(&Disk::default(), |validator| validator.run(Some(2), &cut_off_later)).unwrap();
    assert_eq!(world.rows().len(), 2);
    assert!(world.told.text().contains("the subnet is taken as it was at block 2,486,000"), "{}", world.told.text());
}

#[test]
fn an_orderly_end_in_a_step_leaves_the_state_before_it() {
    let world = with_miners(2);
    world.steps(1);
    let before = world.state_bytes();
    world.interrupts.store(true, Ordering::SeqCst);
    let error = world.start(&Disk::default(), |validator| validator.run(None, &|_| Ok(()))).unwrap_err();
    assert_eq!(exit_code(&error), 130);
    assert_eq!(world.state_bytes(), before);
    world.interrupts.store(false, Ordering::SeqCst);
    world.steps(1);
    assert_eq!(world.rows().len(), 2);
}

#[test]
fn a_uid_that_is_new_on_the_subnet_makes_the_weights_longer() {
    let mut world = with_miners(1);
    world.rewinds = false;
    world.steps(1);
    assert_eq!(world.state().judge.weights.len(), 2);
    let text = world.upload("late/model", &archs()[2], 1);
    assert_eq!(world.miner("late", &text, 1), 2);
    pass(&world, 300);
    assert_eq!(evaluated(&world.steps(1)), [1, 2]);
    let weights = world.state().judge.weights;
    assert!(weights.len() == 3 && weights[2] > 0.0, "{weights:?}");
}

#[test]
fn no_more_models_are_fetched_than_may_wait() {
    let mut world = with_miners(4);
    (world.rules.validator.sample_min, world.rules.validator.sample_max) = (1, 3);
    let events = world.steps(1);
    assert_eq!(evaluated(&events).len(), 3);
    assert_eq!(checked(&events).iter().filter(|(_, outcome)| *outcome == Outcome::Updated).count(), 3);
    // One is kept: there is room for the fourth.
    let events = world.steps(1);
    assert_eq!(evaluated(&events).len(), 2);
}

#[test]
fn a_miner_is_looked_at_again_after_five_minutes_and_after_twenty_by_later_versions() {
    for (version, seconds) in [(0, 300), (1, 300), (2, 1_200), (3, 1_200)] {
        let mut world = with_miners(1);
        use_version(&mut world, version);
        world.rewinds = false;
        assert_eq!(uids(&world.steps(1)).len(), 2);
        // The step took 20 seconds, and so does the next.
        pass(&world, seconds - 20 - 1);
        assert_eq!(uids(&world.steps(1)).len(), 0, "version {version}");
        assert_eq!(uids(&world.steps(1)).len(), 2, "version {version}");
    }
}

#[test]
fn the_version_of_21_march_begins_at_the_uid_index_200_or_the_first() {
    let mut world = with_miners(3);
    use_version(&mut world, 1);
    assert_eq!(uids(&world.steps(1)), [0, 1, 2, 3]);
}

#[test]
fn the_version_of_27_march_looks_at_miners_with_incentive_first() {
    let mut world = with_miners(3);
    use_version(&mut world, 2);
    // 1 % is 655.35.
    world.ledger().set_incentives(&[(1, 655), (2, 656), (3, 40_000)]).unwrap();
    let events = world.steps(1);
    assert_eq!(uids(&events)[..2], [2, 3]);
    let mut in_turn = uids(&events)[2..].to_vec();
    in_turn.sort_unstable();
    assert_eq!(in_turn, [0, 1, 2, 3]);
    assert_eq!(checked(&events).iter().filter(|(_, outcome)| *outcome == Outcome::Updated).count(), 3);
}

#[test]
fn the_version_of_june_brings_back_whom_a_large_validator_gives_most_of_its_weight() {
    let mut world = with_miners(2);
    use_version(&mut world, 3);
    world.rewinds = false;
    world.sets_weights = false;
    world.rules.validator.sample_min = 1;
    world.steps(1);
    assert_eq!(world.state().judge.kept.iter().collect::<Vec<_>>(), [1]);
    world.ledger().put_weights(0, &[(1, 100), (2, 101)]).unwrap();
    // Looked for every 20 minutes.
    assert_eq!(evaluated(&world.steps(1)), [1]);
    pass(&world, 1_200);
    let events = world.steps(1);
    assert_eq!((checked(&events)[0].clone(), evaluated(&events)), ((2, Outcome::Updated), vec![1, 2]));
    // And brought back every four hours.
    pass(&world, 3 * 3_600);
    assert_eq!(evaluated(&world.steps(1)), [1]);
    pass(&world, 3_600);
    assert_eq!(evaluated(&world.steps(1)), [1, 2]);
    // Half of the weight is not most of it.
    world.ledger().put_weights(0, &[(1, 100), (2, 100)]).unwrap();
    pass(&world, 5 * 3_600);
    assert_eq!(evaluated(&world.steps(1)), [1]);
}

#[test]
fn only_the_version_of_june_takes_a_hash_that_is_bound_to_the_hotkey() {
    for (version, expected) in [(0, Outcome::Failed), (1, Outcome::Failed), (2, Outcome::Failed), (3, Outcome::Updated)]
    {
        let mut world = World::new();
        use_version(&mut world, version);
        let text = world.upload("me/model", &archs()[0], 1);
        let (before, hash) = text.rsplit_once(':').unwrap();
        world.miner("me", &format!("{before}:{}", text_pair_hash(hash, "me")), 10);
        world.miner("thief", &format!("{before}:{}", text_pair_hash(hash, "me")), 11);
        let outcomes = checked(&world.try_steps(1).0);
        assert!(outcomes.contains(&(1, expected)), "version {version}: {outcomes:?}");
        assert!(outcomes.contains(&(2, Outcome::Failed)), "version {version}: {outcomes:?}");
    }
}

#[test]
fn where_a_model_needs_the_tokenizer_of_gpt_4_later_versions_do_not_start() {
    for (version, starts) in [(0, true), (1, true), (2, false), (3, false)] {
        let mut world = World::at(2_786_061);
        use_version(&mut world, version);
        let outcome = world.start(&Disk::default(), |validator| validator.run(Some(1), &|_| Ok(())));
        // There is no model, which is found out by one that starts.
        let error = outcome.unwrap_err();
        assert_eq!(exit_code(&error), if starts { 4 } else { 2 }, "version {version}");
        if !starts {
            assert!(
                error.to_string().contains("committed from block 2,786,061 on with the tokenizer of GPT-4"),
                "{error}"
            );
        }
    }
}

#[test]
fn what_is_fetched_ahead_changes_nothing() {
    let run = |warms| {
        let mut world = with_miners(3);
        (world.rules.validator.sample_min, world.rules.validator.sample_max) = (1, 2);
        world.warms = warms;
        world.steps(10);
        (world.state_bytes(), world.rows())
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn what_is_fetched_ahead_is_here_and_what_failed_is_not_fetched_again() {
    let mut world = with_miners(3);
    let text = world.upload("miner4/model", &archs()[3], 1);
    let (before, _) = text.rsplit_once(':').unwrap();
    assert_eq!(world.miner("miner-4", &format!("{before}:wrong"), 10), 4);
    // The first version's pass begins anywhere: the second begins at the first uid.
    use_version(&mut world, 1);
    world.rules.validator.output = None;
    (world.rules.validator.sample_min, world.rules.validator.sample_max) = (1, 2);
    world.steps(1);
    let num_models = || {
        std::fs::read_dir(world.dir().join("models"))
            .unwrap()
            .filter(|entry| {
                let repository = entry.as_ref().unwrap().path();
                std::fs::read_dir(repository).unwrap().any(|entry| entry.unwrap().path().is_dir())
            })
            .count()
    };
    assert_eq!(num_models(), 2);
    let failed = |stop: bool, uids: &[u16]| {
        let warm = |validator: &mut super::super::Validator<'_>| {
            let (rules, tracker, failed) = (&validator.options.rules, &validator.state.tracker, &validator.failed);
            warm(&validator.seams, rules, tracker, failed, uids, 9, &AtomicBool::new(stop));
            Ok(failed.lock().unwrap().iter().map(|(hotkey, _)| hotkey.clone()).collect::<Vec<_>>())
        };
        world.start(&Disk::default(), warm).unwrap()
    };
    assert!(failed(true, &[0, 4, 3, 2, 1]).is_empty());
    assert_eq!(num_models(), 2);
    assert_eq!(failed(false, &[0, 4, 3, 2, 1]), ["miner-4"]);
    assert_eq!(num_models(), 3);
}

#[test]
fn a_committed_text_that_names_no_model_is_none() {
    let world = with_miners(1);
    for (hotkey, bytes) in [("a", &b"three:parts:only"[..]), ("b", b"\xff\xfe:x:y:z"), ("c", b"")] {
        let ledger = world.ledger();
        ledger.register(hotkey).unwrap();
        ledger.commit_at(hotkey, bytes, GENESIS_BLOCK + 5).unwrap();
    }
    world.miner("d", "../..:etc:0123:hash", 5);
    let mut outcomes = checked(&world.steps(1));
    outcomes.sort_by_key(|(uid, _)| *uid);
    let outcomes: Vec<_> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    let none = || Outcome::NoModel;
    assert_eq!(outcomes, [none(), Outcome::Updated, none(), none(), none(), Outcome::Failed]);
}
