//! Rewards: a weighted sum of named verdicts.

use crate::Problem;
use crate::verify::Verifier;
use serde::{Deserialize, Serialize};

/// Weights of the parts of the reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// For the verifier's score.
    pub accuracy: f64,
    /// For keeping to the form of an answer, as [`Verifier::form`] has it.
    pub format: f64,
}

impl Default for RewardConfig {
    /// Format is worth a tenth of a right answer: enough to learn the tags, too little to live on.
    fn default() -> RewardConfig {
        RewardConfig { accuracy: 1.0, format: 0.1 }
    }
}

impl RewardConfig {
    /// Adds up the reward of one completion from its accuracy and its form.
    pub fn combine(&self, accuracy: f32, reason: String, format: f32) -> Reward {
        Reward {
            total: self.accuracy as f32 * accuracy + self.format as f32 * format,
            accuracy,
            format,
            reason,
        }
    }

    /// Verifies a completion and adds up its reward.
    pub fn reward(&self, verifier: &dyn Verifier, problem: &Problem, completion: &str) -> Reward {
        let verdict = verifier.score(problem, completion);
        self.combine(verdict.score, verdict.reason, verifier.form(completion))
    }
}

/// What one completion earns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reward {
    /// The weighted sum.
    pub total: f32,
    /// The verifier's score, before weighting, in `0..=1`.
    pub accuracy: f32,
    /// What [`Verifier::form`] gives, before weighting, in `0..=1`.
    pub format: f32,
    /// The verifier's reason.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, Split, Style, corpus, task, verifier};

    #[test]
    fn parts_are_weighted_and_named() {
        let problem = task("arithmetic").unwrap().problem(Split::Train, 1, 2, &Level::default());
        let numeric = verifier("numeric").unwrap();
        let config = RewardConfig { accuracy: 2.0, format: 0.5 };
        let right = config.reward(&*numeric, &problem, &corpus::completion(&problem, Style::Careful, 1));
        assert_eq!((right.total, right.accuracy, right.format), (2.5, 1.0, 1.0));
        let wrong = config.reward(&*numeric, &problem, "<think></think><answer>12345</answer>");
        assert_eq!(wrong.total, 0.5);
    }
}
