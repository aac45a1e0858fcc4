//! Where in a recipe's text a key or a value stands.
//!
//! The YAML crate tells a position only with an error, so [`position`] reads the text once more and fails at the
//! wanted node. That is cheap for a text as short as a recipe, and only done when there is something to say about it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::tree::{KeyPath, Segment};

/// One-based line and column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// Whether a position is asked of a key or of the value behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
}

/// Line and column of the node at the end of a path, if the text has it.
pub(super) fn position(text: &str, path: &KeyPath, part: Part) -> Option<Position> {
    let error = Probe { path: &path.0, part }.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    let stopped = error.to_string().contains(STOPPED);
    error.location().filter(|_| stopped).map(|at| Position { line: at.line(), column: at.column() })
}

/// Part of the message with which a search ends at its goal, and not at a scalar on the way.
const STOPPED: &str = "to stop here";

/// Descends along a path and fails at its end: the error's position is the answer.
struct Probe<'a> {
    path: &'a [Segment],
    part: Part,
}

impl<'de> DeserializeSeed<'de> for Probe<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.path {
            [] => deserializer.deserialize_any(Stop),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Probe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let [Segment::Key(wanted), rest @ ..] = self.path else { return Ok(()) };
        let stop = rest.is_empty() && self.part == Part::Key;
        while let Some(found) = access.next_key_seed(FindKey { wanted, stop })? {
            match found {
                true => access.next_value_seed(Probe { path: rest, part: self.part })?,
                false => _ = access.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let [Segment::Index(wanted), rest @ ..] = self.path else { return Ok(()) };
        for _ in 0..*wanted {
            if access.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        access.next_element_seed(Probe { path: rest, part: self.part })?;
        while access.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Whether a key is the wanted one; with `stop` it fails there.
struct FindKey<'a> {
    wanted: &'a str,
    stop: bool,
}

impl<'de> DeserializeSeed<'de> for FindKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FindKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.stop => Err(E::custom(STOPPED)),
            found => Ok(found),
        }
    }
}

/// Takes nothing: whatever it is shown becomes an error, which bears the position.
struct Stop;

impl Visitor<'_> for Stop {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STOPPED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, path: &KeyPath, part: Part) -> Option<(usize, usize)> {
        position(text, path, part).map(|position| (position.line, position.column))
    }

    #[test]
    fn finds_keys_and_values_where_they_stand() {
        let text = "# comment\nname: x\nmodel:\n  layers: 3\n  width:   big\nlist: [1, 22]\nempty:\n";
        assert_eq!(at(text, &KeyPath::of_keys("name"), Part::Key), Some((2, 1)));
        assert_eq!(at(text, &KeyPath::of_keys("name"), Part::Value), Some((2, 7)));
        assert_eq!(at(text, &KeyPath::of_keys("model.width"), Part::Key), Some((5, 3)));
        assert_eq!(at(text, &KeyPath::of_keys("model.width"), Part::Value), Some((5, 12)));
        let second = KeyPath(vec![Segment::Key("list".into()), Segment::Index(1)]);
        assert_eq!(second.to_string(), "list[1]");
        assert_eq!(at(text, &second, Part::Value), Some((6, 11)));
        assert_eq!(at(text, &KeyPath::of_keys("model.heads"), Part::Value), None);
        assert_eq!(at(text, &KeyPath::of_keys("name.x"), Part::Value), None);
    }
}
