//! Pages of a column chunk: their headers, their checksums, and their bytes decompressed.
//!
//! No page is larger than the file's footer has told, and checksums are checked where a file has them.

use std::io::Read;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::compact::{Compact, FALSE, I32, STRUCT, TRUE};

/// How the pages of a chunk are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Codec {
    None,
    Snappy,
    Gzip,
    Zstd,
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The values that the other pages name by their numbers.
    Dictionary,
    /// Levels and values, compressed together.
    Data,
    /// Levels of so many bytes, and values that are compressed or not.
    DataV2 { level_bytes: usize, is_compressed: bool },
    /// Nothing that is needed to read the others.
    Other,
}

/// The header of a page.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Values, nulls included.
    pub(super) num_values: usize,
    /// By its number in the format.
    pub(super) encoding: i32,
    /// How its levels are encoded.
    pub(super) level_encoding: i32,
    compressed_bytes: usize,
    bytes: usize,
    crc: Option<u32>,
}

/// A page as its writer encoded it, before it was compressed.
pub(super) struct Page {
    pub(super) header: Header,
    /// The levels of a page of the second version, which are never compressed.
    pub(super) levels: Bytes,
    /// Everything else.
    pub(super) bytes: Bytes,
}

/// The pages of a chunk, one after the other.
pub(super) struct Pages {
    rest: Bytes,
    codec: Codec,
    /// How many bytes the pages to come may have.
    bytes_left: usize,
}

impl Pages {
    /// Those of a chunk whose pages have at most so many bytes all together, decompressed.
    pub(super) fn new(chunk: Bytes, codec: Codec, max_bytes: usize) -> Self {
        Self { rest: chunk, codec, bytes_left: max_bytes }
    }

    /// The next page; `None` after the last. The error says what is wrong with it.
    pub(super) fn next(&mut self) -> Result<Option<Page>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut compact = Compact::new(&self.rest);
        let header = Header::read(&mut compact)?;
        let start = self.rest.len() - compact.rest().len();
        let end = start + header.compressed_bytes;
        if end > self.rest.len() {
            return Err("a page is cut off".to_owned());
        }
        let left = self.bytes_left.checked_sub(header.bytes);
        self.bytes_left = left.ok_or("its pages are larger than its footer tells")?;
        let body = self.rest.split_to(end).slice(start..);
        if header.crc.is_some_and(|crc| crc != checksum(&body)) {
            return Err("a page has another checksum than its header tells".to_owned());
        }
        let (levels, bytes) = header.decompress(body, self.codec)?;
        Ok(Some(Page { header, levels, bytes }))
    }
}

impl Header {
    fn read(compact: &mut Compact<'_>) -> Result<Self, String> {
        let (mut kind, mut bytes, mut compressed_bytes, mut crc, mut inner) =
            (None, None, None, None, Inner::default());
        let mut last = 0;
        while let Some(field) = compact.field(&mut last)? {
            match field {
                (1, I32) => kind = Some(compact.i32()?),
                (2, I32) => bytes = Some(compact.i32()?),
                (3, I32) => compressed_bytes = Some(compact.i32()?),
                (4, I32) => crc = Some(compact.i32()?.cast_unsigned()),
                (5, STRUCT) => inner.read(compact, &DATA)?,
                (7, STRUCT) => inner.read(compact, &DICTIONARY)?,
                (8, STRUCT) => inner.read(compact, &DATA_V2)?,
                (_, kind) => compact.skip(kind)?,
            }
        }
        let kind = match kind {
            Some(0) => Kind::Data,
            Some(2) => Kind::Dictionary,
            Some(3) => Kind::DataV2 {
                level_bytes: size(inner.level_bytes)?,
                is_compressed: inner.is_compressed.unwrap_or(true),
            },
            _ => Kind::Other,
        };
        let is_other = kind == Kind::Other;
        let of_values = |value: Option<i32>| if is_other { Ok(0) } else { value.ok_or_else(lacking) };
        Ok(Self {
            kind,
            num_values: size(Some(of_values(inner.num_values)?))?,
            encoding: of_values(inner.encoding)?,
            level_encoding: inner.level_encoding.unwrap_or(super::values::RLE),
            compressed_bytes: size(compressed_bytes)?,
            bytes: size(bytes)?,
            crc,
        })
    }

