//! The streams of a data set that is served over HTTP with faults of every kind, against the same read undisturbed.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::parquet::basic::{Compression, ZstdLevel};
use axum::http::StatusCode;
use axum::http::request::Parts;
use tempfile::TempDir;

use super::order::SplitMix64;
use super::packing::Packing;
use super::parquet::testing::write_shard;
use super::parquet::{self, Place};
use super::prefetch::Ahead;
use super::set_aside::SetAside;
use super::source::Source;
use super::stages::Stages;
use super::stream::tests::TOKENIZER;
use super::{Corpus, Cursor, Reading, TokenStream, rows};
use crate::hub::file_hashes::FileHashes;
use crate::hub::huggingface::{self, Patience};
use crate::hub::progress::Observer as Progress;
use crate::interrupt::{Stop, StopOnDrop};
use crate::local::dataset::{DatasetServer, Fate, Options};

const NUM_SHARDS: u64 = 4;
const SHARD_ROWS: u64 = 50_000;
const PACKING: Packing = Packing { max_document_tokens: Some(1024), shuffle_seed: Some(7), interleave: 8 };
/// Tokens that a stream is compared on under a fault: some dozens of row groups.
const COMPARED: usize = 150_000;

/// 200,000 rows in 224 row groups, by two codecs; some rows are null, empty or not UTF-8.
static SHARDS: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    for shard in 0..NUM_SHARDS {
        let codec = [Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())][shard as usize % 2];
        let texts: Vec<Option<Vec<u8>>> = (0..SHARD_ROWS).map(|row| text(shard * SHARD_ROWS + row)).collect();
        let path = dir.path().join(format!("train-{shard:05}-of-{NUM_SHARDS:05}.parquet"));
        write_shard(&path, texts.iter().map(Option::as_deref), 900, codec).unwrap();
    }
    dir
});

fn text(row: u64) -> Option<Vec<u8>> {
    match row % 997 {
        5 => None,
        6 => Some(Vec::new()),
        7 => Some(vec![b'a', 0xff, b'b']),
        _ => Some(format!("row {row} says {}", "word ".repeat((row % 13) as usize)).into_bytes()),
    }
}

/// Each row whose text is one, in the order of the data set, that is or is not set aside.
fn rows_of(set_aside: bool) -> Vec<String> {
    let rows = (0..NUM_SHARDS * SHARD_ROWS).filter(|row| rule().holds(*row) == set_aside);
    rows.filter_map(|row| String::from_utf8(text(row)?).ok()).collect()
}

fn rule() -> SetAside {
    SetAside::new(20)
}

fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        answer: Duration::from_millis(400),
        stall: Duration::from_millis(400),
        tries: 8,
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_secs(2),
    }
}

fn reading(stages: &Arc<Stages>) -> Reading {
    Reading {
        tokenizer: TOKENIZER.clone(),
        packing: PACKING,
        ahead: Ahead { readers: 4, bytes: 2_000_000 },
        tokenizer_threads: 2,
        stages: Arc::clone(stages),
    }
}

fn parquet_options(cache: &Path, stages: &Arc<Stages>) -> parquet::Options {
    parquet::Options {
        text_key: "content".to_owned(),
        shards: Vec::new(),
        set_aside: rule(),
        cache: cache.to_owned(),
        stages: Arc::clone(stages),
    }
}

fn local() -> (Corpus, Corpus, Reading) {
    let stages = Arc::<Stages>::default();
    let place = Place::Folder(vec![SHARDS.path().to_owned()]);
    let (training, held_out) = parquet::open(place, parquet_options(SHARDS.path(), &stages)).unwrap();
    (Corpus::Text(Arc::new(training)), Corpus::Text(Arc::new(held_out)), reading(&stages))
}

/// The corpus as the hub at an address serves it.
fn remote(endpoint: &str, cache: &Path) -> (Corpus, Reading) {
    let stages = Arc::<Stages>::default();
    let options = huggingface::Options {
        endpoint: endpoint.to_owned(),
        token: None,
        max_bytes_per_second: None,
        hashes: FileHashes::default(),
        patience: patience(),
        observer: Progress::default(),
    };
    let place = Place::Hub { dataset: "me/text".to_owned(), revision: "main".to_owned(), options: Box::new(options) };
    let (training, _) = parquet::open(place, parquet_options(cache, &stages)).unwrap();
    (Corpus::Text(Arc::new(training)), reading(&stages))
}

