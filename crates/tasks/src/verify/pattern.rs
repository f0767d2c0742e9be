//! Answers described by a regular expression.

use super::{Verdict, Verifier, with_answer};
use crate::Problem;
use regex::{Regex, RegexBuilder};

/// Right when the whole answer matches `meta.pattern`, or the problem's answer taken as a pattern.
///
/// Matching takes time linear in the answer, whatever the pattern; a pattern that compiles to more than a
/// megabyte is refused.
pub struct Pattern;

/// The longest pattern, in bytes.
const LONGEST: usize = 10_000;

impl Verifier for Pattern {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        with_answer(completion, |answer| match regex(problem) {
            Ok(regex) if regex.is_match(answer) => Verdict::right(),
            Ok(_) => Verdict::wrong("the answer does not match the pattern"),
            Err(fault) => Verdict::wrong(fault),
        })
    }

    fn fault(&self, problem: &Problem) -> Option<String> {
        regex(problem).err()
    }
}

fn regex(problem: &Problem) -> Result<Regex, String> {
    let pattern = problem.meta["pattern"].as_str().unwrap_or(problem.answer.trim());
    if pattern.is_empty() {
        return Err("the problem has no pattern".into());
    }
    // The parser takes a hundred times the pattern's length.
    if pattern.len() > LONGEST {
        return Err(format!("the problem's pattern has {} bytes, expected at most {LONGEST}", pattern.len()));
    }
    let whole = format!(r"\A(?:{pattern})\z");
    RegexBuilder::new(&whole).size_limit(1 << 20).build().map_err(|e| {
        let text = e.to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        format!("the problem's pattern is broken: {}", words.join(" "))
    })
}
