//! `teach`: from a table of questions and answers to a recipe that teaches a model to answer them.
//!
//! What it does by default is what was found to pay (LOG.md): fine-tuning on the solutions that are given, then rounds of
//! sampling answers, keeping those that the verifier accepts and learning them; where nothing but answers are given,
//! rounds alone, from the model's own right answers.

mod budget;
mod lesson;
mod lesson_plan;
mod lesson_recipe;
mod taught;
mod trial;

pub use budget::{Budget, Lengths, Wishes};
pub use lesson::{Columns, FEWEST_ROWS, Lesson};
pub use lesson_plan::LessonPlan;
pub use lesson_recipe::LessonRecipe;
pub use taught::{Gain, Taught};
pub use trial::{PATIENCE, Trial, try_model};

use thiserror::Error;

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
        "{questions} different questions can be used{left_out}, expected {FEWEST_ROWS} or more with an answer"
    )]
    FewRows {
        /// Questions with an answer.
        questions: usize,
        /// How many rows were left out, and why.
        left_out: String,
    },
    /// A row that the tokenizer or its template refuses.
    #[error("row {row} cannot be put to the model: {source}")]
    Row {
        /// Its number in the table.
        row: u64,
        /// What is wrong.
        source: data::DataError,
    },
    /// A model that cannot be asked anything.
    #[error("the model's tokenizer has no chat template, so there is no way to ask it anything")]
    NoTemplate,
    /// A row that leaves no room for an answer.
    #[error(
        "row {row} and its answer take {tokens} tokens, more than the {context} of the model's context: lower --max-new, or leave the row out"
    )]
    NoRoom {
        /// The longest row's number in the table.
        row: u64,
        /// Its tokens with the longest answer.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// A run folder without what such a run leaves.
    #[error("{}: {problem}", path.display())]
    Run {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        problem: String,
    },
}
