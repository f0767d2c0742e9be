//! A recipe's text as a tree that remembers where each value stands.

use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::{Place, RecipeError};

/// The key whose value names the variant of an enum that carries data.
pub const KIND: &str = "kind";

/// A value and its place.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it stands.
    pub place: Place,
    /// The value.
    pub value: Value,
}

/// What a recipe can hold.
#[derive(Debug, Clone)]
pub enum Value {
    /// Text.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A number that is finite.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A list.
    Array(Vec<Node>),
    /// A table, in its order.
    Table(Vec<Entry>),
}

/// One `key = value` of a table.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands, which for a table is its header.
    pub place: Place,
    /// The value.
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
pub fn label(index: usize, item: &Node) -> String {
    let named = item.get("name").or_else(|| item.get(KIND)).and_then(Node::as_str);
    named.map_or_else(|| (index + 1).to_string(), str::to_owned)
}

/// Whether a path's key means this element: its [`label`] or its number from 1.
pub fn is_called(key: &str, index: usize, item: &Node) -> bool {
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

/// "did you mean `x`?" where one name is near, else the list of names.
pub fn hint<'a>(found: &str, names: impl Iterator<Item = &'a str> + Clone, listing: &str) -> String {
    if let Some(near) = nearest(found, names.clone()) {
        return format!("did you mean `{near}`?");
    }
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        "there are none to choose from".into()
    } else {
        format!("{listing} {}", names.join(", "))
    }
}

/// The name most like `found`, unless none is like it at all.
pub fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
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
