//! Checks that know the place of what they check.

use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::ops::RangeBounds;

use super::RecipeError;
use super::node::Node;

/// More than anyone wants of anything that is counted, and little enough for products of three to be counted too.
pub const MOST: u64 = 1_000_000_000_000;

/// Numbers above 0.
pub const POSITIVE: (Bound<f64>, Bound<f64>) = (Excluded(0.0), Unbounded);

/// The outcome of a check.
pub type Checked = Result<(), RecipeError>;

/// Finds the place of a key, for errors.
pub struct Check<'a> {
    tree: &'a Node,
}

impl<'a> Check<'a> {
    /// Of a recipe's tree.
    pub fn new(tree: &'a Node) -> Self {
        Check { tree }
    }

    /// An error at a key, or, if the recipe does not state the key, at what surrounds it.
    pub fn error(&self, path: &[&str], message: impl Into<String>) -> RecipeError {
        let keys: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        let node = (0..=keys.len()).rev().find_map(|length| self.tree.find(&keys[..length]));
        let place = node.unwrap_or(self.tree).place.clone();
        RecipeError::Value { place, path: keys.join("."), message: message.into() }
    }

    /// Refuses what does not hold.
    pub fn that(&self, holds: bool, path: &[&str], message: impl Into<String>) -> Checked {
        if holds { Ok(()) } else { Err(self.error(path, message)) }
    }
}

/// The settings of one stage.
pub struct At<'a> {
    /// Of the whole recipe.
    pub check: &'a Check<'a>,
    /// The stage's name.
    pub stage: &'a str,
}

impl At<'_> {
    /// An error at a key of the stage, which may lie in tables of it, as in `optimizer.clip`.
    pub fn error(&self, key: &str, message: impl Into<String>) -> RecipeError {
        let path: Vec<&str> = ["stage", self.stage].into_iter().chain(key.split('.')).collect();
        self.check.error(&path, message)
    }

    /// Refuses a number out of range.
    pub fn number(&self, key: &str, value: f64, range: impl RangeBounds<f64>) -> Checked {
        if range.contains(&value) {
            return Ok(());
        }
        Err(self.error(key, format!("expected {}, found {value}", words(&range))))
    }

    /// Refuses numbers out of one range.
    pub fn numbers(&self, values: &[(&str, f64)], range: impl RangeBounds<f64> + Clone) -> Checked {
        values.iter().try_for_each(|(key, value)| self.number(key, *value, range.clone()))
    }

    /// Refuses counts that are 0 or above [`MOST`].
    pub fn positive(&self, values: &[(&str, u64)]) -> Checked {
        for (key, value) in values {
            if !(1..=MOST).contains(value) {
                return Err(self.error(key, format!("expected 1 to {MOST}, found {value}")));
            }
        }
        Ok(())
    }
}

/// "a number above 0 and at most 1".
fn words(range: &impl RangeBounds<f64>) -> String {
    let low = match range.start_bound() {
        Included(low) => Some(format!("at least {low}")),
        Excluded(low) => Some(format!("above {low}")),
        Unbounded => None,
    };
    let high = match range.end_bound() {
        Included(high) => Some(format!("at most {high}")),
        Excluded(high) => Some(format!("below {high}")),
        Unbounded => None,
    };
    let parts: Vec<String> = low.into_iter().chain(high).collect();
    format!("a number {}", parts.join(" and "))
}
