//! A page as the viewer answers it: what is read of the JSON, which is what validators read, and what is passed over.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

/// An answer with more rows is no page: it was asked for a hundred.
const MAX_ROWS: usize = 10_000;

/// The text of each row, in order; `None`: the row has none, for its column is missing, null or something else.
pub(super) type Texts = Vec<Option<String>>;

/// Consecutive rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) texts: Texts,
    /// Rows of the whole data set, where the answer says.
    pub(super) num_rows_total: Option<u64>,
}

/// Why an answer is no page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Garbage {
    /// It is no JSON.
    NotJson(String),
    /// It is, and says something else.
    NoPage(String),
}

/// Reads an answer. Bytes that are no UTF-8, and halves of surrogate pairs, become U+FFFD, as for validators.
pub(super) fn parse(body: &[u8], column: &str) -> Result<Page, Garbage> {
    let body = String::from_utf8_lossy(body);
    let [rows, total] = read(Keys(["rows", "num_rows_total"]), &body).map_err(|error| match error.classify() {
        Category::Data => Garbage::NoPage(error.to_string()),
        _ => Garbage::NotJson(error.to_string()),
    })?;
    let rows = rows.ok_or_else(|| Garbage::NoPage("it has no `rows`".to_owned()))?;
    let texts = read(Rows { column }, rows).map_err(|error| Garbage::NoPage(format!("its `rows`: {error}")))?;
    Ok(Page { texts, num_rows_total: total.and_then(|total| total.parse().ok()) })
}

/// Reads the whole of a JSON text.
fn read<'de, S: DeserializeSeed<'de>>(seed: S, json: &'de str) -> serde_json::Result<S::Value> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// The values of some keys of an object, as they stand there; of a key that comes twice the last one.
struct Keys<'a, const N: usize>([&'a str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for Keys<'_, N> {
    type Value = [Option<&'de str>; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Keys<'_, N> {
    type Value = [Option<&'de str>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = [None; N];
        while let Some(key) = map.next_key::<String>()? {
            match self.0.iter().position(|wanted| *wanted == key) {
                Some(index) => values[index] = Some(map.next_value::<&RawValue>()?.get()),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(values)
    }
}

/// The texts of a list of rows.
struct Rows<'a> {
    column: &'a str,
}

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = Texts;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Texts, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(row) = rows.next_element::<&RawValue>()? {
            if texts.len() == MAX_ROWS {
                return Err(serde::de::Error::custom(format_args!("there are more than {MAX_ROWS}")));
            }
            texts.push(text_of_row(row.get(), self.column));
        }
        Ok(texts)
    }
}

fn text_of_row(row: &str, column: &str) -> Option<String> {
    let [cells] = read(Keys(["row"]), row).ok()?;
    let [cell] = read(Keys([column]), cells?).ok()?;
    let cell = cell.filter(|cell| cell.starts_with('"'))?;
    // As bytes, for a `String` cannot hold the half of a surrogate pair.
    serde_json::Deserializer::from_str(cell).deserialize_bytes(Lossy).ok()
}

/// A text from bytes that may be none.
struct Lossy;

impl Visitor<'_> for Lossy {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn texts(body: &[u8]) -> Texts {
        parse(body, "content").unwrap().texts
    }

    #[test]
    fn only_the_column_of_each_row_is_read() {
        let body = r#" {"features": [{"rows": 1}], "rows": [{"row_idx": 7, "row": {"url": "x", "content": "a\tb"},
            "truncated_cells": ["content"]}, {"row": {"content": ""}}], "num_rows_total": 968000015, "partial": true} "#;
        let page = parse(body.as_bytes(), "content").unwrap();
        assert_eq!(
            page,
            Page { texts: vec![Some("a\tb".to_owned()), Some(String::new())], num_rows_total: Some(968_000_015) }
        );
        assert_eq!(parse(body.as_bytes(), "url").unwrap().texts, [Some("x".to_owned()), None]);
    }

    #[test]
    fn a_row_without_text_is_there_without_text() {
        for row in [
            "{}",
            "7",
            "null",
            r#"{"row": null}"#,
            r#"{"row": ["content"]}"#,
            r#"{"row": {"text": "x"}}"#,
            r#"{"row": {"content": null}}"#,
            r#"{"row": {"content": 3.5}}"#,
            r#"{"row": {"content": ["x"]}}"#,
            r#"{"row": {"content": {"content": "x"}}}"#,
        ] {
            let body = format!(r#"{{"rows": [{{"row": {{"content": "a"}}}}, {row}]}}"#);
            assert_eq!(texts(body.as_bytes()), [Some("a".to_owned()), None], "{row}");
        }
    }

    #[test]
    fn what_is_no_unicode_becomes_replacement_characters() {
        let text = |content: &[u8]| {
            let body = [br#"{"rows": [{"row": {"content": ""#, content, br#""}}]}"#].concat();
            texts(&body).remove(0).unwrap()
        };
        assert_eq!(text(br"ab\ud83dcd"), "ab\u{fffd}\u{fffd}\u{fffd}cd");
        assert_eq!(text(br"\ude00"), "\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(text(br"\ud83d\ude00"), "\u{1f600}");
        assert_eq!(text(b"a\xffb\xc3"), "a\u{fffd}b\u{fffd}");
        assert_eq!(text(br"\u0000"), "\0");
    }

    #[test]
    fn what_is_no_json_is_told_from_what_is_no_page() {
        for body in ["", "<html>", "{", r#"{"rows": []"#, r#"{"rows": []} x"#, r#"{"rows": [tru]}"#] {
            assert!(matches!(parse(body.as_bytes(), "content"), Err(Garbage::NotJson(_))), "{body}");
        }
        for body in
            ["[]", "null", r#""rows""#, r#"{"error": "not ready"}"#, r#"{"rows": null}"#, r#"{"rows": {"row": {}}}"#]
        {
            assert!(matches!(parse(body.as_bytes(), "content"), Err(Garbage::NoPage(_))), "{body}");
        }
        let many = format!(r#"{{"rows": [{}0]}}"#, "0,".repeat(MAX_ROWS));
        let error = parse(many.as_bytes(), "content").unwrap_err();
        assert!(matches!(&error, Garbage::NoPage(reason) if reason.contains("more than 10000")), "{error:?}");
        let deep = "[".repeat(100_000);
        assert!(matches!(parse(deep.as_bytes(), "content"), Err(Garbage::NotJson(_) | Garbage::NoPage(_))));
    }
}
