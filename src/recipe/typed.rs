//! A typed value out of a [`Tree`], with errors that know the path of the key they are about.
//!
//! A serde deserializer of our own, because those of YAML crates forget either the path or the position, and because
//! their words are a programmer's ("invalid type: string, expected usize"). An enum is written as its name, or as a
//! mapping of its name to its content (`init: scratch`, `init: {dir: path}`). Whole numbers may carry underscores
//! (`524_288`) or be written as `2e9`; a section without content counts as empty, so that its defaults apply.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::position::Part;
use super::suggest;
use super::tree::{KeyPath, Segment, Tree};

/// What is wrong with one node of a recipe.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: KeyPath,
    /// Whether the key itself is the trouble, or its value.
    pub(super) part: Part,
    pub(super) sentence: String,
}

/// Reads a typed value; stops at the first fault.
pub(super) fn from_tree<T: DeserializeOwned>(tree: &Tree) -> Result<T, Fault> {
    T::deserialize(Node(tree)).map_err(|mut fault| {
        fault.path.0.reverse();
        fault
    })
}

impl Fault {
    fn new(sentence: String) -> Self {
        Self { path: KeyPath::default(), part: Part::Value, sentence }
    }

    fn expected(what: impl fmt::Display, found: &Tree) -> Self {
        Self::new(format!("expected {what}, found {found}"))
    }

    /// Adds one step of the path; they are collected from the inside outwards.
    fn inside(mut self, segment: Segment) -> Self {
        self.path.0.push(segment);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.sentence)
    }
}

impl std::error::Error for Fault {}

impl serde::de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        let mut fault = Self::new(suggest::for_unknown_key(key, known)).inside(Segment::Key(key.to_owned()));
        fault.part = Part::Key;
        fault
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(format!("the key `{key}` is missing here"))
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(suggest::for_unknown_choice(name, known))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("{found} is out of range: expected {expected}"))
    }
}

/// A node on its way to become a typed value.
#[derive(Clone, Copy)]
struct Node<'a>(&'a Tree);

/// Reads a whole number: plain, with underscores between digits, or a float without a fraction.
fn whole(tree: &Tree) -> Option<i128> {
    match tree {
        Tree::Whole(value) => Some(*value),
        // Above 2^53 a float no longer names one whole number.
        Tree::Real(value) if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => Some(*value as i128),
        Tree::Text(text) if text.starts_with(|first: char| first.is_ascii_digit()) && !text.ends_with('_') => {
            text.replace('_', "").parse().ok()
        }
        _ => None,
    }
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::Nothing => visitor.visit_unit(),
            Tree::Bool(value) => visitor.visit_bool(*value),
            // JSON values know only these two kinds of whole numbers.
            Tree::Whole(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Tree::Real(value) => visitor.visit_f64(*value),
            Tree::Text(value) => visitor.visit_str(value),
            Tree::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            Tree::Map(entries) => visitor.visit_map(Entries { entries, next: 0 }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::Bool(value) => visitor.visit_bool(*value),
            found => Err(Fault::expected("`true` or `false`", found)),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match whole(self.0).map(u64::try_from) {
            Some(Ok(value)) => visitor.visit_u64(value),
            Some(Err(_)) => Err(Fault::expected("a whole number, at least 0 and below 2^64", self.0)),
            None => Err(Fault::expected("a whole number", self.0)),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::Whole(value) => visitor.visit_f64(*value as f64),
            Tree::Real(value) => visitor.visit_f64(*value),
            found => Err(Fault::expected("a number", found)),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::Text(value) => visitor.visit_str(value),
            scalar @ (Tree::Whole(_) | Tree::Real(_) | Tree::Bool(_)) => {
                Err(Fault::new(format!("expected a text, found {scalar}; put it in quotes if it is meant as a text")))
            }
            found => Err(Fault::expected("a text", found)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::Nothing => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::List(_) => self.deserialize_any(visitor),
            found => Err(Fault::new(format!("expected a list such as [a, b], found {found}"))),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::Map(_) => self.deserialize_any(visitor),
            Tree::Nothing => visitor.visit_map(Entries { entries: &[], next: 0 }),
            found => Err(Fault::expected("a mapping of keys", found)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.0 {
            Tree::Text(name) => visitor.visit_enum(Choice { name, content: None }),
            Tree::Map(entries) => match entries.as_slice() {
                [(name, content)] => visitor.visit_enum(Choice { name, content: Some(content) }),
                _ => Err(Fault::new(format!("expected exactly one of {} here", suggest::listed(variants)))),
            },
            found => Err(Fault::expected(format!("one of {}", suggest::listed(variants)), found)),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct
        map identifier ignored_any
    }
}

struct Items<'a> {
    items: &'a [Tree],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let segment = Segment::Index(self.next);
        self.next += 1;
        seed.deserialize(Node(item)).map(Some).map_err(|fault| fault.inside(segment))
    }
}

struct Entries<'a> {
    entries: &'a [(String, Tree)],
    next: usize,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, _)) = self.entries.get(self.next) else { return Ok(None) };
        let key: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let (key, value) = &self.entries[self.next];
        self.next += 1;
        seed.deserialize(Node(value)).map_err(|fault| fault.inside(Segment::Key(key.clone())))
    }
}

/// A variant by name, with or without content.
struct Choice<'a> {
    name: &'a str,
    content: Option<&'a Tree>,
}

impl<'a, 'de> EnumAccess<'de> for Choice<'a> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Fault> {
        let name: StrDeserializer<'_, Fault> = self.name.into_deserializer();
        seed.deserialize(name).map(|variant| (variant, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.content {
            None | Some(Tree::Nothing) => Ok(()),
            Some(_) => Err(Fault::new(format!("`{}` takes no value: write just `{}`", self.name, self.name))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        let Some(content) = self.content else {
            return Err(Fault::new(format!("`{}` needs a value: write `{{{}: …}}`", self.name, self.name)));
        };
        seed.deserialize(Node(content)).map_err(|fault| fault.inside(Segment::Key(self.name.to_owned())))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Fault> {
        Err(Fault::new(format!("`{}` cannot be written in a recipe", self.name)))
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        let content = self.content.unwrap_or(&Tree::Nothing);
        let inside = |fault: Fault| fault.inside(Segment::Key(self.name.to_owned()));
        Node(content).deserialize_struct("", &[], visitor).map_err(inside)
    }
}
