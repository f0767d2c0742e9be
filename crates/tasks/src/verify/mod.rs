//! Verifiers: (problem, completion) in, a score in `0..=1` and a reason out.
//!
//! All but `format` look at the completion's one answer only. A completion without exactly one answer, or with an
//! empty one, scores zero before any verifier sees it.

mod beside;
mod by_task;
mod choice;
mod exact;
mod expression;
pub mod external;
mod format;
pub mod http;
mod number;
mod numeric;
mod pattern;
mod place;
mod rational;
mod style;

pub use beside::Beside;
pub use by_task::ByTask;
pub use choice::Choice;
pub use exact::Exact;
pub use expression::{Expression, evaluate};
pub use format::{Format, answer_of, format_score};
pub use number::Number;
pub use numeric::Numeric;
pub use pattern::Pattern;
pub use place::{AnswerPlace, placed};
pub use rational::Rational;
pub use style::{MostWords, Script};

use crate::{Error, Problem, Result};
use serde::Serialize;
use std::borrow::Cow;

/// What a verifier says of one completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// From 0, wrong, to 1, right.
    pub score: f32,
    /// Why, in a few words.
    pub reason: String,
}

impl Verdict {
    /// Score 1.
    pub fn right() -> Verdict {
        Verdict { score: 1.0, reason: "right".into() }
    }

    /// Score 0, with the reason.
    pub fn wrong(reason: impl Into<String>) -> Verdict {
        Verdict { score: 0.0, reason: reason.into() }
    }
}

/// Judges completions.
///
/// # Adding one
/// A file under `verify/` with a type that implements this, and its line in [`verifier`]'s table.
pub trait Verifier: Send + Sync {
    /// Judges one completion. Never panics, whatever the completion.
    fn score(&self, problem: &Problem, completion: &str) -> Verdict;

    /// What keeps every completion of this problem from scoring, if something does: a fault of the problem.
    fn fault(&self, problem: &Problem) -> Option<String> {
        let _ = problem;
        None
    }

    /// Judges many, in order; a verifier with workers does so in parallel.
    fn score_batch(&self, items: &[(&Problem, &str)]) -> Vec<Verdict> {
        items.iter().map(|(problem, completion)| self.score(problem, completion)).collect()
    }

    /// Answers that could not be judged so far, which scored zero, and what went wrong with them.
    fn failures(&self) -> Option<(u64, String)> {
        None
    }

    /// The answer that a completion is judged by, not empty; for counting which is given most often.
    fn answer<'a>(&self, completion: &'a str) -> Option<Cow<'a, str>> {
        AnswerPlace::Tags.find(completion)
    }

    /// From 0 to 1, how well a completion keeps the form in which answers are expected.
    fn form(&self, completion: &str) -> f32 {
        format_score(completion)
    }
}

type Make = fn() -> Box<dyn Verifier>;

/// One line for each verifier that needs no settings.
static VERIFIERS: [(&str, Make); 8] = [
    ("exact", || Box::new(Exact)),
    ("numeric", || Box::new(Numeric::default())),
    ("numeric_strict", || Box::new(Numeric { strict: true, ..Numeric::default() })),
    ("expression", || Box::new(Expression)),
    ("choice", || Box::new(Choice)),
    ("regex", || Box::new(Pattern)),
    ("format", || Box::new(Format)),
    ("task", || Box::new(ByTask)),
];

/// The verifier of this name, with its default settings; `task` takes the one that each problem asks for.
pub fn verifier(name: &str) -> Result<Box<dyn Verifier>> {
    let found = VERIFIERS.iter().find(|(n, _)| *n == name);
    found.map(|(_, make)| make()).ok_or_else(|| Error::unknown("verifier", name, &verifier_names()))
}

/// The names that [`verifier`] knows.
pub fn verifier_names() -> Vec<&'static str> {
    VERIFIERS.iter().map(|(name, _)| *name).collect()
}

/// Runs `check` on the completion's one, non-empty answer.
fn with_answer(completion: &str, check: impl FnOnce(&str) -> Verdict) -> Verdict {
    match answer_of(completion) {
        None => Verdict::wrong("there is not exactly one answer after the reasoning"),
        Some("") => Verdict::wrong("the answer is empty"),
        Some(answer) => check(answer),
    }
}

#[cfg(test)]
mod hacks;
