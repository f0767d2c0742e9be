//! What a recipe will take, before anything is done: parameters, operations, memory, time.

use engine::Batch;
use model::ModelConfig;
use model::config::{TensorSpec, tensor_specs};
use model::device::place_of;
use model::inspect::inspect;
use tensor::Math;

use crate::TrainError;
use crate::context::fresh_config;
use crate::memory::{
    OVERHEAD, READING_COPIES, STORED_COPIES, TRAINING_COPIES, activations, available_bytes, pass_tokens,
};
use crate::optim::update_flops;
use crate::recipe::{Recipe, Reference};
use crate::source::HELD_OUT;
use crate::stages::{AnyStage, Known, Makes, NamedStage, Work};

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
    /// Memory of each rank at the peak, about, in bytes.
    pub memory_bytes: f64,
    /// Bytes that each rank sends for one optimizer step.
    pub sent_bytes: f64,
    /// What to do where that is too much.
    pub remedy: &'static str,
}

/// Sequence length at which attention is counted.
const CONTEXT: usize = 128;

/// The plan of every stage whose model is known from the recipe, on so many ranks.
pub fn plan(recipe: &Recipe, ranks: usize) -> Result<Vec<StagePlan>, TrainError> {
    let mut plans: Vec<StagePlan> = Vec::new();
    for stage in &recipe.stages {
        let Some(mut plan) = stage_plan(recipe, stage, ranks)? else { continue };
        let budget_of = stage.budget_of();
        if !budget_of.is_empty() {
            let of = plans.iter().filter(|p| budget_of.contains(&p.name));
            plan.operations = plan.operations.min(of.map(|p| p.operations).sum());
        }
        plans.push(plan);
    }
    Ok(plans)
}

fn config_of(recipe: &Recipe, reference: &str) -> Result<Option<ModelConfig>, TrainError> {
    match recipe.reference(reference) {
        Reference::Model(_) => fresh_config(&recipe.models, reference, vocab(recipe), None, None).map(Some),
        Reference::Path(path) => Ok(model::load::config_of(path).ok()),
        Reference::Stage(stage) => match stage.model() {
            Some(model) if stage.makes() == Makes::Model => config_of(recipe, model),
            _ => Ok(None),
        },
    }
}

fn vocab(recipe: &Recipe) -> usize {
    let size = recipe.stages.iter().find_map(|s| match s.stage() {
        AnyStage::Tokenizer(t) => Some(t.vocab_size),
        _ => None,
    });
    size.unwrap_or(1024)
}

/// A stage's plan for all of its models, one after another.
fn stage_plan(recipe: &Recipe, stage: &NamedStage, ranks: usize) -> Result<Option<StagePlan>, TrainError> {
    let models: Vec<&str> = match stage.measures() {
        Some((models, _)) => models.iter().map(String::as_str).collect(),
        None => stage.model().into_iter().collect(),
    };
    let mut whole: Option<StagePlan> = None;
    for model in models {
        let Some(plan) = model_plan(recipe, stage, model, ranks)? else { continue };
        let before = whole.as_ref().map_or(0.0, |whole| whole.operations);
        let operations = before + plan.operations;
        // What is said of it is said of the model that takes the most.
        let larger = whole.filter(|whole| whole.memory_bytes > plan.memory_bytes).unwrap_or(plan);
        whole = Some(StagePlan { operations, ..larger });
    }
    Ok(whole)
}

/// What the recipe knows beforehand of stages' work.
fn work<'a>(recipe: &'a Recipe, stage: &'a NamedStage) -> Option<Work<'a>> {
    let trace_tokens = |name: &str| recipe.stage(name).map_or(0.0, |stage| stage.trace_tokens());
    let held_out = recipe.problems.held_out.unwrap_or(HELD_OUT);
    stage.work(&Known { trace_tokens: &trace_tokens, held_out })
}

