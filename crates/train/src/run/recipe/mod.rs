//! Recipes: what a run does, stage by stage, as one TOML file.
//!
//! A [`Recipe`] is checked when it is read: unknown keys, wrong types, references that lead nowhere and
//! numbers out of range are errors that name the file, the line and the key. What a recipe leaves out is
//! filled in, so that [`Recipe::resolved_toml`] states every setting of a run.

mod check;
mod learn;
mod node;
mod optimizer;
mod read;
mod reinforce;
mod resolve;
mod sample;
mod source;
mod stage;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use node::{Entry, Node, Value};

use crate::claims::ClaimSettings;

pub use learn::{PretrainStage, SftStage, TokenizerStage};
pub use optimizer::{Optimizer, OptimizerKind};
pub use reinforce::{GrpoStage, KlEstimate, Objective, Reward};
pub use resolve::DEFAULT_MIX;
pub use sample::{DistillMethod, DistillStage, EvalStage, RejectStage};
pub use source::{Data, Files, Problems, Source, TaskMix, Verifier, VerifierCommand};
pub use stage::{KINDS, Stage};

/// The largest recipe that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// A run: its problems, its models and its stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The run's name; by default that of the file.
    pub name: String,
    /// What all randomness of the run comes from.
    pub seed: u64,
    /// The problems to train on and to be measured by.
    pub problems: Problems,
    /// The machine, for the plan and the ledger.
    pub machine: Machine,
    /// Models that begin with random weights: a name and the content of a Hugging Face `config.json`, which
    /// the model crate checks.
    pub models: toml::Table,
    /// What happens, in this order.
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
    /// What the run is meant to show, stated before it begins.
    #[serde(rename = "claim", skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ClaimSettings>,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            name: String::new(),
            seed: 1,
            problems: Problems::default(),
            machine: Machine::default(),
            models: toml::Table::new(),
            stages: Vec::new(),
            claims: Vec::new(),
        }
    }
}

/// What the machine costs and holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// The price of one core for one hour, in dollars.
    pub price_per_core_hour: f64,
    /// Memory that the run may take, in GiB.
    pub memory_gib: f64,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { price_per_core_hour: 0.02, memory_gib: 4.0 }
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

/// What a reference of a stage (`from`, `teacher`, `student`, …) means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reference<'a> {
    /// The result of an earlier stage.
    Stage(&'a Stage),
    /// Random weights of this entry of `[models]`.
    Model(&'a toml::Table),
    /// A Hugging Face folder or a GGUF file.
    Path(&'a Path),
}

impl Recipe {
    /// Reads a recipe and applies `sets`, each `key=value`.
    pub fn load(path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
        let refuse = |source| RecipeError::Read { path: path.to_path_buf(), source };
        let not = |message| RecipeError::NotRecipe { path: path.to_path_buf(), message };
        let found = std::fs::metadata(path).map_err(refuse)?;
        if found.is_dir() {
            return Err(not("it is a folder; name the recipe's TOML file"));
        }
        if found.len() > MAX_BYTES {
            return Err(not("it is larger than 4 MiB"));
        }
        let bytes = std::fs::read(path).map_err(refuse)?;
        let text = String::from_utf8(bytes).map_err(|_| not("it is not UTF-8 text"))?;
        Recipe::parse(&path.to_string_lossy(), &text, sets)
    }

    /// Reads a recipe's text, which errors call `file`, and applies `sets`, each `key=value`.
    pub fn parse(file: &str, text: &str, sets: &[String]) -> Result<Recipe, RecipeError> {
        let mut tree = Node::parse(file, text)?;
        for set in sets {
            apply(&mut tree, set)?;
        }
        let mut recipe = Recipe::deserialize(&tree).map_err(read::NodeError::into_recipe_error)?;
        if recipe.name.is_empty() {
            let stem = Path::new(file).file_stem().unwrap_or_default();
            recipe.name = stem.to_string_lossy().into_owned();
        }
        let check = check::Check::new(&tree);
        resolve::names(&mut recipe);
        validate::names(&recipe, &check)?;
        resolve::references(&mut recipe);
        resolve::numbers(&mut recipe);
        validate::all(&recipe, &check)?;
        Ok(recipe)
    }

    /// The recipe with every setting stated, defaults included. Reading it again gives the same recipe.
    pub fn resolved_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only what TOML can state")
    }

    /// The stage of this name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name() == name)
    }

    /// What a stage's reference means. An earlier stage comes before an entry of `[models]` of the same name.
    pub fn reference<'a>(&'a self, name: &'a str) -> Reference<'a> {
        if let Some(stage) = self.stage(name) {
            return Reference::Stage(stage);
        }
        match self.models.get(name).and_then(toml::Value::as_table) {
            Some(config) => Reference::Model(config),
            None => Reference::Path(Path::new(name)),
        }
    }

    /// An earlier stage and all stages that it is built on, directly or not.
    pub fn lineage<'a>(&'a self, name: &'a str) -> BTreeSet<&'a str> {
        let (mut found, mut open) = (BTreeSet::new(), vec![name]);
        while let Some(name) = open.pop() {
            if let Some(stage) = self.stage(name)
                && found.insert(stage.name())
            {
                open.extend(stage.built_on());
            }
        }
        found
    }

    /// Whether any stage draws from the problems.
    pub fn draws_problems(&self) -> bool {
        self.stages.iter().any(Stage::draws_problems)
    }
}

/// Whether a reference is a path and not a name.
fn is_path(reference: &str) -> bool {
    reference.contains(['/', '\\'])
}

/// Applies one `key=value` to the tree.
fn apply(tree: &mut Node, set: &str) -> Result<(), RecipeError> {
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
