//! What is done with a lesson in the time there is.

use super::{Budget, Lesson};

/// Held-out rows: one in five, and so many at most.
const MOST_HELD_OUT: usize = 100;
/// Held-out rows where time is short: with fewer, hardly any gain could be told from chance.
const FEWEST_HELD_OUT: usize = 24;
/// Of the time, what measuring before and after may take.
const MEASURING: f64 = 0.25;
/// Of the rest, what fine-tuning on given solutions takes where rounds of the model's own answers follow.
const SOLUTIONS: f64 = 0.6;
/// Passes over what there is to learn, at most, where it is plenty: more add nothing (LOG.md).
const EPOCHS: f64 = 6.0;
/// And where it is a handful of rows, which show the form.
const MOST_EPOCHS: f64 = 30.0;
/// Rows from which on it is plenty.
const PLENTY: f64 = 200.0;
/// Rounds of sampling and learning, at most.
const MOST_ROUNDS: f64 = 4.0;
/// Tokens of an optimizer step.
pub(super) const BATCH: usize = 2048;
/// How boldly answers are sampled: a model as it came is right four times as often at 0.5 as at 1 (LOG.md).
pub(super) const TEMPERATURE: f32 = 0.5;
/// Answers sampled to a problem.
pub(super) const SAMPLES: usize = 4;
/// Samples of a held-out row, beside the greedy answer; where time is short, the fewer.
const MEASURED: [usize; 2] = [8, 4];

/// What will be done.
#[derive(Clone, Debug, PartialEq)]
pub struct LessonPlan {
    /// Rows that are kept for measuring.
    pub held_out: usize,
    /// Samples of each, beside the greedy answer.
    pub samples: usize,
    /// Steps of fine-tuning on the solutions given.
    pub solution_steps: u64,
    /// Rounds of sampling and learning.
    pub rounds: usize,
    /// Problems of a round, and steps of learning.
    pub round: (usize, u64),
}

impl LessonPlan {
    /// Divides the time.
    pub fn of(lesson: &Lesson, b: &Budget) -> LessonPlan {
        let rows = lesson.problems.len();
        let most = (rows / 5).clamp(4, MOST_HELD_OUT);
        // Before and after, the greedy answer and the samples.
        let measuring =
            |rows: usize, samples| (rows * (1 + samples)) as f64 * (b.before.1 + b.answer) * b.generating;
        let fits = |rows, samples| measuring(rows, samples) <= MEASURING * b.seconds;
        let samples = MEASURED.into_iter().find(|&k| fits(most, k)).unwrap_or(MEASURED[1]);
        let least = FEWEST_HELD_OUT.min(most);
        let held_out = (least..=most).rev().find(|&n| fits(n, samples)).unwrap_or(least);
        let left = (b.seconds - measuring(held_out, samples)).max(0.0);
        let step = BATCH as f64 * b.training;
        let steps_of = |seconds: f64, rows: f64| {
            let epochs = (EPOCHS * PLENTY / rows).clamp(EPOCHS, MOST_EPOCHS);
            let most = (epochs * rows * b.row / BATCH as f64).ceil().max(1.0);
            (seconds / step).floor().clamp(1.0, most) as u64
        };
        let training_rows = (rows - held_out) as f64;
        let solution_steps = match lesson.solved {
            0 => 0,
            solved => steps_of(SOLUTIONS * left, solved as f64),
        };
        let left = (left - solution_steps as f64 * step).max(0.0);
        // Half of a round samples, half of it learns; one that goes over all rows is as long as it is worth.
        let problem = SAMPLES as f64 * b.answer * b.generating;
        let whole = 2.0 * training_rows * problem;
        let rounds = (left / whole).round().clamp(1.0, MOST_ROUNDS);
        let left = left / rounds / 2.0;
        let problems = (left / problem).clamp(8.0, training_rows.max(8.0)) as usize;
        let learn = steps_of(left, problems as f64);
        LessonPlan { held_out, samples, solution_steps, rounds: rounds as usize, round: (problems, learn) }
    }
}
