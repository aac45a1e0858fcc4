//! Rows to train on: the same documents whatever the server does, and none that is set aside.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::error::exit_code;
use crate::hub::huggingface::tests::SECRET;
use crate::hub::progress::Told;
use crate::interrupt::Stop;

fn open_on(options: Options) -> (Rows, Rows, Arc<Sleeps>) {
    let sleeps = Arc::new(Sleeps::default());
    let (training, held_out) = open_at(options, sleeps.clone()).unwrap();
    (training, held_out, sleeps)
}

fn documents(rows: &Rows, shard: u64, seed: Option<u64>) -> Vec<String> {
    rows.documents(shard, 0, seed).unwrap().map(Result::unwrap).collect()
}

fn all(rows: &Rows) -> Vec<String> {
    (0..rows.num_shards()).flat_map(|shard| documents(rows, shard, None)).collect()
}

fn texts(rows: impl Iterator<Item = u64>) -> Vec<String> {
    rows.map(text).collect()
}

#[test]
fn each_row_is_in_one_part_in_order_and_those_set_aside_are_by_the_rule() {
    for (num_rows, every) in [(1_100, 2), (3_250, 3), (5_050, 2), (7_000, 5)] {
        let (server, dir) = (whole(num_rows), tempfile::tempdir().unwrap());
        let (training, held_out, sleeps) = open_on(options(&server, dir.path(), every));
        let rule = SetAside::new(every);
        assert_eq!(all(&held_out), texts((0..num_rows).filter(|&row| rule.holds(row))));
        assert_eq!(all(&training), texts((0..num_rows).filter(|&row| !rule.holds(row))));
        assert!(sleeps.seconds().is_empty());
        let record = training.record().unwrap();
        let set_aside = (0..num_rows).filter(|&row| rule.holds(row)).count();
        assert_eq!([&record["rows"], &record["rows_set_aside"]], [&json!(num_rows), &json!(set_aside)]);
        assert_eq!(held_out.record().unwrap()["dataset"], "someone/web");
    }
}

#[test]
fn refinedweb_at_its_own_address_has_its_rows_without_being_asked() {
    let (server, dir) = (whole(0), tempfile::tempdir().unwrap());
    let options = Options {
        endpoint: VIEWER_ENDPOINT.to_owned(),
        dataset: REFINEDWEB.to_owned(),
        ..options(&server, dir.path(), 100)
    };
    let (training, held_out, _) = open_on(options);
    assert_eq!(training.record().unwrap()["rows"], REFINEDWEB_ROWS);
    // 9,681 of the 968,001 stretches are set aside, the last of them with 15 rows, which are one page.
    assert_eq!(held_out.num_shards(), 96_801);
    assert_eq!(training.num_shards(), 9_680_001 - 96_801);
    assert_eq!([held_out.page(0), held_out.page(10), held_out.page(96_800)], [0, 1_000, 9_680_000]);
    assert_eq!([training.page(0), training.page(989), training.page(990)], [10, 999, 1_010]);
}

#[test]
fn a_seed_orders_the_rows_of_each_page_anew_and_reading_may_begin_anywhere() {
    let (server, dir) = (whole(1_300), tempfile::tempdir().unwrap());
    let (training, ..) = open_on(options(&server, dir.path(), 2));
    let plain = documents(&training, 0, None);
    let shuffled = documents(&training, 0, Some(5));
    assert_eq!(plain, texts(1_000..1_100));
    assert_ne!(shuffled, plain);
    assert_eq!(shuffled.iter().collect::<BTreeSet<_>>(), plain.iter().collect());
    assert_eq!(documents(&training, 0, Some(5)), shuffled);
    assert_ne!(documents(&training, 0, Some(6)), shuffled);
    let at = |page: &[String], row: u64| page.iter().position(|document| *document == text(row)).unwrap();
    let other = documents(&training, 1, Some(5));
    assert!((1..7).any(|row| at(&shuffled, 1_000 + row) != at(&other, 1_100 + row)));
    for from in [0, 1, 57, 99, 100, 101, u64::MAX] {
        let rest: Vec<String> = training.documents(0, from, Some(5)).unwrap().map(Result::unwrap).collect();
        assert_eq!(rest, shuffled[(from as usize).min(100)..]);
    }
}

#[test]
fn documents_are_counted_from_where_reading_begins() {
    let (server, dir) = (whole(1_300), tempfile::tempdir().unwrap());
    let options = options(&server, dir.path(), 2);
    let stages = Arc::clone(&options.stages);
    let (training, ..) = open_on(options);
    for (from, expected) in [(0, 100), (30, 170), (100, 170), (u64::MAX, 170)] {
        drop(training.documents(0, from, None).unwrap());
        assert_eq!(stages.documents(), expected, "{from}");
    }
}

