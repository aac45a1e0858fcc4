//! The reference's loader against servers that answer as the recorded ones did: the same requests, pauses, tokens and ends.

use std::time::Duration;

use super::super::pages::{Offsets, ViewerPages};
use super::*;
use crate::data::stream::tests::TOKENIZER;
use crate::error::exit_code;

/// What a case's server answers.
fn reply(response: &Value) -> Reply {
    match response["raise"].as_str() {
        Some("Timeout") => return Reply::silent(Duration::from_secs(2)),
        Some("ConnectionError") => return Reply::silent(Duration::ZERO),
        Some(other) => panic!("{other} is not played"),
        None => {}
    }
    let status = response["status"].as_u64().unwrap() as u16;
    let body = match (&response["json"], response["text"].as_str()) {
        (Value::Null, text) => text.unwrap_or_default().to_owned(),
        (json, _) => json.to_string(),
    };
    let reply = Reply::new(status, body);
    if status == 204 { reply.length(None) } else { reply }
}

fn check(case: &Value) {
    let name = case["name"].as_str().unwrap();
    let list = |key: &str| case[key].as_array().cloned().unwrap_or_default();
    let responses = list("responses");
    let num_responses = responses.len();
    let server = Server::start(move |request| responses.get(request.index).map_or(Reply::new(599, ""), reply));
    let (dir, sleeps) = (tempfile::tempdir().unwrap(), Arc::new(Sleeps::default()));
    let reader = reader(&server, dir.path(), REFINEDWEB_ROWS, sleeps.clone());
    let row_len = case["sequence_length"].as_u64().unwrap_or(8) as usize;
    let offsets = Offsets::anywhere(true, REFINEDWEB_ROWS);
    let viewer = ViewerPages::over(reader, offsets, Arc::clone(&TOKENIZER), row_len, 1);
    // A loader that failed tells its pages by its requests alone; a page that was never asked for may be any.
    let mut pages: Vec<u64> = match &case["pages"] {
        Value::Null => list("calls").iter().map(|call| call["params"]["offset"].as_u64().unwrap()).collect(),
        pages => serde_json::from_value(pages.clone()).unwrap(),
    };
    if case["exception"].is_string() {
        pages.dedup();
        pages.push(1);
    }
    let tokens = viewer.tokens(&pages).map(|pages| pages.concat());

    let path = |url: &str| url.strip_prefix("https://datasets-server.huggingface.co").unwrap().to_owned();
    let calls: Vec<String> = list("calls").iter().map(|call| path(call["url"].as_str().unwrap())).collect();
    let requests = server.requests();
    assert_eq!(requests.iter().map(|request| request.path.clone()).collect::<Vec<_>>(), calls, "{name}");
    assert!(requests.iter().all(|request| request.method == "GET" && request.header("authorization").is_none()));
    assert_eq!(num_responses - requests.len(), case["unused_responses"].as_u64().unwrap() as usize, "{name}");
    assert_eq!(sleeps.seconds(), serde_json::from_value::<Vec<u64>>(case["sleeps"].clone()).unwrap(), "{name}");

    match case["exception"].as_str() {
        None => {
            let tokens = tokens.unwrap();
            let mut expected: Vec<u32> = Vec::new();
            let batch_len = row_len * case["batch_size"].as_u64().unwrap() as usize;
            // The last two of them are short.
            let batches = if case["next_batches"].is_array() { list("next_batches") } else { list("batches") };
            for batch in batches {
                expected.extend(serde_json::from_value::<Vec<Vec<u32>>>(batch).unwrap().concat());
            }
            let left: Vec<u32> = serde_json::from_value(case["left_in_buffer"].clone()).unwrap();
            if case["next_batches"].is_null() {
                assert_eq!(expected.len(), tokens.len() / batch_len * batch_len, "{name}");
            }
            expected.extend(left);
            assert_eq!(tokens, expected, "{name}");
        }
        Some(exception) => {
            let error = tokens.unwrap_err();
            let sentence = match exception {
                "HTTPError" => "503 Service Unavailable; it was asked 10 times",
                "KeyError" if case["message"] == "'rows'" => "is no page of rows (it has no `rows`)",
                "KeyError" | "ValueError" => "has no text in its column `content`",
                other => panic!("{other} is not expected"),
            };
            assert!(error.to_string().contains(sentence), "{name}: {error}");
            assert_eq!(exit_code(&error), 3, "{name}");
        }
    }
}

#[test]
fn every_golden_case_makes_the_references_requests_pauses_and_tokens() {
    let mut num_cases = 0;
    for (path, file) in crate::golden::files("dataset", "cases") {
        if path.file_name().unwrap().to_str().unwrap().starts_with("falcon_loader") {
            let cases = file["cases"].as_array().unwrap();
            cases.iter().for_each(check);
            num_cases += cases.len();
        }
    }
    assert_eq!(num_cases, 66);
}
