//! Who sees a model before its commitment, and that nobody is kept from it after.

use super::*;
use crate::hub::CARD_FILE;
use crate::metrics::printer::tests::captured;
use crate::publish::repair;

/// The warnings that a repair prints.
fn repair(fixture: &Fixture) -> String {
    let (printer, _, text) = captured(true);
    let network = &fixture.network;
    let pending = repair::pending(network.chain.as_ref()).unwrap();
    repair::show(network.hub.as_ref(), network.chain.as_ref(), &pending, Some(&network.hotkeys), &printer);
    text.text()
}

#[test]
fn a_private_model_is_seen_by_nobody_until_its_commitment_is_read_back() {
    for was_there in [false, true] {
        let fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
        if was_there {
            let other = fixture.dir.path().join("b");
            fixture.network.hub.upload(&Upload::new("me/model", &other, &["config.json"], "by hand")).unwrap();
        }
        let seen = std::cell::RefCell::new(Vec::new());
        let note = |step| {
            seen.borrow_mut().push((step, fixture.is_private()));
            Ok(())
        };
        fixture.run("a", &note).unwrap();
        for (step, is_private) in seen.into_inner() {
            let expected = match step {
                Step::Checked | Step::Begun => was_there.then_some(false),
                Step::Hidden => was_there.then_some(true),
                Step::Shown => Some(false),
                _ => Some(true),
            };
            assert_eq!(is_private, expected, "{step:?}, {was_there}");
        }
        let id = fixture.network.chain.snapshot().unwrap().metadata("miner").unwrap().id;
        let files = fixture.network.hub.files("me/model", id.commit.as_ref().unwrap()).unwrap();
        assert!(files.iter().any(|file| file.path == CARD_FILE), "{files:?}");
    }
}

#[test]
fn what_was_committed_and_left_hidden_is_shown_by_whatever_comes_next() {
    for step in STEPS {
        let fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
        fixture.publish_killed_after("a", step);
        let said = repair(&fixture);
        match step {
            // Nothing is there that could be hidden.
            Step::Checked | Step::Begun | Step::Hidden => {
                assert_eq!((said.as_str(), fixture.is_private()), ("", None), "{step:?}");
            }
            Step::Shown => assert_eq!((said.as_str(), fixture.is_private()), ("", Some(false))),
            Step::Sent | Step::ReadBack => {
                assert!(
                    said.contains("was still hidden, and its model committed as miner at block"),
                    "{step:?}: {said}"
                );
                fixture.assert_published_once(&format!("{step:?}"));
                assert_eq!(repair(&fixture), "");
            }
            _ => {
                assert!(
                    said.contains("whose commitment is not found on the chain: publishing that model again"),
                    "{said}"
                );
                assert_eq!(fixture.is_private(), Some(true), "{step:?}");
                // Whoever shows it by hand is not told any more.
                fixture.network.hub.set_private("me/model", false).unwrap();
                assert_eq!((repair(&fixture).as_str(), repair(&fixture).as_str()), ("", ""));
                assert!(!fixture.hold().read().unwrap().unwrap().hidden);
            }
        }
    }
}

#[test]
fn a_model_that_another_machine_has_committed_is_shown() {
    let fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
    fixture.publish_killed_after("a", Step::Verified);
    let hash = directory_hash(&fixture.dir.path().join("a")).unwrap();
    let commit = fixture.network.hub.newest_commit("me/model").unwrap().unwrap();
    fixture.ledger.commit("miner", format!("me:model:{commit}:{hash}").as_bytes()).unwrap();
    assert!(repair(&fixture).contains("it is shown now"));
    fixture.assert_published_once("committed elsewhere");
}

#[test]
fn a_process_that_is_still_publishing_is_left_alone() {
    let fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
    fixture.publish_killed_after("a", Step::Sent);
    let hold = fixture.hold();
    assert_eq!((repair(&fixture).as_str(), fixture.is_private()), ("", Some(true)));
    drop(hold);
    assert!(repair(&fixture).contains("it is shown now"));
}

