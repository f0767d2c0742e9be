//! What came of a lesson, read from the run that its recipe became.

use std::path::{Path, PathBuf};

use super::TeachError;
use crate::evaluate::Outcome;
use crate::finished::{Finished, Measured};

/// What came of it.
#[derive(Clone, Debug)]
pub struct Taught {
    /// The model as it came, on the held-out rows.
    pub before: Measured,
    /// The taught one, on the same.
    pub after: Measured,
    /// The difference.
    pub gain: Gain,
    /// Answers of the model's own that were right and learnt from, over all rounds.
    pub own_answers: u64,
    /// The run's model, and whether it is an adapter.
    pub model: (PathBuf, bool),
    /// What its stages took, in all sittings.
    pub seconds: f64,
}

/// A difference of shares that are right, and its interval of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Gain {
    /// After less before.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Taught {
    /// Reads a run's folder.
    ///
    /// # Errors
    /// What is not there or not what such a run leaves.
    pub fn of(out: &Path) -> Result<Taught, TeachError> {
        let (before, after) = (measured(out, "before")?, measured(out, "after")?);
        let gain = Gain::of(&before.outcomes, &after.outcomes);
        let traces = |round: usize| {
            let done = finished(out, &super::lesson_recipe::own_answers(round)).ok()?;
            done.figures.numbers.get("traces").copied()
        };
        let own_answers = (1..).map_while(traces).sum::<f64>() as u64;
        let model = out.join("model");
        let is_adapter = model.join("adapter_config.json").exists();
        Ok(Taught { before, after, gain, own_answers, model: (model, is_adapter), seconds: seconds(out)? })
    }

    /// How much worse the held text is predicted, as a share of what it was, where it was measured.
    pub fn forgotten(&self) -> Option<f64> {
        let (before, after) = self.before.held_text.as_ref().zip(self.after.held_text.as_ref())?;
        Some(after.bits_per_byte / before.bits_per_byte - 1.0)
    }

    /// What is to be said first.
    pub fn verdict(&self) -> String {
        let Gain { value, low, high } = self.gain;
        let (value, low, high) = (100.0 * value, 100.0 * low, 100.0 * high);
        let interval = format!("[{low:.1} to {high:.1}]");
        match () {
            () if low > 0.0 => format!("better by {value:.1} points {interval}"),
            () if high < 0.0 => format!("worse by {:.1} points {interval}", -value),
            () => {
                format!("not shown to be better: {value:+.1} points, and the interval {interval} holds zero")
            }
        }
    }
}

impl Gain {
    /// From the pairs.
    fn of(before: &[Outcome], after: &[Outcome]) -> Gain {
        let each: Vec<f64> = before
            .iter()
            .zip(after)
            .map(|(b, a)| f64::from(u8::from(a.greedy)) - f64::from(u8::from(b.greedy)))
            .collect();
        let n = each.len().max(1) as f64;
        let value = each.iter().sum::<f64>() / n;
        // Never without spread: a pair more each way, as Agresti and Caffo do for two shares.
        let spread = (each.iter().map(|d| (d - value).powi(2)).sum::<f64>() + 2.0) / (n * (n + 2.0));
        let half = 1.96 * spread.sqrt();
        Gain { value, low: value - half, high: value + half }
    }
}

fn finished(out: &Path, stage: &str) -> Result<Finished, TeachError> {
    let path = out.join(stage).join("done.json");
    let wrong = |problem: String| TeachError::Run { path: path.clone(), problem };
    let text = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))
}

/// What the stages of a run took.
fn seconds(out: &Path) -> Result<f64, TeachError> {
    let unread = |e: std::io::Error| TeachError::Run { path: out.to_owned(), problem: e.to_string() };
    let mut sum = 0.0;
    for entry in std::fs::read_dir(out).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        if path.join("done.json").exists() {
            sum += finished(out, &path.file_name().unwrap_or_default().to_string_lossy())?.cost.seconds;
        }
    }
    Ok(sum)
}

/// What a stage of the run measured.
fn measured(out: &Path, stage: &str) -> Result<Measured, TeachError> {
    let one = finished(out, stage)?.figures.measured.into_iter().next();
    one.ok_or_else(|| TeachError::Run {
        path: out.join(stage),
        problem: "its measurements are not those of `teach`".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_is_of_pairs() {
        let of = |right: &[u8]| -> Vec<Outcome> {
            right.iter().map(|r| Outcome { greedy: *r == 1, any: true, majority: true }).collect()
        };
        let none = Gain::of(&of(&[1, 0, 1, 0]), &of(&[1, 0, 1, 0]));
        assert!(none.value == 0.0 && none.low < 0.0 && none.high > 0.0);
        let all = Gain::of(&of(&[0; 100]), &of(&[1; 100]));
        assert!(all.value == 1.0 && all.low > 0.95 && all.low < 1.0, "{all:?}");
    }
}