#[test]
fn pages_are_taken_for_as_large_as_the_largest_so_far() {
    let body = |row_bytes: usize| {
        let rows = vec![json!({"row": {"content": "x".repeat(row_bytes)}}); 100];
        json!({"rows": rows, "num_rows_total": 1_300}).to_string()
    };
    let server = Server::start(move |request| match offset(request) {
        1_100 => Reply::new(200, body(7_000)),
        _ => Reply::new(200, body(10)),
    });
    let dir = tempfile::tempdir().unwrap();
    let (training, held_out, _) = open_on(options(&server, dir.path(), 2));
    for (shard, expected) in [(0, 300_000), (1, 700_000), (2, 700_000)] {
        drop(training.documents(shard, 0, None).unwrap());
        assert_eq!([training.held_bytes(0), held_out.held_bytes(5)], [Some(expected); 2]);
    }
}

/// An outage is waited out by whoever trains; what stays is told in another way.
#[test]
fn what_stays_is_told_from_an_outage() {
    type Stays = fn(&Request) -> Reply;
    let cases: [(Stays, u8, &str); 8] = [
        (|_| Reply::refusal(404, "ResponseNotFound"), 4, "404 Not Found, ResponseNotFound in words"),
        (|_| Reply::refusal(403, "Gated"), 4, "403 Forbidden"),
        (|_| Reply::refusal(501, "StreamingNotSupported"), 4, "501 Not Implemented"),
        (
            |request| page(request, 1_050),
            2,
            "gives 50 rows, where there are 100; read its shards instead, by data.source",
        ),
        (|_| Reply::refusal(500, "ResponseNotReady"), 3, "500 Internal Server Error"),
        (|_| Reply::refusal(429, "TooMany"), 3, "429 Too Many Requests"),
        (|_| Reply::new(404, "not a hub's words"), 3, "but not as a hub does"),
        (|_| Reply::new(200, "{\"error\": \"not now\"}"), 3, "is no page of rows"),
    ];
    for (stays, code, sentence) in cases {
        let server = Server::start(move |request| match request.index {
            0 => page(request, 1_300),
            _ => stays(request),
        });
        let dir = tempfile::tempdir().unwrap();
        let (training, ..) = open_on(options(&server, dir.path(), 2));
        let error = training.documents(0, 0, None).err().unwrap();
        let text = error.to_string();
        assert_eq!(exit_code(&error), code, "{text}");
        assert!(text.contains(sentence) && text.ends_with("; it was asked 10 times"), "{text}");
    }
}

#[test]
fn rows_that_are_no_text_are_left_out_and_counted() {
    let body = |first: u64| {
        let rows: Vec<Value> = (0..100)
            .map(|row| match row % 4 {
                0 => json!({"row": {"content": null}}),
                1 => json!({"row": {"other": "x"}}),
                2 => json!({"row": {"content": 5}}),
                _ => json!({"row": {"content": format!("{}", first + row)}}),
            })
            .collect();
        json!({"rows": rows, "num_rows_total": 1_200}).to_string()
    };
    let server = Server::start(move |request| Reply::new(200, body(offset(request))));
    let dir = tempfile::tempdir().unwrap();
    let options = options(&server, dir.path(), 2);
    let stages = Arc::clone(&options.stages);
    let (training, ..) = open_on(options);
    let expected: Vec<String> = (0..25).map(|at| format!("{}", 1_003 + 4 * at)).collect();
    assert_eq!(documents(&training, 0, None), expected);
    assert_eq!((stages.skipped(), stages.documents()), (75, 25));
    assert_eq!(stages.done(Stage::Decode).bytes, 4 * 25);
    assert_eq!(stages.done(Stage::Network).bytes, (body(0).len() + body(1_000).len()) as u64);
}