    /// The levels that a page of the second version keeps apart, and the other bytes: as many as the header tells.
    fn decompress(&self, mut body: Bytes, codec: Codec) -> Result<(Bytes, Bytes), String> {
        let (level_bytes, is_compressed) = match self.kind {
            Kind::Other => return Ok(Default::default()),
            Kind::DataV2 { level_bytes, is_compressed } => (level_bytes, is_compressed),
            Kind::Data | Kind::Dictionary => (0, true),
        };
        let wrong = || "a page decompresses to another size than its header tells".to_owned();
        if level_bytes > body.len() {
            return Err(wrong());
        }
        let len = self.bytes.checked_sub(level_bytes).ok_or_else(wrong)?;
        let levels = body.split_to(level_bytes);
        let bytes = match codec {
            Codec::None => body,
            _ if !is_compressed => body,
            codec => decompress(&body, codec, len)?.into(),
        };
        if bytes.len() == len { Ok((levels, bytes)) } else { Err(wrong()) }
    }
}

/// What the header of a page says about its values.
#[derive(Default)]
struct Inner {
    num_values: Option<i32>,
    encoding: Option<i32>,
    level_encoding: Option<i32>,
    level_bytes: Option<i32>,
    is_compressed: Option<bool>,
}

/// Numbers of the fields of such a struct; 0: it has none.
struct Fields {
    num_values: i16,
    encoding: i16,
    level_encoding: i16,
    level_bytes: i16,
    is_compressed: i16,
}

const DATA: Fields = Fields { num_values: 1, encoding: 2, level_encoding: 3, level_bytes: 0, is_compressed: 0 };
const DICTIONARY: Fields = Fields { num_values: 1, encoding: 2, level_encoding: 0, level_bytes: 0, is_compressed: 0 };
const DATA_V2: Fields = Fields { num_values: 1, encoding: 4, level_encoding: 0, level_bytes: 5, is_compressed: 7 };

impl Inner {
    fn read(&mut self, compact: &mut Compact<'_>, fields: &Fields) -> Result<(), String> {
        let mut last = 0;
        while let Some(field) = compact.field(&mut last)? {
            match field {
                (number, I32) if number == fields.num_values => self.num_values = Some(compact.i32()?),
                (number, I32) if number == fields.encoding => self.encoding = Some(compact.i32()?),
                (number, I32) if number == fields.level_encoding => self.level_encoding = Some(compact.i32()?),
                (number, I32) if number == fields.level_bytes => self.level_bytes = Some(compact.i32()?),
                (number, TRUE | FALSE) if number == fields.is_compressed => self.is_compressed = Some(field.1 == TRUE),
                (_, kind) => compact.skip(kind)?,
            }
        }
        Ok(())
    }
}

/// The checksum of a page: CRC-32 of its bytes as they lie in the file.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Decompresses to `len` bytes, or to another length that is no larger by more than one.
fn decompress(compressed: &[u8], codec: Codec, len: usize) -> Result<Vec<u8>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("a page cannot be decompressed ({error})");
    // A page without a value, of a writer that compresses nothing to nothing.
    if compressed.is_empty() {
        return Ok(Vec::new());
    }
    match codec {
        Codec::None => Ok(compressed.to_vec()),
        Codec::Snappy => match snap::raw::decompress_len(compressed) {
            Ok(told) if told == len => {
                snap::raw::Decoder::new().decompress_vec(compressed).map_err(|error| wrong(&error))
            }
            Ok(told) => Err(wrong(&format!("{told} bytes where its header tells {len}"))),
            Err(error) => Err(wrong(&error)),
        },
        Codec::Gzip => {
            let mut bytes = Vec::with_capacity(len);
            let decoder = flate2::read::MultiGzDecoder::new(compressed);
            decoder.take(len as u64 + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
            Ok(bytes)
        }
        Codec::Zstd => zstd::bulk::decompress(compressed, len).map_err(|error| wrong(&error)),
    }
}

fn size(value: Option<i32>) -> Result<usize, String> {
    value.and_then(|value| usize::try_from(value).ok()).ok_or_else(lacking)
}

fn lacking() -> String {
    "the header of a page tells no size".to_owned()
}
