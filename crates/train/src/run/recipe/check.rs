//! Checks that know the place of what they check.

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::ops::RangeBounds;

use super::node::{self, Node};
use super::stage::Stage;
use super::{Recipe, RecipeError, is_path};

/// More than anyone wants of anything that is counted, and little enough for products of three to be counted too.
pub(super) const MOST: u64 = 1_000_000_000_000;

/// The outcome of a check.
pub(super) type Checked = Result<(), RecipeError>;

/// Finds the place of a key, for errors.
pub(super) struct Check<'a> {
    tree: &'a Node,
}

impl<'a> Check<'a> {
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

    pub fn that(&self, holds: bool, path: &[&str], message: impl Into<String>) -> Checked {
        if holds { Ok(()) } else { Err(self.error(path, message)) }
    }
}

/// The settings of one stage.
pub(super) struct At<'a> {
    pub check: &'a Check<'a>,
    pub stage: &'a str,
}

impl At<'_> {
    pub fn error(&self, key: &str, message: impl Into<String>) -> RecipeError {
        let path: Vec<&str> = ["stage", self.stage].into_iter().chain(key.split('.')).collect();
        self.check.error(&path, message)
    }

    pub fn number(&self, key: &str, value: f64, range: impl RangeBounds<f64>) -> Checked {
        if range.contains(&value) {
            return Ok(());
        }
        Err(self.error(key, format!("expected {}, found {value}", words(&range))))
    }

    pub fn numbers(&self, values: &[(&str, f64)], range: impl RangeBounds<f64> + Clone) -> Checked {
        values.iter().try_for_each(|(key, value)| self.number(key, *value, range.clone()))
    }

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

/// The stages before one, which it may refer to.
pub(super) struct Earlier<'a> {
    pub recipe: &'a Recipe,
    pub stages: &'a [Stage],
    pub at: &'a At<'a>,
}

impl Earlier<'_> {
    /// Checks that `name` is a path, a name in `also`, or an earlier stage that satisfies `suits`.
    pub fn refers(
        &self,
        key: &str,
        name: &str,
        what: &str,
        suits: fn(&Stage) -> bool,
        also: &[&str],
    ) -> Checked {
        if name.is_empty() {
            return Err(self
                .at
                .error(key, format!("no earlier stage makes {what}; name a stage or a folder")));
        }
        if is_path(name) || also.contains(&name) {
            return Ok(());
        }
        if self.stages.iter().any(|stage| stage.name() == name && suits(stage)) {
            return Ok(());
        }
        let message = match self.recipe.stage(name) {
            Some(stage) if !suits(stage) => {
                format!("`{name}` is a {} stage and makes no {}", stage.kind(), what.trim_start_matches("a "))
            }
            Some(_) => format!("the stage `{name}` comes later; a stage builds on earlier ones"),
            None => {
                let names = self.stages.iter().filter(|stage| suits(stage)).map(Stage::name);
                let hint = node::hint(name, names.chain(also.iter().copied()), "there are");
                format!("no earlier stage is called `{name}`; {hint} (a folder's path holds a `/`)")
            }
        };
        Err(self.at.error(key, message))
    }

    pub fn model(&self, key: &str, name: &str) -> Checked {
        self.refers(key, name, "a model", Stage::makes_model, &[])
    }

    pub fn traces(&self, key: &str, name: &str) -> Checked {
        self.refers(key, name, "traces", |stage| matches!(stage, Stage::Reject(_)), &[])
    }

    pub fn config(&self, key: &str, name: &str) -> Checked {
        if self.recipe.models.contains_key(name) {
            return Ok(());
        }
        let hint = node::hint(
            name,
            self.recipe.models.keys().map(String::as_str).collect::<Vec<_>>().into_iter(),
            "there are",
        );
        Err(self.at.error(key, format!("`[models]` has no `{name}`; {hint}")))
    }
}
