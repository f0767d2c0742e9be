//! Model folders as the commands need them, with errors that say what to do.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use data::Tokenizer;
use model::Model;

use crate::output::tell;

/// A model with what it takes to speak to it.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Its tokenizer, whose ids all lie within the model's vocabulary.
    pub tokenizer: Tokenizer,
}

impl Loaded {
    /// Reads a folder with a model and its tokenizer.
    pub fn open(dir: &Path) -> Result<Loaded> {
        check_model(dir)?;
        if dir.is_dir() && !dir.join("tokenizer.json").exists() {
            bail!(
                "{} holds no tokenizer.json: put the model's tokenizer into the folder (`score --ids` works without one)",
                dir.display()
            );
        }
        let (model, tokenizer) = train::speaker::load(dir, tell)?;
        Ok(Loaded { model, tokenizer })
    }

    /// The tokens that end an answer.
    pub fn stop_tokens(&self) -> Vec<u32> {
        train::speaker::stop_tokens(&self.model, &self.tokenizer)
    }
}

/// Reads the weights alone.
pub fn open_model(dir: &Path) -> Result<Model> {
    check_model(dir)?;
    let model = Model::load(dir)?;
    model.notices().iter().for_each(|text| tell(text));
    Ok(model)
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
        .with_context(|| format!("there is no model at {}: {wanted}", dir.display()))?;
    if model::files::is_gguf(dir) {
        return Ok(());
    }
    if !found.is_dir() {
        bail!("{} is a file: {wanted}", dir.display());
    }
    if dir.join("config.json").exists() {
        return Ok(());
    }
    let mut below = Vec::new();
    models_below(dir, 3, &mut below);
    below.sort();
    match below.as_slice() {
        [] => bail!("{} holds no config.json: {wanted}", dir.display()),
        found => {
            let names: Vec<String> = found.iter().map(|p| p.display().to_string()).collect();
            bail!(
                "{} holds no config.json, but there are models in {}: name one of them",
                dir.display(),
                names.join(", ")
            )
        }
    }
}

/// Up to eight folders with a `config.json`, `depth` levels down.
fn models_below(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()) {
        if found.len() >= 8 {
            return;
        }
        if path.join("config.json").exists() {
            found.push(path);
        } else if depth > 1 {
            models_below(&path, depth - 1, found);
        }
    }
}
