//! Model folders as the commands need them, with errors that say what to do.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use data::Tokenizer;
use model::{HeldAs, Model, Use};

use crate::output::tell;
use crate::paths::hint;

/// Which model a command works with, and how its weights are held.
#[derive(Args)]
pub struct ModelArgs {
    /// The model: a folder (config.json, model.safetensors, tokenizer.json), a GGUF file, or the folder of an adapter.
    pub model: PathBuf,
    /// An adapter beside the model's weights: a folder as PEFT writes it (adapter_config.json, adapter_model.safetensors).
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// How weights are held in memory. As stored: results as in f32, to the bit, in about the memory of the file; faster where one
    /// sequence is written. f32: faster where long prompts are read. bf16 and q8_0 round.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Weights::Stored)]
    weights: Weights,
}

/// How weights are held.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Weights {
    Stored,
    F32,
    Bf16,
    #[value(name = "q8_0")]
    Q8,
}

impl ModelArgs {
    fn wanted(&self) -> Use {
        Use::Infer(match self.weights {
            Weights::Stored => HeldAs::Stored,
            Weights::F32 => HeldAs::F32,
            Weights::Bf16 => HeldAs::Bf16,
            Weights::Q8 => HeldAs::Q8_0,
        })
    }

    /// Reads the weights alone.
    pub fn open_model(&self) -> Result<Model> {
        check_model(&self.model)?;
        let model = match &self.adapter {
            Some(adapter) => Model::open_with(&self.model, adapter, self.wanted())?,
            None => Model::open(&self.model, self.wanted())?,
        };
        model.notices().iter().for_each(|text| tell(text));
        Ok(model)
    }

    /// Reads the model and its tokenizer.
    pub fn open(&self) -> Result<Loaded> {
        Loaded::open(&self.model, self.adapter.as_deref(), self.wanted())
    }
}

/// A model with what it takes to speak to it.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Its tokenizer, whose ids all lie within the model's vocabulary.
    pub tokenizer: Tokenizer,
}

impl Loaded {
    /// Reads a model and its tokenizer, from a folder or a GGUF file, perhaps with an adapter.
    pub fn open(dir: &Path, adapter: Option<&Path>, wanted: Use) -> Result<Loaded> {
        check_model(dir)?;
        if !has_tokenizer(dir)? && !adapter.is_some_and(|dir| dir.join("tokenizer.json").exists()) {
            bail!(
                "{} holds no tokenizer.json: put the model's tokenizer into the folder (`score --ids` works without one)",
                dir.display()
            );
        }
        let (model, tokenizer) = train::speaker::load(dir, adapter, wanted, tell)?;
        Ok(Loaded { model, tokenizer })
    }

    /// The tokens that end an answer.
    pub fn stop_tokens(&self) -> Vec<u32> {
        train::speaker::stop_tokens(&self.model, &self.tokenizer)
    }
}

/// Whether a model has a tokenizer: in its folder or file, or in those of the model that an adapter's folder names.
pub fn has_tokenizer(path: &Path) -> Result<bool> {
    let has = |path: &Path| path.is_file() || path.join("tokenizer.json").exists();
    Ok(has(path) || has(&model::load::base_path(path)?))
}

/// Makes room for sequences of `wanted` tokens as far as the model's context goes; returns the context's length.
pub fn reserve(model: &mut Model, wanted: usize) -> usize {
    let context = model.config().max_position_embeddings();
    model.reserve_positions(wanted.min(context));
    context
}

/// Refuses what is neither a model folder nor a GGUF file, and names model folders further down if there are any.
pub fn check_model(dir: &Path) -> Result<()> {
    let wanted = "expected a folder with config.json, model.safetensors and tokenizer.json, or a GGUF file";
    let found = std::fs::metadata(dir)
        .with_context(|| format!("there is no model at {}{}: {wanted}", dir.display(), hint(dir)))?;
    if model::files::is_gguf(dir) {
        return Ok(());
    }
    if !found.is_dir() {
        bail!("{} is a file: {wanted}", dir.display());
    }
    if dir.join("config.json").exists() || dir.join("adapter_config.json").exists() {
        return Ok(());
    }
    let mut below = Vec::new();
    models_below(dir, 3, &mut below);
    below.sort();
    match below.as_slice() {
        [] => bail!("{} holds no config.json: {wanted}", dir.display()),
        found => {
            let names: Vec<String> = found.iter().take(NAMED).map(|p| p.display().to_string()).collect();
            let more = found.len() - names.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            bail!(
                "{} holds no config.json, but there are models in {}{more}: name one of them",
                dir.display(),
                names.join(", ")
            )
        }
    }
}

/// Models that a message names, and that are looked for, at most.
const NAMED: usize = 12;
const LOOKED_FOR: usize = 100;

/// Folders with a `config.json`, `depth` levels down.
fn models_below(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()) {
        if found.len() >= LOOKED_FOR {
            return;
        }
        if path.join("config.json").exists() {
            found.push(path);
        } else if depth > 1 {
            models_below(&path, depth - 1, found);
        }
    }
}
