//! What training takes of memory, about: weights and what belongs to them, and what is kept of each token on the way forward.

use model::config::{TensorKind, TensorSpec, tensor_specs};
use model::inspect::inspect;
use model::{Model, ModelConfig};

/// Weights, packed weights, gradients and two moments.
pub const TRAINING_COPIES: usize = 5;

/// Weights and packed weights, where nothing is trained.
pub(crate) const READING_COPIES: usize = 2;

/// The same of weights that stay in the blocks of their file, in lengths of the file: the panels have plain scales.
pub(crate) const STORED_COPIES: f64 = 2.2;

/// The program, its threads, a tokenizer, logits of a chunk.
pub(crate) const OVERHEAD: f64 = 200e6;

/// Memory at the peak, about, in bytes: `copies` of the weights and the activations of `held` tokens.
pub fn training_bytes(config: &ModelConfig, copies: usize, held: usize) -> f64 {
    let parameters = inspect(config, 1).parameters.total as f64;
    4.0 * copies as f64 * parameters + activations(config, false) * held as f64 + OVERHEAD
}

/// What training keeps of a token, in bytes: about twice what the projections that it passes give out (their outputs, what norms and
/// activations make of them, gradients on the way); with `recompute` each layer's input, and one layer's share of the rest.
pub(crate) fn activations(config: &ModelConfig, recompute: bool) -> f64 {
    let main = |spec: &TensorSpec| spec.layer.is_some_and(|layer| layer < config.num_hidden_layers());
    let specs: Vec<TensorSpec> = tensor_specs(config).into_iter().filter(main).collect();
    let is_expert = |spec: &&TensorSpec| matches!(spec.kind, TensorKind::Expert { .. });
    let experts: usize = specs.iter().filter(is_expert).map(TensorSpec::elements).sum();
    let counted = inspect(config, 1).parameters;
    // The share of the routed experts that a token passes.
    let share = 1.0 - (counted.total - counted.active) as f64 / experts.max(1) as f64;
    let of = |spec: &TensorSpec| match spec.kind {
        TensorKind::Matrix => spec.shape[0] as f64,
        TensorKind::Expert { .. } => spec.shape[0] as f64 * share,
        _ => 0.0,
    };
    let layers = config.num_hidden_layers() as f64;
    let all = 4.0 * KEPT * specs.iter().map(of).sum::<f64>();
    if recompute { 4.0 * layers * config.hidden_size() as f64 + 2.0 * all / layers } else { all }
}

/// Values that are kept for each that a projection gives out.
const KEPT: f64 = 2.1;

/// Tokens of a pass for which there is room.
pub(crate) fn pass_tokens(config: &ModelConfig, room: f64, recompute: bool) -> usize {
    (room / activations(config, recompute)).max(0.0) as usize
}

/// Of a stage that cuts its passes: how many tokens they may have, for a model held for training.
pub(crate) fn room_for_passes(model: &Model, memory_gib: f64, recompute: bool) -> usize {
    let params = model.params();
    // What a recipe allows itself is of the host; a GPU's is looked at when the run begins.
    if params.gpu().is_some() {
        return usize::MAX;
    }
    let trained = 4.0 * params.trained_len() as f64;
    let held = TRAINING_COPIES as f64 * trained + STORED_COPIES * (params.bytes() as f64 - trained);
    pass_tokens(model.config(), memory_gib * (1u64 << 30) as f64 - held - OVERHEAD, recompute)
}

/// Memory that the system says is free for new work.
pub fn available_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}
