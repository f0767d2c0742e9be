//! What a stage of a recipe may refer to: the stages before it, models with random weights, folders.

use crate::settings::check::{At, Checked};
use crate::settings::node::hint;
use crate::source::Problems;

/// What comes out of a stage, for those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Makes {
    /// A tokenizer.
    Tokenizer,
    /// A model with its tokenizer.
    Model,
    /// Conversations to learn from.
    Traces,
    /// Nothing but figures.
    Figures,
}

impl Makes {
    /// Whether a tokenizer is among it.
    pub fn tokenizes(self) -> bool {
        matches!(self, Makes::Tokenizer | Makes::Model)
    }
}

/// Whether a reference is a path and not a name.
pub fn is_path(reference: &str) -> bool {
    reference.contains(['/', '\\'])
}

/// A stage as the others see it.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// What comes out of it.
    pub makes: Makes,
}

/// The stages before one, and whatever else it may refer to.
#[derive(Clone, Copy)]
pub struct Earlier<'a> {
    /// All stages of the recipe.
    pub all: &'a [Outline],
    /// How many of them come before.
    pub before: usize,
    /// The names of `[models]`.
    pub models: &'a [String],
    /// The recipe's problems.
    pub problems: &'a Problems,
}

impl Earlier<'_> {
    /// The earlier stages that make something, in their order.
    pub fn that_make(&self, makes: Makes) -> impl DoubleEndedIterator<Item = &str> {
        self.all[..self.before].iter().filter(move |s| s.makes == makes).map(|s| s.name.as_str())
    }

    /// The last earlier stage that makes something; empty if there is none.
    pub fn last(&self, makes: Makes) -> String {
        self.that_make(makes).next_back().unwrap_or_default().to_owned()
    }

    /// Gives a reference that is not stated to the last earlier stage that makes something.
    pub fn fill(&self, reference: &mut String, makes: Makes) {
        if reference.is_empty() {
            *reference = self.last(makes);
        }
    }

    /// Checks that `name` is a path, a name in `also`, or an earlier stage that satisfies `suits`.
    pub fn refers(
        &self,
        at: &At,
        key: &str,
        name: &str,
        what: &str,
        suits: fn(Makes) -> bool,
        also: &[String],
    ) -> Checked {
        if name.is_empty() {
            let message = format!("no earlier stage makes {what}; name a stage or a folder");
            return Err(at.error(key, message));
        }
        let earlier = &self.all[..self.before];
        let also_there = also.iter().any(|other| other == name);
        if is_path(name) || also_there || earlier.iter().any(|stage| stage.name == name && suits(stage.makes))
        {
            return Ok(());
        }
        let message = match self.all.iter().find(|stage| stage.name == name) {
            Some(stage) if !suits(stage.makes) => {
                format!("`{name}` is a {} stage and makes no {}", stage.kind, what.trim_start_matches("a "))
            }
            Some(_) => format!("the stage `{name}` comes later; a stage builds on earlier ones"),
            None => {
                let names = earlier.iter().filter(|stage| suits(stage.makes)).map(|stage| &stage.name);
                let hint = hint(name, names.chain(also).map(String::as_str), "there are");
                format!("no earlier stage is called `{name}`; {hint} (a folder's path holds a `/`)")
            }
        };
        Err(at.error(key, message))
    }

    /// Checks that `name` is an earlier stage that makes a model, or a path.
    pub fn model(&self, at: &At, key: &str, name: &str) -> Checked {
        self.refers(at, key, name, "a model", |makes| makes == Makes::Model, &[])
    }

    /// Checks that `name` is an earlier stage that makes traces, or a path.
    pub fn traces(&self, at: &At, key: &str, name: &str) -> Checked {
        self.refers(at, key, name, "traces", |makes| makes == Makes::Traces, &[])
    }

    /// Refuses a mix of a stage's own where it learns the recipe's few worked solutions.
    pub fn check_few_solved(&self, at: &At, has_mix: bool) -> Checked {
        if has_mix && self.problems.solved.is_some() {
            let message =
                "`problems.solved` says which worked solutions there are: those of the recipe's mix";
            return Err(at.error("mix", message));
        }
        Ok(())
    }

    /// Checks that `name` is one of `[models]`.
    pub fn config(&self, at: &At, key: &str, name: &str) -> Checked {
        if self.models.iter().any(|other| other == name) {
            return Ok(());
        }
        let hint = hint(name, self.models.iter().map(String::as_str), "there are");
        Err(at.error(key, format!("`[models]` has no `{name}`; {hint}")))
    }
}
