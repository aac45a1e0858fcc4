#![allow(clippy::unwrap_used)]

use std::fs;

use serde_json::json;

use super::prepare::{self, Wanted};
use super::*;
use crate::data::packing::Packing;
use crate::data::stream::tests::Fixed;
use crate::data::{Corpus, Opened};
use crate::error::exit_code;
use crate::interrupt::Stop;

fn opened() -> Opened {
    let texts = |first: u64, last: u64| -> Vec<Vec<String>> {
        (first..last).map(|shard| (0..9).map(|document| format!("word{shard} and {document}")).collect()).collect()
    };
    let packing = Packing { max_document_tokens: Some(6), shuffle_seed: Some(3), interleave: 2 };
    Opened::plain(Fixed(texts(0, 7), true), Fixed(texts(10, 12), false), packing).unwrap()
}

fn text() -> Map<String, Value> {
    Map::from_iter([("seed".to_owned(), json!(3))])
}

fn direct(count: usize) -> Vec<u32> {
    let data = opened();
    let mut stream = data.training.stream(&data.reading, Cursor::default(), Stop::default()).unwrap();
    let mut tokens = Vec::new();
    stream.take(count, &mut tokens).unwrap();
    tokens
}

fn written(dir: &Path, num_tokens: u64) -> prepare::Progress {
    prepare::run(&opened(), text(), dir, Wanted { num_tokens, shard_tokens: 100 }, &mut |_| {}).unwrap()
}

fn open(dir: &Path) -> (Arc<TokenShards>, TokenShards) {
    let (training, held_out) = TokenShards::open(&[dir.to_owned()]).unwrap();
    (Arc::new(training), held_out)
}

fn refusal<T>(result: Result<T>) -> String {
    let error = result.err().expect("must be refused");
    assert_eq!(exit_code(&error), 2, "{error:#}");
    format!("{error:#}")
}

#[test]
fn what_is_written_is_the_stream_itself_however_often_it_was_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(written(dir.path(), 250).shards, 3);
    assert_eq!(written(dir.path(), 250).before, 250);
    // Killed after a shard was put in its place, and before that was written down.
    let state = fs::read(dir.path().join("prepare.json")).unwrap();
    assert_eq!(written(dir.path(), 420).tokens, 420);
    fs::write(dir.path().join("prepare.json"), state).unwrap();
    fs::write(dir.path().join("train-000009.bin.part"), "half a shard").unwrap();
    assert_eq!(written(dir.path(), 420).before, 250);
    let (training, held_out) = open(dir.path());
    assert_eq!((training.num_tokens(), training.shards().len()), (420, 5));
    assert!(training.shards().iter().all(|shard| shard.is_intact() == Some(true)));
    let mut reader = TokenReader::new(Arc::clone(&training), Cursor::default()).unwrap();
    let mut tokens = Vec::new();
    reader.take(420, &mut tokens).unwrap();
    assert_eq!(tokens, direct(420));
    // And from the start again.
    reader.take(30, &mut tokens).unwrap();
    assert_eq!(tokens[420..], tokens[..30]);
    assert_eq!(reader.cursor(), Cursor { token: 450, ..Cursor::default() });
    let data = opened();
    let mut expected = Vec::new();
    data.held_out
        .each_document(&data.reading, Some(6), |document| {
            expected.push(document.tokens[..document.tokens.len() - 1].to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(held_out.documents().collect::<Result<Vec<_>>>().unwrap(), expected);
}

#[test]
fn a_reader_goes_on_at_its_cursor_and_passes_over_what_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 350);
    let (training, _) = open(dir.path());
    let corpus = Corpus::Tokens(training);
    let stream = |cursor| corpus.stream(&opened().reading, cursor, Stop::default()).unwrap();
    let whole = direct(350);
    let (mut at, mut cursor) = (0, Cursor::default());
    for count in [1, 99, 1, 100, 77] {
        let mut stream = stream(cursor);
        let mut tokens = Vec::new();
        stream.take(count, &mut tokens).unwrap();
        stream.skip(3).unwrap();
        assert_eq!(tokens, whole[at..at + count]);
        at += count + 3;
        cursor = stream.cursor();
    }
    let mut text = Cursor::default();
    text.start(1);
    assert!(refusal(corpus.stream(&opened().reading, text, Stop::default())).contains("was trained on text"));
}

