//! `inspect`: what a model costs, counted from its configuration.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use model::ModelConfig;
use model::files::ModelFolder;
use serde_json::{Value, json};

use super::ranges;
use crate::model_files::check_model;
use crate::output::{json_line, line};

/// Context lengths beyond this are counted only when asked for.
const DEFAULT_CONTEXT: usize = 4096;

const EXAMPLES: &str = "\
Examples:
  shoestring inspect runs/launch/grpo
  shoestring inspect bench/moe.json --context 512 --json

Nothing is computed and no weights are needed: a Hugging Face config.json is enough. A FLOP is a multiplication or an
addition of the forward pass, averaged over the positions of a text of --context tokens.";

/// What to count.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Inspect {
    /// A model's folder, a GGUF file, or a config.json.
    #[arg(value_name = "MODEL|CONFIG")]
    model: PathBuf,
    /// The length of the texts (default: the model's context, at most 4096).
    #[arg(long, value_name = "N", value_parser = ranges::count)]
    context: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(a: &Inspect) -> Result<()> {
    let config = config(&a.model)?;
    let longest = config.max_position_embeddings();
    let context = a.context.unwrap_or(longest.min(DEFAULT_CONTEXT));
    if context > longest {
        bail!("--context is {context}, but the model's context is {longest}: give at most that");
    }
    let i = model::inspect::inspect(&config, context);
    let kv = i.kv_cache;
    if a.json {
        let mut out = json!({
            "model_type": config.model_type(),
            "total_parameters": i.parameters.total,
            "active_parameters": i.parameters.active,
            "operations_per_token": i.forward.total(),
            "kv_bytes_per_token": kv,
        });
        if let (Value::Object(out), Value::Object(all)) = (&mut out, serde_json::to_value(&i)?) {
            out.extend(all);
        }
        return json_line(&out);
    }
    let p = i.parameters;
    let row = |name: &str, n: u64| line(&format!("  {name:<32}{:>16}", grouped(n)));
    line(&format!("{} ({})", a.model.display(), config.model_type()))?;
    line("parameters")?;
    row("total", p.total)?;
    row("active per token", p.active)?;
    row("total without embeddings", p.total_without_embeddings)?;
    row("active without embeddings", p.active_without_embeddings)?;
    if p.mtp > 0 {
        row("beside them, multi-token head", p.mtp)?;
    }
    line(&format!("FLOPs per token (texts of {context} tokens)"))?;
    let f = i.forward;
    for (name, n) in [
        ("attention, projections", f.attention_projections),
        ("attention, scores", f.attention_scores),
        ("dense feed-forward", f.dense_mlp),
        ("routed experts", f.routed_experts),
        ("shared experts", f.shared_experts),
        ("router", f.router),
        ("head", f.head),
    ] {
        if n > 0 {
            row(name, n)?;
        }
    }
    row("forward, in all", f.total())?;
    row("training, forward and backward", i.training_operations_per_token)?;
    line("cache bytes per token")?;
    row("keys and values, f32", kv.expanded_f32)?;
    row("keys and values, bf16", kv.expanded_bf16)?;
    if let (Some(f32), Some(bf16)) = (kv.latent_f32, kv.latent_bf16) {
        row("latent (MLA), f32", f32)?;
        row("latent (MLA), bf16", bf16)?;
    }
    row("if every head kept its own, f32", kv.mha_equivalent_f32)
}

/// The configuration of a folder or file. A folder's weights, if there, have to fit, and say whether there is an MTP head.
fn config(path: &Path) -> Result<ModelConfig> {
    if model::files::is_gguf(path) {
        return Ok(ModelFolder::open(path)?.config);
    }
    if path.is_file() {
        return Ok(ModelConfig::load(path)?);
    }
    check_model(path)?;
    let has = |name: &str| path.join(name).exists();
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return Ok(ModelFolder::open(path)?.config);
    }
    Ok(ModelConfig::load(path)?)
}

/// `1234567` as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}
