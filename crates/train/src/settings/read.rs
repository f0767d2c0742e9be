//! From the tree to the structs, by a serde deserializer of our own for the sake of its errors: a misspelt key is
//! named with its full path, its line and the nearest key that exists, a wrong type with what was found and
//! what was expected. It also reads `kind = "…"` tables into enums, which serde's own tagged enums could do only
//! by forgetting the lines.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::node::{Entry, KIND, Node, Value, hint, label};
use super::{ONE_TABLE, Place, RecipeError};

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
    UnknownKey { key: String, expected: Vec<&'static str> },
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
        NodeError::new(Fault::UnknownKey { key: key.to_owned(), expected: expected.to_vec() })
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

/// A node as one struct sees it.
#[derive(Clone, Copy)]
pub(super) struct View<'de, 'v> {
    node: &'de Node,
    /// Keys of this table that belong to others.
    taken: &'v [&'static str],
    /// Where a struct whose table is not its own says which keys are; the last of a table takes all that are left.
    own: Option<&'v RefCell<Vec<&'static str>>>,
}

impl<'de> View<'de, '_> {
    pub fn of(node: &'de Node) -> Self {
        View { node, taken: &[], own: None }
    }
}

impl<'de> View<'de, '_> {
    /// The entries that are left and satisfy `wanted`.
    fn entries(&self, wanted: impl Fn(&str) -> bool) -> Option<Entries<'de>> {
        let Value::Table(entries) = &self.node.value else { return None };
        let mine = entries.iter().filter(|e| !self.taken.contains(&e.key.as_str()) && wanted(&e.key));
        Some(Entries { left: mine.collect::<Vec<_>>().into_iter(), value: None })
    }
}

impl<'de> Deserializer<'de> for View<'de, '_> {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.node.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Table(_) => visitor.visit_map(self.entries(|_| true).expect("a table")),
        }
        .map_err(|error: NodeError| error.at(&self.node.place))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        if let Some(own) = self.own
            && let Some(entries) = self.entries(|key| fields.contains(&key))
        {
            own.borrow_mut().extend(fields);
            return visitor.visit_map(entries).map_err(|error: NodeError| error.at(&self.node.place));
        }
        self.deserialize_any(visitor).map_err(|mut error| {
            if let (Fault::UnknownKey { expected, .. }, true) = (&mut error.fault, error.path.is_empty()) {
                expected.splice(0..0, self.taken.iter().copied());
            }
            error
        })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        count: usize,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        if name != ONE_TABLE || !matches!(self.node.value, Value::Table(_)) {
            return self.deserialize_any(visitor);
        }
        let taken = self.taken.to_vec();
        visitor.visit_seq(Parts { node: self.node, taken, left: count })
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
        let missing = || <NodeError as de::Error>::missing_field(KIND).at(&self.node.place);
        match &self.node.value {
            Value::String(text) => visitor.visit_enum(Variant { name: text, content: self }),
            Value::Table(_) => {
                let kind = self.node.get(KIND).ok_or_else(missing)?;
                let name = kind.as_str().ok_or_else(|| {
                    let fault = Fault::Other("expected a string".into());
                    NodeError::new(fault).under(KIND).at(&kind.place)
                })?;
                let taken = [self.taken, &[KIND]].concat();
                let content = View { taken: &taken, ..self };
                visitor.visit_enum(Variant { name, content }).map_err(|error: NodeError| match error.fault {
                    Fault::UnknownValue { .. } if error.path.is_empty() => error.under(KIND).at(&kind.place),
                    _ => error,
                })
            }
            _ => return self.deserialize_any(visitor),
        }
        .map_err(|error: NodeError| error.at(&self.node.place))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple map identifier ignored_any
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
        seed.deserialize(View::of(item))
            .map(Some)
            .map_err(|error| error.under(label(index, item)).at(&item.place))
    }
}

/// The same table once for each of the structs that share it.
struct Parts<'de> {
    node: &'de Node,
    taken: Vec<&'static str>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Parts<'de> {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NodeError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let own = RefCell::new(Vec::new());
        let view = View { node: self.node, taken: &self.taken, own: (left > 0).then_some(&own) };
        let part = seed.deserialize(view)?;
        self.taken.extend(own.into_inner());
        Ok(Some(part))
    }
}

struct Entries<'de> {
    left: std::vec::IntoIter<&'de Entry>,
    value: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        self.value = self.left.next();
        let Some(entry) = self.value else { return Ok(None) };
        seed.deserialize(BorrowedStrDeserializer::new(&entry.key))
            .map(Some)
            .map_err(|error: NodeError| error.at(&entry.place))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        let entry = self.value.take().expect("a value follows its key");
        seed.deserialize(View::of(&entry.node))
            .map_err(|error| error.under(&*entry.key).at(&entry.node.place))
    }
}

struct Variant<'de, 'v> {
    name: &'de str,
    content: View<'de, 'v>,
}

impl<'de, 'v> EnumAccess<'de> for Variant<'de, 'v> {
    type Error = NodeError;
    type Variant = View<'de, 'v>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self::Variant), NodeError> {
        let name: StrDeserializer<'_, NodeError> = StrDeserializer::new(self.name);
        Ok((seed.deserialize(name)?, self.content))
    }
}

impl<'de> VariantAccess<'de> for View<'de, '_> {
    type Error = NodeError;

    fn unit_variant(self) -> Result<(), NodeError> {
        match self.entries(|key| key != KIND).and_then(|mut entries| entries.left.next()) {
            Some(entry) => Err(<NodeError as de::Error>::unknown_field(&entry.key, &[KIND]).at(&entry.place)),
            None => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, NodeError> {
        seed.deserialize(self)
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
