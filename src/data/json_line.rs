//! The text in one line of JSON, as the reference's Python sees it.
//!
//! Python's strings hold lone surrogate escapes (`"\ud83d"`), and its tokenizer turns each into three U+FFFD, one for
//! each byte of the surrogate's would-be UTF-8. `serde_json` gives such strings as bytes in just that form, and a lossy
//! conversion does the rest. Of a key that occurs twice the last value counts. All other keys are skipped unparsed.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The string under `text_key` in an object, or the reason why there is none.
pub(super) fn text_of_line(line: &str, text_key: &str) -> Result<String, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let text = json
        .deserialize_map(Line { text_key })
        .and_then(|text| json.end().map(|()| text))
        .map_err(|error| at_column(&error))?;
    text.ok_or_else(|| format!("no key \"{text_key}\"; name the key of the text by data.text_key"))
}

/// The reason with its column alone: the line is the file's, not the parser's.
fn at_column(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let reason = message.split(" at line ").next().unwrap_or_default();
    format!("column {}: {reason}", error.column())
}

struct Line<'a> {
    text_key: &'a str,
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(key) = map.next_key_seed(LossyString("a key"))? {
            if key == self.text_key {
                text = Some(map.next_value_seed(LossyString("a string as the text"))?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(text)
    }
}

/// A string in which lone surrogates have become U+FFFD; what it is, for messages.
struct LossyString(&'static str);

impl<'de> DeserializeSeed<'de> for LossyString {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for LossyString {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data::tokenizer::Tokenizer;

    #[test]
    fn golden_bad_input_is_read_or_refused_as_by_the_reference() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let mut num_strings = 0;
        for case in crate::golden::cases("tokenizer", "bad_input") {
            let Some(string) = case["json_string"].as_str() else { continue };
            let text = text_of_line(&format!("{{\"text\": {string}}}"), "text").unwrap();
            let mut ids = Vec::new();
            tokenizer.encode(&text, Some(1024), &mut ids);
            let expected: Vec<u32> = serde_json::from_value(case["reference"]["value"].clone()).unwrap();
            assert_eq!(ids, expected, "{string}");
            num_strings += 1;
        }
        assert!(num_strings > 0);
    }

    #[test]
    fn lone_surrogates_become_three_replacement_characters_and_pairs_stay_whole() {
        let text = |json: &str| text_of_line(&format!("{{\"\\ud800\":1,\"t\":\"{json}\"}}"), "t").unwrap();
        assert_eq!(text(r"\ud83d"), "\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(text(r"\ud83d\ude00"), "😀");
        assert_eq!(text(r"\ud83d\ud83d\ude00x"), "\u{fffd}\u{fffd}\u{fffd}😀x");
        assert_eq!(text(r"\ude00\ud83d\n"), "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\n");
    }

    #[test]
    fn whatever_is_not_a_string_is_refused_with_its_column() {
        let reason = |line: &str| text_of_line(line, "text").unwrap_err();
        assert_eq!(reason(r#"{"text": null}"#), "column 13: invalid type: null, expected a string as the text");
        assert_eq!(reason(r#"{"text": 5}"#), "column 10: invalid type: integer `5`, expected a string as the text");
        for value in ["3.5", "true", r#"["a","b"]"#, "[97]", r#"{"a": 1}"#] {
            let line = format!(r#"{{"id": 1, "text": {value}}}"#);
            assert!(reason(&line).contains("expected a string as the text"), "{line}: {}", reason(&line));
        }
        assert_eq!(reason(r#"{"content": "a"}"#), "no key \"text\"; name the key of the text by data.text_key");
        assert_eq!(reason(r#"["text"]"#), "column 0: invalid type: sequence, expected an object");
        assert_eq!(reason(r#"{"text": "a"} x"#), "column 15: trailing characters");
        assert_eq!(reason(r#"{"text": "a"#), "column 11: EOF while parsing a string");
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_and_others_may_hold_anything() {
        assert_eq!(
            text_of_line(r#" {"x":[{"text":"no"}],"text":"a","y":"\ud83d","text":"b\u0041"} "#, "text"),
            Ok("bA".into())
        );
    }
}
