//! RefinedWeb, or any data set with a column of text, from its parquet shards: on a hub by ranges, or in a folder.
//!
//! A shard of the [`Source`] is a row group of a file: its column of text is fetched as a whole, by one request, and decoded
//! in memory. Where row groups lie is told by the footers of the files, which are read once (`index`). Rows are counted over
//! the whole data set, whichever shards are read, so that the same rows are set aside for scoring as where pages are read.
//!
//! Files come from strangers and over networks. They are taken apart here (`footer`, `page`, `values`) and not by the
//! crate `parquet`, which allocates what a file claims, and panics at some of it. What came damaged is fetched again.

mod chunk;
mod compact;
mod folder;
mod footer;
mod index;
mod page;
mod remote;
mod store;
pub mod testing;
mod values;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::order::Permutation;
use super::set_aside::SetAside;
use super::source::{Documents, Source};
use super::stages::{Stage, Stages};
use crate::error::input;
use crate::figures::{bytes, count};
use crate::hex;
use crate::hub::huggingface;
use chunk::{MAX_ROWS, MAX_TEXT_BYTES, Texts, Told};
use folder::Folder;
pub(crate) use folder::shards_below;
use index::Indexed;
use page::Codec;
use remote::Remote;
use store::{Store, undamaged};

/// Where a record says which rows its shards hold, counted over the whole data set: `[first, end]` of each run of them.
pub const SELECTED_ROWS: &str = "selected_rows";

/// Where the shards are.
pub enum Place {
    /// On this machine: files, folders with all that lies below, globs.
    Folder(Vec<PathBuf>),
    /// On a hub.
    Hub {
        /// `namespace/name`.
        dataset: String,
        /// A branch, a tag or a commit.
        revision: String,
        /// Which hub, and how it is asked.
        options: Box<huggingface::Options>,
    },
}

/// What is read of them.
pub struct Options {
    /// The column of text.
    pub text_key: String,
    /// Globs over the paths of shards in the data set, or over their names alone; none: all shards.
    pub shards: Vec<String>,
    /// Which rows are held out.
    pub set_aside: SetAside,
    /// The folder in which to keep what is learned of shards on a hub.
    pub cache: PathBuf,
    /// Counts what is done.
    pub stages: Arc<Stages>,
}

/// The text of row groups: all of it to train on, or all that is held out.
pub struct Parquet {
    text: Arc<Text>,
    part: Part,
    /// Which row groups have something of this part, by their numbers in `text`.
    groups: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Training,
    HeldOut,
}

/// The row groups of the shards that are read.
struct Text {
    store: Box<dyn Store>,
    name: String,
    set_aside: SetAside,
    stages: Arc<Stages>,
    groups: Vec<Group>,
    record: Map<String, Value>,
}

/// A row group, in little memory: there are a million of them in RefinedWeb.
struct Group {
    /// Of its rows, over the whole data set.
    first_row: u64,
    offset: u64,
    bytes: u32,
    text_bytes: u32,
    rows: u32,
    /// Its file, and its number there.
    shard: u32,
    number: u32,
    codec: Codec,
    is_nullable: bool,
}

/// Opens the text of a data set: what to train on, and what is held out. All footers up to that of the last shard that is
/// read are read first, unless they are known.
///
/// # Errors
/// `Input`: there are no shards, the globs select none, there is no such column, or one of the two parts has no row.
pub fn open(place: Place, options: Options) -> Result<(Parquet, Parquet)> {
    let store: Box<dyn Store> = match place {
        Place::Folder(paths) => Box::new(Folder::open(&paths)?),
        Place::Hub { dataset, revision, options } => Box::new(Remote::open(*options, &dataset, &revision)?),
    };
    let text = Arc::new(Text::open(store, options)?);
    let part = |part| {
        let numbers = (0..).zip(&text.groups).filter(|(_, group)| text.has_rows(group, part));
        Parquet { text: Arc::clone(&text), part, groups: numbers.map(|(number, _)| number).collect() }
    };
    let (training, held_out) = (part(Part::Training), part(Part::HeldOut));
    if held_out.groups.is_empty() {
        return Err(input(format!(
            "no row of {} is set aside, so that there is no held-out loss: select more of its shards (data.shards), or set \
             more rows aside by a smaller data.held_out_every",
            text.name
        )));
    }
    if training.groups.is_empty() {
        return Err(input(format!(
            "all rows of {} are set aside, so that none is left to train on: of every {} stretches of 1,000 rows the first is; \
             give it more text, or more of its shards (data.shards)",
            text.name,
            text.set_aside.every()
        )));
    }
    Ok((training, held_out))
}

