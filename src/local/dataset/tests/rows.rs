//! The rows as the data set's viewer would give them.

use parquet::basic::{Compression, ZstdLevel};
use serde_json::json;

use super::*;

/// Row 7 is null, row 8 is no UTF-8, row 9 is empty.
fn text(row: u64) -> Option<Vec<u8>> {
    match row {
        7 => None,
        8 => Some(b"a\xff".to_vec()),
        9 => Some(Vec::new()),
        _ => Some(format!("row {row}: \"ä\u{1f600}\u{0}\" and more").into_bytes()),
    }
}

fn shown(row: u64) -> Value {
    let content = text(row).and_then(|text| String::from_utf8(text).ok());
    json!({ "row_idx": row, "row": { "content": content, "number": row }, "truncated_cells": [] })
}

fn shard(rows: std::ops::Range<u64>, rows_per_group: usize, codec: Compression) -> Vec<u8> {
    let texts: Vec<_> = rows.clone().map(text).collect();
    let texts: Vec<_> = texts.iter().map(Option::as_deref).collect();
    shards::write(&texts, rows.start as i64, rows_per_group, codec)
}

/// 250 rows in two shards and nine row groups.
fn files() -> [(&'static str, Vec<u8>); 2] {
    let zstd = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    [("b.parquet", shard(33..250, 50, zstd)), ("a.parquet", shard(0..33, 10, Compression::SNAPPY))]
}

fn rows(query: &str) -> String {
    format!("/rows?dataset=tiiuae%2Ffalcon-refinedweb&config=default&split=train&{query}")
}

#[test]
fn rows_are_counted_over_all_shards_in_their_order() {
    let world = World::new(&files());
    let page = world.get(&rows("offset=5&length=40")).assert(200);
    assert_eq!(page.header("x-revision"), world.commit());
    let feature =
        |index, name, kind| json!({ "feature_idx": index, "name": name, "type": { "dtype": kind, "_type": "Value" } });
    let expected = json!({
        "features": [feature(0, "content", "string"), feature(1, "number", "int64")],
        "rows": (5..45).map(shown).collect::<Vec<_>>(),
        "num_rows_total": 250,
        "num_rows_per_page": 100,
        "partial": false,
    });
    assert_eq!(page.json(), expected);
    for (query, expected) in [
        ("offset=120", 120..220),
        ("", 0..100),
        ("offset=200&length=100", 200..250),
        ("offset=249&length=1", 249..250),
        ("offset=3&length=0", 3..3),
        ("offset=250", 250..250),
        ("offset=99999999999999999999999", 0..0),
        // The viewer knows no limit, which validators send.
        ("offset=0&limit=7", 0..100),
    ] {
        let page = world.get(&rows(query)).assert(200).json();
        assert_eq!(page["rows"], Value::Array(expected.map(shown).collect()), "{query}");
    }
}

#[test]
fn more_row_groups_than_are_kept_are_decoded_again() {
    let world = World::new(&files());
    for start in [0, 150, 20, 240, 10, 200, 33, 0] {
        let page = world.get(&rows(&format!("offset={start}&length=1"))).assert(200).json();
        assert_eq!(page["rows"], json!([shown(start)]));
    }
}

#[test]
fn wrong_questions_have_the_viewers_answers() {
    let world = World::new(&files());
    for (query, sentence) in [
        ("length=101", "Parameter 'length' must not be greater than 100"),
        ("length=-1", "Parameter 'length' must be positive"),
        ("length=ten", "Parameter 'length' must be integer"),
        ("offset=-1", "Parameter 'offset' must be positive"),
        ("offset=1.5", "Parameter 'offset' must be integer"),
    ] {
        world.get(&rows(query)).assert_refusal(422, "InvalidParameter", sentence);
    }
    for (query, name) in
        [("config=c&split=s", "dataset"), ("dataset=d&config=&split=s", "config"), ("dataset=d&config=c", "split")]
    {
        let sentence = format!("Parameter '{name}' is required");
        world.get(&format!("/rows?{query}")).assert_refusal(422, "MissingRequiredParameter", &sentence);
    }
    for query in ["config=other&split=train", "config=default&split=test"] {
        world.get(&format!("/rows?dataset=a/b&{query}")).assert_refusal(404, "ResponseNotFound", "Not found.");
    }
}

#[test]
fn rows_of_a_damaged_shard_are_refused_and_its_bytes_are_given() {
    let [(name, mut content), other] = files();
    content[300..600].fill(0xff);
    let world = World::new(&[(name, content.clone()), other]);
    // Its first row groups are damaged, the last one is not, nor is the other shard.
    assert_eq!(world.get(&rows("offset=60&length=1")).assert(500).header("x-error-code"), "UnexpectedApiError");
    assert_eq!(world.get(&rows("offset=0&length=33")).assert(200).json()["rows"][32], shown(32));
    assert_eq!(world.get(&rows("offset=249")).assert(200).json()["rows"], json!([shown(249)]));
    assert!(world.get(&address(name)).assert(200).body == content);

    let world = World::new(&[("a.parquet", noise(1_000))]);
    let answer = world.get(&rows("")).assert(500);
    assert_eq!(answer.header("x-error-code"), "UnexpectedApiError");
    assert!(answer.json()["error"].as_str().unwrap().starts_with("a.parquet cannot be read"));
    assert_eq!(world.get(&address("a.parquet")).assert(200).body, noise(1_000));
}
