//! What an observer can do to answers.

use std::net::TcpStream;
use std::sync::Mutex;

use axum::http::StatusCode;

use super::*;

const LEN: usize = 3_000_000;

/// The answer to a request for all but the first byte of a shard, when that has this fate.
fn answer(fate: impl Fn() -> Fate + Send + Sync + 'static) -> Option<Answer> {
    let world = World::watched(&[("a.parquet", noise(LEN))], move |_| fate());
    world.send("GET", &address("a.parquet"), &[("range", "bytes=1-")], "")
}

fn content() -> Vec<u8> {
    noise(LEN)[1..].to_vec()
}

#[test]
fn the_observer_is_told_of_the_request() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let world = World::watched(&[("a.parquet", noise(9))], move |request| {
        let range = request.headers.get("range").map(|range| range.to_str().unwrap().to_owned());
        told.lock().unwrap().push((request.method.to_string(), request.uri.to_string(), range));
        Fate::GoOn
    });
    world.get_with(&address("a.parquet"), "range", "bytes=2-3").assert(206);
    world.get("/rows?offset=1").assert(422);
    let get = |path: &str, range: Option<&str>| ("GET".to_owned(), path.to_owned(), range.map(str::to_owned));
    assert_eq!(*seen.lock().unwrap(), [get(&address("a.parquet"), Some("bytes=2-3")), get("/rows?offset=1", None)]);
}

#[test]
fn connections_end_before_and_inside_an_answer() {
    assert!(answer(|| Fate::Cut).is_none());
    for count in [0, 1, 1 << 20, 2_000_000] {
        let cut = answer(move || Fate::CutAfter(count)).unwrap().assert(206);
        assert!(!cut.is_whole && cut.body == content()[..count as usize], "{count}: {}", cut.body.len());
    }
}

#[test]
fn refusals_have_their_status_and_say_when_to_come_again() {
    let busy = answer(|| Fate::refuse(StatusCode::TOO_MANY_REQUESTS, Some("3"))).unwrap().assert(429);
    assert_eq!(busy.header("retry-after"), "3");
    let failed = answer(|| Fate::refuse(StatusCode::SERVICE_UNAVAILABLE, None)).unwrap().assert(503);
    assert!(!failed.headers.contains_key("retry-after"));
    let sentence = "The server is busier than usual and the response is not ready yet. Please retry later.";
    answer(Fate::not_ready).unwrap().assert_refusal(500, "ResponseNotReady", sentence);
}

#[test]
fn bodies_are_flipped_shortened_and_lengthened() {
    for place in [0, LEN as u64 - 2, 5 + (LEN as u64 - 1)] {
        let flipped = answer(move || Fate::Flip(place)).unwrap().assert(206);
        let mut expected = content();
        let place = place as usize % expected.len();
        expected[place] = !expected[place];
        assert!(flipped.body == expected, "{place}");
    }
    let garbage = answer(|| Fate::Garbage).unwrap().assert(206);
    assert!(garbage.body == content().iter().map(|byte| !byte).collect::<Vec<_>>());
    let shorter = answer(|| Fate::Shorter(1_500_000)).unwrap().assert(206);
    assert!(shorter.is_whole && shorter.body == content()[..LEN - 1 - 1_500_000]);
    assert_eq!(shorter.header("content-range"), "bytes 1-2999999/3000000");
    let longer = answer(|| Fate::Longer(2)).unwrap().assert(206);
    assert!(longer.is_whole && longer.body == [content(), vec![0, 0]].concat());
}

#[test]
fn an_entity_tag_can_be_another_one() {
    let other = answer(|| Fate::Etag("\"other\"".to_owned())).unwrap().assert(206);
    assert_eq!((other.header("etag"), other.header("x-linked-etag")), ("\"other\"", "\"other\""));
    assert!(other.body == content());
}

#[test]
fn bytes_can_come_slowly() {
    let start = Instant::now();
    let slow = answer(|| Fate::Slow { bytes: 300_000, pause: Duration::from_millis(10) }).unwrap().assert(206);
    assert!(slow.is_whole && slow.body == content());
    assert!(start.elapsed() > Duration::from_millis(100));
}

#[test]
fn a_request_that_is_never_answered_does_not_keep_the_server_from_its_end() {
    let mut world = World::watched(&[("a.parquet", noise(9))], |_| Fate::Never);
    let request = world.client.get(world.endpoint() + "/rows");
    let hurried = request.try_clone().unwrap().timeout(Duration::from_millis(300));
    assert!(world.runtime.block_on(async { hurried.send().await }).unwrap_err().is_timeout());
    let address = world.server.as_ref().unwrap().address();
    let pending = world.runtime.spawn(async { request.send().await });
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    drop(world.server.take());
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(TcpStream::connect(address).is_err());
    assert!(world.runtime.block_on(pending).unwrap().is_err());
}
