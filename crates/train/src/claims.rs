//! Claims: what a run is meant to show, stated in its recipe before it begins, and what came of it.
//!
//! ```toml
//! [[claim]]
//! name = "verifiers earn more than worked solutions"
//! stage = "grpo"          # what is claimed to be better
//! baseline = "more_sft"   # than what
//! figure = "pass@1"
//! equal_flops = true
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::evaluate::Outcome;
use crate::settings::one_or_many;
use crate::stats::{Estimate, leverage, ratio_paired};

/// By how much a stage may exceed its baseline's FLOPs where both are to be equal: a stage ends after a whole step.
const FLOPS_SLACK: f64 = 1.05;

/// A `[[claim]]` of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClaimSettings {
    /// What is claimed, as a sentence.
    pub name: String,
    /// The stage that is claimed to be better.
    pub stage: String,
    /// The stage, or the folder of the model, that it is compared with; for `flops`, the stages of a rival at growing FLOPs.
    #[serde(deserialize_with = "one_or_many")]
    pub baseline: Vec<String>,
    /// What the baseline is, in words for the report; by default its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// What is compared: `pass@1` (greedy), `pass@K`, `maj@K`, `held_out_loss` of two pretrain stages at the last step at
    /// which both were measured after the same documents, or `flops`: how many times the FLOPs of `stage` the rival needs
    /// for the same pass@1.
    pub figure: Figure,
    /// Whether the claim is void if the stage took more FLOPs than its baseline. They are counted from where the ways of
    /// the two part.
    pub equal_flops: bool,
    /// Stages that are there anyway, such as a teacher: neither their FLOPs nor those of what they are built on count.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<String>,
    /// What the whole interval of the ratio must lie above.
    pub above: f64,
}

impl Default for ClaimSettings {
    fn default() -> Self {
        ClaimSettings {
            name: String::new(),
            stage: String::new(),
            baseline: Vec::new(),
            against: None,
            figure: Figure::PassAt1,
            equal_flops: false,
            given: Vec::new(),
            above: 1.0,
        }
    }
}

/// What a claim compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Figure {
    /// Greedy answers that are right.
    PassAt1,
    /// Problems that one of K samples solves.
    PassAt(usize),
    /// Problems that the most common of K sampled answers solves.
    MajAt(usize),
    /// The loss on held-out documents; lower is better.
    HeldOutLoss,
    /// FLOPs to the same pass@1; lower is better.
    Flops,
}

impl Figure {
    /// Whether an evaluation with so many samples of each problem has this figure.
    pub fn is_of(self, samples: usize) -> bool {
        match self {
            Figure::PassAt(k) | Figure::MajAt(k) => samples == k,
            _ => true,
        }
    }

    /// Whether this figure of one problem is right; `None` for figures that are not of problems.
    fn of(self, outcome: &Outcome) -> Option<bool> {
        match self {
            Figure::PassAt1 | Figure::Flops => Some(outcome.greedy),
            Figure::PassAt(_) => Some(outcome.any),
            Figure::MajAt(_) => Some(outcome.majority),
            Figure::HeldOutLoss => None,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Figure::PassAt1 => f.write_str("pass@1"),
            Figure::PassAt(k) => write!(f, "pass@{k}"),
            Figure::MajAt(k) => write!(f, "maj@{k}"),
            Figure::HeldOutLoss => f.write_str("held_out_loss"),
            Figure::Flops => f.write_str("flops"),
        }
    }
}

impl From<Figure> for String {
    fn from(figure: Figure) -> String {
        figure.to_string()
    }
}

impl FromStr for Figure {
    type Err = String;

    fn from_str(text: &str) -> Result<Figure, String> {
        let at = |prefix| text.strip_prefix(prefix).and_then(|k: &str| k.parse().ok()).filter(|k| *k > 1);
        match text {
            "pass@1" => Ok(Figure::PassAt1),
            "held_out_loss" => Ok(Figure::HeldOutLoss),
            "flops" => Ok(Figure::Flops),
            _ => at("pass@").map(Figure::PassAt).or(at("maj@").map(Figure::MajAt)).ok_or_else(|| {
                format!(
                    "expected \"pass@1\", \"pass@8\", \"maj@8\", \"held_out_loss\" or \"flops\", found {text:?}"
                )
            }),
        }
    }
}

impl TryFrom<String> for Figure {
    type Error = String;

    fn try_from(text: String) -> Result<Figure, String> {
        text.parse()
    }
}

/// What came of a claim, as a ratio oriented so that the claim holds above 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// What is claimed, as a sentence.
    pub name: String,
    /// Against what.
    pub baseline: String,
    /// The ratio.
    pub ratio: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// The upper end of its 95 % interval.
    pub high: f64,
    /// Whether the whole interval lies above what it must, at FLOPs that are equal where they must be.
    pub shown: bool,
    /// What was compared.
    pub figure: Figure,
    /// FLOPs of the stage and of its baseline since their ways parted, where they were counted.
    pub flops: Option<u64>,
    /// The baseline's; of several, the largest.
    pub baseline_flops: Option<u64>,
    /// Whether the claim is void because the stage took more FLOPs than its baseline.
    pub over_budget: bool,
}

