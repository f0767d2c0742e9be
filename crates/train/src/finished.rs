//! What a finished stage leaves for the report and for later stages, kept as `done.json` in its folder.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evaluate::{Outcome, Scores};
use crate::forgetting::TextMeasure;
use crate::ledger::StageCost;
use crate::report::Completion;

/// A finished stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Its kind.
    pub kind: String,
    /// What it cost.
    pub cost: StageCost,
    /// A few words on what came of it.
    pub summary: String,
    /// Its figures.
    pub figures: Figures,
}

/// Figures of a finished stage; each kind of stage has some of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Numbers by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, f64>,
    /// The size of a model that began here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSize>,
    /// Models that were measured on held-out problems.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Measured>,
}

impl Figures {
    /// Numbers alone.
    pub fn of<const N: usize>(numbers: [(&str, f64); N]) -> Figures {
        // JSON has no others.
        let finite = numbers.into_iter().filter(|(_, value)| value.is_finite());
        let numbers = finite.map(|(name, value)| (name.to_owned(), value)).collect();
        Figures { numbers, ..Figures::default() }
    }
}

/// Parameters of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSize {
    /// All of them.
    pub total: u64,
    /// Those that one token uses.
    pub active: u64,
}

/// How one model did on the held-out problems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The stage that made the model, or its folder.
    pub stage: String,
    /// Over all problems.
    pub scores: Scores,
    /// The same for each task.
    pub by_task: BTreeMap<String, Scores>,
    /// What was right, problem by problem.
    pub outcomes: Vec<Outcome>,
    /// Tokens of a completion on average.
    pub mean_tokens: f64,
    /// Share of all completions that were cut off.
    pub truncated_share: f64,
    /// Some of the greedy answers.
    pub answers: Vec<Answered>,
    /// What it makes of a text that no stage trains on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_text: Option<TextMeasure>,
}

/// A problem and a model's greedy answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// The task that the problem is of.
    pub task: String,
    /// What was asked.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// What the model answered.
    pub completion: Completion,
}
