//! Shards of many kinds, read from folders and from a server that fails in every way.

#![allow(clippy::unwrap_used)]

mod damage;
mod faults;
mod files;
mod kinds;
mod refusals;
mod remote;

use std::path::Path;

use ::parquet::basic::Compression;
use tempfile::TempDir;

use super::testing::write_shard;
use super::*;

/// A row of a shard: a text, or null.
type Row = Option<Vec<u8>>;

fn codecs() -> [Compression; 4] {
    let (gzip, zstd) = (Compression::GZIP(Default::default()), Compression::ZSTD(Default::default()));
    [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip, zstd]
}

/// Rows of every sort: texts of some words, empty ones, nulls, and bytes that are no text.
fn rows(seed: u64, len: usize) -> Vec<Row> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut row = |number: usize| match random.u32(..20) {
        0 => None,
        1 => Some(Vec::new()),
        2 => Some(vec![b'a', 0xff, b'b']),
        _ => {
            let words = random.usize(1..30);
            let words: Vec<_> =
                (0..words).map(|_| ["the", "naïve", "fox", "日本", "jumps"][random.usize(..5)]).collect();
            Some(format!("{number} {}", words.join(" ")).into_bytes())
        }
    };
    (0..len).map(&mut row).collect()
}

fn write(path: &Path, rows: &[Row], rows_per_group: usize, codec: Compression) {
    write_shard(path, rows.iter().map(Option::as_deref), rows_per_group, codec).unwrap();
}

fn options(folder: &TempDir, every: u64) -> Options {
    Options {
        text_key: "content".to_owned(),
        shards: Vec::new(),
        set_aside: SetAside::new(every),
        cache: folder.path().join("cache"),
        stages: Arc::default(),
    }
}

fn open_folder(folder: &TempDir, every: u64) -> (Parquet, Parquet) {
    open(Place::Folder(vec![folder.path().to_owned()]), options(folder, every)).unwrap()
}

/// All documents, shard after shard.
fn read(source: &Parquet) -> Vec<String> {
    let shards = 0..source.num_shards();
    shards.flat_map(|shard| source.documents(shard, 0, None).unwrap()).map(Result::unwrap).collect()
}

/// The texts among rows of a part.
fn texts(rows: &[Row], is_of_part: impl Fn(u64) -> bool) -> Vec<String> {
    let rows = (0..).zip(rows).filter(|(number, _)| is_of_part(*number));
    rows.filter_map(|(_, row)| String::from_utf8(row.clone()?).ok()).collect()
}