impl Text {
    fn open(store: Box<dyn Store>, options: Options) -> Result<Self> {
        let Options { text_key, shards: globs, set_aside, cache, stages } = options;
        let shards = store.shards();
        if shards.is_empty() {
            return Err(input(format!("{} has no .parquet files", store.name())));
        }
        let selected = select(store.as_ref(), &globs)?;
        let num_known = selected.iter().rposition(|&is_selected| is_selected).map_or(0, |last| last + 1);
        let known = index::of(store.as_ref(), &text_key, num_known, &cache)?;
        let (mut groups, mut row, mut num_rows, mut num_set_aside) = (Vec::new(), 0_u64, 0, 0);
        let mut digest = Sha256::new();
        let mut selected_rows: Vec<[u64; 2]> = Vec::new();
        for (number, shard) in (0..).zip(&known) {
            let end = row.checked_add(shard.rows()).context("a data set of more than 2^64 rows")?;
            if selected[number as usize] {
                let file = &shards[number as usize];
                digest.update(format!("{}\0{}\0{}\n", file.path, file.bytes, shard.rows()));
                let what = format!("{} of {}", file.path, store.name());
                groups.extend(Group::all(shard, number, row, &what)?);
                num_rows += end - row;
                match selected_rows.last_mut().filter(|last| last[1] == row) {
                    Some(last) => last[1] = end,
                    None => selected_rows.push([row, end]),
                }
                num_set_aside += set_aside.count_before(end) - set_aside.count_before(row);
            }
            row = end;
        }
        let num_selected = selected.iter().filter(|is_selected| **is_selected).count();
        let mut record = store.record();
        let entries = [
            ("column", json!(text_key)),
            ("shards", json!(shards.len())),
            ("selected_shards", json!(num_selected)),
            ("row_groups", json!(groups.len())),
            ("rows", json!(num_rows)),
            ("rows_set_aside", json!(num_set_aside)),
            (SELECTED_ROWS, json!(selected_rows)),
            ("index_sha256", json!(hex::digits(digest.finalize()))),
        ];
        record.extend(entries.map(|(key, value)| (key.to_owned(), value)));
        let name = match (num_selected, shards.len()) {
            (1, 1) => store.name(),
            (selected, all) if selected == all => format!("{} ({} shards)", store.name(), count(all as u64)),
            (selected, all) => format!("{} ({} of {} shards)", store.name(), count(selected as u64), count(all as u64)),
        };
        Ok(Self { store, name, set_aside, stages, groups, record })
    }

    fn has_rows(&self, group: &Group, part: Part) -> bool {
        let end = group.first_row + u64::from(group.rows);
        let num_set_aside = self.set_aside.count_before(end) - self.set_aside.count_before(group.first_row);
        match part {
            Part::Training => num_set_aside < u64::from(group.rows),
            Part::HeldOut => num_set_aside > 0,
        }
    }

    /// Fetches and decodes a row group.
    fn read(&self, group: &Group, part: Part) -> Result<Texts> {
        let (store, stages) = (self.store.as_ref(), &self.stages);
        let shard = &store.shards()[group.shard as usize];
        let what = format!("row group {} of {} of {}", group.number, shard.path, store.name());
        let range = group.offset..group.offset + u64::from(group.bytes);
        let told = group.told();
        let is_wanted = |row| self.set_aside.holds(group.first_row + row) == (part == Part::HeldOut);
        undamaged(store, group.shard as usize, &what, || {
            let chunk = {
                let _busy = stages.enter(Stage::Network);
                store.read(group.shard as usize, range.clone(), &what)?
            };
            stages.add_bytes(Stage::Network, chunk.len() as u64);
            let _busy = stages.enter(Stage::Decode);
            chunk::decode(chunk, &told, is_wanted)
        })
    }
}

