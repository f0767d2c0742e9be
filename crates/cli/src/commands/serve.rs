//! `serve` and `studio`: models behind HTTP, and runs as they go.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use model::{HeldAs, Use};
use serde_json::Value;
use serve::{Options, ReasoningField, Served, Server, Shelf, Shelved, Teacher};
use tracing_subscriber::filter::LevelFilter as Level;

use super::ranges;
use crate::model_files::{Loaded, check_model, reserve};
use crate::output::{line, sentence, tell};

const EXAMPLES: &str = "\
Examples:
  shoestring serve runs/launch/grpo
  shoestring serve small=runs/launch/distill large=runs/launch/grpo --port 9000
  shoestring serve runs/launch/grpo --host 0.0.0.0 --api-key-file keys.txt --allow-host models.example.org

  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Compute 52 - 62 + 54 - 17.\"}]}'

  from openai import OpenAI
  client = OpenAI(base_url=\"http://127.0.0.1:8080/v1\", api_key=\"none\")

A page to chat on is at the server's address. Ctrl-C lets answers in progress finish; a second one does not wait for them.
The same request with the same seed gives the same text, whoever else is served. Thinking comes in a message's reasoning_content and
reasoning, what the model marks as its answer in content and in answer. \"votes\": 8 in a chat answers with what most of 8 samples say and how
far they agree; with \"min_agreement\": 0.6 it abstains where fewer do. /openapi.json describes all that can be asked.";

/// Tokens of a conversation that are made possible unless told otherwise, where the model's context is longer.
const USUAL_CONTEXT: usize = 32768;

/// Questions that the page offers to begin with, and the bytes of one, at most.
const MOST_EXAMPLES: usize = 3;
const MOST_OF_EXAMPLE: usize = 300;

/// What is served, and to whom.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Serve {
    /// Model folders (config.json, model.safetensors, tokenizer.json), GGUF files or folders of adapters, each under its own name
    /// or the one in NAME=FOLDER.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

const STUDIO_EXAMPLES: &str = "\
Examples:
  shoestring studio
  shoestring studio ~/experiments/runs --port 9000

  shoestring studio --model SmolLM2-135M-Instruct.Q4_1.gguf           # an open model, to talk to and to teach

The page at / talks to the models that the runs have made, two of them side by side if you like; /teach takes a table of questions
and answers and teaches one of them; /runs shows the runs with their curves, samples and costs as they go, also those started from
a terminal. A model is loaded when it is first used. Training is a process of its own: closing the page or the studio loses nothing.";

/// Which runs are shown, and to whom.
#[derive(Args)]
#[command(after_help = STUDIO_EXAMPLES)]
pub struct Studio {
    /// The folder of the runs, made if it is not there; or one run, to see those beside it too.
    #[arg(value_name = "RUNS", default_value = "runs")]
    runs: PathBuf,
    /// A model beside those of the runs, under its own name or the one in NAME=FOLDER; may be given several times.
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// GiB of weights that may be loaded at once; the model that was unused for longest makes room.
    #[arg(long, value_name = "GIB", default_value_t = 4.0, value_parser = ranges::gib)]
    weights_gib: f32,
    #[command(flatten)]
    server: ServerArgs,
}

/// How a server behaves.
#[derive(Args)]
struct ServerArgs {
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// A file with API keys, one a line: requests must then bring one of them.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// A name by which the server may be called, beside localhost; may be given several times.
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// A page's origin, such as `https://example.org`, that may use the server; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// The fields in which thinking is returned.
    #[arg(long, value_name = "FIELDS", default_value = "both")]
    reasoning_field: Field,
    /// Tokens of a conversation and its answer at most (default: the model's context, up to 32768).
    #[arg(long, value_name = "N", value_parser = ranges::count)]
    context: Option<usize>,
    /// GiB of cache for each model: conversations in progress, and prefixes kept for their next turn.
    #[arg(long, value_name = "GIB", default_value_t = 1.0, value_parser = ranges::gib)]
    cache_gib: f32,
    /// Answers in progress at once, for each model.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = ranges::count)]
    sequences: usize,
    /// Answers in progress or waiting, for each model; requests beyond that are told to retry later.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = ranges::count)]
    queue: usize,
    /// Guess up to N tokens ahead and check them in one step: the first by the model's MTP layer, if it has one, the others from
    /// what the text already holds. Helps where texts repeat themselves and weights do not fit the processor's cache; no token
    /// changes (default: 1 for models with an MTP layer, 0 for others).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=16))]
    speculate: Option<u8>,
    /// Seconds that a client may take to send a request or to read what is sent.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// Seconds that answers in progress may take to finish after Ctrl-C.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// Write only errors to stderr, not a line for every request.
    #[arg(long)]
    quiet: bool,
    /// Write what is asked to stderr too; by default no line says what was said.
    #[arg(long, conflicts_with = "quiet")]
    log_text: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Field {
    /// reasoning_content and reasoning
    Both,
    /// As vLLM and OpenRouter do
    Reasoning,
    /// As DeepSeek, llama.cpp and SGLang do
    #[value(name = "reasoning_content", alias = "reasoning-content")]
    ReasoningContent,
    /// In the content, all as the model wrote it, with its tags
    None,
}

/// Runs `serve`.
pub fn run(a: &Serve) -> Result<()> {
    let options = a.server.options()?;
    let models = a.models.iter().map(|text| load(text, a.server.context)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = models.iter().map(|m| m.name.clone()).collect();
    start(models, options, &names.join(", "))
}

/// Runs `studio`; `passed_on` are the options that what teaches is given too.
pub fn studio(a: &Studio, passed_on: Vec<OsString>) -> Result<()> {
    let runs = std::path::absolute(&a.runs).with_context(|| a.runs.display().to_string())?;
    let runs = folder_of_runs(runs);
    std::fs::create_dir_all(&runs).with_context(|| format!("there is no folder {}", runs.display()))?;
    let given = a.models.iter().map(|text| given(text)).collect::<Result<Vec<_>>>()?;
    for (i, model) in given.iter().enumerate() {
        check_model(&model.path)?;
        if given[..i].iter().any(|other| other.name == model.name) {
            bail!("two models are called {:?}: give one of them another name, as NAME=FOLDER", model.name);
        }
    }
    let shelf = RunsShelf { runs: runs.clone(), given, context: a.server.context };
    let what = match shelf.list().len() {
        0 => format!("no model yet, runs in {}", runs.display()),
        1 => format!("1 model, runs in {}", runs.display()),
        n => format!("{n} models, runs in {}", runs.display()),
    };
    let program = std::env::current_exe().context("the system does not say where this program lies")?;
    let options = Options {
        runs: Some(runs),
        teacher: Some(Teacher { program, arguments: passed_on }),
        shelf: Some(Arc::new(shelf)),
        shelf_bytes: (f64::from(a.weights_gib) * f64::from(1 << 30)) as u64,
        ..a.server.options()?
    };
    start(Vec::new(), options, &what)
}

/// The models that runs have made, and those that were given.
#[derive(Debug)]
struct RunsShelf {
    runs: PathBuf,
    given: Vec<Shelved>,
    context: Option<usize>,
}

impl Shelf for RunsShelf {
    /// Those given, then those of the stages that have ended: the newest run first, in it what was found to be right most often.
    fn list(&self) -> Vec<Shelved> {
        let mut made = made_models(&self.runs);
        made.retain(|m| self.given.iter().all(|g| g.name != m.name));
        [self.given.clone(), made].concat()
    }

    fn load(&self, shelved: &Shelved) -> Result<Served, String> {
        load_as(&shelved.path, shelved.name.clone(), self.context).map_err(|e| sentence(&e))
    }
}

/// The folder in which runs lie: where one run is given, that around it.
fn folder_of_runs(given: PathBuf) -> PathBuf {
    let around = given.parent().filter(|_| given.join("recipe.toml").is_file()).map(Path::to_path_buf);
    around.unwrap_or(given)
}

/// What a run reports; null before it has ended.
fn report_of(run: &Path) -> Value {
    let report = std::fs::read(run.join("report.json")).ok();
    report.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// What the run reports that made a model, if one did.
fn report_above(model: &Path) -> Value {
    let whole = std::fs::canonicalize(model).ok();
    whole.as_deref().and_then(Path::parent).map(report_of).unwrap_or_default()
}

/// Held-out problems of a run, one of each kind, short enough to be a button.
fn examples(report: &Value) -> Vec<String> {
    let mut kinds = Vec::new();
    let mut found = Vec::new();
    for sample in report["samples"].as_array().into_iter().flatten() {
        let Some(prompt) = sample["prompt"].as_str().filter(|p| p.len() <= MOST_OF_EXAMPLE) else { continue };
        if found.len() < MOST_EXAMPLES && !kinds.contains(&&sample["task"]) {
            kinds.push(&sample["task"]);
            found.push(prompt.to_owned());
        }
    }
    found
}

/// The models of the stages that have ended, run by run, the best of each first.
fn made_models(runs: &Path) -> Vec<Shelved> {
    let below = |folder: &Path| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>()
    };
    let part = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut all = Vec::new();
    for run in below(runs).iter().filter(|run| run.join("recipe.toml").is_file()) {
        let report = report_of(run);
        let examples = examples(&report);
        let right = |stage: &str| report["evaluation"][stage]["pass@1"]["value"].as_f64().unwrap_or(-1.0);
        let mut found = Vec::new();
        for folder in below(run) {
            let weights = ["model.safetensors", "adapter_model.safetensors"].map(|f| folder.join(f));
            let weights = weights.iter().find_map(|f| std::fs::metadata(f).ok());
            let Some(weights) = weights.filter(|_| folder.join("done.json").is_file()) else { continue };
            let stage = part(&folder);
            let name = format!("{}/{stage}", part(run));
            let written = weights.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push((
                right(&stage),
                Shelved { name, path: folder, bytes: weights.len(), written, examples: examples.clone() },
            ));
        }
        found.sort_by(|(a, x), (b, y)| {
            b.total_cmp(a).then(y.written.cmp(&x.written)).then(x.name.cmp(&y.name))
        });
        let newest = found.iter().map(|(_, m)| m.written).max();
        all.push((newest, found));
    }
    all.sort_by(|(a, _), (b, _)| b.cmp(a));
    all.into_iter().flat_map(|(_, found)| found).map(|(_, shelved)| shelved).collect()
}

/// A model that was given by NAME=FOLDER, or by its folder alone.
fn given(text: &str) -> Result<Shelved> {
    let (name, path) = named(text)?;
    let path = std::path::absolute(&path).with_context(|| text.to_owned())?;
    let file = std::fs::metadata(path.join("model.safetensors")).or_else(|_| std::fs::metadata(&path)).ok();
    let bytes = file.as_ref().map_or(0, |f| f.len());
    let written = file.and_then(|f| f.modified().ok()).unwrap_or(SystemTime::UNIX_EPOCH);
    let examples = examples(&report_above(&path));
    Ok(Shelved { name, path, bytes, written, examples })
}

impl ServerArgs {
    fn options(&self) -> Result<Options> {
        let level = if self.quiet { Level::ERROR } else { Level::INFO };
        let log = tracing_subscriber::fmt().with_max_level(level).with_target(false).with_ansi(false);
        log.with_writer(std::io::stderr).init();
        let keys = self.api_key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
        if !self.host.is_loopback() && keys.is_empty() {
            tell(
                "warning: whoever reaches this machine may use the server: give --api-key-file to ask for keys",
            );
        }
        Ok(Options {
            address: SocketAddr::new(self.host, self.port),
            keys,
            hosts: self.allow_host.clone(),
            origins: self.allow_origin.clone(),
            reasoning: match self.reasoning_field {
                Field::Both => ReasoningField::Both,
                Field::Reasoning => ReasoningField::Reasoning,
                Field::ReasoningContent => ReasoningField::ReasoningContent,
                Field::None => ReasoningField::None,
            },
            cache_bytes: (f64::from(self.cache_gib) * f64::from(1 << 30)) as usize,
            queue: self.queue,
            sequences: self.sequences,
            speculate: self.speculate.map(usize::from),
            patience: Duration::from_secs(self.patience),
            grace: Duration::from_secs(self.grace),
            log_text: self.log_text,
            ..Options::default()
        })
    }
}

fn start(models: Vec<Served>, options: Options, what: &str) -> Result<()> {
    let page = if options.runs.is_some() { "chat, teach, runs" } else { "chat" };
    let server = Server::bind(models, options)?;
    let address = server.address().context("the system does not say where it listens")?;
    line(&format!("{what} at http://{address}/ ({page}), http://{address}/v1 (API); Ctrl-C ends"))?;
    if !server.run() {
        tell("ended before all answers were done");
    }
    Ok(())
}

fn load(text: &str, context: Option<usize>) -> Result<Served> {
    let (name, folder) = named(text)?;
    load_as(&folder, name, context)
}

/// `NAME=FOLDER`, or a folder, which gives its own name.
fn named(text: &str) -> Result<(String, PathBuf)> {
    let named = text.split_once('=').filter(|(name, _)| !name.contains('/') && !Path::new(text).exists());
    let folder = PathBuf::from(named.map_or(text, |(_, folder)| folder));
    let name = match named {
        Some((name, _)) => name.to_owned(),
        None => own_name(&folder),
    };
    if name.is_empty() {
        bail!("{text:?} gives the model no name: write NAME=FOLDER");
    }
    Ok((name, folder))
}

fn load_as(folder: &Path, name: String, context: Option<usize>) -> Result<Served> {
    let mut loaded = Loaded::open(folder, None, Use::Infer(HeldAs::Stored))?;
    let most = loaded.model.config().max_position_embeddings();
    if let Some(n) = context.filter(|&n| n > most) {
        bail!("--context is {n}, but the context of {} is {most}", folder.display());
    }
    reserve(&mut loaded.model, context.unwrap_or(USUAL_CONTEXT));
    let stop_tokens = loaded.stop_tokens();
    let Loaded { model, tokenizer } = loaded;
    Ok(Served { name, model, tokenizer, stop_tokens, examples: examples(&report_above(folder)) })
}

/// The last part of a path that is a name, without a file's ending.
fn own_name(path: &Path) -> String {
    let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn keys(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the API keys from {}", file.display()))?;
    let keys: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    if keys.is_empty() {
        bail!("{} holds no key: write one a line", file.display());
    }
    Ok(keys)
}
