//! From the tree to the structs, by a serde deserializer of our own for the sake of its errors: a misspelt key is
//! named with its full path, its line and the nearest key that exists, a wrong type with what was found and
//! what was expected. It also reads `kind = "…"` tables into enums, which serde's own tagged enums could do only
//! by forgetting the lines.

use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::node::{Entry, KIND, Node, Value, hint, label};
use super::{Place, RecipeError};

/// What went wrong while reading the tree, and where: the path grows as the error travels outwards.
#[derive(Debug)]
pub(super) struct NodeError {
    /// Keys from the innermost to the outermost.
    path: Vec<String>,
    place: Option<Place>,
    fault: Fault,
}

#[derive(Debug)]
enum Fault {
    UnknownKey { key: String, expected: &'static [&'static str] },
    UnknownValue { found: String, expected: &'static [&'static str] },
    Other(String),
}

impl NodeError {
    fn new(fault: Fault) -> Self {
        NodeError { path: Vec::new(), place: None, fault }
    }

    fn at(mut self, place: &Place) -> Self {
        self.place.get_or_insert_with(|| place.clone());
        self
    }

    fn under(mut self, key: impl Into<String>) -> Self {
        self.path.push(key.into());
        self
    }

    /// The finished error.
    pub fn into_recipe_error(mut self) -> RecipeError {
        let place = self.place.unwrap_or(Place::Line { file: "".into(), line: 1 });
        self.path.reverse();
        match self.fault {
            Fault::UnknownKey { key, expected } => {
                self.path.push(key.clone());
                let hint = hint(&key, expected.iter().copied(), "the keys here are");
                RecipeError::UnknownKey { place, path: self.path.join("."), hint }
            }
            Fault::UnknownValue { found, expected } => {
                let hint = hint(&found, expected.iter().copied(), "it is one of");
                RecipeError::UnknownValue { place, path: self.path.join("."), found, hint }
            }
            Fault::Other(message) => RecipeError::Value { place, path: self.path.join("."), message },
        }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.fault)
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        NodeError::new(Fault::Other(message.to_string()))
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        NodeError::new(Fault::Other(format!("expected {}, found {}", wanted(expected), plain(found))))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        NodeError::new(Fault::Other(format!("expected {}, found {}", wanted(expected), plain(found))))
    }

    fn unknown_field(key: &str, expected: &'static [&'static str]) -> Self {
        NodeError::new(Fault::UnknownKey { key: key.to_owned(), expected })
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        NodeError::new(Fault::UnknownValue { found: found.to_owned(), expected })
    }

    fn missing_field(key: &'static str) -> Self {
        NodeError::new(Fault::Other(format!("the key `{key}` is missing")))
    }
}

/// serde's words for what it expects, in the words of a recipe.
fn wanted(expected: &dyn de::Expected) -> String {
    let words = expected.to_string();
    match words.as_str() {
        "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table".into(),
        _ if words.starts_with("struct ") => "a table".into(),
        _ => words,
    }
}

/// serde's words for a value, in the words of a recipe.
fn plain(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Map => "a table".into(),
        de::Unexpected::Seq => "a list".into(),
        de::Unexpected::Bool(flag) => format!("`{flag}`"),
        de::Unexpected::Signed(number) => format!("the number {number}"),
        de::Unexpected::Unsigned(number) => format!("the number {number}"),
        de::Unexpected::Float(number) => format!("the number {number:?}"),
        de::Unexpected::Str(text) => format!("the text {text:?}"),
        other => other.to_string(),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Table(entries) => visitor.visit_map(Entries { entries, next: 0, skip: None }),
        }
        .map_err(|error: NodeError| error.at(&self.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        let missing = || <NodeError as de::Error>::missing_field(KIND).at(&self.place);
        match &self.value {
            Value::String(text) => visitor.visit_enum(Variant { name: text, content: self }),
            Value::Table(_) => {
                let kind = self.get(KIND).ok_or_else(missing)?;
                let name = kind.as_str().ok_or_else(|| {
                    let fault = Fault::Other("expected a string".into());
                    NodeError::new(fault).under(KIND).at(&kind.place)
                })?;
                visitor.visit_enum(Variant { name, content: self }).map_err(|error: NodeError| {
                    match error.fault {
                        Fault::UnknownValue { .. } if error.path.is_empty() => {
                            error.under(KIND).at(&kind.place)
                        }
                        _ => error,
                    }
                })
            }
            _ => return self.deserialize_any(visitor),
        }
        .map_err(|error: NodeError| error.at(&self.place))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NodeError> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(item).map(Some).map_err(|error| error.under(label(index, item)).at(&item.place))
    }
}

struct Entries<'de> {
    entries: &'de [Entry],
    next: usize,
    skip: Option<&'static str>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        while let Some(entry) = self.entries.get(self.next) {
            if self.skip.is_some_and(|skip| skip == entry.key) {
                self.next += 1;
                continue;
            }
            return seed
                .deserialize(BorrowedStrDeserializer::new(&entry.key))
                .map(Some)
                .map_err(|error: NodeError| error.at(&entry.place));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        let entry = &self.entries[self.next];
        self.next += 1;
        seed.deserialize(&entry.node).map_err(|error| error.under(&*entry.key).at(&entry.node.place))
    }
}

struct Variant<'de> {
    name: &'de str,
    content: &'de Node,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = NodeError;
    type Variant = &'de Node;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, &'de Node), NodeError> {
        let name: StrDeserializer<'_, NodeError> = StrDeserializer::new(self.name);
        Ok((seed.deserialize(name)?, self.content))
    }
}

impl<'de> VariantAccess<'de> for &'de Node {
    type Error = NodeError;

    fn unit_variant(self) -> Result<(), NodeError> {
        match &self.value {
            Value::Table(entries) => match entries.iter().find(|entry| entry.key != KIND) {
                Some(entry) => {
                    Err(<NodeError as de::Error>::unknown_field(&entry.key, &[KIND]).at(&entry.place))
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, NodeError> {
        match &self.value {
            Value::Table(entries) => {
                let entries = Entries { entries, next: 0, skip: Some(KIND) };
                seed.deserialize(de::value::MapAccessDeserializer::new(entries))
            }
            _ => seed.deserialize(self),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, NodeError> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        self.deserialize_any(visitor)
    }
}
