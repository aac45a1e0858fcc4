//! Bytes as hexadecimal digits: after 0x, as the chain's JSON and its users write them, or bare, as git and hubs do.

/// Writes bytes, after 0x.
pub(crate) fn write(bytes: impl AsRef<[u8]>) -> String {
    format!("0x{}", digits(bytes))
}

/// Writes bytes without 0x before them.
pub(crate) fn digits(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).expect("four bits are one digit"));
        }
    }
    text
}

/// Reads bytes, with or without 0x before them; `None` if that is no hexadecimal number of whole bytes.
pub(crate) fn read(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.strip_prefix("0x").unwrap_or(text).as_bytes().as_chunks::<2>();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let bytes = pairs.iter().map(|&[high, low]| u8::try_from(value(high)? * 16 + value(low)?).ok()).collect();
    if rest.is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_and_read_and_nothing_else_is_read() {
        assert_eq!((write([0, 0x1f, 255]).as_str(), digits([0, 0x1f, 255]).as_str()), ("0x001fff", "001fff"));
        assert_eq!(read("0x001fFf"), Some(vec![0, 0x1f, 255]));
        assert_eq!((read("0x"), read(""), read("ab")), (Some(vec![]), Some(vec![]), Some(vec![0xab])));
        for wrong in ["0x0", "0xg0", "0x-1", "0x+1", "é0", "0x 1", "00x0"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
