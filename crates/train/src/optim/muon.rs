//! Muon (Jordan et al. 2024): orthogonalised momentum for the matrices of layers and experts.

use model::config::{TensorKind, TensorSpec};
use tensor::Weight;
use tensor::ops::{self, MUON_STEPS};

use super::{Arenas, OptimizerSettings, Piece, Rule, Update};

pub(super) struct Muon;

impl Rule for Muon {
    fn takes(&self, spec: &TensorSpec) -> bool {
        matches!(spec.kind, TensorKind::Matrix | TensorKind::Expert { .. })
    }

    fn is_elementwise(&self) -> bool {
        false
    }

    fn rate(&self) -> f64 {
        10.0
    }

    fn step(&self, pieces: &[Piece], arenas: Arenas, c: &OptimizerSettings, now: Update) {
        let matrices: Vec<Weight> = pieces.iter().map(|piece| piece.weight).collect();
        let rule = ops::Muon {
            lr: now.lr,
            decay: c.weight_decay as f32,
            momentum: c.momentum as f32,
            grad_scale: now.grad_scale,
        };
        ops::muon(arenas.weights, arenas.gradients, arenas.first, arenas.start, &matrices, rule);
    }

    /// Symmetric products are computed by half.
    fn flops(&self, shape: &[usize]) -> f64 {
        let (n, k) = (shape[0].min(shape[1]) as f64, shape[0].max(shape[1]) as f64);
        MUON_STEPS as f64 * n * n * (3.0 * k + n)
    }
}
