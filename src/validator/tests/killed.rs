//! A subnet of twelve miners, some of them odd, through twenty steps: what becomes of each, and that a validator that is
//! killed after every event and inside every write does just what one does that is left in peace.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::super::{Event, Observer, Outcome};
use super::world::{AGE, GENESIS_BLOCK, World, archs};
use crate::chain::Chain;
use crate::disk::Disk;

const STEPS: u64 = 20;

/// What happens on the subnet, by the step before which it does; each once, however often the validator begins that step.
struct Story {
    world: World,
    /// What the miners commit in the end, uploaded before the start, so that only commitments remain to be made.
    better: String,
    small: String,
    lost: String,
    newcomer: String,
    first_of_llama: String,
    told: RefCell<BTreeSet<u64>>,
}

impl Story {
    fn new() -> Self {
        let mut world = World::new();
        // So that the steps take more than an hour, after which dropped models are deleted.
        world.model_takes = Duration::from_secs(45);
        let archs = archs();
        // Miner n is uid n, and his model has the n-th architecture; lower factors are better.
        let factors = [0.97, 0.98, 0.99, 1.02, 0.985, 1.01, 0.975, 1.0, 1.0, 1.0, 0.96, 1.0];
        let mut texts = Vec::new();
        for (index, arch) in archs.iter().enumerate() {
            let repo_id = format!("miner{0}/model{0}", index + 1);
            let text = match index + 1 {
                10 => world.upload_filled(&repo_id, arch, |_, params| params.fill(f32::NAN)),
                number => world.upload(&repo_id, arch, number as u64),
            };
            world.factors.borrow_mut().insert(repo_id, factors[index]);
            texts.push(text);
        }
        // The ninth's files have another hash than he says, the twelfth commits what the first did, later.
        let hash = texts[8].rsplit(':').next().unwrap().to_owned();
        texts[8] = texts[8].replace(&hash, &hash.chars().rev().collect::<String>());
        texts[11] = texts[0].clone();
        for (index, text) in texts.iter().enumerate() {
            let uid = world.miner(&format!("miner-{}", index + 1), text, 10 * (index as u64 + 1));
            assert_eq!(usize::from(uid), index + 1);
        }
        let better = world.upload("miner2/model2", &archs[1], 102);
        let small = world.upload("miner8/small", &archs[0], 108);
        let lost = world.upload("miner11/model11", &archs[10], 111);
        let newcomer = world.upload("newcomer/model", &archs[4], 107);
        for (repo_id, factor) in [("miner8/small", 0.94), ("newcomer/model", 0.95)] {
            world.factors.borrow_mut().insert(repo_id.to_owned(), factor);
        }
        let first_of_llama = texts[2].clone();
        Self { world, better, small, lost, newcomer, first_of_llama, told: RefCell::default() }
    }

    fn tell(&self, step: u64) -> Result<()> {
        if !self.told.borrow_mut().insert(step) {
            return Ok(());
        }
        let ledger = self.world.ledger();
        let commit = |hotkey: &str, text: &str| ledger.commit(hotkey, text.as_bytes()).map(drop);
        match step {
            // The same model again, at a later block.
            3 => commit("miner-3", &self.first_of_llama),
            4 => {
                self.world.hub.vanish("miner11/model11");
                Ok(())
            }
            5 => commit("miner-2", &self.better),
            6 => commit("miner-11", &self.lost),
            8 => {
                ledger.deregister("miner-7")?;
                assert_eq!(ledger.register("newcomer")?, 7);
                Ok(())
            }
            10 => commit("miner-8", &self.small),
            12 => commit("newcomer", &self.newcomer),
            _ => Ok(()),
        }
    }

    /// Lets the validator work to the end, or until it is killed.
    fn go(&self, disk: &Disk, observe: Observer<'_>) -> Result<()> {
        self.world.start(disk, |validator| {
            while validator.state().step < STEPS {
                validator.run(Some(0), observe)?;
                self.tell(validator.state().step + 1)?;
                validator.run(Some(1), observe)?;
            }
            // Killed after its last step, it still ends the epoch.
            validator.run(Some(0), observe)
        })
    }

