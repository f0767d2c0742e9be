//! Rewards: a weighted sum of named verdicts.

use crate::verify::{Verifier, format_score};
use crate::{Error, Problem, Result};
use serde::{Deserialize, Serialize};

/// Weights of the parts of the reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Of the verifier's score.
    pub accuracy: f32,
    /// Of [`format_score`].
    pub format: f32,
}

impl Default for RewardConfig {
    /// Format is worth a tenth of a right answer: enough to learn the tags, too little to live on.
    fn default() -> RewardConfig {
        RewardConfig { accuracy: 1.0, format: 0.1 }
    }
}

impl RewardConfig {
    /// Refuses weights that are negative, not finite, or all zero.
    pub fn check(&self) -> Result<()> {
        let fine = [self.accuracy, self.format].iter().all(|w| w.is_finite() && *w >= 0.0);
        if fine && self.accuracy + self.format > 0.0 {
            return Ok(());
        }
        Err(Error::Mix(format!("reward weights {self:?} must be non-negative and not all zero")))
    }

    /// Adds up the reward of one completion whose accuracy is already known.
    pub fn combine(&self, accuracy: f32, reason: String, completion: &str) -> Reward {
        let format = format_score(completion);
        Reward {
            total: self.accuracy * accuracy + self.format * format,
            components: [("accuracy", accuracy), ("format", format)],
            reason,
        }
    }

    /// Verifies a completion and adds up its reward.
    pub fn reward(&self, verifier: &dyn Verifier, problem: &Problem, completion: &str) -> Reward {
        let verdict = verifier.score(problem, completion);
        self.combine(verdict.score, verdict.reason, completion)
    }
}

/// What one completion earns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reward {
    /// The weighted sum.
    pub total: f32,
    /// The parts by name, before weighting, each in `0..=1`.
    pub components: [(&'static str, f32); 2],
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
        assert_eq!((right.total, right.components), (2.5, [("accuracy", 1.0), ("format", 1.0)]));
        let wrong = config.reward(&*numeric, &problem, "<think></think><answer>12345</answer>");
        assert_eq!(wrong.total, 0.5);
        assert!(RewardConfig { accuracy: f32::NAN, format: 1.0 }.check().is_err());
    }
}
