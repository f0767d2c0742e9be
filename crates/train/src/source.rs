//! Where a stage's material comes from: problems, folders of text, conversations.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::settings::check::{At, Check, Checked};
use crate::settings::one_or_many;

/// Problems held out by default.
pub const HELD_OUT: usize = 200;

/// The problems of a run: the built-in mix, the user's file, or what a command draws.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Problems {
    /// Procedural tasks and how often each is drawn. Beside a `command`, so many as one of its tasks for each of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<TaskMix>,
    /// A file of problems, one JSON object a line, in place of the mix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<PathBuf>,
    /// A program and its arguments that draws problems, in place of the mix or beside it.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The tasks that `command` is asked for.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Environment variables that `command` is given, beside those that any program needs (PATH, HOME, LANG, …).
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Problems to train on where there is a `command`, those of a mix beside it among them.
    pub count: usize,
    /// Problems kept for evaluation: 200 by default, and one in ten of a file that has fewer than 2000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<usize>,
    /// What is done about problems of a file or a command whose prompts leave no room for an answer.
    pub too_long: TooLong,
    /// Worked solutions that there are in all, for fine-tuning: other problems have none, and pretraining on problems reads their
    /// questions alone. By default every problem that can have a worked solution has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solved: Option<usize>,
    /// What scores an answer; by default what the task or the problem itself names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verifier: Option<Verifier>,
    /// What answers are paid for in reinforcement beside the verifier's score and the form, each logged as `reward_NAME`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reward: Vec<RewardChoice>,
    /// Where an answer has its result: `tags`, `boxed`, `hash`, `last_number`, `whole`, `json:KEY` or `regex:PATTERN`.
    pub answer: String,
    /// What the model is told before every problem, as the system's turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// How a problem is put, with `{prompt}` where its text goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// What a `problems.prompt` must hold.
pub(crate) const PROMPT_SLOT: &str = "{prompt}";

/// Holds a text that problems are put in against what it must hold.
pub(crate) fn check_prompt(prompt: &str) -> Result<(), String> {
    match prompt.matches(PROMPT_SLOT).count() {
        1 => Ok(()),
        _ => Err(format!("expected {PROMPT_SLOT} once, where a problem's text goes")),
    }
}

impl Default for Problems {
    fn default() -> Self {
        Problems {
            mix: Vec::new(),
            jsonl: None,
            command: Vec::new(),
            tasks: Vec::new(),
            env: Vec::new(),
            count: 10_000,
            held_out: None,
            too_long: TooLong::Refuse,
            solved: None,
            verifier: None,
            reward: Vec::new(),
            answer: "tags".to_owned(),
            system: None,
            prompt: None,
        }
    }
}

/// What is done about prompts that leave no room for an answer of a stage's `max_new` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// The stage does not begin, and names the first of them.
    Refuse,
    /// The stage does without them, and says how many they are.
    LeaveOut,
}

/// A procedural task in a mix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskMix {
    /// The task's name.
    pub task: String,
    /// How often it is drawn, relative to the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// Its difficulty: keys that the task itself checks.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub level: toml::Table,
}

impl TaskMix {
    /// The task at its default difficulty.
    pub fn plain(task: &str) -> Self {
        TaskMix { task: task.to_owned(), weight: one(), level: toml::Table::new() }
    }

    /// Its difficulty as the tasks know it; keys that no task has are refused.
    pub fn level(&self) -> Result<tasks::Level, serde_json::Error> {
        serde_json::to_value(&self.level).and_then(serde_json::from_value)
    }
}

/// Holds a stage's own mix against the tasks there are.
pub(crate) fn check_own_mix(own: &Option<Vec<TaskMix>>, at: &At) -> Checked {
    match own.as_deref() {
        None => Ok(()),
        Some([]) => Err(at.error("mix", "name at least one task, or leave the key out")),
        Some(tasks) => check_mix(tasks, &["stage", at.stage, "mix"], at.check),
    }
}

/// Holds a mix against the tasks there are.
pub(crate) fn check_mix(mix: &[TaskMix], path: &[&str], check: &Check<'_>) -> Checked {
    for (index, task) in mix.iter().enumerate() {
        let number = (index + 1).to_string();
        let at = |key| [path, &[number.as_str(), key]].concat();
        let message = format!("the weight of {} must be at least 0, found {}", task.task, task.weight);
        check.that(task.weight >= 0.0, &at("weight"), message)?;
        let known = tasks::task(&task.task).map_err(|e| check.error(&at("task"), e.to_string()))?;
        let level = task.level().map_err(|e| check.error(&at("level"), e.to_string()))?;
        known.check(&level).map_err(|e| check.error(&at("level"), e.to_string()))?;
    }
    let drawn = mix.is_empty() || mix.iter().any(|task| task.weight > 0.0);
    check.that(drawn, path, "every weight is 0, so that nothing would ever be drawn")
}

