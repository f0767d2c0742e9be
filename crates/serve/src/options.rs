//! What is served, and how.

use std::ffi::OsString;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data::Tokenizer;
use model::Model;

/// A model with its tokenizer, by a name.
pub struct Served {
    /// What requests call it.
    pub name: String,
    /// The model; its positions are reserved as far as conversations may go.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// Questions of the kind that it was made for, with which a stranger may begin.
    pub examples: Vec<String>,
}

impl Served {
    /// Tokens of a prompt and its answer together, at most.
    pub(crate) fn context(&self) -> usize {
        self.model.config().max_position_embeddings().min(self.model.positions())
    }
}

/// Models that are loaded when they are asked for.
pub trait Shelf: Debug + Send + Sync {
    /// What there is now.
    fn list(&self) -> Vec<Shelved>;
    /// Loads one.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    fn load(&self, shelved: &Shelved) -> Result<Served, String>;
}

/// A model that can be loaded.
#[derive(Clone, Debug)]
pub struct Shelved {
    /// What requests call it.
    pub name: String,
    /// Its folder or file.
    pub path: PathBuf,
    /// Of its weights.
    pub bytes: u64,
    /// When they were written: one that was written anew is loaded anew.
    pub written: SystemTime,
    /// Questions of the kind that it was made for.
    pub examples: Vec<String>,
}

impl Shelved {
    /// Whether these are the same weights, whatever is known about them by now.
    pub(crate) fn is_same(&self, other: &Shelved) -> bool {
        (&self.name, &self.path, self.bytes, self.written)
            == (&other.name, &other.path, other.bytes, other.written)
    }
}

/// A program that teaches, as `shoestring teach` does.
#[derive(Clone, Debug)]
pub struct Teacher {
    /// Where it lies.
    pub program: PathBuf,
    /// What it is given before everything else.
    pub arguments: Vec<OsString>,
}

/// Where a message's thinking is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningField {
    /// In `reasoning_content` and in `reasoning`.
    #[default]
    Both,
    /// As vLLM and OpenRouter do.
    Reasoning,
    /// As DeepSeek, llama.cpp and SGLang do.
    ReasoningContent,
    /// In the content, between the tags that the model wrote.
    None,
}

impl ReasoningField {
    /// The fields' names.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            ReasoningField::Both => &["reasoning_content", "reasoning"],
            ReasoningField::Reasoning => &["reasoning"],
            ReasoningField::ReasoningContent => &["reasoning_content"],
            ReasoningField::None => &[],
        }
    }
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// Keys of which a request must bring one; without any, none is asked for.
    pub keys: Vec<String>,
    /// Names beside those of the loopback by which the server may be called.
    pub hosts: Vec<String>,
    /// Origins of other pages that may use it.
    pub origins: Vec<String>,
    /// A folder of runs that may be looked at.
    pub runs: Option<PathBuf>,
    /// What teaches into that folder.
    pub teacher: Option<Teacher>,
    /// Models beside those that are there from the start.
    pub shelf: Option<Arc<dyn Shelf>>,
    /// Bytes of weights that are loaded from the shelf at once; who was not asked for longest goes first.
    pub shelf_bytes: u64,
    /// Where thinking is told.
    pub reasoning: ReasoningField,
    /// Bytes that the cache of each model may hold.
    pub cache_bytes: usize,
    /// Answers that are in work or wait at once; more are told to come back.
    pub queue: usize,
    /// Answers of one model in work at once.
    pub sequences: usize,
    /// Tokens that are guessed ahead, 0 for none; unless told otherwise one for models with an MTP layer, none for others.
    pub speculate: Option<usize>,
    /// Bytes of a request at most.
    pub body_bytes: usize,
    /// How long a client may take to send a request, or to read what was sent to it.
    pub patience: Duration,
    /// How long answers in work may take to end when the server is told to.
    pub grace: Duration,
    /// Whether what is asked goes into the log too, beside addresses, outcomes and times.
    pub log_text: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            keys: Vec::new(),
            hosts: Vec::new(),
            origins: Vec::new(),
            runs: None,
            teacher: None,
            shelf: None,
            shelf_bytes: 4 << 30,
            reasoning: ReasoningField::Both,
            cache_bytes: 1 << 30,
            queue: 1024,
            sequences: 256,
            speculate: None,
            body_bytes: 4 << 20,
            patience: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            log_text: false,
        }
    }
}
