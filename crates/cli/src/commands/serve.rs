//! `serve`: models behind HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Model folders (config.json, model.safetensors, tokenizer.json) or GGUF files, each called by its name or as
    /// NAME=FOLDER says.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
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
    /// A page's origin, such as https://example.org, that may use the server; may be given several times.
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

/// Runs the command.
pub fn run(a: &Serve) -> Result<()> {
    let keys = a.api_key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
    let mut models = Vec::with_capacity(a.models.len());
    for text in &a.models {
        models.push(load(text, a.context)?);
    }
    let options = Options {
        address: SocketAddr::new(a.host, a.port),
        keys,
        hosts: a.allow_host.clone(),
        origins: a.allow_origin.clone(),
        reasoning: match a.reasoning_field {
            Field::Both => ReasoningField::Both,
            Field::Reasoning => ReasoningField::Reasoning,
            Field::ReasoningContent => ReasoningField::ReasoningContent,
            Field::None => ReasoningField::None,
        },
        cache_bytes: (f64::from(a.cache_gib) * f64::from(1 << 30)) as usize,
        queue: a.queue,
        sequences: a.sequences,
        speculate: a.speculate.into(),
        patience: Duration::from_secs(a.patience),
        grace: Duration::from_secs(a.grace),
        log: if a.quiet { |_| {} } else { tell },
        ..Options::default()
    };
    if !a.host.is_loopback() && options.keys.is_empty() {
        tell("warning: whoever reaches this machine may use the server: give --api-key-file to ask for keys");
    }
    let names: Vec<String> = models.iter().map(|m| m.name.clone()).collect();
    let server = Server::bind(models, options)?;
    let address = server.address().context("the system does not say where it listens")?;
    line(&format!(
        "{} at http://{address}/ (chat), http://{address}/v1 (API); Ctrl-C ends",
        names.join(", ")
    ))?;
    if !server.run() {
        tell("ended before all answers were done");
    }
    Ok(())
}

/// `NAME=FOLDER`, or a folder, which gives its own name.
fn load(text: &str, context: Option<usize>) -> Result<Served> {
    let named = text.split_once('=').filter(|(name, _)| !name.contains('/') && !Path::new(text).exists());
    let folder = PathBuf::from(named.map_or(text, |(_, folder)| folder));
    let mut loaded = Loaded::open(&folder, None, Use::Infer(HeldAs::Stored))?;
    let name = match named {
        Some((name, _)) => name.to_owned(),
        None => own_name(&folder),
    };
    if name.is_empty() {
        bail!("{text:?} gives the model no name: write NAME=FOLDER");
    }
    let most = loaded.model.config().max_position_embeddings();
    if context.is_some_and(|n| n > most) {
        bail!(
            "--context is {}, but the context of {} is {most}",
            context.unwrap_or_default(),
            folder.display()
        );
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
