//! `score`: log-probabilities of given tokens by the trainer's forward pass.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use model::{Model, PassOptions, whole};
use serde::Serialize;
use tensor::{Tape, ops};

use super::ranges;
use crate::model_files::{ModelArgs, reserve};
use crate::output::{json_line, line};

const EXAMPLES: &str = "\
Examples:
  shoestring score runs/launch/grpo --text 'Tom has 3 apples.'
  shoestring score some-model --ids 1,2,3 --json
  shoestring score some-model --ids 1,2,3 --logits-out logits.safetensors

The log-probabilities are those of ids[1:], each given the ids before it, and equal what `generate` reports for the same
tokens to the bit. Control tokens that --text spells are recognised, and the tokenizer puts before it what it puts before any
text (a beginning-of-sequence token): to score a chat, give its --ids.";

/// What to score.
#[derive(Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("what").required(true))]
pub struct Score {
    #[command(flatten)]
    from: ModelArgs,
    /// Token ids, separated by commas.
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', value_parser = ranges::token_id, group = "what")]
    ids: Vec<u32>,
    /// Text, for the model's own tokenizer.
    #[arg(long, value_name = "TEXT", group = "what", allow_hyphen_values = true)]
    text: Option<String>,
    /// Write the logits of all positions there, as one f32 tensor `logits` of shape [seq, vocab].
    #[arg(long, value_name = "FILE.safetensors")]
    logits_out: Option<PathBuf>,
    /// Print one JSON object: ids, logprobs.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Scored<'a> {
    ids: &'a [u32],
    logprobs: &'a [f32],
}

/// Runs the command.
pub fn run(a: &Score) -> Result<()> {
    if let Some(path) = &a.logits_out {
        check_place(path, &a.from.model)?;
    }
    let (mut model, tokenizer, ids) = match &a.text {
        Some(text) => {
            let loaded = a.from.open()?;
            let ids = loaded.tokenizer.encode_whole(text)?;
            if ids.is_empty() {
                bail!("--text is empty: there is nothing to score");
            }
            (loaded.model, Some(loaded.tokenizer), ids)
        }
        None => (a.from.open_model()?, None, a.ids.clone()),
    };
    check(&mut model, &ids)?;
    let tape = Tape::inference(model.params());
    let pass = model.forward(&tape, &ids, &whole(&[ids.len()]), PassOptions::default(), None);
    if let Some(path) = &a.logits_out {
        let logits = ops::logits(model.params(), &pass.hidden, model.head());
        write_logits(path, logits.host(), ids.len(), model.config().vocab_size())
            .with_context(|| format!("cannot write the logits to {}", path.display()))?;
    }
    let predicting = ids.len() - 1;
    let rows: Vec<u32> = (0..predicting as u32).collect();
    let hidden = ops::pick_rows(model.params(), &pass.hidden, &rows);
    let logprobs = match predicting {
        0 => Vec::new(),
        _ => ops::log_probs(model.params(), &hidden, model.head(), &ids[1..], 1.0).logprobs,
    };
    if a.json {
        return json_line(&Scored { ids: &ids, logprobs: &logprobs });
    }
    let text = |id: u32| {
        tokenizer
            .as_ref()
            .map_or_else(String::new, |t| format!("{:?}", t.decode(&[id], false).unwrap_or_default()))
    };
    line("     id     log-prob  token")?;
    for (i, &id) in ids.iter().enumerate() {
        let logprob = if i == 0 { "-".to_owned() } else { format!("{:.6}", logprobs[i - 1]) };
        line(&format!("{id:>7} {logprob:>12}  {}", text(id)))?;
    }
    if predicting == 0 {
        return line("nothing stands before the one token, so there is no log-probability");
    }
    let sum: f64 = logprobs.iter().map(|&l| f64::from(l)).sum();
    let mean = sum / predicting as f64;
    line(&format!("sum {sum:.6}, mean {mean:.6}, perplexity {:.4}", (-mean).exp()))
}

/// Refuses what the model cannot read, and makes room for the rest.
fn check(model: &mut Model, ids: &[u32]) -> Result<()> {
    let vocab = model.config().vocab_size();
    if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        bail!(
            "token id {id} (number {} of --ids) is outside of the model's vocabulary of {vocab} ids, 0 to {}",
            at + 1,
            vocab - 1
        );
    }
    let context = reserve(model, ids.len());
    if ids.len() > context {
        bail!(
            "there are {} tokens to score, but the model's context is {context}: score shorter parts",
            ids.len()
        );
    }
    Ok(())
}

/// Refuses a place that is taken by something else than a plain file, or by a file of the model.
fn check_place(path: &Path, model: &Path) -> Result<()> {
    let path_words = path.display();
    if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        bail!("--logits-out: {path_words} is there and is no plain file: name another");
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let same = folder.canonicalize().ok().zip(model.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    if same && path.exists() && (name.starts_with("model") || !name.ends_with(".safetensors")) {
        bail!("--logits-out: {path_words} is a file of the model: name another");
    }
    Ok(())
}

/// Writes one f32 tensor `logits` as a safetensors file, whole or not at all.
fn write_logits(path: &Path, logits: &[f32], rows: usize, vocab: usize) -> std::io::Result<()> {
    let header = serde_json::json!({"logits": {"dtype": "F32", "shape": [rows, vocab], "data_offsets": [0, 4 * logits.len()]}});
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    ground::atomic::replace_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for part in logits.chunks(1 << 16) {
            file.write_all(&part.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Ok(())
    })
}
