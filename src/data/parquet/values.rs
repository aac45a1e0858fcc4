//! The values of a page: byte arrays in each encoding that the format has for them, and the levels that tell nulls.
//!
//! Values are slices of the page, but for those that only say in what they differ from the one before. Nothing is allocated
//! beyond what a page's bytes hold, or its number of values, which the caller has checked.

use bytes::Bytes;

use super::compact::{varint, zigzag};
use super::store::Trouble;

const PLAIN: i32 = 0;
const PLAIN_DICTIONARY: i32 = 2;
/// The encoding of levels.
pub(super) const RLE: i32 = 3;
const DELTA_LENGTH_BYTE_ARRAY: i32 = 6;
const DELTA_BYTE_ARRAY: i32 = 7;
const RLE_DICTIONARY: i32 = 8;

/// The values of a page, one after the other; each error says what is wrong with the page.
pub(super) enum Values<'a> {
    /// Each with its length before it.
    Plain(Bytes),
    /// Their numbers in a dictionary.
    Dictionary { numbers: Hybrid<'a>, dictionary: &'a [Bytes] },
    /// One after the other, of these lengths.
    Lengths { lengths: std::vec::IntoIter<usize>, bytes: Bytes },
    /// The same for their ends; they begin as the one before does.
    Prefixes { prefixes: std::vec::IntoIter<usize>, lengths: std::vec::IntoIter<usize>, bytes: Bytes, before: Bytes },
}

impl<'a> Values<'a> {
    /// The `num_values` values, without nulls, that `bytes` holds in an encoding.
    pub(super) fn new(
        encoding: i32,
        bytes: &'a Bytes,
        num_values: usize,
        dictionary: Option<&'a [Bytes]>,
    ) -> Result<Self, Trouble> {
        match encoding {
            PLAIN => Ok(Self::Plain(bytes.clone())),
            PLAIN_DICTIONARY | RLE_DICTIONARY => {
                let missing = || "a page names values of a dictionary that is not there".to_owned();
                let dictionary = dictionary.ok_or_else(missing)?;
                let numbers = match bytes.split_first() {
                    None => Hybrid::new(&[], 0),
                    Some((width, rest)) if *width <= 32 => Hybrid::new(rest, u32::from(*width)),
                    Some(_) => return Err(short().into()),
                };
                Ok(Self::Dictionary { numbers, dictionary })
            }
            DELTA_LENGTH_BYTE_ARRAY => {
                let mut rest = &bytes[..];
                let lengths = deltas(&mut rest, num_values)?.into_iter();
                Ok(Self::Lengths { lengths, bytes: bytes.slice(bytes.len() - rest.len()..) })
            }
            DELTA_BYTE_ARRAY => {
                let mut rest = &bytes[..];
                let prefixes = deltas(&mut rest, num_values)?.into_iter();
                let lengths = deltas(&mut rest, num_values)?.into_iter();
                let bytes = bytes.slice(bytes.len() - rest.len()..);
                Ok(Self::Prefixes { prefixes, lengths, bytes, before: Bytes::new() })
            }
            _ => Err(Trouble::Unsupported(format!(
                "a page has an encoding of number {encoding}, which is none for text that assay reads"
            ))),
        }
    }

    /// The next value, of which at most `max_built` bytes may be put together, and how many were.
    pub(super) fn next(&mut self, max_built: usize) -> Result<(Bytes, usize), String> {
        let value = match self {
            Self::Plain(bytes) => {
                let len = bytes.first_chunk().map(|len| u32::from_le_bytes(*len) as usize).ok_or_else(short)?;
                let _ = bytes.split_to(4);
                take(bytes, len)?
            }
            Self::Dictionary { numbers, dictionary } => {
                let number = numbers.next().ok_or_else(short)?;
                let value = dictionary.get(number as usize);
                value.ok_or("a page names a value that its dictionary does not have")?.clone()
            }
            Self::Lengths { lengths, bytes } => take(bytes, lengths.next().ok_or_else(short)?)?,
            Self::Prefixes { prefixes, lengths, bytes, before } => {
                let (prefix, len) = (prefixes.next().ok_or_else(short)?, lengths.next().ok_or_else(short)?);
                let end = take(bytes, len)?;
                let begin = before.get(..prefix).ok_or_else(short)?;
                let built = begin.len() + end.len();
                if built > max_built {
                    return Err("its values are larger together than any that are read".to_owned());
                }
                *before = [begin, &end].concat().into();
                return Ok((before.clone(), built));
            }
        };
        Ok((value, 0))
    }
}

/// The values of a dictionary's page.
pub(super) fn dictionary(encoding: i32, bytes: &Bytes, num_values: usize) -> Result<Vec<Bytes>, Trouble> {
    if !matches!(encoding, PLAIN | PLAIN_DICTIONARY) {
        return Err(Trouble::Unsupported(format!(
            "its dictionary has an encoding of number {encoding}, which is none for dictionaries that assay reads"
        )));
    }
    let mut values = Values::Plain(bytes.clone());
    // Not collected with its claimed number as a hint of the size.
    let mut dictionary = Vec::new();
    for _ in 0..num_values {
        dictionary.push(values.next(0)?.0);
    }
    Ok(dictionary)
}

