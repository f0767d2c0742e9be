//! What happens to gradients: optimizers, one file each and a line of `optimizers!` below, and learning-rate schedules.

mod optimizer;
pub mod schedule;
mod settings;

use model::ModelConfig;
use model::config::{TensorSpec, tensor_specs};
use serde::{Deserialize, Serialize};
use tensor::{Data, Weight};

pub use optimizer::{Optimizer, StepReport};
pub use settings::OptimizerSettings;

/// How an optimizer moves tensors. Those that it does not take are AdamW's.
pub trait Rule: Sync {
    /// Whether it takes a tensor.
    fn takes(&self, spec: &TensorSpec) -> bool;
    /// Whether it sees numbers one by one, so that neighbouring tensors can be moved as one.
    fn is_elementwise(&self) -> bool;
    /// The learning rate that suits it, in those of AdamW.
    fn rate(&self) -> f64;
    /// One step on the tensors that it has taken.
    fn step(&self, pieces: &[Piece], arenas: Arenas, settings: &OptimizerSettings, now: Update);
    /// FLOPs of a step on a tensor beside those that all optimizers have, about.
    fn flops(&self, _shape: &[usize]) -> f64 {
        0.0
    }
}

/// A tensor, or neighbouring ones.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where it lies.
    pub weight: Weight,
    /// Whether its weights decay: those of norms and biases do not.
    pub decays: bool,
}

/// Weights and gradients, `[parameters]` each, and both moments, of all or some of them.
pub struct Arenas<'a> {
    /// The weights.
    pub weights: &'a mut Data,
    /// Their gradients.
    pub gradients: &'a Data,
    /// The first moment.
    pub first: &'a mut Data,
    /// The second moment.
    pub second: &'a mut Data,
    /// The address of the first weight that the moments are of.
    pub start: usize,
}

/// What changes from step to step.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// The learning rate.
    pub lr: f32,
    /// Factor of the gradient, for clipping.
    pub grad_scale: f32,
    /// Steps, this one included.
    pub step: u64,
}

macro_rules! optimizers {
    ($($(#[$doc:meta])* $name:literal $variant:ident = $module:ident;)+) => {
        $(mod $module;)+

        /// The optimizers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum OptimizerKind {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)+
        }

        impl OptimizerKind {
            /// How it moves tensors.
            pub fn rule(self) -> &'static dyn Rule {
                match self {
                    $(OptimizerKind::$variant => &$module::$variant,)+
                }
            }
        }
    };
}

optimizers! {
    /// Adam with decoupled weight decay.
    "adamw" AdamW = adamw;
    /// Orthogonalised momentum for matrices, AdamW for the rest.
    "muon" Muon = muon;
}

/// FLOPs of one step on a model beside those that all optimizers have, about.
pub(crate) fn update_flops(kind: OptimizerKind, config: &ModelConfig) -> f64 {
    let rule = kind.rule();
    let taken = tensor_specs(config).into_iter().filter(|spec| rule.takes(spec));
    taken.map(|spec| rule.flops(&spec.shape)).sum()
}
