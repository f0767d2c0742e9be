//! The verifier that each problem asks for: its own `verifier` key, else its task's, else `exact`.

use super::{Verdict, Verifier, verifier};
use crate::{Problem, task};

/// Judges every problem by its own verifier, so that one verifier serves a mix.
pub struct ByTask;

impl Verifier for ByTask {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        match of(problem) {
            Ok(verifier) => verifier.score(problem, completion),
            Err(fault) => Verdict::wrong(fault),
        }
    }

    fn fault(&self, problem: &Problem) -> Option<String> {
        of(problem).map_or_else(Some, |verifier| verifier.fault(problem))
    }
}

fn of(problem: &Problem) -> Result<Box<dyn Verifier>, String> {
    let of_task = || task(&problem.task).map_or("exact", |t| t.verifier());
    match problem.verifier.as_deref().unwrap_or_else(of_task) {
        "task" => Err("the problem names the verifier `task`, which asks the problem".into()),
        name => verifier(name).map_err(|e| e.to_string()),
    }
}
