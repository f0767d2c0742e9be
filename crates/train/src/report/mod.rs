//! The report of a run: `report.json` for programs, `report.html` for people, `curve.svg` for a README.

mod axis;
mod bars;
mod charts;
mod html;
mod sample;
mod svg;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};

use crate::claims::Claim;
use crate::evaluate::Scores;
use crate::forgetting::TextMeasure;
use crate::ledger::StageCost;
use crate::run::metrics::Line;
use crate::run::{RunError, write_atomic};

/// Everything that a run has to show, but for its curves.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct RunReport {
    /// The run's name.
    pub name: String,
    /// The run's seed.
    pub seed: u64,
    /// What was trained, as the headline says it: "a 1.6 M-parameter mixture of experts".
    pub model: String,
    /// On what, as the headline says it: "arithmetic, Countdown and word problems".
    pub task: String,
    /// The machine, as the footer says it: "2 cores of an EPYC 7763, 4 GiB".
    pub machine: String,
    /// Price of one core for one hour, in dollars.
    pub price_per_core_hour: f64,
    /// What each stage cost, in the order in which they ran.
    pub stages: Vec<StageCost>,
    /// Stages that were measured, in their order, over the whole mix.
    #[serde(serialize_with = "as_map")]
    pub evaluation: Vec<(String, Scores)>,
    /// The same for each task: `{ task: { stage: { … } } }`.
    #[serde(serialize_with = "as_map_of_maps")]
    pub evaluation_by_task: Vec<(String, Vec<(String, Scores)>)>,
    /// What measured models make of a text that no stage trained on.
    #[serde(serialize_with = "as_map", skip_serializing_if = "Vec::is_empty")]
    pub held_text: Vec<(String, TextMeasure)>,
    /// What the run claims, shown or not.
    pub claims: Vec<Claim>,
    /// Ways of spending FLOPs that the claims compare, for the first picture; none where there is nothing to compare.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ways: Vec<Way>,
    /// The stage before reinforcement learning and the one after it.
    pub reinforcement: Option<(String, String)>,
    /// The first fine-tuned model that the reinforced one is built on, and that one, for the headline: all between them was earned from
    /// checked answers.
    pub earned: Option<(String, String)>,
    /// What the model had been taught before reinforcement, and what that was not compared with.
    pub taught: Option<String>,
    /// Stages whose loss curves belong on one chart, each chart with its title.
    pub overlays: Vec<Overlay>,
    /// The same problems, answered by several stages.
    pub samples: Vec<Sample>,
    /// The resolved recipe.
    pub recipe: String,
}

/// Loss curves to be seen on one chart, against tokens trained on if the stages log `tokens`, else steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// What the comparison is about.
    pub title: String,
    /// The stages.
    pub stages: Vec<String>,
}

/// A way from the base to a measured model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Way {
    /// The stage that it ends with.
    pub name: String,
    /// What was measured along it, cheapest first.
    pub points: Vec<WayPoint>,
}

/// A measured model on a way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WayPoint {
    /// The stage that made it.
    pub stage: String,
    /// FLOPs of everything that it is built on.
    pub operations: u64,
    /// pass@1.
    pub accuracy: f64,
}

/// A problem with the answers of several stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The task that the problem is of.
    pub task: String,
    /// What was asked.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// What each stage said.
    pub completions: Vec<Completion>,
}

/// A stage's answer to a problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The stage.
    pub stage: String,
    /// What the model wrote, `<think>` and `<answer>` included.
    pub text: String,
    /// The verifier's score.
    pub score: f64,
    /// The verifier's reason.
    pub reason: String,
}

fn as_map<S: Serializer, T: Serialize>(pairs: &[(String, T)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}

fn as_map_of_maps<S: Serializer, T: Serialize>(
    pairs: &[(String, Vec<(String, T)>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    struct Inner<'a, T>(&'a [(String, T)]);
    impl<T: Serialize> Serialize for Inner<'_, T> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            as_map(self.0, serializer)
        }
    }
    serializer.collect_map(pairs.iter().map(|(key, inner)| (key, Inner(inner))))
}

impl RunReport {
    /// The measurement of a stage.
    pub fn evaluation_of(&self, stage: &str) -> Option<&Scores> {
        self.evaluation.iter().find(|(name, _)| name == stage).map(|(_, evaluation)| evaluation)
    }

    /// What learning from checked answers began with and ended with, if both were measured.
    pub fn before_and_after(&self) -> Option<(&Scores, &Scores)> {
        let (before, after) = self.earned.as_ref()?;
        self.evaluation_of(before).zip(self.evaluation_of(after))
    }

    /// All stages together.
    pub fn total(&self) -> StageCost {
        let sum = StageCost { name: "total".into(), joules: Some(0.0), ..StageCost::default() };
        self.stages.iter().fold(sum, |sum, stage| StageCost {
            name: sum.name,
            seconds: sum.seconds + stage.seconds,
            cpu_seconds: sum.cpu_seconds + stage.cpu_seconds,
            tokens: sum.tokens + stage.tokens,
            operations: sum.operations + stage.operations,
            peak_memory_bytes: sum.peak_memory_bytes.max(stage.peak_memory_bytes),
            joules: sum.joules.zip(stage.joules).map(|(all, one)| all + one),
            cost: sum.cost + stage.cost,
        })
    }
}

/// Writes `report.json`, `report.html` and its first picture, `curve.svg`, into a folder: accuracy over FLOPs where the
/// recipe compares several ways, the reward where it learnt by reinforcement, none otherwise.
pub fn write(dir: &Path, report: &RunReport, metrics: &[Line]) -> Result<(), RunError> {
    let json = serde_json::to_string_pretty(report).expect("a report holds only what JSON can state");
    write_atomic(&dir.join("report.json"), json.as_bytes())?;
    write_atomic(&dir.join("report.html"), html::page(report, metrics).as_bytes())?;
    if let Some(curve) = charts::ways(report).or_else(|| charts::reinforcement(report, metrics)) {
        write_atomic(&dir.join("curve.svg"), curve.render(html::SVG_STYLE).as_bytes())?;
    }
    Ok(())
}
