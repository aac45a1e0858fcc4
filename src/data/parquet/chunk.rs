//! A column chunk, which is the text of a row group: its pages become documents.

use bytes::Bytes;

use super::page::{Codec, Kind, Page, Pages};
use super::store::Trouble;
use super::values::{self, RLE, Values};
use crate::error::Failure;
use crate::interrupt;

/// No row group whose text takes more is read.
pub(super) const MAX_TEXT_BYTES: u64 = 1 << 30;
/// No row group of more rows is read: nulls take next to nothing in the file, and some bytes in memory.
pub(super) const MAX_ROWS: u64 = 1 << 24;

/// What the footer tells of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// Rows of the row group.
    pub(super) rows: u64,
    /// The chunk's bytes, decompressed.
    pub(super) text_bytes: u64,
    pub(super) codec: Codec,
    /// Whether rows may be null.
    pub(super) is_nullable: bool,
}

/// The wanted rows of a chunk.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Those that are text, in order.
    pub(super) texts: Vec<Bytes>,
    /// How many are not: null, or not UTF-8.
    pub(super) num_skipped: u64,
}

/// Decodes those rows of a chunk that are wanted, by their number in the row group.
///
/// # Errors
/// The chunk is damaged, or an orderly end is asked for.
pub(super) fn decode(chunk: Bytes, told: &Told, is_wanted: impl Fn(u64) -> bool) -> Result<Texts, Trouble> {
    let mut decoder =
        Decoder { told, row: 0, dictionary: None, buildable: MAX_TEXT_BYTES as usize, texts: Texts::default() };
    let mut pages = Pages::new(chunk, told.codec, usize::try_from(told.text_bytes).unwrap_or(usize::MAX));
    while let Some(page) = pages.next()? {
        if interrupt::requested() {
            return Err(Trouble::Other(Failure::Interrupted("Interrupted while text was read.".to_owned()).into()));
        }
        decoder.take(&page, &is_wanted)?;
    }
    if decoder.row != told.rows {
        return Err(format!("it has {} rows where its footer tells {}", decoder.row, told.rows).into());
    }
    Ok(decoder.texts)
}

struct Decoder<'a> {
    told: &'a Told,
    /// Rows so far.
    row: u64,
    dictionary: Option<Vec<Bytes>>,
    /// How many bytes of values may still be put together of others.
    buildable: usize,
    texts: Texts,
}

impl Decoder<'_> {
    fn take(&mut self, page: &Page, is_wanted: impl Fn(u64) -> bool) -> Result<(), Trouble> {
        let header = &page.header;
        if header.kind == Kind::Other {
            return Ok(());
        }
        // A writer may have put the values of other row groups into a dictionary as well.
        let max_values = if header.kind == Kind::Dictionary { MAX_ROWS } else { self.told.rows - self.row };
        if header.num_values as u64 > max_values {
            return Err("it has more values than its footer tells rows".to_owned().into());
        }
        if header.kind == Kind::Dictionary {
            self.dictionary = Some(values::dictionary(header.encoding, &page.bytes, header.num_values)?);
            return Ok(());
        }
        let (presence, bytes) = self.presence(page)?;
        let num_present = match &presence {
            Some(presence) => presence.iter().filter(|is_present| **is_present).count(),
            None => header.num_values,
        };
        let mut values = Values::new(header.encoding, &bytes, num_present, self.dictionary.as_deref())?;
        for index in 0..header.num_values {
            let is_present = presence.as_ref().is_none_or(|presence| presence[index]);
            let value = if is_present { Some(values.next(self.buildable)?) } else { None };
            self.buildable -= value.as_ref().map_or(0, |(_, built)| *built);
            if is_wanted(self.row) {
                match value.filter(|(value, _)| std::str::from_utf8(value).is_ok()) {
                    Some((value, _)) => self.texts.texts.push(value),
                    None => self.texts.num_skipped += 1,
                }
            }
            self.row += 1;
        }
        Ok(())
    }

    /// Which rows of a page have a value (`None`: all), and the bytes of these.
    fn presence(&self, page: &Page) -> Result<(Option<Vec<bool>>, Bytes), Trouble> {
        let Page { header, levels, bytes } = page;
        if !self.told.is_nullable {
            return Ok((None, bytes.clone()));
        }
        if matches!(header.kind, Kind::DataV2 { .. }) {
            return Ok((Some(values::presence(levels, header.num_values)?), bytes.clone()));
        }
        if header.level_encoding != RLE {
            let number = header.level_encoding;
            return Err(Trouble::Unsupported(format!(
                "a page has levels of an encoding of number {number}, which assay does not read"
            )));
        }
        let rest =
            bytes.split_first_chunk().and_then(|(len, rest)| rest.split_at_checked(u32::from_le_bytes(*len) as usize));
        let (levels, rest) = rest.ok_or_else(|| "the levels of a page do not fit into it".to_owned())?;
        Ok((Some(values::presence(levels, header.num_values)?), bytes.slice(bytes.len() - rest.len()..)))
    }
}