    fn undisturbed() -> (Self, Vec<Event>) {
        let story = Self::new();
        let events = RefCell::new(Vec::new());
        let observe: Observer<'_> = &|event| {
            events.borrow_mut().push(event.clone());
            Ok(())
        };
        story.go(&Disk::default(), observe).unwrap();
        (story, events.into_inner())
    }

    /// The weights on the chain.
    fn weights(&self) -> Vec<(u16, u16)> {
        self.world.ledger().snapshot().unwrap().weights.remove(&0).unwrap_or_default()
    }

    /// Panics unless state, rows and the weights on the chain are those of another story.
    fn assert_ended_as(&self, other: &Self) {
        let lines = |story: &Self| -> Vec<String> {
            let state = String::from_utf8(story.world.state_bytes()).unwrap();
            let rows: Vec<String> = story.world.rows().iter().map(Value::to_string).collect();
            state.lines().map(str::to_owned).chain(rows).collect()
        };
        for (line, other) in std::iter::zip(lines(self), lines(other)) {
            assert_eq!(line, other);
        }
        assert_eq!(self.world.state_bytes(), other.world.state_bytes());
        assert_eq!(self.world.rows().len() as u64, STEPS);
        assert_eq!(self.weights(), other.weights());
    }
}

/// What was found of a miner in a step: block, average loss and wins; `None`: he was not evaluated.
fn found(rows: &[Value], step: usize, uid: u16) -> Option<(Value, Value, u64)> {
    let log: Value = serde_json::from_str(rows[step - 1]["original_format_json"].as_str().unwrap()).unwrap();
    let data = log["uid_data"].get(uid.to_string())?;
    Some((data["block"].clone(), data["average_loss"].clone(), data["win_total"].as_u64().unwrap()))
}

fn outcomes(events: &[Event], wanted: u16) -> Vec<&Outcome> {
    let of_uid = events.iter().filter_map(|event| match event {
        Event::Checked { uid, outcome } if *uid == wanted => Some(outcome),
        _ => None,
    });
    of_uid.collect()
}

