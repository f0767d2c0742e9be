//! Which matrices Muon takes care of, and what that costs.

use model::ModelConfig;
use model::config::{TensorKind, TensorSpec, tensor_specs};
use tensor::ops::MUON_STEPS;

/// Operations of one step on all of a model's matrices, about: symmetric products are computed by half.
pub(crate) fn muon_operations(config: &ModelConfig) -> f64 {
    let of = |shape: &[usize]| {
        let (n, k) = (shape[0].min(shape[1]) as f64, shape[0].max(shape[1]) as f64);
        MUON_STEPS as f64 * n * n * (3.0 * k + n)
    };
    tensor_specs(config).iter().filter(|spec| is_hidden_matrix(spec)).map(|spec| of(&spec.shape)).sum()
}

/// Whether Muon takes care of a tensor.
pub(super) fn is_hidden_matrix(spec: &TensorSpec) -> bool {
    matches!(spec.kind, TensorKind::Matrix | TensorKind::Expert { .. })
}