fn one() -> f64 {
    1.0
}

/// A reward of a recipe: `[[problems.reward]]` with `name`, `weight` and `verifier`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardChoice {
    /// What it is called in the log.
    pub name: String,
    /// For its score, which goes from 0 to 1; below 0 it is a punishment.
    pub weight: f64,
    /// What scores.
    pub verifier: Verifier,
}

/// What scores answers: `"numeric"`, `{ command = ["python3", "check.py"] }`, `{ url = "http://127.0.0.1:8000/score" }`,
/// `{ most_words = 80 }` or `{ script = "Latin" }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Verifier {
    /// A built-in one.
    Named(String),
    /// A program that reads a JSON object a line and answers one a line.
    Command(VerifierCommand),
    /// A server that answers a JSON object a request.
    Http(VerifierHttp),
    /// A length.
    MostWords(VerifierWords),
    /// A script.
    Script(VerifierScript),
}

impl Verifier {
    /// Whether it looks at all of a completion, wherever the answer stands.
    pub fn reads_all(&self) -> bool {
        matches!(self, Verifier::MostWords(_) | Verifier::Script(_))
    }

    /// Holds it against its ranges.
    pub(crate) fn check(&self, check: &Check<'_>, path: &[&str]) -> Checked {
        let at = |key| [path, &[key]].concat();
        let patient = |seconds: f64| {
            let message = "expected 0.001 to 86400";
            check.that((0.001..=86_400.0).contains(&seconds), &at("timeout_seconds"), message)
        };
        let workers = |n: usize| check.that((1..=1024).contains(&n), &at("workers"), "expected 1 to 1024");
        match self {
            Verifier::Named(name) => {
                tasks::verifier(name).map(drop).map_err(|e| check.error(path, e.to_string()))
            }
            Verifier::Command(c) => {
                check.that(!c.command.is_empty(), &at("command"), "name a program")?;
                workers(c.workers)?;
                patient(c.timeout_seconds)
            }
            Verifier::Http(h) => {
                workers(h.workers)?;
                check.that(h.retries <= 10, &at("retries"), "expected 0 to 10")?;
                check.that((1..=10_000).contains(&h.batch), &at("batch"), "expected 1 to 10000")?;
                patient(h.timeout_seconds)
            }
            Verifier::MostWords(m) => {
                check.that(m.most_words > 0, &at("most_words"), "expected a number above 0")
            }
            Verifier::Script(s) => tasks::verify::Script::new(&s.script)
                .map(drop)
                .map_err(|e| check.error(&at("script"), e.to_string())),
        }
    }
}

/// A server that scores answers: only its address is ever asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifierHttp {
    /// `http://host:port/path`.
    pub url: String,
    /// Answers of a request, at most.
    pub batch: usize,
    /// Requests at a time.
    pub workers: usize,
    /// How often a request is repeated that failed in passing.
    pub retries: u32,
    /// How long one request may take.
    pub timeout_seconds: f64,
}

/// A length: so many words or fewer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifierWords {
    /// From so many on it scores less, and from twice as many on nothing.
    pub most_words: usize,
}

/// A script: the share of letters that are of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifierScript {
    /// By its name in Unicode.
    pub script: String,
}

/// The keys of all of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifierTable {
    #[serde(default, deserialize_with = "one_or_many")]
    command: Vec<String>,
    url: Option<String>,
    most_words: Option<usize>,
    script: Option<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    env: Vec<String>,
    workers: Option<usize>,
    timeout_seconds: Option<f64>,
    retries: Option<u32>,
    batch: Option<usize>,
}

impl TryFrom<VerifierTable> for Verifier {
    type Error = &'static str;

