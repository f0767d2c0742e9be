//! What a recipe will take, before anything is done: parameters, operations, memory, time.

use model::ModelConfig;
use model::inspect::inspect;

use crate::TrainError;
use crate::context::fresh_config;
use crate::optim::muon_operations;
use crate::run::recipe::{Optimizer, OptimizerKind, Recipe, Reference, Source, Stage};

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
    let mut plans: Vec<StagePlan> = Vec::new();
    for stage in &recipe.stages {
        let Some(mut plan) = stage_plan(recipe, stage)? else { continue };
        if let Stage::Grpo(s) = stage
            && !s.budget_of.is_empty()
        {
            let of = plans.iter().filter(|p| s.budget_of.contains(&p.name));
            plan.operations = plan.operations.min(of.map(|p| p.operations).sum());
        }
        plans.push(plan);
    }
    Ok(plans)
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

/// What a stage does with its model.
struct Work<'a> {
    reference: &'a str,
    optimizer: Option<&'a Optimizer>,
    /// Optimizer steps.
    steps: f64,
    /// Tokens trained on, and the share of them that the MTP layers learn from.
    trained: f64,
    mtp_share: f64,
    /// Tokens generated.
    generated: f64,
    /// Tokens held at a time.
    held: usize,
}

fn work<'a>(recipe: &'a Recipe, stage: &'a Stage) -> Option<Work<'a>> {
    let packed = |reference, optimizer, tokens: f64, batch_tokens: usize, accumulate: usize| Work {
        reference,
        optimizer: Some(optimizer),
        steps: tokens / batch_tokens as f64,
        trained: tokens,
        mtp_share: 0.0,
        generated: 0.0,
        held: batch_tokens / accumulate.max(1),
    };
    Some(match stage {
        Stage::Tokenizer(_) | Stage::Eval(_) => return None,
        Stage::Pretrain(s) => Work {
            mtp_share: if s.mtp_weight > 0.0 { 1.0 / s.mtp_every.max(1) as f64 } else { 0.0 },
            ..packed(
                s.model.as_deref().or(s.from.as_deref()).unwrap_or_default(),
                &s.optimizer,
                s.trained_tokens() as f64,
                s.batch_tokens,
                s.accumulate,
            )
        },
        Stage::Sft(s) => {
            let tokens = s.steps as f64 * s.batch_tokens as f64;
            packed(&s.from, &s.optimizer, tokens, s.batch_tokens, s.accumulate)
        }
        Stage::Grpo(s) => {
            let answers = s.steps as f64 * guess(s.prompts, s.group, s.max_new);
            Work {
                reference: &s.from,
                optimizer: Some(&s.optimizer),
                steps: s.steps as f64 * s.epochs as f64 * s.minibatches as f64,
                trained: answers * s.epochs as f64,
                mtp_share: 0.0,
                generated: answers,
                held: 8192,
            }
        }
        Stage::Reject(s) => Work {
            reference: &s.from,
            optimizer: None,
            steps: 0.0,
            trained: 0.0,
            mtp_share: 0.0,
            generated: guess(s.problems, s.samples, s.max_new),
            held: 512,
        },
        Stage::Distill(s) => {
            // As many traces as can be kept, where their number decides the steps.
            let traces = recipe.stages.iter().rev().find_map(|r| match r {
                Stage::Reject(r) if s.traces.as_ref().is_none_or(|name| *name == r.name) => {
                    Some(guess(r.problems, r.keep, r.max_new))
                }
                _ => None,
            });
            let tokens = match s.steps {
                0 => s.epochs as f64 * traces.unwrap_or(0.0),
                steps => steps as f64 * s.batch_tokens as f64,
            };
            packed(&s.student, &s.optimizer, tokens, s.batch_tokens, s.accumulate)
        }
    })
}

/// Tokens of so many answers to each problem: half the longest is a fair guess of the mean.
fn guess(problems: usize, answers: usize, max_new: usize) -> f64 {
    problems as f64 * answers as f64 * max_new as f64 / 2.0
}

fn stage_plan(recipe: &Recipe, stage: &Stage) -> Result<Option<StagePlan>, TrainError> {
    let Some(w) = work(recipe, stage) else { return Ok(None) };
    let Some(config) = config_of(recipe, w.reference)? else { return Ok(None) };
    let i = inspect(&config, CONTEXT);
    let update = match w.optimizer {
        Some(o) if o.kind == OptimizerKind::Muon => muon_operations(&config),
        _ => 0.0,
    };
    let training =
        i.training_operations_per_token as f64 + w.mtp_share * i.mtp_training_operations_per_token as f64;
    Ok(Some(StagePlan {
        name: stage.name().to_owned(),
        kind: stage.kind(),
        parameters: i.parameters.total,
        active_parameters: i.parameters.active,
        operations: training * w.trained + i.forward.total() as f64 * w.generated + update * w.steps,
        memory_bytes: training_bytes(&config, TRAINING_COPIES, w.held),
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

/// Refuses a recipe that would need more memory than it allows itself or than is free; on a GPU, than that has.
pub fn check_memory(recipe: &Recipe) -> Result<(), TrainError> {
    let have = match tensor::device(0) {
        Some(gpu) => gpu.info().memory as f64,
        None => {
            let allowed = recipe.machine.memory_gib * (1u64 << 30) as f64;
            available_bytes().unwrap_or(f64::INFINITY).min(allowed)
        }
    };
    for p in plan(recipe)? {
        if p.memory_bytes > have {
            let gib = |b: f64| b / (1u64 << 30) as f64;
            let remedy = match p.kind {
                "grpo" => "set `recompute = true`, take a smaller model, or raise `machine.memory_gib`",
                "reject" => "take a smaller model, or raise `machine.memory_gib`",
                _ => {
                    "lower `batch_tokens`, raise `accumulate`, set `recompute = true`, or raise `machine.memory_gib`"
                }
            };
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
            Stage::Grpo(s) => ("max_new", &s.from, s.max_new.saturating_add(1)),
            Stage::Reject(s) => ("max_new", &s.from, s.max_new.saturating_add(1)),
            Stage::Distill(s) => ("seq_len", &s.student, 0),
        };
        if let Reference::Path(path) = recipe.reference(reference)
            && !path.join("config.json").is_file()
            && !model::files::is_gguf(path)
        {
            return wrong(
                stage,
                "from",
                format!("{} is neither a model folder with a config.json nor a GGUF file", path.display()),
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