#[test]
fn another_text_and_damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 250);
    let other = Map::from_iter([("seed".to_owned(), json!(4))]);
    let wanted = Wanted { num_tokens: 300, shard_tokens: 100 };
    let message = refusal(prepare::run(&opened(), other, dir.path(), wanted, &mut |_| {}));
    assert!(message.ends_with("its seed is 3, not 4: name another folder"), "{message}");

    let path = dir.path().join("train-000001.bin");
    let sound = fs::read(&path).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        refusal(Shard::open(&path))
    };
    assert!(with(&|bytes| bytes.truncate(1000)).ends_with("it has 1,000 bytes, fewer than a header"));
    let cut = with(&|bytes| bytes.truncate(1201));
    assert!(cut.contains("1,201 bytes, where 100 tokens take 1,224: it was cut"), "{cut}");
    assert!(with(&|bytes| bytes[0] ^= 1).contains("magic number 20240520"));
    assert!(with(&|bytes| bytes[4] = 9).contains("it is of version 9"));
    assert!(with(&|bytes| bytes[521] ^= 1).ends_with("its header is damaged"));
    let mut flipped = sound.clone();
    flipped[HEADER_BYTES + 21] = 0xff;
    fs::write(&path, flipped).unwrap();
    let shard = Shard::open(&path).unwrap();
    assert_eq!(shard.is_intact(), Some(false));
    let message = refusal(shard.read(4, 50, &mut Vec::new()));
    assert!(message.contains("token 10 is 65"), "{message}");
    // Nothing of a whole folder of strangers' files is taken for one of ours.
    fs::remove_file(dir.path().join("prepare.json")).unwrap();
    let message = refusal(prepare::run(&opened(), text(), dir.path(), wanted, &mut |_| {}));
    assert!(message.contains("no prepare.json that says what they are of"), "{message}");
}

#[test]
fn shards_of_llm_c_are_read_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |name: &str, tokens: &[u16]| {
        let mut bytes = [20_240_520_u32, 1, tokens.len() as u32].map(u32::to_le_bytes).concat();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        fs::write(dir.path().join(name), bytes).unwrap();
    };
    shard("fineweb_train_000001.bin", &[50_256, 7, 8]);
    let alone = TokenShards::open(&[dir.path().to_owned()]);
    assert!(refusal(alone).contains("no file with `held-out` or `val` in its name"));
    shard("fineweb_val_000000.bin", &[5, 50_256, 6, 6]);
    let (training, held_out) = open(dir.path());
    assert_eq!(training.shards()[0].is_intact(), None);
    let mut tokens = Vec::new();
    TokenReader::new(training, Cursor::default()).unwrap().take(4, &mut tokens).unwrap();
    assert_eq!(tokens, [50_256, 7, 8, 50_256]);
    assert_eq!(held_out.documents().collect::<Result<Vec<_>>>().unwrap(), [vec![5], vec![6, 6]]);
}

/// Shards of which the third one cannot be read so often.
struct Breaks {
    inner: Fixed,
    left: std::sync::atomic::AtomicU64,
}

impl crate::data::source::Source for Breaks {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn num_shards(&self) -> u64 {
        self.inner.num_shards()
    }

    fn documents(&self, shard: u64, from: u64, seed: Option<u64>) -> Result<crate::data::source::Documents> {
        use std::sync::atomic::Ordering::SeqCst;
        let breaks = shard == 3 && self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        match breaks {
            true => Err(input("shard 3 is damaged")),
            false => self.inner.documents(shard, from, seed),
        }
    }
}

#[test]
fn a_preparation_that_ends_by_an_error_loses_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { reading, .. } = opened();
    let texts = (0..7).map(|shard| (0..9).map(|document| format!("word{shard} and {document}")).collect()).collect();
    let breaks = Breaks { inner: Fixed(texts, true), left: 3.into() };
    let data = Opened::plain(breaks, Fixed(vec![vec!["held".to_owned()]], false), reading.packing).unwrap();
    let run = || prepare::run(&data, text(), dir.path(), Wanted { num_tokens: 300, shard_tokens: 100 }, &mut |_| {});
    let mut errors = 0;
    while let Err(error) = run() {
        assert_eq!(error.to_string(), "shard 3 is damaged");
        errors += 1;
    }
    assert_eq!(errors, 3);
    let (training, _) = open(dir.path());
    let mut tokens = Vec::new();
    TokenReader::new(training, Cursor::default()).unwrap().take(300, &mut tokens).unwrap();
    assert_eq!(tokens, direct(300));
}

#[test]
fn a_shard_that_is_gone_and_documents_cut_otherwise_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 250);
    let (training, _) = open(dir.path());
    training.check_cut(Some(6)).unwrap();
    assert!(refusal(training.check_cut(None)).contains("cut at 6 tokens"));
    fs::remove_file(dir.path().join("train-000001.bin")).unwrap();
    let message = refusal(TokenShards::open(&[dir.path().to_owned()]));
    assert!(message.contains("the token shard train-000001.bin is missing, one of 3"), "{message}");
}
