//! The answer's text itself, blanks aside.

use super::{Verdict, Verifier, with_answer};
use crate::Problem;

/// Right when the answer equals the problem's, runs of blanks counting as one.
pub struct Exact;

impl Verifier for Exact {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        with_answer(completion, |answer| {
            let same = answer.split_whitespace().eq(problem.answer.split_whitespace());
            if same {
                Verdict::right()
            } else {
                Verdict::wrong(format!("expected {}", problem.answer.trim()))
            }
        })
    }
}
