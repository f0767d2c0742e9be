//! What can go wrong outside of our own arithmetic: names, levels, files and external commands.

use std::path::PathBuf;

/// Errors of this crate. Each says what was found, what was expected and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task, verifier or key that does not exist.
    #[error("there is no {kind} named `{found}`; {hint}")]
    UnknownName {
        /// What was looked up, for example `task`.
        kind: &'static str,
        /// The name as given.
        found: String,
        /// The nearest name, or the list of all.
        hint: String,
    },
    /// A difficulty parameter that the task cannot use.
    #[error("level of task `{task}`: {what}")]
    Level {
        /// The task's name.
        task: String,
        /// The key, what was found and what is allowed.
        what: String,
    },
    /// A pattern that should say where the answer stands.
    #[error("the pattern of the answer's place is broken: {0}")]
    AnswerPattern(String),
    /// A mix without a usable entry.
    #[error("mix of tasks: {0}")]
    Mix(String),
    /// A file that cannot be read, or a record of it that is not a problem.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A file without problems.
    #[error("{} holds no problems; expected lines of {{\"prompt\": …, \"answer\": …}}", .0.display())]
    NoProblems(PathBuf),
    /// An external command that cannot be started or does not deliver problems.
    #[error("external command `{command}`: {what}")]
    External {
        /// Program and arguments.
        command: String,
        /// What went wrong.
        what: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::UnknownName`] that names the nearest of `known`, or lists them when none is near.
    pub(crate) fn unknown(kind: &'static str, found: &str, known: &[&str]) -> Error {
        let nearest = known
            .iter()
            .map(|k| (strsim::osa_distance(found, k), *k))
            .filter(|(d, k)| *d <= 1 + k.len() / 3)
            .min();
        let hint = match nearest {
            Some((_, name)) => format!("did you mean `{name}`?"),
            None => format!("known: {}", known.join(", ")),
        };
        Error::UnknownName { kind, found: found.to_owned(), hint }
    }
}