#[test]
fn a_repository_of_another_hub_is_named_and_not_touched() {
    let mut fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
    fixture.publish_killed_after("a", Step::Sent);
    let elsewhere = FolderHub::create(&fixture.dir.path().join("elsewhere")).unwrap();
    let hub = std::mem::replace(&mut fixture.network.hub, Box::new(elsewhere));
    let said = repair(&fixture);
    assert!(said.contains("is hidden since a publish that came to no end") && said.contains(&hub.describe()), "{said}");
    fixture.network.hub = hub;
    assert_eq!(fixture.is_private(), Some(true));
}

#[test]
fn a_model_for_the_world_does_not_go_into_a_private_repository() {
    let fixture = Fixture::new();
    let other = fixture.dir.path().join("b");
    let upload = Upload { private: true, ..Upload::new("me/model", &other, &["config.json"], "by hand") };
    fixture.network.hub.upload(&upload).unwrap();
    let model_dir = fixture.dir.path().join("a");
    for error in
        [fixture.publish("a").unwrap_err(), rehearse(&fixture.network, &fixture.order(&model_dir)).unwrap_err()]
    {
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("me/model is private in"), "{error}");
    }
    assert_eq!(fixture.written().0.len(), 1);
    assert!(fixture.hold().read().unwrap().is_none());
}

#[test]
fn who_has_committed_the_same_model_is_told() {
    let fixture = Fixture::new();
    fixture.ledger.register("thief").unwrap();
    let hash = directory_hash(&fixture.dir.path().join("a")).unwrap();
    fixture.ledger.commit("thief", format!("thief:copy:{}:{hash}", "c".repeat(40)).as_bytes()).unwrap();
    let (printer, _, text) = captured(true);
    let model_dir = fixture.dir.path().join("a");
    publish(&fixture.network, &fixture.order(&model_dir), &fixture.hold(), &|_| Ok(()), &printer).unwrap();
    let said = text.text();
    assert!(said.contains("uid 1 (thief) has committed this very model") && said.contains("before ours"), "{said}");
}

#[test]
fn what_is_paid_is_shown_when_it_is_published_again_whatever_was_tried_since() {
    let fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
    fixture.publish_killed_after("a", Step::Sent);
    // A second model, before anything has shown the first; the chain does not take it yet.
    let error = fixture.run("b", &|_| Ok(())).unwrap_err();
    assert_eq!(exit_code(&error), 4, "{error:#}");
    let hold = fixture.hold();
    let journal = Entry { hidden: true, ..Entry::of("b's hash", "me/model", fixture.network.hub.describe()) };
    hold.write(&journal).unwrap();
    drop(hold);
    assert_eq!(fixture.is_private(), Some(true));
    assert!(fixture.publish("a").unwrap().before);
    fixture.assert_published_once("published again");
}

#[test]
fn who_has_committed_the_same_model_before_is_told_before_anything_is_sent() {
    let fixture = Fixture::new();
    fixture.ledger.register("early").unwrap();
    let hash = directory_hash(&fixture.dir.path().join("a")).unwrap();
    fixture.ledger.commit("early", format!("early:copy:{}:{hash}", "c".repeat(40)).as_bytes()).unwrap();
    let (printer, _, text) = captured(true);
    let model_dir = fixture.dir.path().join("a");
    let told_before = |step| {
        if step == Step::Checked {
            assert!(text.text().contains("early has committed this very model"), "{}", text.text());
        }
        Ok(())
    };
    let order = fixture.order(&model_dir);
    in_steps(&fixture.network, &order, &fixture.hold(), &|_| Ok(()), &printer, &told_before).unwrap();
}

#[test]
fn a_cache_that_cannot_take_the_model_is_told_before_anything_is_uploaded() {
    let mut fixture = Fixture::new();
    let file = fixture.dir.path().join("file");
    fs::write(&file, "").unwrap();
    fixture.network.cache = Cache::new(&file.join("cache"));
    let error = fixture.publish("a").unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("set hub.cache to another one"), "{error}");
    assert_eq!(fixture.written(), (vec![], vec![]));
    let error = Cache::new(fixture.dir.path()).check_takes(u64::MAX).unwrap_err();
    assert!(error.to_string().contains("are needed to look at what the hub gives back"), "{error}");
}
