//! Bytes as the node's JSON has them: hexadecimal digits after 0x.

/// Writes bytes.
pub(super) fn write(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Reads bytes, with or without 0x before them; `None` if that is no hexadecimal number of whole bytes.
pub(super) fn read(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|&[high, low]| u8::try_from(value(high)? * 16 + value(low)?).ok()).collect();
    if rest.is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_and_read_and_nothing_else_is_read() {
        assert_eq!(write(&[0, 0x1f, 255]), "0x001fff");
        assert_eq!(read("0x001fFf"), Some(vec![0, 0x1f, 255]));
        assert_eq!((read("0x"), read(""), read("ab")), (Some(vec![]), Some(vec![]), Some(vec![0xab])));
        for wrong in ["0x0", "0xg0", "0x-1", "0x+1", "é0", "0x 1", "00x0"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
