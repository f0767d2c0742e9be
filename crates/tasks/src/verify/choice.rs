//! Multiple choice: one letter from A to E.

use super::{Verdict, Verifier, with_answer};
use crate::Problem;

/// Right when the answer names the problem's letter: `B`, `b`, `(B)`, `B)` or `B.`, and nothing more.
pub struct Choice;

const NO_LETTER: &str = "the problem's own answer is no letter from A to E";

/// The letter that `text` consists of, with one pair of parentheses or one closing sign allowed.
fn letter(text: &str) -> Option<char> {
    let text = text.trim();
    let inner = text.strip_prefix('(').and_then(|t| t.strip_suffix(')'));
    let inner = inner.or_else(|| text.strip_suffix([')', '.', ':'])).unwrap_or(text);
    let mut chars = inner.chars();
    let letter = chars.next()?.to_ascii_uppercase();
    (chars.next().is_none() && ('A'..='E').contains(&letter)).then_some(letter)
}

impl Verifier for Choice {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        with_answer(completion, |answer| match (letter(answer), letter(&problem.answer)) {
            (_, None) => Verdict::wrong(NO_LETTER),
            (None, _) => Verdict::wrong("the answer is not one letter from A to E"),
            (Some(given), Some(wanted)) if given == wanted => Verdict::right(),
            (_, Some(wanted)) => Verdict::wrong(format!("expected {wanted}")),
        })
    }

    fn fault(&self, problem: &Problem) -> Option<String> {
        letter(&problem.answer).is_none().then(|| NO_LETTER.into())
    }
}
