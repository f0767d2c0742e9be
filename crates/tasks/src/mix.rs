//! A weighted mix of tasks.

use crate::rng::{Rng, hash_text};
use crate::{Error, Level, Problem, Result, Split, task};
use serde::{Deserialize, Serialize};

/// One task of a mix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixEntry {
    /// A name that [`task`] knows.
    pub task: String,
    /// Its share, relative to the other entries' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// Its difficulty.
    #[serde(default)]
    pub level: Level,
}

fn one() -> f64 {
    1.0
}

/// A checked list of tasks with weights: problem `index` of a seed is always the same problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<MixEntry>", into = "Vec<MixEntry>")]
pub struct Mix {
    entries: Vec<MixEntry>,
}

impl TryFrom<Vec<MixEntry>> for Mix {
    type Error = Error;
    fn try_from(entries: Vec<MixEntry>) -> Result<Mix> {
        Mix::new(entries)
    }
}

impl From<Mix> for Vec<MixEntry> {
    fn from(mix: Mix) -> Self {
        mix.entries
    }
}

impl Mix {
    /// Checks names, weights and levels.
    pub fn new(entries: Vec<MixEntry>) -> Result<Mix> {
        if entries.is_empty() {
            return Err(Error::Mix("it has no entries; give at least one task".into()));
        }
        for entry in &entries {
            task(&entry.task)?.check(&entry.level)?;
            if !(entry.weight.is_finite() && entry.weight > 0.0) {
                let what = format!("the weight of `{}` is {} and must be positive", entry.task, entry.weight);
                return Err(Error::Mix(what));
            }
        }
        Ok(Mix { entries })
    }

    /// The launch mix: arithmetic, Countdown and word problems in equal shares at their default difficulty.
    pub fn launch() -> Mix {
        let entry = |task: &str| MixEntry { task: task.into(), weight: 1.0, level: Level::default() };
        Mix { entries: vec![entry("arithmetic"), entry("countdown"), entry("word")] }
    }

    /// The entries, as checked.
    pub fn entries(&self) -> &[MixEntry] {
        &self.entries
    }

    /// The problem at `index`: the task drawn by weight, the problem drawn by the task.
    pub fn problem(&self, split: Split, seed: u64, index: u64) -> Problem {
        let total: f64 = self.entries.iter().map(|e| e.weight).sum();
        let mut at = Rng::new(&[seed, index, hash_text("mix")]).unit() * total;
        let chosen = self.entries.iter().find(|e| {
            at -= e.weight;
            at < 0.0
        });
        let entry = chosen.unwrap_or(&self.entries[self.entries.len() - 1]);
        let task = task(&entry.task).expect("Mix::new checked the name");
        task.problem(split, seed, index, &entry.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_decide_the_shares() {
        let mut entries = Mix::launch().entries().to_vec();
        entries[0].weight = 3.0;
        let mix = Mix::new(entries).unwrap();
        let n = (0..5000).filter(|&i| mix.problem(Split::Train, 1, i).task == "arithmetic").count();
        assert!((2850..3150).contains(&n), "{n} of 5000 where 3000 are expected");
    }

    /// A recipe's typo must not silently train on something else.
    #[test]
    fn mistakes_are_named() {
        let parse = |text: &str| serde_json::from_str::<Mix>(text).unwrap_err().to_string();
        assert!(parse(r#"[{"task":"arithmetics"}]"#).contains("did you mean `arithmetic`?"));
        assert!(parse(r#"[{"task":"countdown","level":{"digits":2}}]"#).contains("`digits` means nothing"));
        assert!(parse(r#"[{"task":"arithmetic","level":{"digts":2}}]"#).contains("unknown field `digts`"));
        assert!(parse(r#"[{"task":"arithmetic","level":{"digits":40}}]"#).contains("must lie in"));
        assert!(parse(r#"[{"task":"arithmetic","weight":-1}]"#).contains("must be positive"));
        assert!(parse("[]").contains("no entries"));
    }
}