fn model_plan(
    recipe: &Recipe,
    stage: &NamedStage,
    model: &str,
    ranks: usize,
) -> Result<Option<StagePlan>, TrainError> {
    let Some(w) = work(recipe, stage) else { return Ok(None) };
    let Some(config) = config_of(recipe, model)? else { return Ok(None) };
    let i = inspect(&config, CONTEXT);
    let update = w.optimizer.map_or(0.0, |optimizer| update_flops(optimizer.kind, &config));
    let adapters = adapter_parameters(&config, &w);
    let training = match w.adapter {
        // Weights that nothing moves have no gradients: a third of their products is saved.
        Some(_) => {
            (i.training_operations_per_token - i.forward.total() + i.forward.attention_scores) as f64
                + 6.0 * adapters
        }
        None => {
            i.training_operations_per_token as f64 + w.mtp_share * i.mtp_training_operations_per_token as f64
        }
    };
    let shards = recipe.parallel.shards;
    let trains = w.optimizer.is_some() && w.adapter.is_none();
    // Gradients, one more for every level of the tree over a rank's shards; both moments of its slice; weights, and packed weights.
    let sums = (shards / ranks).next_power_of_two().trailing_zeros();
    let copies = 3.0 + f64::from(sums) + 2.0 / ranks as f64;
    let others = 1.0 - 1.0 / ranks as f64;
    Ok(Some(StagePlan {
        name: stage.name().to_owned(),
        kind: stage.kind(),
        parameters: i.parameters.total,
        active_parameters: i.parameters.active,
        operations: training * w.trained + i.forward.total() as f64 * w.generated + update * w.steps,
        memory_bytes: {
            let mut held = held_weights(recipe, model, &config, &w, copies);
            if w.reference {
                held += base_bytes(recipe, model, 4.0 * i.parameters.total as f64);
            }
            let room = recipe.machine.memory_gib * (1u64 << 30) as f64 - held - OVERHEAD;
            let tokens = match w.cut {
                Some(least) if !is_fast(&config) => {
                    pass_tokens(&config, room, w.recompute).clamp(least, w.held.max(least))
                }
                None if w.sharded => w.held.div_ceil(shards),
                _ => w.held,
            };
            let training = activations(&config, w.recompute) * tokens as f64;
            held + training.max(written_bytes(&config, &w, ranks)) + OVERHEAD
        },
        // Gradients on the way to the sum, and weights on the way back.
        sent_bytes: if trains { 8.0 * i.parameters.total as f64 * others } else { 0.0 },
        remedy: w.remedy,
    }))
}

/// Whether a model is trained in a GPU's fast mode, which does not cut its passes.
fn is_fast(config: &ModelConfig) -> bool {
    place_of(config).is_ok_and(|place| place.gpu.is_some_and(|gpu| gpu.math() == Math::Fast))
}

/// What a stage's weights, and what belongs to them, take, in bytes.
fn held_weights(recipe: &Recipe, reference: &str, config: &ModelConfig, w: &Work, copies: f64) -> f64 {
    let parameters = 4.0 * inspect(config, CONTEXT).parameters.total as f64;
    if w.optimizer.is_some() && w.adapter.is_none() {
        return copies * parameters;
    }
    base_bytes(recipe, reference, parameters) + TRAINING_COPIES as f64 * 4.0 * adapter_parameters(config, w)
}

/// What the keys and values of answers under way take, in bytes.
fn written_bytes(config: &ModelConfig, w: &Work, ranks: usize) -> f64 {
    let Some(answers) = w.answers else { return 0.0 };
    let i = inspect(config, CONTEXT);
    let prompts = answers.problems.div_ceil(ranks);
    let batch = Batch {
        prompts,
        sequences: prompts * answers.each,
        sequence_bytes: i.kv_cache.expanded_f32 as usize * (CONTEXT + answers.max_new / 2),
    };
    batch.cache_bytes(4 * i.parameters.total as usize) as f64
}

/// Parameters of a stage's adapters.
fn adapter_parameters(config: &ModelConfig, w: &Work) -> f64 {
    let specs = w.adapter.and_then(|a| a.specs(&tensor_specs(config)).ok()).unwrap_or_default();
    specs.iter().map(TensorSpec::elements).sum::<usize>() as f64
}

/// Weights that nothing moves, as they are stored.
fn base_bytes(recipe: &Recipe, reference: &str, parameters: f64) -> f64 {
    match recipe.reference(reference) {
        Reference::Path(path) => match std::fs::metadata(path) {
            Ok(file) if file.is_file() => {
                (STORED_COPIES * file.len() as f64).min(READING_COPIES as f64 * parameters)
            }
            _ => READING_COPIES as f64 * parameters,
        },
        // What adapters were trained beside stays where it is.
        Reference::Stage(stage) => match (work(recipe, stage).and_then(|w| w.adapter), stage.model()) {
            (Some(_), Some(model)) => base_bytes(recipe, model, parameters),
            _ => READING_COPIES as f64 * parameters,
        },
        Reference::Model(_) => READING_COPIES as f64 * parameters,
    }
}

