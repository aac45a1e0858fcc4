//! Pages to score models on, drawn from servers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::pages::{Reach, ViewerPages};
use super::*;
use crate::data::pages::{Draw, PageSource};
use crate::data::stream::tests::TOKENIZER;
use crate::data::tokenizer::END_OF_TEXT;
use crate::error::exit_code;

fn open_on(server: &Server, cache: &Path, at_once: usize, reach: Reach) -> (ViewerPages, Arc<Sleeps>) {
    let sleeps = Arc::new(Sleeps::default());
    let options = options(server, cache, 3);
    let pages = ViewerPages::open_at(&options, Arc::clone(&TOKENIZER), 64, at_once, reach, sleeps.clone()).unwrap();
    (pages, sleeps)
}

/// What a validator would make of the rows of some pages.
fn packed(offsets: &[usize]) -> Vec<Vec<u32>> {
    let mut tokens = Vec::new();
    for row in offsets.iter().flat_map(|&offset| offset as u64..offset as u64 + 100) {
        TOKENIZER.encode(&text(row), Some(1_024), &mut tokens);
        tokens.push(END_OF_TEXT);
    }
    tokens.chunks_exact(64).map(<[u32]>::to_vec).collect()
}

#[test]
fn the_pages_of_a_seed_are_the_same_however_many_are_fetched_at_once() {
    let server = whole(5_000);
    let draws = |at_once| {
        let dir = tempfile::tempdir().unwrap();
        let (pages, sleeps) = open_on(&server, dir.path(), at_once, Reach::Anywhere);
        assert_eq!(pages.num_distinct(), 50);
        let draws = pages.draws(3, &[1, 2, 1]).unwrap();
        assert!(sleeps.seconds().is_empty());
        assert_eq!(pages.draw(3, 2).unwrap(), draws[1]);
        draws
    };
    let expected = draws(1);
    assert_eq!(expected[0], expected[2]);
    assert_ne!(expected[0].offsets, expected[1].offsets);
    for Draw { offsets, rows, row_pages } in &expected {
        assert!(offsets.len() == 3 && offsets.iter().all(|&offset| (1..=4_900).contains(&offset)));
        assert_eq!(*rows, packed(offsets));
        assert!(row_pages.len() == rows.len() && row_pages.is_sorted() && row_pages.last() == Some(&2));
    }
    assert_eq!(draws(4), expected);
    assert_eq!(draws(64), expected);
}

#[test]
fn pages_for_the_gate_are_those_that_training_never_reads() {
    let (server, dir) = (whole(7_400), tempfile::tempdir().unwrap());
    let (pages, _) = open_on(&server, dir.path(), 8, Reach::SetAside);
    // The stretches 0, 3 and 6.
    assert_eq!(pages.num_distinct(), 30);
    let draws = pages.draws(4, &(0..10).collect::<Vec<_>>()).unwrap();
    let rule = SetAside::new(3);
    let offsets: Vec<u64> = draws.iter().flat_map(|draw| &draw.offsets).map(|&offset| offset as u64).collect();
    assert!(offsets.iter().all(|&first| (first..first + 100).all(|row| rule.holds(row))), "{offsets:?}");
    let stretches: BTreeSet<u64> = offsets.iter().map(|offset| offset / 1_000).collect();
    assert_eq!(stretches, BTreeSet::from([0, 3, 6]));
    assert_eq!(draws[0].rows, packed(&draws[0].offsets));
}