/// The corpus as the viewer at an address serves it.
fn viewed(endpoint: &str, cache: &Path) -> (Corpus, Reading) {
    let stages = Arc::<Stages>::default();
    let options = rows::Options {
        endpoint: endpoint.to_owned(),
        dataset: "me/text".to_owned(),
        column: "content".to_owned(),
        token: None,
        cache: cache.to_owned(),
        set_aside: rule(),
        stages: Arc::clone(&stages),
        patience: patience(),
        observer: Progress::default(),
    };
    let (training, _) = rows::open(options).unwrap();
    (Corpus::Text(Arc::new(training)), reading(&stages))
}

/// A stream whose threads end with it, as when a process is killed.
struct Killable {
    stream: TokenStream,
    _stop: StopOnDrop,
}

fn stream((corpus, reading): &(Corpus, Reading), cursor: Cursor) -> Killable {
    let stop = Stop::default();
    let stream = corpus.stream(reading, cursor, stop.clone()).unwrap();
    Killable { stream, _stop: StopOnDrop(stop) }
}

fn take(from: &(Corpus, Reading), count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    stream(from, Cursor::default()).stream.take(count, &mut tokens).unwrap();
    tokens
}

fn expected() -> &'static [u32] {
    static EXPECTED: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let (training, _, reading) = local();
        take(&(training, reading), COMPARED)
    });
    &EXPECTED
}

/// A server that treats one in so many requests for bytes of shards and rows, by chance, as `fate` says. Its answers about the
/// commit and the list of files are whole: they are JSON without a sum, and end a start that they are wrong in.
fn server(one_in: u64, fate: impl Fn(&mut SplitMix64) -> Fate + Send + Sync + 'static) -> DatasetServer {
    let num_requests = AtomicU64::new(0);
    let observer = move |request: &Parts| {
        let path = request.uri.path();
        if !path.contains("/resolve/") && path != "/rows" {
            return Fate::GoOn;
        }
        let mut random = SplitMix64::new(num_requests.fetch_add(1, Ordering::SeqCst));
        if random.below(one_in) == 0 { fate(&mut random) } else { Fate::GoOn }
    };
    DatasetServer::start(SHARDS.path(), 0, Options { observer: Some(Arc::new(observer)), ..Options::default() })
        .unwrap()
}

/// One of all faults.
fn any_fate(random: &mut SplitMix64) -> Fate {
    let at = random.below(40_000);
    match random.below(11) {
        0 => Fate::Cut,
        1 => Fate::CutAfter(at),
        2 => Fate::refuse(StatusCode::TOO_MANY_REQUESTS, Some("0")),
        3 => Fate::refuse(StatusCode::INTERNAL_SERVER_ERROR, None),
        4 => Fate::not_ready(),
        5 => Fate::Flip(at),
        6 => Fate::Garbage,
        7 => Fate::Shorter(1 + at % 900),
        8 => Fate::Longer(1 + at % 900),
        9 => Fate::Etag("\"another\"".to_owned()),
        _ => Fate::Slow { bytes: 20_000, pause: Duration::from_millis(1) },
    }
}