/// Refuses a recipe that would need more memory than it allows itself or than is free; on a GPU, than that has, or what it has
/// no kernels for.
pub fn check_memory(recipe: &Recipe, ranks: usize) -> Result<(), TrainError> {
    let have = match tensor::device(0) {
        Some(gpu) => gpu.info().memory as f64,
        None => {
            let allowed = recipe.machine.memory_gib * (1u64 << 30) as f64;
            available_bytes().unwrap_or(f64::INFINITY).min(allowed)
        }
    };
    for stage in &recipe.stages {
        let Some(name) = stage.model() else { continue };
        let Some(config) = config_of(recipe, name)? else { continue };
        place_of(&config).map_err(|reason| TrainError::Recipe(format!("{name}: {reason}")))?;
    }
    for p in plan(recipe, ranks)? {
        if p.memory_bytes > have {
            let gib = |b: f64| b / (1u64 << 30) as f64;
            return Err(TrainError::Memory {
                stage: p.name,
                need: gib(p.memory_bytes),
                have: gib(have),
                remedy: p.remedy,
            });
        }
    }
    Ok(())
}

/// Refuses a recipe that names files or models which are not there, or lengths that its models have no room for.
pub fn check_files(recipe: &Recipe) -> Result<(), TrainError> {
    for stage in &recipe.stages {
        let wrong = |key: &str, what: String| {
            Err(TrainError::Recipe(format!("stage `{}`: {key}: {what}", stage.name())))
        };
        for (key, path) in stage.files() {
            if !path.exists() {
                let what = format!("{} does not exist", path.display());
                return wrong(key, what);
            }
        }
        let Some(reference) = stage.model() else { continue };
        if let Reference::Path(path) = recipe.reference(reference)
            && !["config.json", "adapter_config.json"].iter().any(|name| path.join(name).is_file())
            && !model::files::is_gguf(path)
        {
            let what =
                format!("{} is neither a model folder with a config.json nor a GGUF file", path.display());
            return wrong("from", what);
        }
        let adapter = work(recipe, stage).and_then(|work| work.adapter);
        if let (Some(config), Some(adapter)) = (config_of(recipe, reference)?, adapter)
            && let Err(problem) = adapter.specs(&tensor_specs(&config))
        {
            return wrong("adapter", problem);
        }
        // Of longer worked problems and traces, stages without such a length say so themselves.
        if let (Some(config), Some((key, length))) = (config_of(recipe, reference)?, stage.length())
            && length > config.max_position_embeddings()
        {
            let room = config.max_position_embeddings();
            let what = format!(
                "the model's context is {room} tokens: lower it, or raise the model's max_position_embeddings"
            );
            return wrong(key, what);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
seed = 1
problems = { mix = [{ task = "word" }] }
stage = [
    { kind = "tokenizer" },
    { kind = "pretrain", model = "m", tokens = 40_000 },
    { kind = "sft", steps = 4 },
    { kind = "eval", limit = 10 },
]

[models.m]
model_type = "llama"
hidden_size = 512
intermediate_size = 1536
num_hidden_layers = 4
num_attention_heads = 4
"#;

    fn evaluation(set: &str) -> StagePlan {
        let recipe = Recipe::parse("small.toml", SMALL, &[set.to_owned()]).unwrap();
        let stages = plan(&recipe, 1).unwrap();
        stages.into_iter().find(|p| p.kind == "eval").expect("evaluations are planned")
    }

    /// Of all models in turn: their operations add up, the most memory counts.
    #[test]
    fn evaluations_cost_what_their_answers_cost() {
        let (few, many) = (evaluation("stage.eval.samples=3"), evaluation("stage.eval.samples=7"));
        assert_eq!(many.operations, 2.0 * few.operations);
        let (one, two) =
            (evaluation("stage.eval.of=sft"), evaluation("stage.eval.of=[\"sft\",\"pretrain\"]"));
        assert_eq!(two.operations, 2.0 * one.operations);
        assert_eq!(two.memory_bytes, one.memory_bytes);
        let short = evaluation("stage.eval.max_new=100");
        assert!(short.memory_bytes < one.memory_bytes, "{short:?}");
    }
}
