//! Numbers compared by value, whatever form they are written in.

use super::{Number, Verdict, Verifier, with_answer};
use crate::Problem;

/// Right when the answer is a number equal to the problem's, exactly or within a tolerance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numeric {
    /// The largest accepted distance; `meta.tolerance` of a problem takes precedence. Zero compares exactly.
    pub tolerance: f64,
    /// Whether the answer has to be in the plain form of [`Number::parse_strictly`]; the problem's own never has to.
    pub strict: bool,
}

const NO_NUMBER: &str = "the problem's own answer is not a number";

impl Verifier for Numeric {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        with_answer(completion, |answer| {
            let Some(wanted) = Number::parse(&problem.answer) else {
                return Verdict::wrong(NO_NUMBER);
            };
            let given = if self.strict { Number::parse_strictly(answer) } else { Number::parse(answer) };
            let Some(given) = given else {
                let form = if self.strict { "a plain number" } else { "a number and nothing else" };
                return Verdict::wrong(format!("the answer is not {form}"));
            };
            let tolerance = problem.meta["tolerance"].as_f64().unwrap_or(self.tolerance);
            let near = tolerance > 0.0 && (given.to_f64() - wanted.to_f64()).abs() <= tolerance;
            if given == wanted || near {
                Verdict::right()
            } else {
                Verdict::wrong(format!("expected {}", problem.answer.trim()))
            }
        })
    }

    fn fault(&self, problem: &Problem) -> Option<String> {
        Number::parse(&problem.answer).is_none().then(|| NO_NUMBER.into())
    }
}
