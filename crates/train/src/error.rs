//! What a run can fail with.

use std::path::PathBuf;

use thiserror::Error;

/// A failure of a run; each gives one sentence that says what to do.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The recipe's text.
    #[error(transparent)]
    RecipeText(#[from] crate::settings::RecipeError),
    /// The recipe's meaning.
    #[error("{0}")]
    Recipe(String),
    /// The run folder.
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    /// Text, tokenizers, templates.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// Problems and verifiers.
    #[error(transparent)]
    Tasks(#[from] tasks::Error),
    /// Model files.
    #[error(transparent)]
    Model(#[from] model::files::FileError),
    /// A model's configuration.
    #[error("models.{name}: {source}")]
    Config {
        /// The entry of `[models]`.
        name: String,
        /// What is wrong.
        source: model::config::ConfigError,
    },
    /// Generation.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
    /// Evaluation.
    #[error(transparent)]
    Evaluate(#[from] crate::evaluate::EvaluateError),
    /// The tokenizer gives ids that the model has not.
    #[error(
        "the tokenizer in {} does not fit its model: its ids go up to {}, the model's vocabulary only to {}; put the \
         tokenizer.json that the model was trained with into the folder",
        path.display(), tokens - 1, vocab - 1
    )]
    TokenizerMismatch {
        /// The model.
        path: PathBuf,
        /// The tokenizer's ids.
        tokens: usize,
        /// The model's.
        vocab: usize,
    },
    /// A document, prompt or trace that does not fit the context.
    #[error("{what} has {tokens} tokens, but the limit is {limit}: {remedy}")]
    TooLong {
        /// What it is.
        what: String,
        /// Its length.
        tokens: usize,
        /// What fits.
        limit: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// Not enough memory, found before the first step.
    #[error("stage `{stage}` needs about {need:.1} GiB, but {have:.1} GiB are allowed or free: {remedy}")]
    Memory {
        /// The stage.
        stage: String,
        /// GiB.
        need: f64,
        /// GiB.
        have: f64,
        /// What to do.
        remedy: &'static str,
    },
    /// Another rank failed.
    #[error(transparent)]
    Elsewhere(#[from] crate::team::Elsewhere),
    /// Ranks that cannot work together.
    #[error("{0}")]
    Ranks(String),
    /// Steps were skipped too often.
    #[error(
        "stage `{0}` diverged: its weights are no longer finite, or three steps in a row had a loss that was not finite or ten times the usual (and above 1), even after going back to the last checkpoint; lower the learning rate"
    )]
    Diverged(String),
    /// The user asked to stop; everything is saved.
    #[error("stopped; everything is saved, and the same command goes on from here")]
    Interrupted,
}
