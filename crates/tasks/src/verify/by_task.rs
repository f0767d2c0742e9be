//! The verifier that each problem asks for: its own `verifier` key, else its task's, else `exact`.

use super::{Verdict, Verifier, verifier};
use crate::{Problem, task};

/// Judges every problem by its own verifier, so that one verifier serves a mix.
pub struct ByTask;

impl Verifier for ByTask {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        let of_task = || task(&problem.task).map_or("exact", |t| t.verifier());
        match problem.verifier.as_deref().unwrap_or_else(of_task) {
            "task" => Verdict::wrong("the problem names the verifier `task`, which asks the problem"),
            name => match verifier(name) {
                Ok(verifier) => verifier.score(problem, completion),
                Err(e) => Verdict::wrong(e.to_string()),
            },
        }
    }
}