/// Every page fails thus once, or several times, before it comes.
#[test]
fn documents_are_the_same_under_every_fault() {
    type Fault = fn(&Request, usize) -> Option<Reply>;
    let cases: [(&str, Fault, u64); 9] = [
        ("closed", |_, seen| (seen < 2).then(|| Reply::silent(Duration::ZERO)), 5),
        ("never answered", |_, seen| (seen == 0).then(|| Reply::silent(Duration::from_secs(1))), 5),
        ("cut", |request, seen| (seen < 3).then(|| page(request, 1_300).cut(997)), 5),
        ("500", |_, seen| (seen < 9).then(|| Reply::refusal(500, "ResponseNotReady")), 5),
        ("404", |_, seen| (seen < 2).then(|| Reply::refusal(404, "ResponseNotFound")), 5),
        ("a quota", |_, seen| (seen == 0).then(|| Reply::new(429, "").header("retry-after", "2")), 5),
        ("garbage", |_, seen| (seen == 0).then(|| Reply::new(200, "<html>").header("content-type", "text/html")), 5),
        ("another form", |_, seen| (seen == 0).then(|| Reply::new(200, "{\"error\": \"not now\"}")), 5),
        ("too few rows", |request, seen| (seen == 0).then(|| page(request, 1_250)), 5),
    ];
    for (name, fault, pause) in cases {
        let seen: Mutex<std::collections::BTreeMap<u64, usize>> = Mutex::default();
        let server = Server::start(move |request| {
            let mut seen = seen.lock().unwrap();
            let seen = seen.entry(offset(request)).or_default();
            // The first question is how many rows there are.
            let faulty = if offset(request) == 0 { None } else { fault(request, *seen) };
            *seen += 1;
            faulty.unwrap_or_else(|| page(request, 1_300))
        });
        let dir = tempfile::tempdir().unwrap();
        let (training, _, sleeps) = open_on(options(&server, dir.path(), 2));
        assert_eq!(all(&training), texts(1_000..1_300), "{name}");
        let num_requests = server.requests().len();
        assert_eq!(sleeps.seconds(), vec![pause; num_requests - 4], "{name}");
        assert!(name == "too few rows" || num_requests > 6, "{name}: {num_requests}");
    }
}

#[test]
fn a_page_that_trickles_is_asked_for_again_and_one_that_comes_slowly_is_waited_for() {
    let num_asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match (offset(request), num_asked.fetch_add(1, Ordering::SeqCst)) {
        (0, _) => page(request, 1_100),
        (_, 1) => page(request, 1_100).drip(Duration::from_secs(1)),
        _ => page(request, 1_100).delay(Duration::from_millis(200)),
    });
    let dir = tempfile::tempdir().unwrap();
    let (training, _, sleeps) = open_on(options(&server, dir.path(), 2));
    assert_eq!(all(&training), texts(1_000..1_100));
    assert_eq!(sleeps.seconds(), [5]);
}

#[test]
fn a_viewer_that_asks_to_wait_is_waited_for_as_long_as_anyone_is() {
    for (asked, expected) in [("2", 5), ("40", 40), ("100000", 330)] {
        let server = Server::start(move |request| match request.index {
            0 | 2 => page(request, 1_100),
            _ => Reply::new(429, "").header("retry-after", asked),
        });
        let (dir, told) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let heard = Arc::clone(&told);
        let observer = Observer::new(move |told| {
            if let Told::Waits(why) = told {
                heard.lock().unwrap().push(why.to_owned());
            }
        });
        let patience = Patience { longest_pause: Duration::from_secs(330), ..patience() };
        let (training, _, sleeps) = open_on(Options { patience, observer, ..options(&server, dir.path(), 2) });
        assert_eq!(documents(&training, 0, None), texts(1_000..1_100));
        assert_eq!(sleeps.seconds(), [expected]);
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("429 Too Many Requests"), "{told:?}");
        assert!(told[0].ends_with(&format!("trying again in {expected} s")), "{told:?}");
    }
}

#[test]
fn pages_are_asked_for_once_by_all_who_share_a_folder_and_again_where_one_is_damaged() {
    let (server, dir) = (whole(1_300), tempfile::tempdir().unwrap());
    let read = |every| {
        let before = server.requests().len();
        let (training, held_out, _) = open_on(options(&server, dir.path(), every));
        let read = (all(&training), all(&held_out));
        assert_eq!(read, (texts(1_000..1_300), texts(0..1_000)));
        // One of them asks how many rows there are.
        server.requests().len() - before - 1
    };
    assert_eq!([read(2), read(2), read(7)], [13, 0, 0]);
    let files: Vec<_> =
        std::fs::read_dir(dir.path().join("pages")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 13);
    std::fs::write(&files[3], "damaged").unwrap();
    std::fs::remove_file(&files[4]).unwrap();
    assert_eq!([read(2), read(2)], [2, 0]);
    // Another server is another text.
    let other = whole(1_300);
    let (training, ..) = open_on(options(&other, dir.path(), 2));
    assert_eq!(documents(&training, 0, None), texts(1_000..1_100));
    assert_eq!(other.requests().len(), 2);
}

