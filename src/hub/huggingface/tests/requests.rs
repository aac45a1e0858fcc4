//! What is asked again, of whom, and with what.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use super::server::{Reply, Request, Server};
use super::*;
use crate::error::exit_code;
use crate::hub::huggingface::http::{Call, Fault};

fn ask(hub: &HuggingFace, path: &str) -> Result<Value, Fault> {
    hub.runtime.block_on(hub.http.get_json(hub.http.url([path]), 1000))
}

#[test]
fn a_pause_that_is_asked_for_is_kept_and_then_it_is_asked_again() {
    let server = Server::start(|request| match request.index {
        0 => Reply::new(429, "").header("retry-after", "1"),
        1 => Reply::new(429, "").header("ratelimit", "\"api\";r=0;t=1"),
        _ => Reply::new(200, "7"),
    });
    let started = Instant::now();
    assert_eq!(ask(&client(&server), "a").unwrap(), 7);
    let elapsed = started.elapsed();
    assert!((2.0..3.5).contains(&elapsed.as_secs_f64()), "{elapsed:?}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_pause_that_is_too_long_is_told_at_once() {
    let server = Server::start(|_| Reply::new(429, "").header("retry-after", "86400"));
    let started = Instant::now();
    let error = client(&server).files(REPO, &commit()).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1) && server.requests().len() == 1);
    assert_eq!(exit_code(&error), 3);
    assert!(error.to_string().ends_with("says 429 Too Many Requests; it asks to wait 86400 s"), "{error}");
}

#[test]
fn faults_of_a_moment_are_asked_again_but_not_for_ever() {
    for status in [500, 502, 503, 504, 408, 429] {
        let server = Server::start(move |request| match request.index {
            0..3 => Reply::new(status, "oops"),
            _ => Reply::new(200, "7"),
        });
        assert_eq!(ask(&client(&server), "a").unwrap(), 7, "{status}");
        let server = Server::start(move |_| Reply::new(status, "oops"));
        let error = client(&server).newest_commit(REPO).unwrap_err();
        assert_eq!((exit_code(&error), server.requests().len()), (3, 4), "{status}: {error}");
    }
    // Nobody there, or one who never says a word.
    let gone = Server::start(|_| Reply::new(200, "7")).endpoint();
    let error = HuggingFace::new(Options { endpoint: gone, ..options(&silent()) }).unwrap().commits(REPO).unwrap_err();
    assert_eq!(exit_code(&error), 3, "{error}");
    let server = silent();
    let error = client(&server).commits(REPO).unwrap_err();
    assert_eq!((exit_code(&error), server.requests().len()), (3, 4), "{error}");
}

fn silent() -> Server {
    Server::start(|_| Reply::new(200, "7").delay(Duration::from_millis(800)))
}

#[test]
fn what_may_have_been_done_is_not_done_again() {
    for (status, num_requests) in [(500, 1), (503, 4)] {
        let server = Server::start(move |_| Reply::new(status, "oops"));
        let hub = client(&server);
        let call = Call::new(Method::POST, hub.http.url(["a"])).with_bytes("text/plain", b"b".to_vec()).once();
        assert!(hub.runtime.block_on(hub.http.send(&call)).is_err());
        let methods: Vec<_> = server.requests().into_iter().map(|request| request.method).collect();
        assert_eq!(methods, vec!["POST"; num_requests]);
    }
}

