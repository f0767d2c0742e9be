//! `serve` and `studio`: models behind HTTP, and runs as they go.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use model::{HeldAs, Use};
use serve::{Options, ReasoningField, Served, Server};

use super::ranges;
use crate::model_files::{Loaded, reserve};
use crate::output::{line, tell};

const EXAMPLES: &str = "\
Examples:
  shoestring serve runs/launch/grpo
  shoestring serve small=runs/launch/distill large=runs/launch/grpo --port 9000
  shoestring serve runs/launch/grpo --host 0.0.0.0 --api-key-file keys.txt --allow-host models.example.org

  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is 3 + 4?\"}]}'

  from openai import OpenAI
  client = OpenAI(base_url=\"http://127.0.0.1:8080/v1\", api_key=\"none\")

A page to chat on is at the server's address. Ctrl-C lets answers in work come to their end; a second one does not wait.
The same request with the same seed gives the same text, whoever else is served.";

/// Tokens of a conversation that are made possible unless told otherwise, where the model's context is longer.
const USUAL_CONTEXT: usize = 32768;

/// What is served, and to whom.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Serve {
    /// Model folders (config.json, model.safetensors, tokenizer.json), GGUF files or folders of adapters, each called by its name or as
    /// NAME=FOLDER says.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

const STUDIO_EXAMPLES: &str = "\
Examples:
  shoestring studio
  shoestring studio ~/experiments/runs --port 9000

The page at / talks to the models that the runs have made, two of them side by side if you like; /runs shows the runs with their
curves, samples and costs as they go, whoever performs them. Nothing is lost by closing the page or the studio.";

/// Which runs are shown, and to whom.
#[derive(Args)]
#[command(after_help = STUDIO_EXAMPLES)]
pub struct Studio {
    /// The folder in which runs lie.
    #[arg(value_name = "RUNS", default_value = "runs")]
    runs: PathBuf,
    /// GiB of weights that are loaded at most, those of the newest models first.
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
    /// In which fields thinking is told.
    #[arg(long, value_name = "FIELDS", default_value = "both")]
    reasoning_field: Field,
    /// Tokens of a conversation and its answer at most (default: the model's context, up to 32768).
    #[arg(long, value_name = "N", value_parser = ranges::count)]
    context: Option<usize>,
    /// GiB that the cache of each model may hold: conversations in work, and beginnings kept for their next turn.
    #[arg(long, value_name = "GIB", default_value_t = 1.0, value_parser = ranges::gib)]
    cache_gib: f32,
    /// Answers of a model in work at once.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = ranges::count)]
    sequences: usize,
    /// Answers of a model in work or waiting; who comes then is told to come back.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = ranges::count)]
    queue: usize,
    /// Guess up to N tokens ahead from what a text already holds, and check them in one step: for texts that repeat
    /// themselves, few clients, and models whose weights do not fit the processor's cache. No token changes.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=16))]
    speculate: u8,
    /// Seconds that a client may take to send a request or to read what is sent.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// Seconds that answers in work may take to end after Ctrl-C.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// Do not write a line to stderr for every request.
    #[arg(long)]
    quiet: bool,
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
    /// In the content, between the model's tags
    None,
}

/// Runs `serve`.
pub fn run(a: &Serve) -> Result<()> {
    let options = a.server.options()?;
    let models = a.models.iter().map(|text| load(text, a.server.context)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = models.iter().map(|m| m.name.clone()).collect();
    start(models, options, &names.join(", "))
}

/// Runs `studio`.
pub fn studio(a: &Studio) -> Result<()> {
    if !a.runs.is_dir() {
        bail!(
            "there is no folder {}: make a run with `shoestring launch`, or name the folder of your runs",
            a.runs.display()
        );
    }
    let options = Options { runs: Some(a.runs.clone()), ..a.server.options()? };
    let mut left = (f64::from(a.weights_gib) * f64::from(1 << 30)) as u64;
    let mut models = Vec::new();
    for found in made_models(&a.runs) {
        if found.bytes > left {
            tell(&format!("{} is left out: it would take the weights beyond --weights-gib", found.name));
            continue;
        }
        left -= found.bytes;
        match load_as(&found.folder, found.name.clone(), None) {
            Ok(model) => models.push(model),
            Err(error) => tell(&format!("{} is left out: {error:#}", found.name)),
        }
    }
    let what = format!("{} models of {}", models.len(), a.runs.display());
    start(models, options, &what)
}

/// A model that a run has made.
struct Made {
    name: String,
    folder: PathBuf,
    bytes: u64,
    time: SystemTime,
}

/// The models of the stages that have ended, the newest first.
fn made_models(runs: &Path) -> Vec<Made> {
    let below = |folder: &Path| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>()
    };
    let part = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for run in below(runs).iter().filter(|run| run.join("recipe.toml").is_file()) {
        for folder in below(run) {
            let weights = std::fs::metadata(folder.join("model.safetensors"));
            let whole =
                ["config.json", "tokenizer.json", "done.json"].iter().all(|f| folder.join(f).is_file());
            let Some(weights) = weights.ok().filter(|_| whole) else { continue };
            let time = weights.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = format!("{}/{}", part(run), part(&folder));
            found.push(Made { name, folder, bytes: weights.len(), time });
        }
    }
    found.sort_by(|a, b| b.time.cmp(&a.time).then(a.name.cmp(&b.name)));
    found
}

impl ServerArgs {
    fn options(&self) -> Result<Options> {
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
            speculate: self.speculate.into(),
            patience: Duration::from_secs(self.patience),
            grace: Duration::from_secs(self.grace),
            log: if self.quiet {
                |text| {
                    if text.starts_with("error") {
                        tell(text)
                    }
                }
            } else {
                tell
            },
            ..Options::default()
        })
    }
}

fn start(models: Vec<Served>, options: Options, what: &str) -> Result<()> {
    let page = if options.runs.is_some() { "chat and runs" } else { "chat" };
    let server = Server::bind(models, options)?;
    let address = server.address().context("the system does not say where it listens")?;
    line(&format!("{what} at http://{address}/ ({page}), http://{address}/v1 (API); Ctrl-C ends"))?;
    if !server.run() {
        tell("ended before all answers were done");
    }
    Ok(())
}

/// `NAME=FOLDER`, or a folder, which gives its own name.
fn load(text: &str, context: Option<usize>) -> Result<Served> {
    let named = text.split_once('=').filter(|(name, _)| !name.contains('/') && !Path::new(text).exists());
    let folder = PathBuf::from(named.map_or(text, |(_, folder)| folder));
    let name = match named {
        Some((name, _)) => name.to_owned(),
        None => own_name(&folder),
    };
    if name.is_empty() {
        bail!("{text:?} gives the model no name: write NAME=FOLDER");
    }
    load_as(&folder, name, context)
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
    Ok(Served { name, model, tokenizer, stop_tokens })
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
