//! JSON as Python's `json.dumps(value, indent=2)` writes it: floats by Python's `repr`, characters beyond ASCII as
//! `\u` escapes. So a configuration that `transformers` wrote is written again with the same bytes, and the hash of a
//! model folder does not depend on which of the two programs saved it.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};

/// The text of a value, with a final newline as `transformers` writes its files.
pub(super) fn to_python_text(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PythonFormatter(PrettyFormatter::new()));
    value.serialize(&mut serializer).expect("a JSON value is written to memory without failing");
    bytes.push(b'\n');
    String::from_utf8(bytes).expect("only ASCII was written")
}

/// An `f32` setting as the double that its shortest decimal form names: 0.1, not 0.10000000149011612.
pub(super) fn shortest_double(value: f32) -> f64 {
    value.to_string().parse().expect("a float prints as a number")
}

struct PythonFormatter(PrettyFormatter<'static>);

impl Formatter for PythonFormatter {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_repr(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for character in fragment.chars() {
            match character {
                // Python escapes DEL no more than serde_json does; everything above is escaped.
                '\0'..='\x7f' => writer.write_all(&[character as u8])?,
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        self.0.write_char_escape(writer, escape)
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

/// Python's `repr` of a finite float: the shortest digits that read back the same, in scientific form below 1e-4 and
/// from 1e16 on, with at least two digits of exponent.
fn python_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    } else {
        format!("{value:?}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expected texts are what CPython prints.
    #[test]
    fn floats_print_as_in_python() {
        for (value, expected) in [
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (0.1, "0.1"),
            (1.0, "1.0"),
            (0.0, "0.0"),
            (-2.5e-7, "-2.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (123456.789, "123456.789"),
        ] {
            assert_eq!(python_repr(value), expected);
        }
        assert_eq!(shortest_double(0.1).to_bits(), 0.1_f64.to_bits());
    }

    #[test]
    fn text_is_escaped_as_in_python() {
        let value = json!({"a": ["é😀\n\"\u{7f}", [], {}], "b": null});
        let expected =
            "{\n  \"a\": [\n    \"\\u00e9\\ud83d\\ude00\\n\\\"\u{7f}\",\n    [],\n    {}\n  ],\n  \"b\": null\n}\n";
        assert_eq!(to_python_text(&value), expected);
    }
}
