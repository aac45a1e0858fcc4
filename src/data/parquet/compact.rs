//! Thrift's compact protocol, in which parquet writes footers and the headers of pages: numbers and names, and everything
//! else skipped.
//!
//! What it reads may be anything. Each element takes at least a byte, so that no claimed length is believed any further
//! than bytes are there.

/// A field that holds true; false is the next kind.
pub(super) const TRUE: u8 = 1;
/// A field that holds false.
pub(super) const FALSE: u8 = 2;
/// A field that holds an integer of 32 bits.
pub(super) const I32: u8 = 5;
/// A field that holds an integer of 64 bits.
pub(super) const I64: u8 = 6;
/// A field that holds bytes, or a name.
pub(super) const BINARY: u8 = 8;
/// A field that holds a list.
pub(super) const LIST: u8 = 9;
/// A field that holds a struct.
pub(super) const STRUCT: u8 = 12;

/// Structs inside structs beyond this are none of parquet's.
const MAX_DEPTH: u32 = 16;

/// Reads from the front of some bytes.
pub(super) struct Compact<'a> {
    rest: &'a [u8],
}

impl<'a> Compact<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Number and kind of the next field of a struct, whose last field was `last` (0 before the first); `None` at its end.
    /// The value is to be read or skipped next.
    pub(super) fn field(&mut self, last: &mut i16) -> Result<Option<(i16, u8)>, String> {
        let byte = self.byte()?;
        let (delta, kind) = (byte >> 4, byte & 15);
        if byte == 0 {
            return Ok(None);
        }
        *last = match delta {
            0 => i16::try_from(zigzag(self.varint()?)).map_err(|_| damaged())?,
            delta => last.checked_add(i16::from(delta)).ok_or_else(damaged)?,
        };
        Ok(Some((*last, kind)))
    }

    /// The value of a field of the kind [`I32`].
    pub(super) fn i32(&mut self) -> Result<i32, String> {
        i32::try_from(zigzag(self.varint()?)).map_err(|_| damaged())
    }

    /// The value of a field of the kind [`I64`].
    pub(super) fn i64(&mut self) -> Result<i64, String> {
        Ok(zigzag(self.varint()?))
    }

    /// The value of a field of the kind [`BINARY`].
    pub(super) fn binary(&mut self) -> Result<&'a [u8], String> {
        let len = self.varint()?;
        self.bytes(len)
    }

    /// How many structs a list has, which are to be read next, from the front of a field of the kind [`LIST`].
    pub(super) fn structs(&mut self) -> Result<u64, String> {
        match self.list()? {
            (STRUCT, len) => Ok(len),
            (_, 0) => Ok(0),
            _ => Err(damaged()),
        }
    }

    /// Passes over the value of a field.
    pub(super) fn skip(&mut self, kind: u8) -> Result<(), String> {
        self.skip_within(kind, 0)
    }

    fn skip_within(&mut self, kind: u8, depth: u32) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(damaged());
        }
        match kind {
            TRUE | FALSE => Ok(()),
            3 => self.byte().map(drop),
            4 | I32 | I64 => self.varint().map(drop),
            7 => self.bytes(8).map(drop),
            BINARY => self.binary().map(drop),
            LIST | 10 => {
                let (kind, len) = self.list()?;
                (0..len).try_for_each(|_| self.skip_element(kind, depth + 1))
            }
            11 => {
                let len = self.varint()?;
                let kinds = if len > 0 { self.byte()? } else { 0 };
                let mut skip_pair = || {
                    self.skip_element(kinds >> 4, depth + 1)?;
                    self.skip_element(kinds & 15, depth + 1)
                };
                (0..len).try_for_each(|_| skip_pair())
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_within(kind, depth + 1)?;
                }
                Ok(())
            }
            13 => self.bytes(16).map(drop),
            _ => Err(damaged()),
        }
    }

    /// The same in a list, where a truth takes a byte of its own.
    fn skip_element(&mut self, kind: u8, depth: u32) -> Result<(), String> {
        match kind {
            TRUE | FALSE => self.byte().map(drop),
            kind => self.skip_within(kind, depth),
        }
    }

    /// Kind and number of a list's elements.
    fn list(&mut self) -> Result<(u8, u64), String> {
        let byte = self.byte()?;
        let len = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
        Ok((byte & 15, len))
    }

    fn bytes(&mut self, len: u64) -> Result<&'a [u8], String> {
        let split = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let (bytes, rest) = split.ok_or_else(damaged)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, String> {
        let (&byte, rest) = self.rest.split_first().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, String> {
        varint(&mut self.rest).ok_or_else(damaged)
    }
}

/// An unsigned number of seven bits a byte, the lowest first; `None` if it does not end, or not within 64 bits.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The signed number that an unsigned one stands for: 0, -1, 1, -2, 2 and so on.
pub(super) fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn damaged() -> String {
    "its metadata cannot be understood".to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_are_read_up_to_64_bits() {
        for (bytes, value) in [
            (&[0][..], Some(0)),
            (&[0x7f], Some(127)),
            (&[0x80, 1], Some(128)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some(u64::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
            (&[0x80; 11], None),
            (&[0x80], None),
            (&[], None),
        ] {
            assert_eq!(varint(&mut &*bytes), value, "{bytes:?}");
        }
        assert_eq!([0, 1, 2, 3, u64::MAX].map(zigzag), [0, -1, 1, -2, i64::MIN]);
    }

    #[test]
    fn everything_but_the_wanted_fields_is_skipped_and_nothing_beyond_the_end_is_read() {
        // Of a struct: 1: i32 7, 2: list of two binaries, 3: map of i32 to true, 4: struct {1: true, 17: double}, 5: i32 -1.
        let bytes = [
            0x15, 14, 0x19, 0x28, 2, b'a', b'b', 0, 0x1b, 1, 0x51, 4, 1, 0x1c, 0x11, 0x07, 34, 1, 2, 3, 4, 5, 6, 7, 8,
            0, 0x15, 1, 0, 99,
        ];
        let read = |bytes: &[u8]| -> Result<(Vec<i32>, usize), String> {
            let (mut compact, mut last, mut numbers) = (Compact::new(bytes), 0, Vec::new());
            while let Some((_, kind)) = compact.field(&mut last)? {
                if kind == I32 { numbers.push(compact.i32()?) } else { compact.skip(kind)? }
            }
            Ok((numbers, compact.rest().len()))
        };
        assert_eq!(read(&bytes).unwrap(), (vec![7, -1], 1));
        for end in 0..bytes.len() - 1 {
            assert!(read(&bytes[..end]).is_err(), "{end}");
        }
        // A list, a binary and a map that claim more than there is, and a struct in a struct without end.
        let deep = [0x1c; 100];
        for claim in
            [&[0x19, 0xfc, 0xff, 0xff, 0xff, 0x7f][..], &[0x18, 0xff, 0xff, 0x7f], &[0x1b, 0xff, 0x7f, 0x55], &deep]
        {
            assert!(read(claim).is_err(), "{claim:?}");
        }
    }
}