#[test]
fn every_odd_miner_gets_what_the_reference_gives_him() {
    let (story, events) = Story::undisturbed();
    let (rows, weights) = (story.world.rows(), story.weights());
    assert_eq!(rows.len() as u64, STEPS);
    let rows = &rows;
    let blocks = |uid| (1..=STEPS as usize).filter_map(move |step| found(rows, step, uid)).map(|(block, ..)| block);
    let first_blocks = |uid: u16| json!(GENESIS_BLOCK + 10 * u64::from(uid));

    // In his turn each is looked at once before the first step, in the order of the uids, and again after five minutes.
    let before_first_step = events.iter().take_while(|event| **event != Event::Saved);
    let checked: Vec<u16> = before_first_step
        .filter_map(|event| match event {
            Event::Checked { uid, .. } => Some(*uid),
            _ => None,
        })
        .collect();
    let start = checked[0];
    assert_eq!(checked, (0..13).map(|index| (start + index) % 13).collect::<Vec<_>>());

    // Those who cannot be evaluated are not, and are tried again each time.
    assert!(outcomes(&events, 9).len() > 5);
    assert!(outcomes(&events, 9).iter().all(|outcome| **outcome == Outcome::Failed));
    assert_eq!(blocks(9).count(), 0);
    // Too large, until he commits a smaller model.
    let of_eighth = outcomes(&events, 8);
    let num_failed = of_eighth.iter().take_while(|outcome| ***outcome == Outcome::Failed).count();
    assert!(num_failed > 2);
    assert_eq!(*of_eighth[num_failed], Outcome::Updated);
    assert!((1..10).all(|step| found(rows, step, 8).is_none()));
    let told = story.world.told.text();
    for sentence in ["parameters; the limit is 60,000", "the commitment says"] {
        assert_eq!(told.matches(sentence).count(), 1, "{sentence}: {told}");
    }

    // All others are in the first step: seven families, ten models, of which one has no loss that is a number.
    let first: Vec<u16> = (0..13).filter(|&uid| found(rows, 1, uid).is_some()).collect();
    assert_eq!(first, [1, 2, 3, 4, 5, 6, 7, 10, 11, 12]);
    assert_eq!(found(rows, 1, 10).unwrap(), (first_blocks(10), json!("nan"), 0));
    assert_eq!(found(rows, 2, 10), None);

    // Whoever commits another's string has his losses and never wins against him.
    let (own, copy) = (found(rows, 1, 1).unwrap(), found(rows, 1, 12).unwrap());
    assert_eq!(own.1, copy.1);
    assert!(own.2 > copy.2, "{own:?} {copy:?}");
    assert_eq!(copy.0, first_blocks(12));

    // The same model at a later block: the earlier one is lost.
    let of_third: Vec<Value> = blocks(3).collect();
    assert_eq!(of_third[0], first_blocks(3));
    assert!(of_third.last().unwrap().as_u64().unwrap() > GENESIS_BLOCK + AGE, "{of_third:?}");
    // A better model takes the place of the old one.
    let of_second: Vec<Value> = blocks(2).collect();
    assert_eq!(of_second[0], first_blocks(2));
    assert!(of_second.last().unwrap().as_u64().unwrap() > GENESIS_BLOCK + AGE, "{of_second:?}");

    // The repository is gone and a model committed that cannot be had: the old one is evaluated on, from the cache.
    assert!(outcomes(&events, 11).contains(&&Outcome::Failed));
    assert_eq!(blocks(11).collect::<Vec<_>>(), vec![first_blocks(11); STEPS as usize]);
    assert!((1..=STEPS as usize).all(|step| found(rows, step, 11).unwrap().1.is_f64()));

    // Another key has the place: no metadata, and an infinite loss, until its own model is known.
    assert_eq!(found(rows, 7, 7).unwrap().0, first_blocks(7));
    assert_eq!(found(rows, 8, 7).unwrap(), (json!("inf"), json!("inf"), 0));
    assert!(found(rows, STEPS as usize, 7).unwrap().0.as_u64().unwrap() > GENESIS_BLOCK + AGE);

    // Six are kept; who has just come joins them.
    let num_evaluated = |step: usize| rows[step - 1]["uid_data"].as_object().unwrap().len();
    assert_eq!((num_evaluated(1), num_evaluated(2)), (10, 6));
    // The hour has passed, and dropped models were deleted.
    assert!(events.iter().any(|event| matches!(event, Event::Cleaned { num_models } if *num_models > 0)));
    let num_sent = events.iter().filter(|event| **event == Event::WeightsSet).count();
    assert!(num_sent > 2, "{num_sent}");
    assert_eq!(weights.iter().map(|&(_, weight)| weight).max(), Some(u16::MAX));
    assert!(story.world.answers.text().contains("Weights > 0.001"));
}

#[test]
fn a_validator_that_is_killed_after_every_event_ends_as_one_that_is_not() {
    let (undisturbed, events) = Story::undisturbed();
    let killed = Story::new();
    // After the n-th event since the last start, n growing until the state has moved on: so after every single one.
    let (mut allowed, mut last, mut num_kills) = (1, Vec::new(), 0);
    loop {
        let num_events = Cell::new(0);
        let observe: Observer<'_> = &|_| {
            num_events.set(num_events.get() + 1);
            if num_events.get() == allowed { bail!("killed") } else { Ok(()) }
        };
        match killed.go(&Disk::default(), observe) {
            Ok(()) => break,
            Err(error) => assert_eq!(error.to_string(), "killed"),
        }
        num_kills += 1;
        let state = killed.world.state_bytes();
        allowed = if state == last { allowed + 1 } else { 1 };
        last = state;
    }
    assert!(num_kills > events.len(), "{num_kills} kills, {} events", events.len());
    killed.assert_ended_as(&undisturbed);
}

#[test]
fn a_validator_that_is_killed_inside_every_write_ends_as_one_that_is_not() {
    let (undisturbed, _) = Story::undisturbed();
    let killed = Story::new();
    let (mut allowed, mut last, mut num_kills) = (0, Vec::new(), 0);
    loop {
        let disk = Disk::default();
        disk.kill_after(allowed);
        let outcome = killed.go(&disk, &|_| Ok(()));
        match outcome {
            Ok(()) => break,
            Err(error) => assert!(format!("{error:#}").contains("killed"), "{error:#}"),
        }
        num_kills += 1;
        let state = killed.world.state_bytes();
        allowed = if state == last { allowed + 1 } else { 0 };
        last = state;
    }
    assert!(num_kills > 300, "{num_kills}");
    killed.assert_ended_as(&undisturbed);
}
