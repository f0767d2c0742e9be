//! What a problem is, how hard it is, and what a task must be able to do.

use crate::rng::{Rng, hash_text};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One problem with a checkable answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// The task it came from; `user` for problems from a file.
    #[serde(default = "user_task")]
    pub task: String,
    /// What the model is asked, without any chat template.
    pub prompt: String,
    /// What it is told before, as the system's turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// A right answer (the verifier decides which others are right too).
    #[serde(default)]
    pub answer: String,
    /// What the task's worked solution and the verifier need, for example `{"numbers":[6,25,4],"target":46}`.
    #[serde(default)]
    pub meta: Value,
    /// The verifier to use, where it is not the task's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier: Option<String>,
    /// The reasoning that leads to `answer`, where the problem brings its own; built-in tasks write theirs when asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solution: Option<String>,
}

fn user_task() -> String {
    "user".to_owned()
}

/// The two halves of a task's content space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Nine in ten of the contents.
    Train,
    /// One in ten; no training text ever shows one of these.
    HeldOut,
}

impl Split {
    /// The half that a problem with this canonical content belongs to. Equal contents land in the same half
    /// whatever the seed, so train and held-out cannot meet.
    pub fn of(task: &str, content: &str) -> Split {
        if hash_text(&format!("{task}\n{content}")).is_multiple_of(10) {
            Split::HeldOut
        } else {
            Split::Train
        }
    }
}

/// How a worked solution is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Every small computation is written down.
    Careful,
    /// Results are stated without the work: right on paper, and out of reach of a small model's head.
    Hurried,
}

/// Difficulty parameters. A key that is absent takes the task's own default, which is the launch mix's difficulty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Terms in an arithmetic chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operands: Option<u32>,
    /// Digits of each operand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digits: Option<u32>,
    /// Whether one term of the chain is a product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<bool>,
    /// How many numbers (Countdown, sorting).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numbers: Option<u32>,
    /// The largest number that a problem may name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_number: Option<u32>,
    /// The largest Countdown target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_target: Option<u32>,
    /// The most steps of a word problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Share of word problems with a sentence that does not matter, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distractors: Option<f64>,
}

impl Level {
    /// The keys that are set, with their values as JSON.
    pub fn set_keys(&self) -> Vec<(String, Value)> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map.into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

/// A key of [`Level`] that a task reads, with the values it accepts (for `times`: 0 or 1).
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The field of [`Level`].
    pub name: &'static str,
    /// Smallest accepted value.
    pub min: f64,
    /// Largest accepted value.
    pub max: f64,
}

/// A source of problems with worked solutions.
///
/// # Adding one
/// A file under `problems/` with a type that implements this, and its line in `problems/mod.rs`.
pub trait Task: Send + Sync {
    /// The name in recipes.
    fn name(&self) -> &'static str;

    /// One line for `--help` and the report.
    fn describe(&self) -> &'static str;

    /// The difficulty parameters that this task reads.
    fn keys(&self) -> &'static [Key];

    /// The problem at `index`: a pure function of its arguments.
    ///
    /// # Panics
    /// When `level` fails [`Task::check`].
    fn problem(&self, split: Split, seed: u64, index: u64, level: &Level) -> Problem;

    /// The reasoning (without tags) that leads to `p.answer`, ending just before the answer. `seed` varies what
    /// may vary, such as the order of a search.
    fn solution(&self, p: &Problem, style: Style, seed: u64) -> String;

    /// The name of the verifier for this task's answers.
    fn verifier(&self) -> &'static str;

    /// What makes two problems of this task the same, whatever their wording: the text that [`Split::of`] hashes.
    fn content(&self, p: &Problem) -> String;

    /// Refuses keys that this task does not read and values outside of its range.
    fn check(&self, level: &Level) -> Result<()> {
        let fail = |what| Err(Error::Level { task: self.name().to_owned(), what });
        for (name, value) in level.set_keys() {
            let Some(key) = self.keys().iter().find(|k| k.name == name) else {
                let known: Vec<_> = self.keys().iter().map(|k| k.name).collect();
                return fail(format!(
                    "`{name}` means nothing to this task, which reads {}",
                    known.join(", ")
                ));
            };
            let number = value.as_f64().unwrap_or(f64::from(u8::from(value == Value::Bool(true))));
            if !(key.min..=key.max).contains(&number) {
                return fail(format!("`{name}` is {value} and must lie in {}..={}", key.min, key.max));
            }
        }
        Ok(())
    }
}

/// Draws candidates until one falls into `split`: the one place where the split is enforced.
///
/// # Panics
/// After 100,000 candidates, which means that the level leaves almost no contents.
pub(crate) fn draw<T: Task + ?Sized>(
    task: &T,
    split: Split,
    seed: u64,
    index: u64,
    mut candidate: impl FnMut(&mut Rng) -> Option<Problem>,
) -> Problem {
    let mut rng = Rng::new(&[seed, index, hash_text(task.name()), split as u64]);
    for _ in 0..100_000 {
        if let Some(problem) = candidate(&mut rng)
            && Split::of(task.name(), &task.content(&problem)) == split
        {
            return problem;
        }
    }
    panic!("task `{}`: no problem of {split:?} found at this level", task.name())
}

/// `meta[key]` as a list of integers; empty when it is not one.
pub(crate) fn meta_numbers(p: &Problem, key: &str) -> Vec<i64> {
    p.meta[key].as_array().map(|list| list.iter().filter_map(Value::as_i64).collect()).unwrap_or_default()
}