#[test]
fn a_page_that_does_not_come_fails_the_draw_and_no_other_is_begun() {
    let server = Server::start(|request| match request.index {
        0 => page(request, 5_000),
        _ => Reply::refusal(503, "busy"),
    });
    let dir = tempfile::tempdir().unwrap();
    let (pages, sleeps) = open_on(&server, dir.path(), 1, Reach::Anywhere);
    let error = pages.draw(6, 1).unwrap_err();
    assert_eq!(exit_code(&error), 3);
    assert!(error.to_string().contains("503 Service Unavailable, busy in words; it was asked 10 times"), "{error}");
    assert_eq!((server.requests().len(), sleeps.seconds()), (11, vec![5; 9]));
    // What the reference takes for a fault of a moment whatever the viewer says, validators do.
    let server = Server::start(|request| match request.index {
        0 => page(request, 5_000),
        _ => Reply::refusal(404, "DatasetNotFound"),
    });
    let (pages, sleeps) = open_on(&server, dir.path(), 3, Reach::Anywhere);
    assert_eq!(exit_code(&pages.draw(6, 1).unwrap_err()), 3);
    assert_eq!((server.requests().len(), sleeps.seconds().len()), (31, 27));
}

#[test]
fn a_row_without_text_fails_the_draw_at_once() {
    let server = Server::start(|request| match request.index {
        0 => page(request, 5_000),
        _ => Reply::new(200, r#"{"rows": [{"row": {"content": "a"}}, {"row": {"content": null}}]}"#),
    });
    let dir = tempfile::tempdir().unwrap();
    let (pages, sleeps) = open_on(&server, dir.path(), 1, Reach::Anywhere);
    let error = pages.draw(2, 1).unwrap_err();
    assert_eq!((exit_code(&error), server.requests().len(), sleeps.seconds().len()), (3, 2, 0));
    let offset = offset(&server.requests()[1]);
    let sentence = format!("row {} of someone/web has no text in its column `content`", offset + 1);
    assert!(error.to_string().starts_with(&sentence), "{error}");
}

#[test]
fn pages_without_a_whole_row_fail_the_draw_as_they_fail_a_validators_step() {
    let server = Server::start(|request| match request.index {
        0 => page(request, 5_000),
        _ => Reply::new(200, r#"{"rows": [{"row": {"content": "a b c"}}]}"#),
    });
    let dir = tempfile::tempdir().unwrap();
    let error = open_on(&server, dir.path(), 2, Reach::Anywhere).0.draw(3, 1).unwrap_err();
    assert_eq!(exit_code(&error), 3);
    assert!(error.to_string().contains("have 12 tokens together, fewer than one row of 64"), "{error}");
}

#[test]
fn a_data_set_without_a_page_is_refused_when_it_is_opened() {
    for (num_rows, reach) in [(99, Reach::Anywhere), (99, Reach::SetAside), (0, Reach::Anywhere)] {
        let (server, dir) = (whole(num_rows), tempfile::tempdir().unwrap());
        let options = options(&server, dir.path(), 3);
        let error = ViewerPages::open(&options, Arc::clone(&TOKENIZER), 64, 1, reach).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("there is no page to score models on"), "{error}");
    }
}

#[test]
fn pages_are_fetched_several_at_once() {
    let server = Server::start(|request| {
        let delay = if request.index == 0 { 0 } else { 250 };
        page(request, 5_000).delay(Duration::from_millis(delay))
    });
    let dir = tempfile::tempdir().unwrap();
    let (pages, _) = open_on(&server, dir.path(), 8, Reach::Anywhere);
    let started = Instant::now();
    pages.draw(8, 1).unwrap();
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
}

#[test]
fn a_candidate_is_judged_where_its_training_has_not_been() {
    use crate::recipe::Recipe;
    for (source, expected) in [
        ("sample", Reach::Anywhere),
        ("files", Reach::Anywhere),
        ("refinedweb-rows", Reach::SetAside),
        ("refinedweb-parquet", Reach::SetAside),
        ("tokens", Reach::SetAside),
    ] {
        let recipe: Recipe = serde_yaml::from_str(&format!(
            "name: test\nmodel: {{layers: 1, heads: 1, width: 8}}\ndata: {{source: {source}}}\n\
             train: {{steps: 1, tokens_per_step: 8, micro_batch: 1, seed: 5}}"
        ))
        .unwrap();
        assert_eq!(Reach::of_candidate(&recipe.data), expected, "{source}");
    }
}