/// The answer comes later than one is waited for, but the body moves.
#[test]
fn a_long_body_may_go_out_as_long_as_it_moves() {
    let server = Server::start(|_| Reply::new(200, "7").delay(Duration::from_millis(1200)));
    let hub = client(&server);
    let send = |moves: bool| {
        let call = Call::new(Method::PUT, hub.http.url(["a"])).with_bytes("text/plain", b"b".to_vec()).once();
        let sent = Arc::clone(&call.sent);
        let mover = thread::spawn(move || {
            for _ in 0..if moves { 8 } else { 0 } {
                thread::sleep(Duration::from_millis(120));
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let answer = hub.runtime.block_on(hub.http.send(&call));
        mover.join().unwrap();
        answer
    };
    assert_eq!(send(true).unwrap().status(), StatusCode::OK);
    let fault = send(false).unwrap_err();
    assert!(matches!(&fault, Fault::Lost(reason) if reason == "no answer within 0.4 s"), "{fault:?}");
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let elsewhere = Arc::new(Server::start(|_| Reply::new(200, "7")));
    let to = elsewhere.endpoint();
    let server = Server::start(move |request| match request.path.as_str() {
        "/here" => Reply::redirect("/there".to_owned()),
        "/there" => Reply::new(200, "8"),
        _ => Reply::redirect(format!("{to}/signed?x=y")),
    });
    let hub = client(&server);
    assert_eq!(ask(&hub, "away").unwrap(), 7);
    let [signed] = elsewhere.requests().try_into().unwrap();
    assert_eq!(signed.path, "/signed?x=y");
    assert!(!format!("{signed:?}").contains(SECRET), "{signed:?}");
    assert_eq!(ask(&hub, "here").unwrap(), 8);
    let bearer = format!("Bearer {SECRET}");
    let has_token = |request: &Request| request.header("authorization") == Some(bearer.as_str());
    assert!(server.requests().len() == 3 && server.requests().iter().all(has_token));
}

#[test]
fn nobody_is_followed_in_circles_or_to_where_no_secret_is_safe() {
    let server = Server::start(|request| Reply::redirect(format!("/a{}", request.index)));
    let error = client(&server).commits(REPO).unwrap_err();
    assert!(exit_code(&error) == 3 && error.to_string().contains("elsewhere more than 5 times"), "{error}");

    let url = Url::parse("https://hub/a").unwrap();
    let destination = |status, location: &'static str, method| {
        Http::destination(&url, status, Some(&HeaderValue::from_static(location)), &method).map(String::from)
    };
    let found = StatusCode::FOUND;
    assert_eq!(destination(found, "https://cdn/b?c=d", Method::GET).unwrap(), "https://cdn/b?c=d");
    assert_eq!(destination(StatusCode::PERMANENT_REDIRECT, "/b", Method::POST).unwrap(), "https://hub/b");
    for (status, location, method) in [
        (found, "http://hub/b", Method::GET),
        (found, "ftp://hub/b", Method::GET),
        (found, "file:///etc/passwd", Method::GET),
        (found, "/b", Method::POST),
    ] {
        assert!(matches!(destination(status, location, method), Err(Fault::Lost(_))), "{location}");
    }
    assert!(Http::destination(&url, found, None, &Method::GET).is_err());
}

#[test]
fn an_answer_that_has_not_changed_is_not_sent_again() {
    let server = Server::start(|request| match request.header("if-none-match") {
        Some("\"v1\"") if request.index < 3 => Reply::new(304, "").length(None),
        _ => Reply::new(200, request.index.to_string()).header("etag", "\"v1\""),
    });
    let hub = client(&server);
    let answers = [0; 4].map(|_| ask(&hub, "a").unwrap());
    assert_eq!(answers, [0, 0, 0, 3]);
    assert_eq!(server.requests()[0].header("if-none-match"), None);
    assert!(ask(&hub, "b").is_ok_and(|answer| answer == 4), "another address has another answer");

    let liar = Server::start(|_| Reply::new(304, "").length(None));
    assert!(matches!(ask(&client(&liar), "a"), Err(Fault::Lost(_))));
}

#[test]
fn a_token_that_the_hub_does_not_take_is_ours_to_mend() {
    let refuse = |_: &Request| Reply::refusal(401, "");
    let server = Server::start(refuse);
    let error = client(&server).files(REPO, &commit()).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    let text = format!("{error:#} {error:?}");
    assert!(text.contains("does not take the token of the test") && !text.contains(SECRET), "{text}");
    assert_eq!(server.requests().last().unwrap().path, "/api/whoami-v2");
    // Without one, nobody is to blame but the repository.
    let nobody = HuggingFace::new(Options { token: None, ..options(&server) }).unwrap();
    assert_eq!(exit_code(&nobody.files(REPO, &commit()).unwrap_err()), 4);
}

#[test]
fn a_repository_that_is_not_for_us_is_refused_once_the_token_is_known_to_be_good() {
    let is_whoami = |request: &Request| request.path == "/api/whoami-v2";
    let server = Server::start(move |request| match is_whoami(request) {
        true => Reply::new(200, "{\"name\":\"me\"}"),
        false => Reply::refusal(401, "RepoNotFound"),
    });
    let hub = client(&server);
    for _ in 0..3 {
        let error = hub.files(REPO, &commit()).unwrap_err();
        assert!(exit_code(&error) == 4 && error.to_string().contains("RepoNotFound in words"), "{error}");
        assert_eq!(hub.newest_commit(REPO).unwrap(), None);
    }
    assert_eq!(server.requests().into_iter().filter(is_whoami).count(), 1, "it was asked again");

    // Where that cannot be found out, nothing is said of the repository.
    let server = Server::start(move |request| match is_whoami(request) {
        true => Reply::new(500, ""),
        false => Reply::refusal(401, "RepoNotFound"),
    });
    assert_eq!(exit_code(&client(&server).files(REPO, &commit()).unwrap_err()), 3);
}

#[test]
fn only_a_hub_can_say_no() {
    let kinds = [
        (Reply::refusal(404, "RepoNotFound"), 4),
        (Reply::refusal(404, "RevisionNotFound"), 4),
        (Reply::refusal(403, "GatedRepo"), 4),
        (Reply::new(403, "{\"error\":\"Access to this resource is disabled.\"}"), 4),
        (Reply::refusal(400, "BadName"), 4),
        (Reply::new(404, "<html>no such page</html>").header("content-type", "text/html"), 3),
        (Reply::new(404, ""), 3),
        (Reply::new(403, "<?xml?>"), 3),
        (Reply::new(401, "log in to this network"), 3),
        (Reply::new(200, "<html>log in to this network</html>").header("content-type", "text/html; charset=utf-8"), 3),
        (Reply::new(200, "[{"), 3),
        (Reply::new(200, "{\"a\":1}"), 3),
        (Reply::new(204, ""), 3),
    ];
    for (reply, expected) in kinds {
        let answer = reply.clone();
        let server = Server::start(move |_| answer.clone());
        let nobody = HuggingFace::new(Options { token: None, ..options(&server) }).unwrap();
        let error = nobody.files(REPO, &commit()).unwrap_err();
        assert_eq!(exit_code(&error), expected, "{reply:?}: {error}");
        assert!(error.to_string().starts_with("the files of miner/model at the commit 0123"), "{error}");
    }
}
