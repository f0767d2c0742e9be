//! The one error type of this crate. Each message is one sentence: the place, what was found, what was
//! expected, and what to do where that is not obvious.

use std::io;
use std::path::{Path, PathBuf};

use crate::place::Place;

/// Anything that can go wrong between a file or a message and token ids.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb: `open`, `read`, `write`.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },

    /// A corpus without a single document.
    #[error("{} holds no text: expected at least one non-empty file of type {expected}", path.display())]
    EmptyCorpus {
        /// The corpus as it was named.
        path: PathBuf,
        /// The file types that were looked for.
        expected: String,
    },

    /// A text file that is not UTF-8.
    #[error(
        "{} is not UTF-8: the byte at offset {offset} starts no valid character; convert the file or leave it out",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The offset of the first offending byte.
        offset: u64,
    },

    /// A file that is no text, by its first bytes.
    #[error("{} is {found}, which is not read: unpack or convert it (gzip is read as it is)", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },

    /// A record of a file that is not of the expected form.
    #[error("{place}: {problem}")]
    Record {
        /// The file, and the line or row in it.
        place: Place,
        /// What was found there and what was expected.
        problem: String,
    },

    /// A file that is no table, or not one that can be held.
    #[error("{} is no table that can be read: {problem}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A Parquet file without a needed column.
    #[error("{} has no column `{column}`: its columns are {found}", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column that was looked for.
        column: String,
        /// The columns that are there.
        found: String,
    },

    /// A Parquet file that cannot be read.
    #[error("{} is not a readable Parquet file: {problem}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A tokenizer file that cannot be used.
    #[error("cannot load the tokenizer from {}: {problem}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },

    /// Options from which no tokenizer can be trained.
    #[error("cannot train a tokenizer: `{key}` is {found}, expected {expected}")]
    TrainOptions {
        /// The option.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it has to be.
        expected: String,
    },

    /// Training failed inside of the tokenizer library.
    #[error("cannot train a tokenizer: {problem}")]
    Training {
        /// The library's reason.
        problem: String,
    },

    /// A text that the tokenizer cannot turn into ids.
    #[error("the tokenizer cannot encode this text: {problem}")]
    Encode {
        /// The reason.
        problem: String,
    },

    /// Ids that the tokenizer cannot turn into text.
    #[error("the tokenizer cannot decode these ids: {problem}")]
    Decode {
        /// The reason.
        problem: String,
    },

    /// The tokenizer has no chat template.
    #[error(
        "the tokenizer has no chat template: expected `chat_template` in tokenizer_config.json or a file \
         chat_template.jinja beside it"
    )]
    NoTemplate,

    /// A chat template that does not parse, or that failed while it ran.
    #[error("the chat template failed: {problem}")]
    Template {
        /// The engine's reason, with the line where known.
        problem: String,
    },

    /// A chat template that used up its allowance of work or output.
    #[error("the chat template was stopped: it used more than its {limit}")]
    TemplateLimit {
        /// The limit that was hit, in words.
        limit: String,
    },

    /// A message whose role is none of the known ones.
    #[error("message {index} has the role {found:?}: expected one of {expected}")]
    Role {
        /// The message, counted from 0.
        index: usize,
        /// Its role.
        found: String,
        /// The known roles.
        expected: String,
    },

    /// A message that spells a control token, under a template that hides where the message went.
    #[error(
        "message {index} contains the text of a control token and the chat template rewrites messages, so the \
         text cannot be kept harmless; remove the token's text from the message"
    )]
    ControlText {
        /// The message, counted from 0.
        index: usize,
    },

    /// A field of a message that spells a control token.
    #[error(
        "the field `{field}` of message {index} contains the text of a control token, which only an assistant's may; remove \
         the token's text from it"
    )]
    ControlField {
        /// The message, counted from 0.
        index: usize,
        /// The field.
        field: String,
    },

    /// A conversation whose rendered form is not the continuation of its own beginning.
    #[error(
        "the chat template does not render the conversation up to message {index} as the beginning of the whole \
         (some templates drop reasoning from earlier turns); split the conversation so that message {index} is its last"
    )]
    NotPrefix {
        /// The assistant message, counted from 0.
        index: usize,
    },

    /// An assistant's turn without the thought that its prompt has begun.
    #[error(
        "the chat template begins the answer of message {index} with {opening:?}, but its content does not: let it begin with \
         <think>, or change the template's generation prompt"
    )]
    Unopened {
        /// The assistant message, counted from 0.
        index: usize,
        /// What the prompt ends with.
        opening: String,
    },

    /// A shard file that is damaged, foreign or of another version.
    #[error("{} is not a whole token shard: its {field} is {found}, expected {expected}; write it again", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// The part of the file that is wrong.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it has to say.
        expected: String,
    },

    /// A token id outside of the vocabulary.
    #[error(
        "document {document} holds the token id {found} at position {position}: the vocabulary has {vocab_size} ids"
    )]
    TokenRange {
        /// The document, counted from 0.
        document: u64,
        /// The position in the document, counted from 0.
        position: usize,
        /// The id.
        found: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },

    /// A document beyond the end of a shard.
    #[error("document {index} does not exist: the shard holds {documents}")]
    NoDocument {
        /// The document that was asked for, counted from 0.
        index: u64,
        /// How many there are.
        documents: u64,
    },
}

/// Makes a closure for `map_err` that adds the path and the action to an I/O error.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_owned();
    move |source| DataError::Io { path, action, source }
}

/// Runs code of a library that is known to panic on some hostile inputs and turns the panic into its message.
pub(crate) fn guard<T>(f: impl FnOnce() -> T) -> std::result::Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(|payload| {
        let reason = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no reason given".to_owned());
        format!("the library that reads it gave up ({reason})")
    })
}