impl Claim {
    /// Whether the whole interval lies below 1: the measurement says the opposite.
    pub fn refuted(&self) -> bool {
        self.high < 1.0
    }
}

/// One side of a comparison of answers.
pub struct Side<'a> {
    /// Its answers to the problems, which are the same for all sides.
    pub outcomes: &'a [Outcome],
    /// FLOPs since the ways parted.
    pub flops: u64,
}

impl ClaimSettings {
    /// The stages that are compared, the one that is claimed to be better first.
    pub fn sides(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.stage).chain(&self.baseline).map(String::as_str)
    }

    /// What the baseline is, in words.
    fn against(&self) -> String {
        self.against.clone().unwrap_or_else(|| self.baseline.join(", "))
    }

    fn claim(&self, ratio: Estimate, flops: Option<(u64, u64)>) -> Claim {
        let over_budget = self.equal_flops
            && flops.is_some_and(|(stage, baseline)| stage as f64 > FLOPS_SLACK * baseline as f64);
        Claim {
            name: self.name.clone(),
            baseline: self.against(),
            ratio: ratio.value,
            low: ratio.low,
            high: ratio.high,
            shown: ratio.low > self.above && !over_budget,
            figure: self.figure,
            flops: flops.map(|f| f.0),
            baseline_flops: flops.map(|f| f.1),
            over_budget,
        }
    }

    /// Judges answers to the same problems; `None` if there are none, or the figure is not of answers.
    pub fn judge_answers(&self, stage: &Side, baselines: &[Side]) -> Option<Claim> {
        let right = |side: &Side| -> Option<Vec<f64>> {
            side.outcomes.iter().map(|o| self.figure.of(o).map(|right| f64::from(u8::from(right)))).collect()
        };
        let own = right(stage)?;
        if own.is_empty() || baselines.iter().any(|b| b.outcomes.len() != own.len()) {
            return None;
        }
        let most = baselines.iter().map(|b| b.flops).max()?;
        let ratio = if self.figure == Figure::Flops {
            let rivals = baselines.iter().map(|b| Some((right(b)?, b.flops as f64)));
            leverage(&own, stage.flops as f64, &rivals.collect::<Option<Vec<_>>>()?)
        } else {
            ratio_paired(&own, &right(baselines.first()?)?)
        };
        Some(self.claim(ratio, Some((stage.flops, most))))
    }

    /// Judges losses of the same documents, `[documents]`, after `step` of the longer stage's `steps`.
    pub fn judge_losses(&self, stage: &[f64], baseline: &[f64], step: u64, steps: u64) -> Claim {
        let mut claim = self.claim(ratio_paired(baseline, stage), None);
        if step < steps {
            claim.baseline += &format!(", both after {step} of {steps} steps");
        }
        claim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(figure: Figure) -> ClaimSettings {
        let (name, stage, baseline) = ("a".into(), "x".into(), vec!["y".into()]);
        ClaimSettings { name, stage, baseline, figure, ..ClaimSettings::default() }
    }

    /// The promise of the ledger: an interval that touches 1 is not a result.
    #[test]
    fn a_claim_across_one_is_not_shown() {
        let claim = |low, high| settings(Figure::PassAt1).claim(Estimate { value: 1.2, low, high }, None);
        assert!(claim(1.01, 1.4).shown);
        assert!(!claim(1.0, 1.4).shown);
        assert!(!claim(0.9, 1.4).shown && !claim(0.9, 1.4).refuted());
        assert!(claim(0.7, 0.9).refuted() && !claim(0.7, 0.9).shown);
    }

    /// What is better for being paid more is not shown to be better.
    #[test]
    fn at_equal_flops_means_it() {
        let answers = |right: usize| -> Vec<Outcome> {
            (0..200).map(|i| Outcome { greedy: i < right, any: i < right, majority: false }).collect()
        };
        let (good, bad) = (answers(160), answers(80));
        let judge = |equal_flops, flops| {
            let settings = ClaimSettings { equal_flops, ..settings(Figure::PassAt(8)) };
            let stage = Side { outcomes: &good, flops };
            settings.judge_answers(&stage, &[Side { outcomes: &bad, flops: 100 }]).expect("a claim")
        };
        assert!(judge(true, 104).shown && !judge(true, 104).over_budget);
        assert!(!judge(true, 106).shown && judge(true, 106).over_budget);
        assert!(judge(false, 1000).shown);
        assert_eq!((judge(true, 104).ratio, judge(true, 104).flops), (2.0, Some(104)));
    }

    #[test]
    fn figures_read_back_as_themselves() {
        for text in ["pass@1", "pass@8", "maj@64", "held_out_loss", "flops"] {
            assert_eq!(text.parse::<Figure>().expect(text).to_string(), text);
        }
        for text in ["pass@0", "pass@", "maj@1", "loss", "pass@-1"] {
            assert!(text.parse::<Figure>().is_err(), "{text}");
        }
    }
}
