//! `convert`: a model in another format.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use data::Tokenizer;
use model::files::{GgufType, WeightType, write_gguf};
use model::{Model, Use};
use tensor::blocks::Format;

use crate::model_files::{Loaded, check_model, has_tokenizer};
use crate::output::{line, tell};

const EXAMPLES: &str = "\
Examples:
  shoestring convert runs/launch/grpo --to my-model.gguf --type q8_0
  shoestring convert SmolLM2-135M-Instruct.Q4_1.gguf --to smollm2
  shoestring convert my-model --to my-model-bf16 --type bf16
  shoestring convert SmolLM2-135M-Instruct.Q4_1.gguf --adapter my-adapter --to taught.gguf --type q8_0

A GGUF file is what llama.cpp and the programs around it read: weights, tokenizer and chat template in one. A folder is
what transformers reads: config.json, model.safetensors, tokenizer.json. Quantised types round the weights of
projections and of the embedding; norms stay as they are. An adapter, named or of the model's own folder, is merged in f32.";

/// What to write, and where.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Convert {
    /// The model: a folder (config.json, model.safetensors, tokenizer.json) or a GGUF file.
    model: PathBuf,
    /// An adapter to merge: a folder as PEFT writes it (adapter_config.json, adapter_model.safetensors).
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// A name that ends in .gguf, or a folder.
    #[arg(long, value_name = "FILE.gguf|FOLDER")]
    to: PathBuf,
    /// How weights are stored; folders know f32 and bf16.
    #[arg(long = "type", value_name = "TYPE", default_value = "f32",
        value_parser = PossibleValuesParser::new(GgufType::NAMES.map(|(name, _)| name)))]
    kind: String,
}

/// Runs the command.
pub fn run(a: &Convert) -> Result<()> {
    let kind = GgufType::NAMES.into_iter().find(|(name, _)| *name == a.kind).map(|(_, kind)| kind);
    let kind = kind.ok_or_else(|| anyhow!("--type {} is not known", a.kind))?;
    let to = a.to.display();
    if a.to.exists() && !is_empty_folder(&a.to) {
        bail!("{to} is there already: name another place");
    }
    if a.to.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return to_gguf(a, kind);
    }
    let kind = match kind {
        GgufType::Plain(Format::F32) => WeightType::F32,
        GgufType::Plain(Format::Bf16) => WeightType::Bf16,
        _ => bail!(
            "--type {} is of GGUF files alone: a folder is written in f32 or bf16, or let --to end in .gguf",
            a.kind
        ),
    };
    check_model(&a.model)?;
    let adapter = a.adapter.as_deref();
    if !has_tokenizer(&a.model)? {
        let model = match adapter {
            Some(adapter) => Model::open_with(&a.model, adapter, Use::Train)?,
            None => Model::load(&a.model)?,
        };
        write_folder(&a.to, &model, None, kind)?;
    } else {
        let Loaded { model, tokenizer } = Loaded::open(&a.model, adapter, Use::Train)?;
        write_folder(&a.to, &model, Some(&tokenizer), kind)?;
    }
    line(&format!("wrote {to}"))
}

/// Writes a model, its adapter merged, as a folder.
pub fn merge_into(model: &Path, to: &Path) -> Result<()> {
    let Loaded { model, tokenizer } = Loaded::open(model, None, Use::Train)?;
    write_folder(to, &model, Some(&tokenizer), WeightType::F32)
}

/// Writes a folder that appears whole or not at all.
fn write_folder(to: &Path, model: &Model, tokenizer: Option<&Tokenizer>, kind: WeightType) -> Result<()> {
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let failed = || format!("cannot write {}", to.display());
    std::fs::create_dir_all(part).with_context(failed)?;
    let written = tokenizer.map_or(Ok(()), |t| t.save(part).map_err(anyhow::Error::from));
    let written = written.and_then(|()| Ok(model.save_as(part, kind)?));
    if written.is_err() {
        // What caused it is the message.
        let _ = std::fs::remove_dir_all(part);
    }
    written?;
    std::fs::rename(part, to).with_context(failed)
}

fn to_gguf(a: &Convert, kind: GgufType) -> Result<()> {
    let Loaded { model, tokenizer } = Loaded::open(&a.model, a.adapter.as_deref(), Use::Train)?;
    let no_form = |problem| anyhow!("{}: {problem}", a.model.display());
    let (keys, notices) = tokenizer.gguf_keys(model.config().vocab_size()).map_err(no_form)?;
    notices.iter().for_each(|text| tell(text));
    if model.has_mtp() {
        tell("note: the layer of multi-token prediction is left out, for which GGUF files have no place");
    }
    let name = a.to.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let values = |name: &str| values(&model, name);
    write_gguf(&a.to, model.config(), &name, keys, kind, values)?;
    let bytes = std::fs::metadata(&a.to).map(|found| found.len()).unwrap_or(0);
    line(&format!("wrote {} ({:.1} MB)", a.to.display(), bytes as f64 / 1e6))
}

fn values<'a>(model: &'a Model, name: &str) -> &'a [f32] {
    model.params().get(model.params().weight(name))
}

fn is_empty_folder(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
