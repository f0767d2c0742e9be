//! Problems of our tasks beside those of a program, each judged by its own.

use std::collections::BTreeSet;

use super::{ByTask, Verdict, Verifier};
use crate::Problem;

/// Judges problems of some of our tasks by what those ask for, and all others by another verifier.
pub struct Beside<V> {
    /// Our tasks.
    pub tasks: BTreeSet<String>,
    /// For the others.
    pub others: V,
}

impl<V: Verifier> Beside<V> {
    fn of(&self, problem: &Problem) -> &dyn Verifier {
        if self.tasks.contains(&problem.task) { &ByTask } else { &self.others }
    }
}

impl<V: Verifier> Verifier for Beside<V> {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        self.of(problem).score(problem, completion)
    }

    fn fault(&self, problem: &Problem) -> Option<String> {
        self.of(problem).fault(problem)
    }

    fn score_batch(&self, items: &[(&Problem, &str)]) -> Vec<Verdict> {
        let is_other = |item: &&(&Problem, &str)| !self.tasks.contains(&item.0.task);
        let others: Vec<(&Problem, &str)> = items.iter().filter(is_other).copied().collect();
        let mut others = self.others.score_batch(&others).into_iter();
        let judge = |item: &(&Problem, &str)| match is_other(&item) {
            true => others.next().unwrap_or_else(|| Verdict::wrong("the verifier gave no verdict")),
            false => ByTask.score(item.0, item.1),
        };
        items.iter().map(judge).collect()
    }

    fn failures(&self) -> Option<(u64, String)> {
        self.others.failures()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, Split, Style, corpus, task};

    /// Says that everything is wrong, in the order asked.
    struct No;

    impl Verifier for No {
        fn score(&self, problem: &Problem, _: &str) -> Verdict {
            Verdict::wrong(problem.task.clone())
        }
    }

    #[test]
    fn each_problem_goes_to_its_own_verifier() {
        let ours = task("arithmetic").unwrap().problem(Split::Train, 1, 2, &Level::default());
        let right = corpus::completion(&ours, Style::Careful, 1);
        let theirs = |name: &str| Problem { task: name.into(), ..ours.clone() };
        let (a, b) = (theirs("a"), theirs("b"));
        let both = Beside { tasks: BTreeSet::from(["arithmetic".to_owned()]), others: No };
        let verdicts = both.score_batch(&[(&a, &right), (&ours, &right), (&b, &right)]);
        let found: Vec<(f32, &str)> = verdicts.iter().map(|v| (v.score, v.reason.as_str())).collect();
        assert!(found[0] == (0.0, "a") && found[1].0 == 1.0 && found[2] == (0.0, "b"), "{found:?}");
        assert_eq!(both.score(&ours, &right).score, 1.0);
    }
}