/// Which of the `num_values` rows of a page have a value, by their levels.
pub(super) fn presence(levels: &[u8], num_values: usize) -> Result<Vec<bool>, String> {
    let mut levels = Hybrid::new(levels, 1);
    let mut presence = Vec::new();
    for _ in 0..num_values {
        presence.push(levels.next().ok_or("a page has fewer levels than values")? != 0);
    }
    Ok(presence)
}

/// Small numbers in runs: of one number so often, or of numbers that are packed in so many bits each.
pub(super) struct Hybrid<'a> {
    rest: &'a [u8],
    width: u32,
    run: Run<'a>,
    left: u64,
}

enum Run<'a> {
    Repeated(u32),
    Packed { bytes: &'a [u8], bit: usize },
}

impl<'a> Hybrid<'a> {
    /// Numbers of `width` bits, at most 32.
    fn new(bytes: &'a [u8], width: u32) -> Self {
        Self { rest: bytes, width, run: Run::Repeated(0), left: 0 }
    }

    /// The next number; `None` where there is no other.
    fn next(&mut self) -> Option<u32> {
        while self.left == 0 {
            self.begin_run()?;
        }
        self.left -= 1;
        match &mut self.run {
            Run::Repeated(number) => Some(*number),
            Run::Packed { bytes, bit } => {
                let number = bits(bytes, *bit, self.width)?;
                *bit += self.width as usize;
                Some(number as u32)
            }
        }
    }

    fn begin_run(&mut self) -> Option<()> {
        let head = varint(&mut self.rest)?;
        if head & 1 == 0 {
            let (number, rest) = self.rest.split_at_checked(self.width.div_ceil(8) as usize)?;
            self.rest = rest;
            self.left = head >> 1;
            self.run = Run::Repeated(number.iter().rev().fold(0, |number, byte| (number << 8) | u32::from(*byte)));
        } else {
            // Eight numbers take as many bytes as a number has bits. The last ones may be cut off.
            let groups = head >> 1;
            let len = usize::try_from(groups.checked_mul(u64::from(self.width))?).ok()?.min(self.rest.len());
            let (bytes, rest) = self.rest.split_at(len);
            self.rest = rest;
            self.left = groups.checked_mul(8)?;
            self.run = Run::Packed { bytes, bit: 0 };
        }
        Some(())
    }
}

/// `width` bits, at most 64, of bytes whose lowest bits come first; `None` beyond their end.
fn bits(bytes: &[u8], start: usize, width: u32) -> Option<u64> {
    let (first, shift) = (start / 8, start % 8);
    let end = (start + width as usize).div_ceil(8);
    let mut window = [0; 16];
    let bytes = bytes.get(first..end)?;
    window[..bytes.len()].copy_from_slice(bytes);
    let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
    Some((u128::from_le_bytes(window) >> shift) as u64 & mask)
}

/// Exactly `num_values` lengths that are written as differences, from the front of some bytes.
fn deltas(bytes: &mut &[u8], num_values: usize) -> Result<Vec<usize>, String> {
    if num_values == 0 {
        return Ok(Vec::new());
    }
    let mut number = || varint(bytes).ok_or_else(short);
    let (block, num_parts, count, first) = (number()?, number()?, number()?, zigzag(number()?));
    let values_per_part = block.checked_div(num_parts).filter(|values| values.is_multiple_of(32) && *values > 0);
    let values_per_part = values_per_part.filter(|values| *values <= 1 << 20).ok_or_else(short)? as usize;
    if count != num_values as u64 || !(1..=1 << 16).contains(&num_parts) {
        return Err("a page has another number of lengths than of values".to_owned());
    }
    let mut value = first;
    let mut lengths = Vec::new();
    let mut push = |value: i64| usize::try_from(value).map(|value| lengths.push(value)).map_err(|_| short());
    let mut left = num_values;
    push(value)?;
    left -= 1;
    while left > 0 {
        let least = zigzag(varint(bytes).ok_or_else(short)?);
        let (widths, rest) = bytes.split_at_checked(num_parts as usize).ok_or_else(short)?;
        *bytes = rest;
        for width in widths {
            if left == 0 {
                break; // Parts without a value take no bytes, whatever their widths.
            }
            let part = bytes.split_at_checked(values_per_part * usize::from(*width) / 8).filter(|_| *width <= 64);
            let (part, rest) = part.ok_or_else(short)?;
            *bytes = rest;
            for index in 0..left.min(values_per_part) {
                let delta = bits(part, index * usize::from(*width), u32::from(*width)).ok_or_else(short)?;
                value = value.wrapping_add(least).wrapping_add(delta.cast_signed());
                push(value)?;
            }
            left -= left.min(values_per_part);
        }
    }
    Ok(lengths)
}

fn take(bytes: &mut Bytes, len: usize) -> Result<Bytes, String> {
    if len > bytes.len() { Err(short()) } else { Ok(bytes.split_to(len)) }
}

fn short() -> String {
    "the values of a page do not fit into it".to_owned()
}
