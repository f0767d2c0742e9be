//! Recipes: what a run does, stage by stage, as one TOML file.
//!
//! A [`Recipe`] is checked when it is read: unknown keys, wrong types, references that lead nowhere and
//! numbers out of range are errors that name the file, the line and the key. What a recipe leaves out is
//! filled in, so that [`Recipe::resolved_toml`] states every setting of a run.

mod resolve;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::claims::ClaimSettings;
use crate::context::Machine;
use crate::settings::check::Check;
use crate::settings::{self, Node};
use crate::source::Problems;
use crate::stages::{NamedStage, is_path};
use crate::team::Parallel;

pub use crate::settings::RecipeError;
pub use resolve::DEFAULT_MIX;

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
    /// How a step is divided, among ranks or in time.
    pub parallel: Parallel,
    /// Models that begin with random weights: a name and the content of a Hugging Face `config.json`, which
    /// the model crate checks.
    pub models: toml::Table,
    /// What happens, in this order.
    #[serde(rename = "stage")]
    pub stages: Vec<NamedStage>,
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
            parallel: Parallel::default(),
            models: toml::Table::new(),
            stages: Vec::new(),
            claims: Vec::new(),
        }
    }
}

/// What a reference of a stage (`from`, `teacher`, `student`, …) means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reference<'a> {
    /// The result of an earlier stage.
    Stage(&'a NamedStage),
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
            settings::apply(&mut tree, set)?;
        }
        let mut recipe: Recipe = settings::read(&tree)?;
        if recipe.name.is_empty() {
            let stem = Path::new(file).file_stem().unwrap_or_default();
            recipe.name = stem.to_string_lossy().into_owned();
        }
        recipe.stages.iter_mut().for_each(NamedStage::state_name);
        let check = Check::new(&tree);
        validate::names(&recipe, &check)?;
        resolve::all(&mut recipe);
        validate::all(&recipe, &check)?;
        Ok(recipe)
    }

    /// The recipe with every setting stated, defaults included. Reading it again gives the same recipe.
    pub fn resolved_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only what TOML can state")
    }

    /// The stage of this name.
    pub fn stage(&self, name: &str) -> Option<&NamedStage> {
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

    /// Whether a model is a folder or a file from outside of the run, or is built on one.
    pub fn is_from_outside(&self, name: &str) -> bool {
        is_path(name)
            || self
                .lineage(name)
                .iter()
                .any(|n| self.stage(n).is_some_and(|s| s.built_on().iter().any(|on| is_path(on))))
    }

    /// How many stages of its own kind a stage is built on: each of them has drawn problems of its own.
    pub fn rounds_before(&self, name: &str) -> u64 {
        let kind = |name: &str| self.stage(name).map(|stage| stage.kind());
        self.lineage(name).into_iter().filter(|other| *other != name && kind(other) == kind(name)).count()
            as u64
    }

    /// Whether any stage draws from the problems.
    pub fn draws_problems(&self) -> bool {
        self.stages.iter().any(|stage| stage.draws_problems())
    }
}
