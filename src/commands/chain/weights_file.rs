//! A file of weights: a JSON object of uid and weight.

use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::input;
use crate::regular_file;

/// Far more than a weight for every possible uid takes.
const MAX_BYTES: u64 = 4 << 20;

/// Reads the weights, in the order of the file; at least one is above 0.
pub(super) fn read(path: &Path) -> Result<Vec<(u16, f32)>> {
    let shown = path.display();
    let mut text = Vec::new();
    let cannot = || format!("cannot read the weights {shown}");
    let file = regular_file::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => input(format!("there is no file {shown}: write the weights there, {EXAMPLE}")),
        _ => anyhow::Error::new(error).context(cannot()),
    })?;
    file.take(MAX_BYTES + 1).read_to_end(&mut text).with_context(cannot)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(input(format!("{shown} has more than {MAX_BYTES} bytes: it holds no weights")));
    }
    parse(&text).map_err(|sentence| input(format!("{shown}: {sentence}")))
}

const EXAMPLE: &str = r#"as {"3": 0.5, "4": 0.25}"#;

/// The error is a sentence that says where.
fn parse(text: &[u8]) -> Result<Vec<(u16, f32)>, String> {
    let Weights(weights) =
        serde_json::from_slice(text).map_err(|error| format!("{error}; weights are written {EXAMPLE}"))?;
    if weights.iter().all(|&(_, weight)| weight == 0.0) {
        return Err("nobody is given weight: at least one must be above 0".to_owned());
    }
    Ok(weights)
}

struct Weights(Vec<(u16, f32)>);

impl<'de> Deserialize<'de> for Weights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Weights;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of uid and weight")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Weights, A::Error> {
        let mut weights: Vec<(u16, f32)> = Vec::new();
        let mut is_named = vec![false; usize::from(u16::MAX) + 1];
        while let Some(key) = map.next_key::<String>()? {
            let uid: u16 = key.parse().map_err(|_| {
                let shown: String = key.chars().take(20).collect();
                de::Error::custom(format_args!("`{}` is no uid", shown.escape_debug()))
            })?;
            if std::mem::replace(&mut is_named[usize::from(uid)], true) {
                return Err(de::Error::custom(format_args!("uid {uid} is given two weights")));
            }
            let weight: f64 = map.next_value()?;
            // Validators compute in 32 bits, and what they send is rounded from there.
            let narrow = weight as f32;
            if !(narrow.is_finite() && narrow >= 0.0) {
                return Err(de::Error::custom(format_args!(
                    "the weight {weight} of uid {uid} is none: it must be 0 or more, and at most {:e}",
                    f32::MAX
                )));
            }
            weights.push((uid, narrow));
        }
        Ok(Weights(weights))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::exit_code;

    #[test]
    fn weights_are_read_and_faults_told_with_their_place() {
        let read = |text: &str| parse(text.as_bytes());
        assert_eq!(read("{\"4\": 0.25, \"3\": 1, \"65535\": 0}"), Ok(vec![(4, 0.25), (3, 1.0), (65_535, 0.0)]));
        for (text, sentence) in [
            ("{\"3\": 0.5,\n \"3\": 0.5}", "uid 3 is given two weights at line 2 column 4"),
            ("{\"3\": 1, \"03\": 1}", "uid 3 is given two weights"),
            ("{\"3\": -1}", "the weight -1 of uid 3 is none"),
            ("{\"3\": 1e39}", "the weight 1000000000000000000000000000000000000000 of uid 3 is none"),
            ("{\"3\": 1e999}", "number out of range at line 1"),
            ("{\"3\": NaN}", "expected value at line 1 column 7"),
            ("{\"3\": \"1\"}", "invalid type: string \"1\""),
            ("{\"65536\": 1}", "`65536` is no uid"),
            ("{\"alice\": 1}", "`alice` is no uid"),
            ("{\"3\": 1", "EOF while parsing an object at line 1"),
            ("[1, 2]", "expected an object of uid and weight"),
            ("", "EOF"),
            ("{\"3\": 0}", "nobody is given weight"),
            ("{\"3\": 1e-60}", "nobody is given weight"),
            ("{}", "nobody is given weight"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.contains(sentence), "{text}: {found}");
        }
    }

    #[test]
    fn what_is_no_file_of_weights_is_the_users_to_mend() {
        let dir = tempfile::tempdir().unwrap();
        let huge = dir.path().join("huge");
        std::fs::File::create(&huge).unwrap().set_len(MAX_BYTES + 1).unwrap();
        for (path, sentence) in [
            (&huge, "more than"),
            (&dir.path().join("none"), "there is no file"),
            (&dir.path().to_owned(), "cannot read the weights"),
        ] {
            let error = read(path).unwrap_err();
            assert_eq!(exit_code(&error), 2, "{error:#}");
            assert!(error.to_string().contains(sentence), "{error}");
        }
    }
}
