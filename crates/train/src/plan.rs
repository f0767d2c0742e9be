//! What a recipe will take, before anything is done: parameters, operations, memory, time.

use model::ModelConfig;
use model::inspect::inspect;

use crate::TrainError;
use crate::context::fresh_config;
use crate::run::recipe::{Recipe, Reference, Source, Stage};

/// One stage's plan.
#[derive(Clone, Debug, PartialEq)]
pub struct StagePlan {
    /// The stage.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// The model's parameters.
    pub parameters: u64,
    /// Parameters that one token uses.
    pub active_parameters: u64,
    /// Operations of the whole stage, about.
    pub operations: f64,
    /// Memory at the peak, about, in bytes.
    pub memory_bytes: f64,
}

/// Sequence length at which attention is counted.
const CONTEXT: usize = 128;

/// The plan of every stage whose model is known from the recipe.
pub fn plan(recipe: &Recipe) -> Result<Vec<StagePlan>, TrainError> {
    recipe.stages.iter().filter_map(|s| stage_plan(recipe, s).transpose()).collect()
}

fn config_of(recipe: &Recipe, reference: &str) -> Result<Option<ModelConfig>, TrainError> {
    match recipe.reference(reference) {
        Reference::Model(_) => fresh_config(recipe, reference, vocab(recipe), None, None).map(Some),
        Reference::Path(path) => Ok(ModelConfig::load(path).ok()),
        Reference::Stage(stage) => match stage {
            Stage::Pretrain(p) => {
                config_of(recipe, p.model.as_deref().or(p.from.as_deref()).unwrap_or_default())
            }
            Stage::Sft(s) => config_of(recipe, &s.from),
            Stage::Grpo(s) => config_of(recipe, &s.from),
            Stage::Distill(s) => config_of(recipe, &s.student),
            _ => Ok(None),
        },
    }
}

fn vocab(recipe: &Recipe) -> usize {
    recipe
        .stages
        .iter()
        .find_map(|s| if let Stage::Tokenizer(t) = s { Some(t.vocab_size) } else { None })
        .unwrap_or(1024)
}

fn stage_plan(recipe: &Recipe, stage: &Stage) -> Result<Option<StagePlan>, TrainError> {
    // Tokens trained on, tokens generated, tokens held at a time.
    let (reference, trained, generated, held) = match stage {
        Stage::Tokenizer(_) | Stage::Eval(_) => return Ok(None),
        Stage::Pretrain(s) => (
            s.model.clone().or(s.from.clone()).unwrap_or_default(),
            s.trained_tokens() as f64,
            0.0,
            s.batch_tokens / s.accumulate.max(1),
        ),
        Stage::Sft(s) => (
            s.from.clone(),
            (s.steps * s.batch_tokens as u64) as f64,
            0.0,
            s.batch_tokens / s.accumulate.max(1),
        ),
        Stage::Grpo(s) => {
            // Half the longest answer is a fair guess of the mean.
            let answers = (s.steps as usize * s.prompts * s.group * s.max_new) as f64 / 2.0;
            (s.from.clone(), answers * (s.epochs as f64), answers, 8192)
        }
        Stage::Reject(s) => (s.from.clone(), 0.0, (s.problems * s.samples * s.max_new) as f64 / 2.0, 512),
        Stage::Distill(s) => (
            s.student.clone(),
            (s.steps * s.batch_tokens as u64) as f64,
            0.0,
            s.batch_tokens / s.accumulate.max(1),
        ),
    };
    let Some(config) = config_of(recipe, &reference)? else { return Ok(None) };
    let i = inspect(&config, CONTEXT);
    let (parameters, active) = (i.parameters.total, i.parameters.active);
    let forward = i.forward.total() as f64;
    Ok(Some(StagePlan {
        name: stage.name().to_owned(),
        kind: stage.kind(),
        parameters,
        active_parameters: active,
        operations: 3.0 * forward * trained + forward * generated,
        memory_bytes: training_bytes(&config, TRAINING_COPIES, held),
    }))
}

/// Weights, packed weights, gradients and two moments.
pub const TRAINING_COPIES: usize = 5;

/// Memory at the peak, about, in bytes: `copies` of the weights and the activations of `held` tokens, some 24 values for
/// each layer and feature.
pub fn training_bytes(config: &ModelConfig, copies: usize, held: usize) -> f64 {
    let parameters = inspect(config, CONTEXT).parameters.total as f64;
    let per_token = (24 * config.hidden_size() * config.num_hidden_layers()) as f64;
    4.0 * (copies as f64 * parameters + per_token * held as f64) + 64e6
}

/// Refuses a recipe that would need more memory than it allows itself or than is free.
pub fn check_memory(recipe: &Recipe) -> Result<(), TrainError> {
    let free = available_bytes().unwrap_or(f64::INFINITY);
    let have = free.min(recipe.machine.memory_gib * (1u64 << 30) as f64);
    for p in plan(recipe)? {
        if p.memory_bytes > have {
            let gib = |b: f64| b / (1u64 << 30) as f64;
            let remedy = "lower `batch_tokens`, raise `accumulate`, set `recompute = true`, or raise `machine.memory_gib`";
            return Err(TrainError::Memory {
                stage: p.name,
                need: gib(p.memory_bytes),
                have: gib(have),
                remedy,
            });
        }
    }
    Ok(())
}

/// Refuses a recipe that names files or models which are not there, or lengths that its models have no room for.
pub fn check_files(recipe: &Recipe) -> Result<(), TrainError> {
    let wrong = |stage: &Stage, key: &str, what: String| {
        Err(TrainError::Recipe(format!("stage `{}`: {key}: {what}", stage.name())))
    };
    for stage in &recipe.stages {
        let source = match stage {
            Stage::Tokenizer(s) => Some(&s.source),
            Stage::Pretrain(s) => Some(&s.source),
            _ => None,
        };
        if let Some(Source::Files(files)) = source
            && !files.path.exists()
        {
            let what = format!("{} does not exist: name a file or a folder of text", files.path.display());
            return wrong(stage, "source.path", what);
        }
        let (key, reference, length) = match stage {
            Stage::Tokenizer(_) | Stage::Eval(_) => continue,
            Stage::Pretrain(s) => match (&s.model, &s.from) {
                (Some(model), _) => ("seq_len", model, s.seq_len),
                (_, from) => ("seq_len", from.as_ref().unwrap_or(&s.name), s.seq_len),
            },
            // Of longer worked problems and traces these two say so themselves.
            Stage::Sft(s) => ("seq_len", &s.from, 0),
            Stage::Grpo(s) => ("max_new", &s.from, s.max_new + 1),
            Stage::Reject(s) => ("max_new", &s.from, s.max_new + 1),
            Stage::Distill(s) => ("seq_len", &s.student, 0),
        };
        if let Reference::Path(path) = recipe.reference(reference)
            && !path.join("config.json").is_file()
        {
            return wrong(
                stage,
                "from",
                format!("{} is no model folder: it has no config.json", path.display()),
            );
        }
        if let Some(config) = config_of(recipe, reference)?
            && length > config.max_position_embeddings()
        {
            let room = config.max_position_embeddings();
            return wrong(
                stage,
                key,
                format!(
                    "the model's context is {room} tokens: lower it, or raise the model's max_position_embeddings"
                ),
            );
        }
    }
    Ok(())
}

/// Memory that the system says is free for new work.
pub fn available_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}
