//! Hubs that send something else than they list: each gets its sentence, and none of it stays.

use std::fs;
use std::time::{Duration, Instant};

use super::downloads::{ETAG, Place, download, file};
use super::server::{Reply, Request, Server};
use super::*;
use crate::error::exit_code;

/// What comes of a download from a server that answers so, and how many bytes it sent.
fn error(wanted: &RemoteFile, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (String, u64) {
    let server = Server::start(answer);
    let place = Place::new();
    let error = download(&client(&server), wanted, &place).unwrap_err();
    assert_eq!(exit_code(&error), 3, "{error:#}");
    let text = format!("{error:#}");
    assert!(text.starts_with("model.safetensors of miner/model at the commit 0123"), "{text}");
    // What has come of it may be gone on with; it is never longer than it should be.
    let there = fs::metadata(place.path()).map_or(0, |there| there.len());
    assert!(there <= wanted.bytes && (place.holds(&[]) || place.holds(&["model.safetensors"])));
    (text, server.num_sent())
}

#[test]
fn a_wrong_checksum_is_fetched_once_more_and_then_told() {
    let content = random(1, 100_000);
    let wanted = file(&content);
    let mut flipped = content.clone();
    flipped[77_777] ^= 1;
    let bad = flipped.clone();
    let (text, num_sent) = error(&wanted, move |request| Reply::file(request, &bad, ETAG));
    assert!(text.contains("another file than it lists (its checksum is another"), "{text}");
    assert_eq!(num_sent, 200_000);

    let server =
        Server::start(move |request| Reply::file(request, if request.index == 0 { &flipped } else { &content }, ETAG));
    let place = Place::new();
    download(&client(&server), &wanted, &place).unwrap();
    assert!(file(&fs::read(place.path()).unwrap()) == wanted);
}

#[test]
fn a_file_of_another_length_is_told_and_never_written_in_full() {
    let content = random(1, 100_000);
    let wanted = file(&content);
    let [shorter, longer] = [50_000, 200_000].map(|len| random(1, len));
    assert!(longer.starts_with(&content));
    // By its own account, and not.
    let served = longer.clone();
    let (text, _) = error(&wanted, move |request| Reply::file(request, &served, ETAG));
    assert!(text.contains("200,000 bytes where 100,000 are missing"), "{text}");
    let (text, _) = error(&wanted, move |_| Reply::new(200, longer.as_slice()).length(None));
    assert!(text.contains("it is longer than listed"), "{text}");
    let served = shorter.clone();
    let (text, _) = error(&wanted, move |request| Reply::file(request, &served, ETAG));
    assert!(text.contains("50,000 bytes where 100,000 are missing"), "{text}");
    let served = shorter.clone();
    let (text, _) = error(&wanted, move |request| Reply::file(request, &served, ETAG).length(None));
    assert!(text.contains("it is shorter than listed"), "{text}");
    // Whoever begins anew each time gets no further, and ends.
    let (text, _) = error(&wanted, move |_| Reply::new(200, shorter.as_slice()).length(None));
    assert!(text.contains("the connection ended early"), "{text}");
    // One that has grown since it was listed, after a cut.
    let grown = random(1, 200_000);
    let (text, _) = error(&wanted, move |request| match request.index % 2 {
        0 => Reply::file(request, &grown[..100_000], ETAG).cut(70_000),
        _ => Reply::file(request, &grown, ETAG),
    });
    assert!(text.contains("130,000 bytes where 30,000 are missing"), "{text}");
}

/// Somebody on the way answers once with something of his own.
#[test]
fn what_is_here_is_not_dropped_for_a_whole_file_of_another_length() {
    let content = random(1, 100_000);
    let wanted = file(&content);
    let server = Server::start(move |request| match request.index {
        0 => Reply::file(request, &content, ETAG).cut(70_000),
        1 => Reply::new(200, random(2, 50_000)),
        _ => Reply::file(request, &content, ETAG),
    });
    let place = Place::new();
    download(&client(&server), &wanted, &place).unwrap();
    let starts: Vec<_> = server.requests().iter().map(Request::start).collect();
    assert_eq!(starts, [0, 70_000, 70_000]);
}

#[test]
fn an_error_page_is_never_a_file() {
    let content = random(1, 1000);
    let page = "x".repeat(1000);
    for (reply, expected) in [
        (Reply::new(500, page.clone()), "500 Internal Server Error"),
        (Reply::new(403, page.clone()), "403 Forbidden, but not as a hub does"),
        (Reply::new(200, page.clone()).header("content-type", "text/html"), "a web page, as no hub does"),
        (Reply::new(200, page.clone()), "its checksum is another"),
        (Reply::new(206, page.clone()), "another part than was asked for"),
        (Reply::new(203, page), "another part than was asked for"),
    ] {
        let (text, _) = error(&file(&content), move |_| reply.clone());
        assert!(text.contains(expected), "{text}");
    }
    // Only a hub's own no is one about the model.
    let server = Server::start(|_| Reply::refusal(404, "EntryNotFound"));
    let place = Place::new();
    assert_eq!(exit_code(&download(&client(&server), &file(&content), &place).unwrap_err()), 4);
}

#[test]
fn a_part_from_somewhere_else_is_not_taken() {
    let content = random(1, 100_000);
    let wanted = file(&content);
    let (text, _) = error(&wanted, move |request| match request.index {
        0 => Reply::file(request, &content, ETAG).cut(70_000),
        _ => Reply::new(206, &content[60_000..]).header("content-range", "bytes 60000-99999/100000"),
    });
    assert!(text.contains("another part than was asked for"), "{text}");
}

#[test]
fn a_trickle_is_cut() {
    let content = random(1, 10_000);
    let started = Instant::now();
    let (text, num_sent) =
        error(&file(&content), move |request| Reply::file(request, &content, ETAG).drip(Duration::from_millis(20)));
    assert!(text.contains("bytes came in 0.3 s"), "{text}");
    assert!(num_sent < 200 && started.elapsed() < Duration::from_secs(5), "{num_sent}, {:?}", started.elapsed());
}

/// The hub says yes, and the server that it sends to says no: its address may have been good for a while only.
#[test]
fn where_the_hub_sends_to_is_asked_for_anew_after_a_no() {
    let content = random(1, 300_000);
    let wanted = file(&content);
    let store = Server::start(move |request| match request.index {
        0 => Reply::file(request, &content, ETAG).cut(100_000),
        1 => Reply::new(403, "<Error>Request has expired</Error>"),
        _ => Reply::file(request, &content, ETAG),
    });
    let to = store.endpoint();
    let server = Server::start(move |request| Reply::redirect(format!("{to}/{}?signature=secret", request.index)));
    let place = Place::new();
    download(&client(&server), &wanted, &place).unwrap();
    let asked: Vec<_> = store.requests().iter().map(|request| (request.path.clone(), request.start())).collect();
    let path = |index: usize| format!("/{index}?signature=secret");
    assert_eq!(asked, [(path(0), 0), (path(1), 100_000), (path(2), 100_000)]);
    assert!(store.requests().iter().all(|request| request.header("authorization").is_none()));
}