    fn try_from(t: VerifierTable) -> Result<Verifier, &'static str> {
        let of_server = t.retries.is_some() || t.batch.is_some();
        let asks = of_server || t.workers.is_some() || t.timeout_seconds.is_some() || !t.env.is_empty();
        let (workers, timeout_seconds) = (t.workers.unwrap_or(2), t.timeout_seconds.unwrap_or(10.0));
        match (t.command.is_empty(), t.url, t.most_words, t.script) {
            (false, None, None, None) if of_server => Err("`retries` and `batch` go with `url`"),
            (false, None, None, None) => Ok(Verifier::Command(VerifierCommand {
                command: t.command,
                env: t.env,
                workers,
                timeout_seconds,
            })),
            (true, Some(_), None, None) if !t.env.is_empty() => Err("`env` goes with `command`"),
            (true, Some(url), None, None) => Ok(Verifier::Http(VerifierHttp {
                url,
                batch: t.batch.unwrap_or(32),
                workers,
                retries: t.retries.unwrap_or(3),
                timeout_seconds,
            })),
            (true, None, Some(_), None) | (true, None, None, Some(_)) if asks => {
                Err("`most_words` and `script` stand alone")
            }
            (true, None, Some(most_words), None) => Ok(Verifier::MostWords(VerifierWords { most_words })),
            (true, None, None, Some(script)) => Ok(Verifier::Script(VerifierScript { script })),
            _ => Err("give one of `command`, `url`, `most_words` and `script`"),
        }
    }
}

/// A program that scores answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifierCommand {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables that it is given, beside those that any program needs (PATH, HOME, LANG, …).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// How many of them run at a time.
    pub workers: usize,
    /// How long one answer may take.
    pub timeout_seconds: f64,
}

/// Text to learn from: `source = "problems"` or `source = { path = "folder" }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The run's problems with their worked solutions.
    Problems,
    /// Files.
    #[serde(untagged)]
    Files(Files),
}

impl Source {
    pub(crate) fn check(&self, at: &At) -> Checked {
        let Source::Files(files) = self else { return Ok(()) };
        if files.extensions.is_empty() {
            return Err(at.error("source.extensions", "name at least one, such as \"txt\""));
        }
        // With one in one nothing would be left to train on.
        at.number("source.held_out_one_in", files.held_out_one_in as f64, 2.0..)
    }

    /// What must be there, with its key.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        match self {
            Source::Problems => Vec::new(),
            Source::Files(files) => vec![("source.path", &files.path)],
        }
    }
}

/// A file or a folder of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The file or folder; folders are searched through and through.
    pub path: PathBuf,
    /// Endings of the files to read, without the dot.
    #[serde(default = "text_extensions", deserialize_with = "one_or_many")]
    pub extensions: Vec<String>,
    /// One document in so many is held out.
    #[serde(default = "tenth")]
    pub held_out_one_in: usize,
}

fn text_extensions() -> Vec<String> {
    ["txt", "md", "jsonl", "parquet"].map(String::from).to_vec()
}

fn tenth() -> usize {
    10
}

/// Conversations to learn: `data = "problems"`, `data = { jsonl = "chats.jsonl" }` or `data = { stage = "reject" }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// The run's problems with their worked solutions.
    Problems,
    /// A file of Hugging Face messages.
    #[serde(untagged)]
    Jsonl {
        /// The file.
        jsonl: PathBuf,
    },
    /// What an earlier `reject` stage kept.
    #[serde(untagged)]
    Stage {
        /// The stage's name.
        stage: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataTable {
    jsonl: Option<PathBuf>,
    stage: Option<String>,
}

/// Reads either a word or a table `T`.
struct WordOrTable<V, T> {
    expecting: &'static str,
    word: fn(&str) -> Option<V>,
    table: fn(T) -> Result<V, &'static str>,
}

impl<'de, V, T: Deserialize<'de>> Visitor<'de> for WordOrTable<V, T> {
    type Value = V;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<V, E> {
        let unknown = || E::custom(format!("expected {}, found the text {text:?}", self.expecting));
        (self.word)(text).ok_or_else(unknown)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V, A::Error> {
        (self.table)(T::deserialize(MapAccessDeserializer::new(map))?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Verifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrTable {
            expecting: "a verifier's name, { command = [\"program\", \"argument\"] } or { url = \"http://…\" }",
            word: |name| Some(Verifier::Named(name.to_owned())),
            table: |table: VerifierTable| table.try_into(),
        })
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrTable {
            expecting: "\"problems\" or { path = \"folder\" }",
            word: |word| (word == "problems").then_some(Source::Problems),
            table: |files| Ok(Source::Files(files)),
        })
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrTable {
            expecting: "\"problems\", { jsonl = \"file\" } or { stage = \"name\" }",
            word: |word| (word == "problems").then_some(Data::Problems),
            table: |table: DataTable| match (table.jsonl, table.stage) {
                (Some(jsonl), None) => Ok(Data::Jsonl { jsonl }),
                (None, Some(stage)) => Ok(Data::Stage { stage }),
                _ => Err("give either `jsonl` or `stage`"),
            },
        })
    }
}
