//! Answers described by a regular expression.

use super::{Verdict, Verifier, with_answer};
use crate::Problem;
use regex::RegexBuilder;

/// Right when the whole answer matches `meta.pattern`, or the problem's answer taken as a pattern.
///
/// Matching takes time linear in the answer, whatever the pattern; a pattern that compiles to more than a
/// megabyte is refused.
pub struct Pattern;

impl Verifier for Pattern {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        with_answer(completion, |answer| {
            let pattern = problem.meta["pattern"].as_str().unwrap_or(problem.answer.trim());
            if pattern.is_empty() {
                return Verdict::wrong("the problem has no pattern");
            }
            match RegexBuilder::new(&format!(r"\A(?:{pattern})\z")).size_limit(1 << 20).build() {
                Ok(regex) if regex.is_match(answer) => Verdict::right(),
                Ok(_) => Verdict::wrong("the answer does not match the pattern"),
                Err(e) => Verdict::wrong(format!("the problem's pattern is broken: {e}")),
            }
        })
    }
}
