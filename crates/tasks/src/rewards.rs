//! Rewards: a weighted sum of named verdicts.

use crate::Problem;
use crate::verify::Verifier;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
    fn default() -> RewardConfig {
        RewardConfig::USUAL
    }
}

/// A reward beside those of [`RewardConfig`].
pub struct NamedReward {
    /// What it is called where it is logged.
    pub name: String,
    /// For its score.
    pub weight: f64,
    /// What scores a completion, all of it or the answer alone, as it likes.
    pub verifier: Arc<dyn Verifier>,
}

/// All that a completion is paid by.
pub struct Scoring<'a> {
    /// What is right.
    pub verifier: &'a dyn Verifier,
    /// For that and the form.
    pub weights: &'a RewardConfig,
    /// What counts besides.
    pub others: &'a [NamedReward],
}

impl Scoring<'_> {
    /// The rewards of many completions, in their order.
    pub fn rewards(&self, items: &[(&Problem, &str)]) -> Vec<Reward> {
        let others: Vec<_> = self.others.iter().map(|o| o.verifier.score_batch(items)).collect();
        let verdicts = self.verifier.score_batch(items);
        let reward = |(i, verdict): (usize, crate::Verdict)| {
            let mut reward =
                self.weights.combine(verdict.score, verdict.reason, self.verifier.form(items[i].1));
            for (other, verdicts) in self.others.iter().zip(&others) {
                reward.total += other.weight as f32 * verdicts[i].score;
                reward.others.push(verdicts[i].score);
            }
            reward
        };
        verdicts.into_iter().enumerate().map(reward).collect()
    }
}

impl RewardConfig {
    /// Format is worth a tenth of a right answer: enough to learn the tags, too little to live on.
    pub const USUAL: RewardConfig = RewardConfig { accuracy: 1.0, format: 0.1 };

    /// Adds up the reward of one completion from its accuracy and its form.
    fn combine(&self, accuracy: f32, reason: String, format: f32) -> Reward {
        Reward {
            total: self.accuracy as f32 * accuracy + self.format as f32 * format,
            accuracy,
            format,
            reason,
            others: Vec::new(),
        }
    }
}

/// What one completion earns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// The weighted sum.
    pub total: f32,
    /// The verifier's score, before weighting, in `0..=1`.
    pub accuracy: f32,
    /// What [`Verifier::form`] gives, before weighting, in `0..=1`.
    pub format: f32,
    /// The verifier's reason.
    pub reason: String,
    /// Of each [`NamedReward`] its score, before weighting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<f32>,
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
        let brief = NamedReward {
            name: "brief".into(),
            weight: 0.25,
            verifier: Arc::new(crate::verify::MostWords(1)),
        };
        let scoring = Scoring { verifier: &*numeric, weights: &config, others: &[brief] };
        let long = corpus::completion(&problem, Style::Careful, 1);
        let short = format!("<think></think><answer>{}</answer>", problem.answer);
        let wrong = "<think></think><answer>12345</answer>";
        let rewards = scoring.rewards(&[(&problem, &long), (&problem, &short), (&problem, wrong)]);
        assert_eq!(
            rewards.iter().map(|r| (r.total, r.accuracy, r.format, r.others[0])).collect::<Vec<_>>(),
            [(2.5, 1.0, 1.0, 0.0), (2.75, 1.0, 1.0, 1.0), (0.75, 0.0, 1.0, 1.0)]
        );
    }
}
