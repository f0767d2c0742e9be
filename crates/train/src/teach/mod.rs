//! `teach`: from a table of questions and answers to a recipe that teaches a model to answer them.
//!
//! What it does by default is what was found to pay (LOG.md): fine-tuning on the solutions that are given, then rounds of
//! sampling answers, keeping those that the verifier accepts and learning them; where nothing but answers are given,
//! rounds alone, from the model's own right answers.

mod lesson;
mod lesson_plan;

pub use lesson::{Columns, FEWEST_ROWS, Lesson};
pub use lesson_plan::{Budget, LessonPlan};

use data::Tokenizer;
use model::Model;
use tasks::{AnswerPlace, Problem, placed};
use thiserror::Error;

use crate::TrainError;
use crate::evaluate::{EvalSettings, Evaluation, evaluate};

/// Why a table cannot be taught.
#[derive(Debug, Error)]
pub enum TeachError {
    /// A column that is not there.
    #[error(
        "there is no column for the {what} (looked for {wanted}; the columns are {there}): name it with --{what}"
    )]
    NoColumn {
        /// Question, answer or solution.
        what: &'static str,
        /// The names that were looked for.
        wanted: String,
        /// The table's columns.
        there: String,
    },
    /// One column for two things.
    #[error(
        "the column {0:?} cannot be two things at once: name the others with --question, --answer and --solution"
    )]
    SameColumn(String),
    /// Too little to learn from.
    #[error(
        "{usable} rows can be used and {left_out} were left out, expected {FEWEST_ROWS} or more with a question and an answer"
    )]
    FewRows {
        /// Rows with a question and an answer.
        usable: usize,
        /// The others.
        left_out: usize,
    },
}

/// Problems that each way to ask is tried on.
const TRIED: usize = 16;
/// The way that did best is tried on so many samples of each.
const SAMPLES: usize = 8;

/// How a model does before it is taught, asked in the way that suits it best.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Where it puts its answer then.
    pub place: AnswerPlace,
    /// What it did, of some of the problems.
    pub found: Evaluation,
    /// Seconds that a generated token took.
    pub seconds_per_token: f64,
}

/// Tries a model on some of the problems, asked in each way that the answers allow, and keeps the kindest.
///
/// # Errors
/// Problems that cannot be put to the model.
pub fn try_model(
    model: &Model,
    tokenizer: &Tokenizer,
    lesson: &Lesson,
    max_new: usize,
    tell: &dyn Fn(&str),
) -> Result<Trial, TrainError> {
    let ask = |place: &AnswerPlace, samples: usize| -> Result<(Evaluation, f64), TrainError> {
        let problems: Vec<Problem> =
            lesson.problems.iter().take(TRIED).cloned().map(|p| put(place, p)).collect();
        let verifier = placed(place.clone(), tasks::verifier(lesson.verifier)?);
        let settings = EvalSettings { samples, temperature: 1.0, max_new, seed: 1 };
        let began = std::time::Instant::now();
        let found = evaluate(model, tokenizer, &problems, &*verifier, &settings, &|| true)?;
        let seconds = began.elapsed().as_secs_f64() / found.tokens.max(1) as f64;
        Ok((found, seconds))
    };
    let mut best: Option<(f64, &AnswerPlace)> = None;
    for place in &lesson.places {
        let (found, _) = ask(place, 1)?;
        let right = found.all.pass_at_1.value;
        tell(&format!("  asked for the answer as `{place}`: {:.0} % of {TRIED} right", 100.0 * right));
        if best.is_none_or(|(before, _)| right > before) {
            best = Some((right, place));
        }
    }
    let (_, place) = best.expect("every lesson has a way to ask");
    let (found, seconds_per_token) = ask(place, SAMPLES)?;
    Ok(Trial { place: place.clone(), found, seconds_per_token })
}

/// A problem as it is put where the answer is expected in this place.
fn put(place: &AnswerPlace, mut problem: Problem) -> Problem {
    if let Some(template) = lesson_plan::prompt_template(place) {
        problem.prompt = template.replace("{prompt}", &problem.prompt);
    }
    problem
}
