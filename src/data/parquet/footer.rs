//! The footer of a shard: where the text of each row group lies, and nothing else of it.
//!
//! A footer tells of every column, with statistics that may be as long as texts; of thousands of shards that would be
//! gigabytes. So it is read once, field by field, and all but the column of text is passed over.

use anyhow::Result;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::compact::{BINARY, Compact, I32, I64, LIST, STRUCT};
use super::page::Codec;
use super::store::Trouble;
use crate::error::input;

/// What a file ends with, after the length of its footer.
pub(super) const MAGIC: &[u8; 4] = b"PAR1";
/// The length of a footer and the magic.
pub(super) const TAIL_BYTES: u64 = 8;
/// No longer footer is read.
pub(super) const MAX_BYTES: u64 = 256 << 20;

/// The type of a column of byte arrays.
const BYTE_ARRAY: i32 = 6;
/// So many names of columns are told.
const MAX_NAMES: usize = 16;

/// The text of a row group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub(super) struct Group {
    pub(super) rows: u64,
    /// Where its column chunk begins in the file.
    pub(super) offset: u64,
    /// The chunk's bytes in the file.
    pub(super) bytes: u64,
    /// The same decompressed.
    pub(super) text_bytes: u64,
    pub(super) codec: Codec,
}

/// As it is written down: there are a million of them in a large data set.
type Row = (u64, u64, u64, u64, Codec);

impl From<Row> for Group {
    fn from((rows, offset, bytes, text_bytes, codec): Row) -> Self {
        Self { rows, offset, bytes, text_bytes, codec }
    }
}

impl From<Group> for Row {
    fn from(group: Group) -> Self {
        (group.rows, group.offset, group.bytes, group.text_bytes, group.codec)
    }
}

/// What a footer tells of the column of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Whether rows may be null.
    pub(super) is_nullable: bool,
    pub(super) groups: Vec<Group>,
}

/// How long a file's footer is, without its tail, by the last eight bytes.
pub(super) fn len(tail: &[u8], file_bytes: u64, what: &str) -> Result<u64, Trouble> {
    let (len, magic) = tail.split_first_chunk().ok_or_else(|| "it has no end".to_owned())?;
    let len = u64::from(u32::from_le_bytes(*len));
    match magic {
        b"PARE" => Err(input(format!("{what} is encrypted; assay reads no encrypted files.")).into()),
        magic if magic != &MAGIC[..] => Err("it does not end as a parquet file does".to_owned().into()),
        _ if len + TAIL_BYTES > file_bytes => Err("its footer is longer than the file".to_owned().into()),
        _ if len > MAX_BYTES => Err(input(format!("{what} has a footer of more than {MAX_BYTES} bytes.")).into()),
        _ => Ok(len),
    }
}

/// Reads the footer of a file, without its tail. `what` is the file, in messages.
///
/// # Errors
/// It is damaged, or has no column of text by that name.
pub(super) fn read(bytes: &Bytes, column: &str, file_bytes: u64, what: &str) -> Result<Footer, Trouble> {
    let mut compact = Compact::new(bytes);
    let (mut rows, mut place, mut groups, mut last) = (None, None, None, 0);
    while let Some(field) = compact.field(&mut last)? {
        match field {
            (2, LIST) => place = Some(Place::find(&mut compact, column, what)?),
            (3, I64) => rows = Some(compact.i64()?),
            (4, LIST) => {
                let place = place.as_ref().ok_or_else(lacking)?;
                let len = compact.structs()?;
                let mut list = Vec::new();
                for _ in 0..len {
                    list.push(group(&mut compact, place, file_bytes, what)?);
                }
                groups = Some(list);
            }
            (_, kind) => compact.skip(kind)?,
        }
    }
    let (Some(rows), Some(place), Some(groups)) = (rows, place, groups) else { return Err(lacking().into()) };
    let sum = groups.iter().map(|group: &Group| group.rows).fold(0, u64::saturating_add);
    if u64::try_from(rows) != Ok(sum) {
        return Err("its footer tells another number of rows than its row groups have".to_owned().into());
    }
    Ok(Footer { is_nullable: place.is_nullable, groups })
}

/// Which column it is.
struct Place {
    /// Its number among all columns, those inside of others included.
    index: u64,
    is_nullable: bool,
}

/// A column, or several inside of one.
#[derive(Default)]
struct Element<'a> {
    kind: Option<i32>,
    repetition: Option<i32>,
    name: &'a [u8],
    num_children: u64,
}

impl<'a> Element<'a> {
    fn read(compact: &mut Compact<'a>) -> Result<Self, String> {
        let (mut element, mut last) = (Self::default(), 0);
        while let Some(field) = compact.field(&mut last)? {
            match field {
                (1, I32) => element.kind = Some(compact.i32()?),
                (3, I32) => element.repetition = Some(compact.i32()?),
                (4, BINARY) => element.name = compact.binary()?,
                (5, I32) => element.num_children = u64::try_from(compact.i32()?).map_err(|_| lacking())?,
                (_, kind) => compact.skip(kind)?,
            }
        }
        Ok(element)
    }
}

