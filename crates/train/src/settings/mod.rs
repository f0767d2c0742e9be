//! From a recipe's text to structs, with errors that name the file, the line, the key and the nearest word.
//!
//! [`Node`] is the text as a tree that remembers where each value stands; [`read`] gives the structs, [`check`] holds
//! values against ranges, and `one_table!` lets several structs share the keys of one table.

pub mod check;
pub mod node;
mod one_or_many;
mod one_table;
mod read;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;

pub use node::Node;
use node::{Entry, Value};
pub use one_or_many::one_or_many;
pub(crate) use one_table::{ONE_TABLE, one_table};

/// A number that is not stated and whose default depends on others. What was read in full holds none, and a file cannot
/// state one.
pub const UNSET: f64 = f64::NAN;

/// Gives a number that was not stated its default.
pub fn set(number: &mut f64, default: f64) {
    if number.is_nan() {
        *number = default;
    }
}

/// Where in a recipe something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    Line {
        /// The file, as it was named.
        file: Arc<str>,
        /// The line, counted from 1.
        line: usize,
    },
    /// On the command line.
    Set(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(formatter, "{file}, line {line}"),
            Place::Set(text) => write!(formatter, "--set {text}"),
        }
    }
}

/// Why a recipe was refused.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// The file could not be read.
    #[error("cannot read the recipe {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a recipe at all.
    #[error("{}: not a recipe: {message}", path.display())]
    NotRecipe {
        /// The file.
        path: PathBuf,
        /// Why.
        message: &'static str,
    },
    /// It is not TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{path}`; {hint}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key with all keys around it.
        path: String,
        /// The nearest key, or all of them.
        hint: String,
    },
    /// A word that is none of those that a key takes.
    #[error("{place}: `{path}` cannot be {found:?}; {hint}")]
    UnknownValue {
        /// Where.
        place: Place,
        /// The key with all keys around it.
        path: String,
        /// What was found.
        found: String,
        /// The nearest word, or all of them.
        hint: String,
    },
    /// A value of the wrong type or out of range, or a reference that leads nowhere.
    #[error("{place}: `{path}`: {message}")]
    Value {
        /// Where.
        place: Place,
        /// The key with all keys around it.
        path: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A `--set` that cannot be applied.
    #[error("--set {set}: {message}")]
    Set {
        /// The argument.
        set: String,
        /// Why.
        message: String,
    },
}

/// Reads a tree into a struct.
pub fn read<'de, T: Deserialize<'de>>(tree: &'de Node) -> Result<T, RecipeError> {
    T::deserialize(read::View::of(tree)).map_err(read::NodeError::into_recipe_error)
}

/// Applies one `key=value` to the tree.
pub fn apply(tree: &mut Node, set: &str) -> Result<(), RecipeError> {
    let refuse = |message: String| RecipeError::Set { set: set.to_owned(), message };
    let Some((path, value)) = set.split_once('=') else {
        return Err(refuse("expected key=value, as in `seed=3` or `stage.grpo.steps=10`".into()));
    };
    let keys: Vec<&str> = path.trim().split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(refuse("a part of the key is empty".into()));
    }
    let place = Place::Set(set.into());
    let value = Node::parse_set(&place, value.trim())?;
    let mut target = tree;
    for (depth, key) in keys.iter().enumerate() {
        target = match &mut target.value {
            Value::Table(entries) => {
                let index = entries.iter().position(|entry| entry.key == **key).unwrap_or_else(|| {
                    let node = Node { place: place.clone(), value: Value::Table(Vec::new()) };
                    entries.push(Entry { key: (*key).to_owned(), place: place.clone(), node });
                    entries.len() - 1
                });
                &mut entries[index].node
            }
            Value::Array(items) => {
                let names: Vec<String> =
                    items.iter().enumerate().map(|(index, item)| node::label(index, item)).collect();
                let found =
                    items.iter().enumerate().position(|(index, item)| node::is_called(key, index, item));
                let Some(index) = found else {
                    let list = keys[..depth].join(".");
                    let hint = node::hint(key, names.iter().map(String::as_str), "it has");
                    return Err(refuse(format!("`{list}` has no `{key}`; {hint}")));
                };
                &mut items[index]
            }
            _ => return Err(refuse(format!("`{}` is not a table", keys[..depth].join(".")))),
        };
    }
    *target = value;
    Ok(())
}