#[test]
fn an_epoch_has_every_row_once_and_none_that_is_set_aside() {
    let (training, held_out, reading) = local();
    let texts = |corpus: &Corpus| {
        let mut texts = Vec::new();
        corpus
            .each_document(&reading, None, |document| {
                texts.push(document.text.unwrap().to_owned());
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        texts
    };
    assert_eq!(texts(&training), rows_of(false));
    assert_eq!(texts(&held_out), rows_of(true));
    assert!(reading.stages.skipped() > 0);
    // And in the order of a seed.
    let mut killable = stream(&(training, reading), Cursor::default());
    let stream = &mut killable.stream;
    let mut documents = Vec::new();
    let mut tokens = Vec::new();
    let in_order = rows_of(false);
    while documents.len() < in_order.len() {
        tokens.clear();
        stream.take(1, &mut tokens).unwrap();
        while tokens.last() != Some(&super::tokenizer::END_OF_TEXT) {
            stream.take(1, &mut tokens).unwrap();
        }
        documents.push(TOKENIZER.decode(&tokens[..tokens.len() - 1]));
    }
    assert_ne!(documents[..100], in_order[..100]);
    // Row groups are opened in eights, so that the border of an epoch is not sharp; what comes twice is of the next one.
    let mut unique = documents.clone();
    unique.sort_unstable();
    unique.dedup();
    let distinct = in_order.iter().collect::<std::collections::HashSet<_>>().len();
    assert!(unique.len() * 100 > distinct * 95, "{} of {distinct}", unique.len());
}

#[test]
fn over_http_the_stream_is_that_of_a_local_read_under_every_fault() {
    type Make = fn(&mut SplitMix64) -> Fate;
    let faults: [(&str, u64, Make); 12] = [
        ("none", u64::MAX, |_| Fate::GoOn),
        ("cut before the answer", 3, |_| Fate::Cut),
        ("cut in the answer", 3, |random| Fate::CutAfter(random.below(60_000))),
        ("429", 3, |_| Fate::refuse(StatusCode::TOO_MANY_REQUESTS, Some("0"))),
        ("500", 3, |_| Fate::refuse(StatusCode::INTERNAL_SERVER_ERROR, None)),
        ("slow bytes", 2, |_| Fate::Slow { bytes: 10_000, pause: Duration::from_millis(2) }),
        ("no answer", 12, |_| Fate::Never),
        ("flipped byte", 3, |random| Fate::Flip(random.below(60_000))),
        ("garbage", 3, |_| Fate::Garbage),
        ("too short", 3, |random| Fate::Shorter(1 + random.below(500))),
        ("too long", 3, |random| Fate::Longer(1 + random.below(500))),
        ("changed ETag", 3, |random| Fate::Etag(format!("\"{}\"", random.below(1000)))),
    ];
    for (name, one_in, fate) in faults {
        let server = server(one_in, fate);
        let cache = tempfile::tempdir().unwrap();
        let from = remote(&server.endpoint(), cache.path());
        assert!(take(&from, COMPARED) == expected(), "{name}");
    }
}

/// Kills at random points under a mixture of faults; each time another process, with nothing but the cursor, goes on.
#[test]
fn killed_at_fifty_points_the_stream_goes_on_exactly() {
    let server = server(4, any_fate);
    let cache = tempfile::tempdir().unwrap();
    let mut random = SplitMix64::new(9);
    let (mut cursor, mut at) = (Cursor::default(), 0);
    for kill in 0..50 {
        let from = remote(&server.endpoint(), cache.path());
        let mut killable = stream(&from, cursor);
        let count = random.below(2 * (COMPARED - at) as u64 / (50 - kill)) as usize;
        let mut tokens = Vec::new();
        killable.stream.take(count, &mut tokens).unwrap();
        assert!(tokens == expected()[at..at + count], "after kill {kill}");
        at += count;
        let json = serde_json::to_string(&killable.stream.cursor()).unwrap();
        assert!(json.len() < 500, "{json}");
        cursor = serde_json::from_str(&json).unwrap();
    }
    assert!(at > COMPARED / 2);
}

#[test]
fn the_viewers_stream_is_the_same_under_every_fault_and_after_kills() {
    const COUNT: usize = 8_000;
    // In its own order it is what the shards hold.
    {
        let (server, cache) = (server(u64::MAX, |_| Fate::GoOn), tempfile::tempdir().unwrap());
        let (corpus, mut reading) = viewed(&server.endpoint(), cache.path());
        reading.packing = Packing { shuffle_seed: None, interleave: 1, ..PACKING };
        let mut expected = Vec::new();
        for text in rows_of(false).iter().take(3_000) {
            reading.packing.pack(&TOKENIZER, text, &mut expected);
        }
        assert!(take(&(corpus, reading), expected.len()) == expected);
    }
    let undisturbed = {
        let (server, cache) = (server(u64::MAX, |_| Fate::GoOn), tempfile::tempdir().unwrap());
        take(&viewed(&server.endpoint(), cache.path()), COUNT)
    };
    // Without checksums a flipped byte of JSON may be another text, as it would be for validators.
    let fate = |random: &mut SplitMix64| match any_fate(random) {
        Fate::Flip(_) => Fate::not_ready(),
        fate => fate,
    };
    let server = server(6, fate);
    let mut random = SplitMix64::new(3);
    let (mut cursor, mut at) = (Cursor::default(), 0);
    while at < COUNT {
        // A cache of its own each time: another machine.
        let cache = tempfile::tempdir().unwrap();
        let from = viewed(&server.endpoint(), cache.path());
        let mut killable = stream(&from, cursor);
        let count = (random.below(3_000) as usize).min(COUNT - at);
        let mut tokens = Vec::new();
        killable.stream.take(count, &mut tokens).unwrap();
        assert!(tokens == undisturbed[at..at + count], "at {at}");
        at += count;
        cursor = killable.stream.cursor();
    }
}

#[test]
fn any_world_size_goes_on_with_the_same_rows() {
    use super::loader::{Loader, LoaderShape};
    use crate::dist::World;

    let (training, _, reading) = local();
    let loader = |rank, size, rows_per_batch, cursor| {
        let shape = LoaderShape { row_len: 100, rows_per_batch };
        Loader::new(training.clone(), reading.clone(), shape, World { rank, size }, cursor).unwrap()
    };
    let mut alone = loader(0, 1, 8, Cursor::default());
    let whole: Vec<_> = (0..60).map(|_| alone.next_batch().unwrap().unwrap()).collect();
    for (after, size) in [(19, 2), (33, 4), (47, 8)] {
        let cursor = &whole[after].cursor_after;
        for rank in 0..size {
            let batch = loader(rank, size, 8 / size, cursor.clone()).next_batch().unwrap().unwrap();
            assert_eq!(batch.cursor_after, whole[after + 1].cursor_after);
            for (row, tokens) in batch.tokens.chunks(100).enumerate() {
                let place = (row * size + rank) * 100;
                assert_eq!(tokens, &whole[after + 1].tokens[place..place + 100]);
            }
        }
    }
}

/// What strangers write into documents is tokenized or left out, and never a stop.
#[test]
fn adversarial_documents_pass() {
    let dir = tempfile::tempdir().unwrap();
    let long_word = "x".repeat(10 << 20);
    let texts: Vec<Option<Vec<u8>>> = vec![
        Some(long_word.into_bytes()),
        None,
        Some(Vec::new()),
        Some(vec![0xff; 1000]),
        Some("\u{fffd}".repeat(100_000).into_bytes()),
        Some("<|endoftext|>".repeat(10_000).into_bytes()),
        Some(" ".repeat(5 << 20).into_bytes()),
        Some("\0\u{1}\u{7f}".repeat(1000).into_bytes()),
        Some("a".into()),
    ];
    // Enough of them that some are set aside.
    let all: Vec<Option<&[u8]>> = (0..2_500).map(|row| texts[row.min(texts.len() - 1)].as_deref()).collect();
    write_shard(&dir.path().join("a.parquet"), all.into_iter(), 2_500, Compression::SNAPPY).unwrap();
    let stages = Arc::<Stages>::default();
    let options = parquet::Options { set_aside: SetAside::new(2), ..parquet_options(dir.path(), &stages) };
    let (_, held_out) = parquet::open(Place::Folder(vec![dir.path().to_owned()]), options).unwrap();
    let num_documents = held_out.documents(0, 0, None).unwrap().count();
    assert!(num_documents > 900, "{num_documents}");
    let corpus = Corpus::Text(Arc::new(held_out));
    let mut tokens = Vec::new();
    stream(&(corpus, reading(&stages)), Cursor::default()).stream.take(20_000, &mut tokens).unwrap();
    assert!(stages.skipped() >= 2, "{}", stages.skipped());
}
