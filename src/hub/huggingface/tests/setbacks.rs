//! What is sent again and what is not, and whose word an answer is.

use std::fs;

use serde_json::json;

use super::memory_hub::{Fate, MemoryHub, When};
use super::writing::{NAMES, World, refused};
use crate::error::Failure;
use crate::hub::{Hub, Upload};

fn num(world: &World, kind: &str) -> usize {
    world.hub.kinds().iter().filter(|asked| **asked == kind).count()
}

/// Each time both files go up, which the next attempt finds lost.
#[test]
fn a_hub_that_loses_what_it_takes_is_given_up() {
    let world = World::new();
    world.hub.script(|request, when, contents| match (request.kind(), when) {
        ("put", When::After) => {
            contents.objects.clear();
            Fate::Go
        }
        ("verify", When::Before) => Fate::Answer(200, String::new(), json!({})),
        ("commit", _) => Fate::Cut,
        _ => Fate::Go,
    });
    let (kind, text) = refused(&world.upload().unwrap_err());
    assert!(matches!(kind, Failure::Unreachable(_)), "{text}");
    // The first attempt got on, and after it there are as many as there are tries.
    assert_eq!((num(&world, "put"), num(&world, "commit")), (14, 7));
}

/// An address may be too old, and the next one is not; but who has no room has none the next time.
#[test]
fn a_storages_no_is_heard_again_only_where_another_address_may_help() {
    for (status, num_puts) in [(400, 1), (413, 1), (507, 1), (401, 6), (403, 6), (404, 6), (410, 6)] {
        let storage = MemoryHub::start();
        storage.script(move |_, _, _| Fate::Answer(status, String::new(), json!({})));
        let world = World::new();
        world.hub.contents().action = json!({"href": format!("{}/lfs/OID", storage.endpoint)});
        let (kind, text) = refused(&world.upload().unwrap_err());
        assert!(matches!(kind, Failure::Unreachable(_)) && text.contains(&status.to_string()), "{text}");
        assert_eq!(storage.kinds(), vec!["put"; num_puts], "{status}");
    }
}

#[test]
fn a_storage_that_is_busy_is_waited_for_and_not_for_ever() {
    for (status, header) in [(503, ""), (429, ""), (429, "Retry-After: 0\r\n")] {
        for num_busy in [2, usize::MAX] {
            let world = World::new();
            let mut num_puts = 0;
            world.hub.script(move |request, when, _| match (request.kind(), when) {
                ("put", When::Before) => {
                    num_puts += 1;
                    match num_puts <= num_busy {
                        true => Fate::Answer(status, header.to_owned(), json!({"error": "busy"})),
                        false => Fate::Go,
                    }
                }
                _ => Fate::Go,
            });
            if num_busy == 2 {
                world.uploads(2);
                assert_eq!(num(&world, "put"), 4);
            } else {
                let (kind, text) = refused(&world.upload().unwrap_err());
                assert!(matches!(kind, Failure::Unreachable(_)) && text.contains("busy"), "{text}");
                assert_eq!(num(&world, "put"), 6, "{status}");
            }
        }
    }
}

/// A hotel's network, or a server that is no hub: what it says is no word on the token or the user's room.
#[test]
fn only_the_hubs_word_is_told_as_the_hubs() {
    for (kind, status) in [("create", 401), ("create", 403), ("batch", 413), ("batch", 404), ("commit", 402)] {
        let world = World::new();
        world.hub.script(move |request, when, _| match (request.kind() == kind, when) {
            (true, When::Before) => Fate::Answer(status, String::new(), json!({})),
            _ => Fate::Go,
        });
        let (failure, text) = refused(&world.upload().unwrap_err());
        assert!(matches!(failure, Failure::Unreachable(_)) && text.contains("but not as a hub does"), "{text}");
    }
    for status in [401, 404] {
        let world = World::new();
        world.hub.script(move |request, _, _| match request.kind() {
            "whoami" => Fate::Answer(status, String::new(), json!({})),
            _ => Fate::Go,
        });
        let (failure, text) = refused(&world.client().check_writable("me/model").unwrap_err());
        assert!(matches!(failure, Failure::Unreachable(_)) && text.contains("but not as a hub does"), "{text}");
    }
}

/// Somebody makes the repository between our look and our wish.
#[test]
fn a_repository_that_came_to_be_meanwhile_is_hidden_before_anything_is_sent() {
    for private in [true, false] {
        let world = World::new();
        world.hub.script(move |request, when, contents| {
            if request.kind() == "create" && when == When::Before {
                contents.add(Default::default(), vec![]);
            }
            if request.kind() == "put" {
                assert_eq!(contents.private, private);
            }
            Fate::Go
        });
        let upload = Upload { private, ..Upload::new("me/model", world.model.path(), &NAMES, "Train") };
        world.client().upload(&upload).unwrap();
        assert_eq!((world.hub.contents().private, num(&world, "settings")), (private, usize::from(private)));
        assert!(fs::exists(world.model.path()).unwrap() && num(&world, "put") == 2);
    }
}

#[test]
fn a_gated_repository_is_refused_before_anything_is_sent() {
    for (gated, is_refused) in
        [(json!("auto"), true), (json!("manual"), true), (json!(true), true), (json!(false), false)]
    {
        let world = World::new();
        let told = gated.clone();
        world.hub.script(move |request, _, _| match request.kind() {
            "look" => Fate::Answer(200, String::new(), json!({"id": "me/model", "sha": null, "gated": told})),
            _ => Fate::Go,
        });
        match world.client().check_writable("me/model") {
            Ok(()) => assert!(!is_refused, "{gated}"),
            Err(error) => {
                let (kind, text) = refused(&error);
                assert!(
                    is_refused && matches!(kind, Failure::Input(_)) && text.contains("is gated"),
                    "{gated}: {text}"
                );
            }
        }
    }
}
