//! What training takes of memory, about: weights and what belongs to them, and what is kept of each token on the way forward.

use model::config::{TensorKind, TensorSpec, tensor_specs};
use model::inspect::inspect;
use model::{Model, ModelConfig};
use tensor::Math;

/// Weights, packed weights, gradients and two moments.
pub const TRAINING_COPIES: usize = 5;

/// Weights and packed weights, where nothing is trained.
pub(crate) const READING_COPIES: usize = 2;

/// The same of weights that stay in the blocks of their file, in lengths of the file: the panels have plain scales.
pub(crate) const STORED_COPIES: f64 = 2.2;

/// The program, its threads, a tokenizer, logits of a chunk.
pub(crate) const OVERHEAD: f64 = 50e6;

/// Memory at the peak, about, in bytes: `copies` of the weights and the activations of `held` tokens.
pub fn training_bytes(config: &ModelConfig, copies: usize, held: usize) -> f64 {
    let parameters = inspect(config, 1).parameters.total as f64;
    4.0 * copies as f64 * parameters + activations(config, false) * held as f64 + OVERHEAD
}

/// What training keeps of a token, in bytes: of each layer what its way back needs, and one layer's gradients; with `recompute` each
/// layer's input alone, and one layer with its gradients.
pub(crate) fn activations(config: &ModelConfig, recompute: bool) -> f64 {
    let layers = config.num_hidden_layers();
    let specs = tensor_specs(config);
    let is_expert = |spec: &&TensorSpec| matches!(spec.kind, TensorKind::Expert { .. });
    let experts: usize = specs.iter().filter(is_expert).map(TensorSpec::elements).sum();
    let counted = inspect(config, 1).parameters;
    // The share of the routed experts that a token passes.
    let share = 1.0 - (counted.total - counted.active) as f64 / experts.max(1) as f64;
    let mut each = vec![0.0; layers];
    for spec in &specs {
        if let Some(layer) = spec.layer.filter(|layer| *layer < layers) {
            each[layer] += kept(spec) * if is_expert(&spec) { share } else { 1.0 };
        }
    }
    let largest = each.iter().copied().fold(0.0, f64::max);
    4.0 * SPARE
        * match recompute {
            true => (layers * config.hidden_size()) as f64 + 2.0 * largest,
            false => each.iter().sum::<f64>() + largest,
        }
}

/// Of what is kept: buffers are of few sizes, and batches of one step are a little longer than those of another (bench/memory.py).
const SPARE: f64 = 1.2;

/// Values that a layer keeps of a token on account of a tensor.
fn kept(spec: &TensorSpec) -> f64 {
    let name = spec.name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
    (match spec.kind {
        // What it was made of, and what it is.
        TensorKind::Norm if name.ends_with("layernorm") => 2 * spec.shape[0],
        TensorKind::Router => 2 * spec.shape[0],
        // Queries, keys and values of attention, and both halves of a gated unit.
        TensorKind::Matrix | TensorKind::Expert { .. } => match name {
            "q_proj" | "k_proj" | "v_proj" | "q_b_proj" | "kv_b_proj" | "gate_proj" | "up_proj" => {
                spec.shape[0]
            }
            // What these read.
            "o_proj" | "down_proj" => spec.shape[1],
            _ => 0,
        },
        _ => 0,
    }) as f64
}

/// Tokens of a pass for which there is room.
pub(crate) fn pass_tokens(config: &ModelConfig, room: f64, recompute: bool) -> usize {
    (room / activations(config, recompute)).max(0.0) as usize
}

/// Of a stage that cuts its passes: how many tokens they may have, for a model held for training and perhaps one beside it that is
/// read alone.
pub(crate) fn room_for_passes(
    model: &Model,
    beside: Option<&Model>,
    memory_gib: f64,
    recompute: bool,
) -> usize {
    let params = model.params();
    // What a recipe allows itself is of the host, but where passes are cut decides last bits: in exact mode it holds on a GPU too.
    // Fast mode's bits are the GPU's own, whose memory is looked at when the run begins.
    if params.gpu().is_some_and(|gpu| gpu.math() == Math::Fast) {
        return usize::MAX;
    }
    let trained = 4.0 * params.trained_len() as f64;
    let beside = beside.map_or(0.0, |model| model.stored_bytes() as f64);
    let held =
        TRAINING_COPIES as f64 * trained + STORED_COPIES * (model.stored_bytes() as f64 - trained + beside);
    pass_tokens(model.config(), memory_gib * (1u64 << 30) as f64 - held - OVERHEAD, recompute)
}

/// Memory that the system says is free for new work.
pub fn available_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}
