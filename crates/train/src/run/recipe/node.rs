//! A recipe's text as a tree that remembers where each value stands.
//!
//! The tree is a serde deserializer of its own, for the sake of its errors: a misspelt key is named with its
//! full path, its line and the nearest key that exists; a wrong type with what was found and what was
//! expected. It also reads `kind = "…"` tables into enums, which serde's own tagged enums could do only by
//! forgetting the lines.

use std::fmt;
use std::sync::Arc;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use toml::de::{DeTable, DeValue};

use super::{Place, RecipeError};

/// The key whose value names the variant of an enum that carries data.
pub(super) const KIND: &str = "kind";

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

/// One `key = value` of a table.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    /// Where the key stands, which for a table is its header.
    pub place: Place,
    pub node: Node,
}

impl Node {
    /// Parses a document whose values stand on the lines of a file.
    pub fn parse(file: &str, text: &str) -> Result<Node, RecipeError> {
        let lines = Lines::of(file, text);
        let table = DeTable::parse(text).map_err(|error| RecipeError::Syntax {
            place: lines.place(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', "; "),
        })?;
        let convert = Convert { place: &|offset| lines.place(offset) };
        Ok(Node { place: lines.place(0), value: convert.table(table.get_ref())? })
    }

    /// Parses the right-hand side of a `--set`: a TOML value, or, where it is none, a plain string.
    pub fn parse_set(place: &Place, text: &str) -> Result<Node, RecipeError> {
        let convert = Convert { place: &|_| place.clone() };
        match DeValue::parse(text) {
            Ok(value) => convert.node(value.span().start, value.get_ref()),
            Err(_) => Ok(Node { place: place.clone(), value: Value::String(text.to_owned()) }),
        }
    }

    /// The value under a key of this table.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
            _ => None,
        }
    }

    /// This node's text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The node that a path of keys leads to, where each key is a table's key, or an element of an array of
    /// tables by its `name` (its `kind` if it has none) or its number counted from 1. `None` if there is none.
    pub fn find(&self, path: &[String]) -> Option<&Node> {
        let Some((key, rest)) = path.split_first() else { return Some(self) };
        match &self.value {
            Value::Table(_) => self.get(key)?.find(rest),
            Value::Array(items) => {
                items.iter().enumerate().find(|(index, item)| is_called(key, *index, item))?.1.find(rest)
            }
            _ => None,
        }
    }
}

/// How an element of an array is called in a path: its name, else its kind, else its number from 1.
pub(super) fn label(index: usize, item: &Node) -> String {
    let named = item.get("name").or_else(|| item.get(KIND)).and_then(Node::as_str);
    named.map_or_else(|| (index + 1).to_string(), str::to_owned)
}

/// Whether a path's key means this element: its [`label`] or its number from 1.
pub(super) fn is_called(key: &str, index: usize, item: &Node) -> bool {
    key == label(index, item) || key.parse() == Ok(index + 1)
}

/// Byte offsets of line starts.
struct Lines {
    file: Arc<str>,
    starts: Vec<usize>,
}

impl Lines {
    fn of(file: &str, text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { file: file.into(), starts }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|&start| start <= offset);
        Place::Line { file: self.file.clone(), line }
    }
}

struct Convert<'a> {
    place: &'a dyn Fn(usize) -> Place,
}

impl Convert<'_> {
    fn node(&self, offset: usize, value: &DeValue<'_>) -> Result<Node, RecipeError> {
        let place = (self.place)(offset);
        let bad = |message: String| RecipeError::Syntax { place: place.clone(), message };
        let value = match value {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(integer) => Value::Integer(
                i64::from_str_radix(integer.as_str(), integer.radix())
                    .map_err(|_| bad(format!("the number {integer} is too large")))?,
            ),
            DeValue::Float(float) => Value::Float(
                float
                    .as_str()
                    .parse()
                    .ok()
                    .filter(|number: &f64| number.is_finite())
                    .ok_or_else(|| bad(format!("the number {float} is not finite")))?,
            ),
            DeValue::Boolean(flag) => Value::Bool(*flag),
            DeValue::Datetime(date) => {
                return Err(bad(format!("a recipe holds no dates, but here is {date}; put it into quotes")));
            }
            DeValue::Array(items) => Value::Array(
                items
                    .iter()
                    .map(|item| self.node(item.span().start, item.get_ref()))
                    .collect::<Result<_, _>>()?,
            ),
            DeValue::Table(table) => self.table(table)?,
        };
        Ok(Node { place, value })
    }

    fn table(&self, table: &DeTable<'_>) -> Result<Value, RecipeError> {
        let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = key.get_ref();
            Ok(Entry {
                key: name.to_string(),
                place: (self.place)(key.span().start),
                node: self.node(value.span().start, value.get_ref())?,
            })
        };
        Ok(Value::Table(table.iter().map(entry).collect::<Result<_, _>>()?))
    }
}

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

/// "did you mean `x`?" where one name is near, else the list of names.
pub(super) fn hint<'a>(found: &str, names: impl Iterator<Item = &'a str> + Clone, listing: &str) -> String {
    if let Some(near) = nearest(found, names.clone()) {
        return format!("did you mean `{near}`?");
    }
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "there are none to choose from".into() } else { format!("{listing} {}", names.join(", ")) }
}

/// The name most like `found`, unless none is like it at all.
pub(super) fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let score = |name: &str| {
        let (found, name) = (found.to_lowercase(), name.to_lowercase());
        let alike = strsim::jaro_winkler(&found, &name);
        // One slip of the finger is near, even in a name of three letters.
        let slip = strsim::damerau_levenshtein(&found, &name) == 1 && name.len() > 1;
        if slip { alike.max(0.95) } else { alike }
    };
    names
        .map(|name| (score(name), name))
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
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
        NodeError::new(Fault::Other(format!("expected {expected}, found {}", plain(found))))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        NodeError::new(Fault::Other(format!("expected {expected}, found {}", plain(found))))
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

/// serde's words for a value, in the words of a recipe.
fn plain(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Map => "a table".into(),
        de::Unexpected::Seq => "a list".into(),
        de::Unexpected::Bool(flag) => format!("`{flag}`"),
        de::Unexpected::Signed(number) => format!("the number {number}"),
        de::Unexpected::Unsigned(number) => format!("the number {number}"),
        de::Unexpected::Float(number) => format!("the number {number}"),
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
                visitor
                    .visit_enum(Variant { name, content: self })
                    .map_err(|error: NodeError| match error.fault {
                        Fault::UnknownValue { .. } if error.path.is_empty() => error.under(KIND).at(&kind.place),
                        _ => error,
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