#[test]
fn what_cannot_be_opened_is_told_at_once_and_a_moments_fault_is_waited_out() {
    let refused = |reply: fn() -> Reply, token: Option<&str>| {
        let (server, dir) = (Server::start(move |_| reply()), tempfile::tempdir().unwrap());
        let token = token.map(|secret| Token::new(secret, "the test").unwrap());
        let sleeps = Arc::new(Sleeps::default());
        let error = open_at(Options { token, ..options(&server, dir.path(), 2) }, sleeps.clone()).err().unwrap();
        assert_eq!(sleeps.seconds(), vec![5; server.requests().len() - 1]);
        assert!(!error.to_string().contains(SECRET));
        (exit_code(&error), server.requests().len(), error.to_string())
    };
    for (reply, token, code, num_requests, sentence) in [
        (
            (|| Reply::refusal(404, "DatasetNotFound")) as fn() -> Reply,
            None,
            4,
            1,
            "404 Not Found, DatasetNotFound in words",
        ),
        (|| Reply::refusal(401, "ExternalUnauthenticatedError"), None, 4, 1, "401 Unauthorized"),
        (
            || Reply::refusal(401, "ExternalUnauthenticatedError"),
            Some(SECRET),
            2,
            1,
            "does not take the token of the test",
        ),
        (|| Reply::refusal(422, "InvalidParameter"), None, 2, 1, "422 Unprocessable"),
        (|| Reply::refusal(500, "ResponseNotReady"), None, 3, 10, "it was asked 10 times"),
        (|| Reply::new(404, "not here"), None, 3, 10, "but not as a hub does"),
        (|| Reply::new(200, "<html>"), None, 3, 10, "answers with no JSON"),
        (|| Reply::new(200, "{}"), None, 3, 1, "is no page of rows"),
        (|| Reply::new(200, r#"{"rows": []}"#), None, 3, 1, "does not tell how many rows someone/web has"),
        (|| Reply::new(200, r#"{"rows": [], "num_rows_total": -1}"#), None, 3, 1, "does not tell how many rows"),
        (|| Reply::new(200, r#"{"rows": [], "num_rows_total": 1000}"#), None, 2, 1, "none is left to train on"),
        (|| Reply::new(200, r#"{"rows": [], "num_rows_total": 0}"#), None, 2, 1, "none is left to train on"),
    ] {
        let refused = refused(reply, token);
        assert_eq!((refused.0, refused.1), (code, num_requests), "{}", refused.2);
        assert!(refused.2.contains(sentence), "{}", refused.2);
    }
    let (server, dir) = (whole(1_100), tempfile::tempdir().unwrap());
    let bad = Options { endpoint: "nowhere".to_owned(), ..options(&server, dir.path(), 2) };
    assert_eq!(exit_code(&open(bad).err().unwrap()), 2);
    let server = Server::start(|request| match request.index {
        0 => Reply::refusal(500, "ResponseNotReady"),
        _ => page(request, 1_100),
    });
    assert_eq!(open_on(options(&server, dir.path(), 2)).2.seconds(), [5]);
}

#[test]
fn a_number_of_rows_that_no_disk_has_room_for_costs_nothing() {
    let server = Server::start(|_| Reply::new(200, format!(r#"{{"rows": [], "num_rows_total": {}}}"#, u64::MAX)));
    let dir = tempfile::tempdir().unwrap();
    let error = open(options(&server, dir.path(), 2)).err().unwrap();
    assert_eq!(exit_code(&error), 3);
    assert!(error.to_string().contains("does not tell how many rows"), "{error}");
}

#[test]
fn a_thread_that_is_asked_to_end_does_so_soon_wherever_it_waits() {
    for silent in [true, false] {
        let server = Server::start(move |request| match (request.index, silent) {
            (0, _) => page(request, 1_100),
            (_, true) => Reply::silent(Duration::from_secs(20)),
            (_, false) => Reply::new(503, ""),
        });
        let dir = tempfile::tempdir().unwrap();
        let patience = Patience { answer: Duration::from_secs(60), ..patience() };
        let (training, _) = open(Options { patience, ..options(&server, dir.path(), 2) }).unwrap();
        let stop = crate::interrupt::StopOnDrop::default();
        let watched: Stop = stop.0.clone();
        let reading = std::thread::spawn(move || {
            watched.watch();
            training.documents(0, 0, None).err()
        });
        std::thread::sleep(Duration::from_millis(300));
        let started = Instant::now();
        drop(stop);
        let error = reading.join().unwrap().unwrap();
        assert_eq!(exit_code(&error), 130, "{error}");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
}