impl Group {
    /// Those of a shard that have rows; `first_row` is that of the shard.
    fn all(shard: &Indexed, number: u32, mut first_row: u64, what: &str) -> Result<Vec<Self>> {
        let mut groups = Vec::with_capacity(shard.groups.len());
        for (index, &footer::Group { rows, offset, bytes: len, text_bytes, codec }) in (0..).zip(&shard.groups) {
            if rows > MAX_ROWS || text_bytes > MAX_TEXT_BYTES || len > MAX_TEXT_BYTES {
                return Err(input(format!(
                    "row group {index} of {what} has {} rows of {} of text; assay holds row groups in memory, and reads none \
                     of more than {} rows or {}. Write the file again with smaller ones, or leave it out by data.shards.",
                    count(rows),
                    bytes(text_bytes.max(len)),
                    count(MAX_ROWS),
                    bytes(MAX_TEXT_BYTES)
                )));
            }
            if rows > 0 {
                let [bytes, text_bytes, rows] = [len, text_bytes, rows].map(|small| small as u32);
                let is_nullable = shard.is_nullable;
                groups.push(Self {
                    first_row,
                    offset,
                    bytes,
                    text_bytes,
                    rows,
                    shard: number,
                    number: index,
                    codec,
                    is_nullable,
                });
            }
            first_row += rows;
        }
        Ok(groups)
    }

    fn told(&self) -> Told {
        let Self { rows, text_bytes, codec, is_nullable, .. } = *self;
        Told { rows: rows.into(), text_bytes: text_bytes.into(), codec, is_nullable }
    }
}

impl Source for Parquet {
    fn name(&self) -> String {
        self.text.name.clone()
    }

    fn num_shards(&self) -> u64 {
        self.groups.len() as u64
    }

    fn documents(&self, shard: u64, from: u64, seed: Option<u64>) -> Result<Documents> {
        let Text { stages, groups, .. } = self.text.as_ref();
        let Texts { texts, num_skipped } = self.text.read(&groups[self.groups[shard as usize] as usize], self.part)?;
        let len = texts.len() as u64;
        stages.skip(num_skipped);
        stages.add_documents(len.saturating_sub(from));
        stages.add_bytes(Stage::Decode, texts.iter().map(|text| text.len() as u64).sum());
        let order = seed.filter(|_| len > 0).map(|seed| Permutation::new(len, seed, shard));
        Ok(Box::new(Rows { texts, order, next: from }))
    }

    fn held_bytes(&self, shard: u64) -> Option<u64> {
        Some(self.text.groups[self.groups[shard as usize] as usize].text_bytes.into())
    }

    fn record(&self) -> Option<Map<String, Value>> {
        Some(self.text.record.clone())
    }
}

/// The documents of a row group that are still to come.
struct Rows {
    texts: Vec<Bytes>,
    order: Option<Permutation>,
    next: u64,
}

impl Iterator for Rows {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        if self.next >= self.texts.len() as u64 {
            return None;
        }
        let number = self.order.as_ref().map_or(self.next, |order| order.at(self.next));
        self.next += 1;
        Some(String::from_utf8(self.texts[number as usize].to_vec()).context("a text has changed in memory"))
    }
}

/// Whether a path is one of a shard.
fn is_shard(path: &str) -> bool {
    path.ends_with(".parquet")
}

/// Which shards globs select.
fn select(store: &dyn Store, globs: &[String]) -> Result<Vec<bool>> {
    let shards = store.shards();
    let mut selected = vec![globs.is_empty(); shards.len()];
    for text in globs {
        let glob = glob::Pattern::new(text)
            .map_err(|error| input(format!("data.shards: {text:?} is not a valid glob: {error}")))?;
        let names = shards.iter().map(|shard| shard.path.as_str());
        let matches =
            names.map(|path| glob.matches(path) || path.rsplit('/').next().is_some_and(|name| glob.matches(name)));
        let mut num_matches = 0;
        for (selected, is_match) in std::iter::zip(&mut selected, matches) {
            *selected |= is_match;
            num_matches += usize::from(is_match);
        }
        if num_matches == 0 {
            return Err(input(format!(
                "data.shards: {text:?} matches no shard of {}, of which the first is {}",
                store.name(),
                shards[0].path
            )));
        }
    }
    Ok(selected)
}
