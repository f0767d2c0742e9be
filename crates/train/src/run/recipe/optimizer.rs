//! Settings of an optimizer.

use serde::{Deserialize, Serialize};

/// A number that the recipe does not state and whose default depends on others. A finished
/// [`Recipe`](super::Recipe) holds none, and a file cannot state one.
pub(super) const UNSET: f64 = f64::NAN;

/// An optimizer with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Which one.
    pub kind: OptimizerKind,
    /// The highest learning rate; by default one that suits the kind of stage.
    pub learning_rate: f64,
    /// With Muon, the AdamW learning rate of what is no matrix of a layer: embeddings, head, norms, biases.
    pub adam_learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Muon's momentum.
    pub momentum: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The largest norm of the gradient before it is scaled down; 0 never scales.
    pub clip: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer {
            kind: OptimizerKind::AdamW,
            learning_rate: UNSET,
            adam_learning_rate: UNSET,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            momentum: 0.95,
            weight_decay: 0.1,
            clip: 1.0,
        }
    }
}

/// The optimizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    AdamW,
    /// Orthogonalised momentum for matrices, AdamW for the rest.
    Muon,
}
