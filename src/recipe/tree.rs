//! A recipe as an untyped tree; with `position.rs` and the writing in `resume.rs` all that assay asks of a YAML crate.
//!
//! [`Tree::parse`] takes mappings with text keys, lists and scalars; it refuses duplicate keys and tags, and stops at
//! a number of nodes no recipe comes near, so that a few kilobytes of anchors cannot fill the memory. What a key means
//! is none of this file's business: `typed.rs` makes a `Recipe` of a tree.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Visitor};

use super::position::Position;

/// Far above any recipe, far below what would hurt.
const MAX_NODES: usize = 100_000;

/// One node of a recipe.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    Nothing,
    Bool(bool),
    Whole(i128),
    Real(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

/// Where a text is not a tree: one-based line and column, if known, and a sentence.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) position: Option<Position>,
    pub(super) sentence: String,
}

/// One step from a node to one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// The way from the root to a node; written `data.paths[0]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyPath(pub(super) Vec<Segment>);

impl KeyPath {
    /// A path of keys only, as `model.width`.
    pub(super) fn of_keys(dotted: &str) -> Self {
        Self(dotted.split('.').map(|key| Segment::Key(key.to_owned())).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if i == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl Tree {
    /// Reads a YAML text of one document.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        let nodes = Cell::new(0);
        TreeSeed { nodes: &nodes }.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
            let position = error.location().map(|at| Position { line: at.line(), column: at.column() });
            let mut sentence = error.to_string();
            if let Some(Position { line, column }) = position {
                let suffix = format!(" at line {line} column {column}");
                sentence.truncate(sentence.strip_suffix(&suffix).unwrap_or(&sentence).len());
            }
            Malformed { position, sentence }
        })
    }

    /// The node at the end of a path.
    pub(super) fn get(&self, path: &[Segment]) -> Option<&Self> {
        match (path, self) {
            ([], node) => Some(node),
            ([Segment::Key(key), rest @ ..], Self::Map(entries)) => {
                entries.iter().find(|(name, _)| name == key).and_then(|(_, child)| child.get(rest))
            }
            ([Segment::Index(index), rest @ ..], Self::List(items)) => {
                items.get(*index).and_then(|child| child.get(rest))
            }
            _ => None,
        }
    }

    /// Puts a value at the end of a path of keys; what is no mapping on the way becomes one.
    pub(super) fn set(&mut self, keys: &[&str], value: Self) {
        let Some((key, rest)) = keys.split_first() else {
            *self = value;
            return;
        };
        if !matches!(self, Self::Map(_)) {
            *self = Self::Map(Vec::new());
        }
        let Self::Map(entries) = self else { return };
        let index = entries.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
            entries.push(((*key).to_owned(), Self::Nothing));
            entries.len() - 1
        });
        entries[index].1.set(rest, value);
    }

    /// Every leaf with its path; a list is a leaf.
    pub(super) fn leaves(&self) -> Vec<(String, &Self)> {
        let mut leaves = Vec::new();
        self.collect_leaves("", &mut leaves);
        leaves
    }

    fn collect_leaves<'a>(&'a self, path: &str, leaves: &mut Vec<(String, &'a Self)>) {
        let Self::Map(entries) = self else {
            leaves.push((path.to_owned(), self));
            return;
        };
        for (key, child) in entries {
            let separator = if path.is_empty() { "" } else { "." };
            child.collect_leaves(&format!("{path}{separator}{key}"), leaves);
        }
    }
}

/// As a sentence names a value: `the number -5`, `the text "big"`, `a list`; long texts are cut.
impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "`{value}`"),
            Self::Whole(value) => write!(f, "the number {value}"),
            Self::Real(value) => write!(f, "the number {value:?}"),
            Self::Text(value) if value.chars().count() > 60 => {
                write!(f, "the text \"{}…\"", value.chars().take(60).collect::<String>().escape_debug())
            }
            Self::Text(value) => write!(f, "the text \"{}\"", value.escape_debug()),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping of keys"),
        }
    }
}

struct TreeSeed<'a> {
    nodes: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for TreeSeed<'_> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        self.nodes.set(self.nodes.get() + 1);
        if self.nodes.get() > MAX_NODES {
            return Err(D::Error::custom(format!("more than {MAX_NODES} values: this is no recipe")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TreeSeed<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Whole(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Tree, E> {
        Ok(Tree::Whole(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Tree, E> {
        Ok(i128::try_from(value).map_or(Tree::Real(value as f64), Tree::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Real(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(TreeSeed { nodes: self.nodes })? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries: Vec<(String, Tree)> = Vec::new();
        while let Some(key) = access.next_key_seed(NewKey { entries: &entries })? {
            let value = access.next_value_seed(TreeSeed { nodes: self.nodes })?;
            entries.push((key, value));
        }
        Ok(Tree::Map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _access: A) -> Result<Tree, A::Error> {
        Err(A::Error::custom("recipes have no use for YAML tags such as `!name`"))
    }
}

/// A key that the mapping does not have yet.
struct NewKey<'a> {
    entries: &'a [(String, Tree)],
}

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        match self.entries.iter().any(|(name, _)| name == key) {
            true => Err(E::custom(format!("the key `{key}` is there twice; remove one of the two"))),
            false => Ok(key.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scalars_keep_their_kind() {
        let tree = Tree::parse("a: 1\nb: -2\nc: 1e-3\nd: x\ne: true\nf:\ng: 340282366920938463463374607431768211455\n");
        let expected = [
            ("a", Tree::Whole(1)),
            ("b", Tree::Whole(-2)),
            ("c", Tree::Real(1e-3)),
            ("d", Tree::Text("x".into())),
            ("e", Tree::Bool(true)),
            ("f", Tree::Nothing),
            ("g", Tree::Real(u128::MAX as f64)),
        ];
        assert_eq!(tree.unwrap(), Tree::Map(expected.map(|(key, value)| (key.to_owned(), value)).to_vec()));
    }

    #[test]
    fn a_few_anchors_cannot_fill_the_memory() {
        let mut bomb = format!("a: &a [{}]\nb:\n", vec!["0"; 2_000].join(","));
        bomb.push_str(&"- *a\n".repeat(2_000));
        let malformed = Tree::parse(&bomb).unwrap_err();
        assert!(malformed.sentence.contains("more than 100000 values"), "{}", malformed.sentence);
    }

    #[test]
    fn deep_nesting_and_bad_syntax_are_errors() {
        for text in ["[".repeat(10_000), "a: [".into(), "a: \"".into(), "a: b: c".into(), "a: *b".into(), "\t".into()] {
            assert!(Tree::parse(&text).is_err(), "{text:.20}");
        }
        assert!(Tree::parse("a: 1\n---\nb: 2\n").unwrap_err().sentence.contains("more than one document"));
        assert!(Tree::parse("a: !tag 1\n").unwrap_err().sentence.contains("tags"));
    }
}