impl Place {
    /// Finds the column in a schema, which lists columns each before those inside of it.
    fn find(compact: &mut Compact<'_>, column: &str, what: &str) -> Result<Self, Trouble> {
        let len = compact.structs()?;
        let (mut names, mut num_names) = (Vec::new(), 0);
        let (mut num_leaves, mut num_inside, mut found) = (0, 0_u64, None);
        for number in 0..len {
            let element = Element::read(compact)?;
            if number == 0 {
                continue; // The whole.
            }
            if num_inside > 0 {
                num_inside -= 1;
            } else {
                num_names += 1;
                if names.len() < MAX_NAMES {
                    names.push(format!("{:?}", String::from_utf8_lossy(element.name)));
                }
                if element.name == column.as_bytes() && found.is_none() {
                    found = Some(Self::of_text(&element, num_leaves, column, what)?);
                }
            }
            num_inside += element.num_children;
            num_leaves += u64::from(element.num_children == 0);
        }
        let more = if num_names > names.len() { " and others" } else { "" };
        found.ok_or_else(|| {
            let names = names.join(", ");
            input(format!(
                "{what} has no column {column:?}; its columns are {names}{more}. Name the one that holds text by data.text_key."
            ))
            .into()
        })
    }

    fn of_text(element: &Element<'_>, index: u64, column: &str, what: &str) -> Result<Self> {
        let not = |kind: &str| {
            Err(input(format!(
                "the column {column:?} of {what} holds {kind}; name one that holds text by data.text_key."
            )))
        };
        match element {
            Element { num_children: 1.., .. } => not("other columns"),
            Element { repetition: Some(2), .. } => not("lists"),
            Element { kind: Some(BYTE_ARRAY), repetition, .. } => {
                Ok(Self { index, is_nullable: *repetition != Some(0) })
            }
            _ => not("no text"),
        }
    }
}

fn group(compact: &mut Compact<'_>, place: &Place, file_bytes: u64, what: &str) -> Result<Group, Trouble> {
    let (mut rows, mut chunk, mut last) = (None, None, 0);
    while let Some(field) = compact.field(&mut last)? {
        match field {
            (1, LIST) => {
                for index in 0..compact.structs()? {
                    if index == place.index {
                        chunk = Chunk::read(compact, what)?;
                    } else {
                        compact.skip(STRUCT)?;
                    }
                }
            }
            (3, I64) => rows = Some(compact.i64()?),
            (_, kind) => compact.skip(kind)?,
        }
    }
    let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).ok_or_else(lacking);
    let (rows, chunk) = (number(rows)?, chunk.ok_or_else(lacking)?);
    let begin = number(chunk.data_offset)?;
    // Some writers tell of a dictionary at 0 where they have written none.
    let dictionary = chunk.dictionary_offset.and_then(|offset| u64::try_from(offset).ok());
    let offset = dictionary.filter(|offset| (1..begin).contains(offset)).unwrap_or(begin);
    let bytes = number(chunk.bytes)?;
    if offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
        return Err("its footer tells of text beyond its end".to_owned().into());
    }
    if number(chunk.num_values)? != rows || chunk.kind != Some(BYTE_ARRAY) {
        return Err("its footer contradicts itself".to_owned().into());
    }
    let codec = match chunk.codec {
        Some(0) => Codec::None,
        Some(1) => Codec::Snappy,
        Some(2) => Codec::Gzip,
        Some(6) => Codec::Zstd,
        other => {
            let name = match other {
                Some(3) => "LZO",
                Some(4) => "Brotli",
                Some(5 | 7) => "LZ4",
                _ => "a codec that assay does not know",
            };
            let sentence =
                format!("{what} is compressed by {name}; assay reads zstd, Snappy, gzip and uncompressed files.");
            return Err(input(sentence).into());
        }
    };
    Ok(Group { rows, offset, bytes, text_bytes: number(chunk.text_bytes)?, codec })
}

/// A column chunk as a footer describes it.
#[derive(Default)]
struct Chunk {
    kind: Option<i32>,
    codec: Option<i32>,
    num_values: Option<i64>,
    text_bytes: Option<i64>,
    bytes: Option<i64>,
    data_offset: Option<i64>,
    dictionary_offset: Option<i64>,
}

impl Chunk {
    fn read(compact: &mut Compact<'_>, what: &str) -> Result<Option<Self>, Trouble> {
        let (mut chunk, mut last) = (None, 0);
        while let Some(field) = compact.field(&mut last)? {
            match field {
                (1, BINARY) => {
                    if !compact.binary()?.is_empty() {
                        return Err(input(format!(
                            "the rows of {what} lie in other files, which assay does not read."
                        ))
                        .into());
                    }
                }
                (3, STRUCT) => chunk = Some(Self::metadata(compact)?),
                (8, STRUCT) => {
                    return Err(input(format!("{what} is encrypted; assay reads no encrypted files.")).into());
                }
                (_, kind) => compact.skip(kind)?,
            }
        }
        Ok(chunk)
    }

    fn metadata(compact: &mut Compact<'_>) -> Result<Self, String> {
        let (mut chunk, mut last) = (Self::default(), 0);
        while let Some(field) = compact.field(&mut last)? {
            match field {
                (1, I32) => chunk.kind = Some(compact.i32()?),
                (4, I32) => chunk.codec = Some(compact.i32()?),
                (5, I64) => chunk.num_values = Some(compact.i64()?),
                (6, I64) => chunk.text_bytes = Some(compact.i64()?),
                (7, I64) => chunk.bytes = Some(compact.i64()?),
                (9, I64) => chunk.data_offset = Some(compact.i64()?),
                (11, I64) => chunk.dictionary_offset = Some(compact.i64()?),
                (_, kind) => compact.skip(kind)?,
            }
        }
        Ok(chunk)
    }
}

fn lacking() -> String {
    "its footer lacks what a footer tells".to_owned()
}
