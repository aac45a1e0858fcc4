//! What nobody should send, and what is said to it: the node answers, and goes on.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;

/// An answer over HTTP to a body that may be anything.
fn post(devnet: &Devnet, body: &[u8]) -> (u16, String) {
    post_with(devnet, &format!("host: {}\r\n", devnet.address()), body)
}

/// As [`post`]; the lines say whom it is for, and whence.
fn post_with(devnet: &Devnet, lines: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(devnet.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\n{lines}content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).ok(); // it may be refused before its end
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

/// The whole answer to a method; its parameters are JSON.
pub(super) fn ask(devnet: &Devnet, method: &str, params: &str) -> Value {
    let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
    let (status, answer) = post(devnet, body.as_bytes());
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

/// Far longer than any test.
const HOUR_MS: u64 = 3_600_000;

#[track_caller]
fn assert_lives(devnet: &Devnet) {
    assert_eq!(ask(devnet, "system_chain", "[]")["result"], "assay's embedded chain");
}

#[test]
fn parameters_that_are_none_are_refused_one_by_one() {
    let world = World::new(HOUR_MS);
    let devnet = world.serve(Spec::V185);
    let long = format!(r#"["0x{}"]"#, "ab".repeat(200_000));
    let many: Vec<String> = vec!["0x00".to_owned(); 1_001];
    let many = json!([many]).to_string();
    let codes = |method: &str, cases: &[(&str, i64)]| {
        for (params, code) in cases {
            let answer = ask(&devnet, method, params);
            assert_eq!(answer["error"]["code"].as_i64(), Some(*code), "{method} {params:.80} {answer:.200}");
        }
    };
    codes("state_getStorage", &[("[]", -32602), ("[7]", -32602), (r#"["0x0"]"#, -32602), (r#"{"key":"0x"}"#, -32602)]);
    codes(
        "state_getStorage",
        &[(r#"["0x00","0x00"]"#, 4003), (r#"["0x00","0xzz"]"#, -32602), (r#"["0x",{}]"#, -32602)],
    );
    codes("state_getKeysPaged", &[(r#"["0x",1001]"#, 4002), (r#"["0x",-1]"#, -32602), (r#"["0x",1e30]"#, -32602)]);
    codes("state_queryStorageAt", &[(&many, 4002), ("[[[]]]", -32602), ("[]", -32602)]);
    codes("state_call", &[(r#"["No_such_function","0x"]"#, 4003), (r#"["Core_version"]"#, -32602)]);
    codes("state_call", &[(r#"["AccountNonceApi_account_nonce","0x00"]"#, -32602)]);
    codes("state_call", &[(r#"["TaggedTransactionQueue_validate_transaction","0x"]"#, -32602)]);
    codes("state_call", &[(r#"["Metadata_metadata_at_version","0xff"]"#, -32602)]);
    codes("chain_getBlockHash", &[(r#"["0xg"]"#, -32602), ("[-1]", -32602), ("[[{}]]", -32602)]);
    codes("system_accountNextIndex", &[(r#"["nobody"]"#, -32602), (r#"["0x00"]"#, -32602), ("[null]", -32602)]);
    codes(
        "author_submitExtrinsic",
        &[(r#"["0x"]"#, 1001), (r#"["0xffffffff"]"#, 1001), (r#"["0x04"]"#, 1001), (&long, 1001)],
    );
    codes("no_such_method", &[("[]", -32601)]);
    assert_eq!(ask(&devnet, "chain_getHeader", r#"["0x00"]"#)["result"], Value::Null);
    assert_eq!(ask(&devnet, "chain_getBlock", r#"["0x00"]"#)["result"], Value::Null);
    assert_eq!(ask(&devnet, "chain_getBlockHash", "[99999999]")["result"], Value::Null);
    assert_eq!(ask(&devnet, "state_getStorage", r#"["0x00"]"#)["result"], Value::Null);
    assert_eq!(ask(&devnet, "state_getKeysPaged", r#"["0xffff",10]"#)["result"], json!([]));
    // A start before the prefix, and one after all of it.
    let all = ask(&devnet, "state_getKeysPaged", r#"["0x658f",1000]"#)["result"].take();
    assert_eq!(ask(&devnet, "state_getKeysPaged", r#"["0x658f",1000,"0x"]"#)["result"], all);
    assert_eq!(ask(&devnet, "state_getKeysPaged", r#"["0x658f",1000,"0x6590"]"#)["result"], json!([]));
    assert_lives(&devnet);
    let before = devnet.num_requests();
    assert!(before > 30);
    assert_lives(&devnet);
    assert_eq!(devnet.num_requests(), before + 1);
}

#[test]
fn every_cut_and_every_flipped_byte_of_a_transaction_is_refused() {
    let world = World::new(HOUR_MS);
    let devnet = world.serve(Spec::V143);
    let (node, genuine) = (&devnet.node, client::signed_offline(&devnet, "Eve", b"genuine"));
    for len in 0..genuine.len() {
        assert!(node.submit(&genuine[..len]).is_err(), "{len}");
    }
    for place in 0..genuine.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = genuine.clone();
            changed[place] ^= flip;
            assert!(node.submit(&changed).is_err(), "byte {place} ^ {flip}");
        }
    }
    assert_eq!(world.ledger.commitments_of("Eve").unwrap().len(), 0);
    node.submit(&genuine).unwrap();
    assert_eq!(world.ledger.commitments_of("Eve").unwrap()[0].bytes, b"genuine");
}

#[test]
fn what_is_no_request_at_all_is_answered_or_cut_off_and_the_node_goes_on() {
    let world = World::new(HOUR_MS);
    let devnet = world.serve(Spec::V143);
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "null", "\0\u{1}\u{2}", "{\"jsonrpc\":\"2.0\",\"id\":1}", deep.as_str()] {
        let (_, answer) = post(&devnet, body.as_bytes());
        assert!(!answer.contains("\"result\""), "{body:.40}: {answer:.200}");
    }
    let (status, _) = post(&devnet, &vec![b' '; (1 << 20) + 1]);
    assert_eq!(status, 413, "a request of more than 1 MiB");
    assert_lives(&devnet);

    // A WebSocket that is opened as it should be, and then anything but text.
    for garbage in
        [&[0x81, 0x84, 0, 0, 0, 0, b'{', b'{', 0, 0xff][..], &[0xff; 64], &[0x82, 0xff, 0xff, 0xff, 0xff, 0xff]]
    {
        let (mut stream, answer) = upgrade(&devnet, &format!("host: {}\r\n", devnet.address()));
        assert!(answer.starts_with("HTTP/1.1 101"));
        stream.write_all(garbage).unwrap();
        let mut answer = [0; 4_096];
        let len = stream.read(&mut answer).unwrap_or(0);
        assert!(!String::from_utf8_lossy(&answer[..len]).contains("\"result\""));
        assert_lives(&devnet);
    }
}

/// A WebSocket that is asked for, and the answer.
fn upgrade(devnet: &Devnet, lines: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(devnet.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\n{lines}upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 4_096];
    let len = stream.read(&mut answer).unwrap();
    (stream, String::from_utf8_lossy(&answer[..len]).into_owned())
}

#[test]
fn no_web_page_from_elsewhere_is_answered() {
    let world = World::new(HOUR_MS);
    let devnet = world.serve(Spec::V143);
    let port = devnet.address().port();
    let body = br#"{"jsonrpc":"2.0","id":1,"method":"system_chain","params":[]}"#;
    let statuses = |host: &str, origin: &str| {
        let lines = format!("host: {host}\r\n{origin}");
        let (status, _) = post_with(&devnet, &lines, body);
        let (_, answer) = upgrade(&devnet, &lines);
        (status, answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).unwrap())
    };
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "[::1]:1".to_owned(), "localhost".to_owned()]
    {
        assert_eq!(statuses(&host, ""), (200, 101), "{host}");
        assert_eq!(statuses(&host, &format!("origin: http://127.0.0.1:{port}\r\n")), (200, 101), "{host}");
        for origin in ["http://evil.example", "https://127.0.0.1.evil.example", "null"] {
            assert_eq!(statuses(&host, &format!("origin: {origin}\r\n")), (403, 403), "{origin}");
        }
    }
    for host in ["evil.example", "evil.example:9944", "127.0.0.1.evil.example", "192.0.2.1"] {
        assert_eq!(statuses(host, ""), (403, 403), "{host}");
        assert_eq!(statuses(host, "origin: http://localhost\r\n"), (403, 403), "{host}");
    }
    assert_eq!(devnet.num_requests(), 8);
}
