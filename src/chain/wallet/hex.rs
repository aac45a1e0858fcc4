//! Secrets in hexadecimal, without copies of them that stay in memory.

use zeroize::Zeroizing;

/// Appends bytes to a text that has room for them.
pub(super) fn push(text: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).expect("four bits are one digit"));
        }
    }
}

/// The bytes that a text of digits, after 0x or not, spells; `None` if it does not.
pub(super) fn parse(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    parse_ascii(text.strip_prefix("0x").unwrap_or(text).as_bytes())
}

/// The bytes that digits spell; `None` if they do not.
pub(super) fn parse_ascii(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
    for pair in digits.chunks_exact(2) {
        let digit = |i: usize| char::from(pair[i]).to_digit(16);
        bytes.push((digit(0)? << 4 | digit(1)?) as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut text = String::new();
        push(&mut text, &bytes);
        assert!(text.starts_with("000102") && text.ends_with("fdfeff"));
        assert_eq!(*parse(&text).unwrap(), bytes);
        assert_eq!(*parse("0x0aFF").unwrap(), [10, 255]);
        for wrong in ["0", "0g", "0x0x00", "+1", "ä"] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
