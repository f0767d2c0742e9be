//! AdamW and Muon over a model's flat arenas, with clipping folded into the same pass.

use model::Model;
use tensor::ops::{self, AdamW, Muon};
use tensor::{Data, Params, Weight};

use super::{OptimizerKind, OptimizerSettings, muon};

/// Neighbouring parameters that are treated alike.
struct Run {
    weight: Weight,
    decay: bool,
    muon: bool,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Whether the weights were left alone because the gradient was not finite.
    pub skipped: bool,
}

/// An optimizer's state: both moments (Muon's momentum is the first) and the number of steps taken.
pub struct Optimizer {
    config: OptimizerSettings,
    runs: Vec<Run>,
    first: Data,
    second: Data,
    steps: u64,
}

impl Optimizer {
    /// Fresh state for a model.
    pub fn new(model: &Model, config: OptimizerSettings) -> Optimizer {
        let mut runs: Vec<Run> = Vec::new();
        for (spec, p) in model.specs().iter().zip(model.params().list()) {
            if !p.trained {
                continue;
            }
            let muon = config.kind == OptimizerKind::Muon && muon::is_hidden_matrix(spec);
            let decay = spec.shape.len() > 1;
            match runs.last_mut() {
                Some(r)
                    if !muon
                        && !r.muon
                        && r.decay == decay
                        && r.weight.offset + r.weight.len() == p.weight.offset =>
                {
                    r.weight =
                        Weight { offset: r.weight.offset, rows: 1, cols: r.weight.len() + p.weight.len() };
                }
                _ => runs.push(Run { weight: p.weight, decay, muon }),
            }
        }
        let moment = || Data::zeros(model.params().gpu(), model.params().trained_len());
        Optimizer { config, runs, first: moment(), second: moment(), steps: 0 }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }
    /// Both moments, `[parameters]` each.
    pub fn state(&self) -> (&[f32], &[f32]) {
        (self.first.host(), self.second.host())
    }
    /// Both moments and the number of steps, to restore them.
    pub fn state_mut(&mut self) -> (&mut [f32], &mut [f32], &mut u64) {
        (self.first.host_mut(), self.second.host_mut(), &mut self.steps)
    }

    /// Moves the weights by the gradients in the arena, at `factor` times the peak learning rates.
    pub fn step(&mut self, params: &mut Params, factor: f32) -> StepReport {
        let c = &self.config;
        let (data, grads) = params.data_and_grads_mut();
        let grad_norm = ops::squared_norm(grads).sqrt() as f32;
        if !grad_norm.is_finite() {
            return StepReport { grad_norm, skipped: true };
        }
        self.steps += 1;
        let grad_scale =
            if c.clip > 0.0 && f64::from(grad_norm) > c.clip { c.clip as f32 / grad_norm } else { 1.0 };
        let t = self.steps.min(1 << 20) as i32;
        let adam = AdamW {
            lr: factor
                * if c.kind == OptimizerKind::Muon { c.adam_learning_rate } else { c.learning_rate } as f32,
            beta1: c.beta1 as f32,
            beta2: c.beta2 as f32,
            eps: c.eps as f32,
            weight_decay: 0.0,
            correction1: (1.0 - c.beta1.powi(t)) as f32,
            correction2: (1.0 - c.beta2.powi(t)) as f32,
            grad_scale,
        };
        for run in self.runs.iter().filter(|run| !run.muon) {
            let weight_decay = if run.decay { c.weight_decay as f32 } else { 0.0 };
            let range = run.weight.offset..run.weight.offset + run.weight.len();
            let moments = (&mut self.first, &mut self.second);
            ops::adamw(data, grads, moments, range, AdamW { weight_decay, ..adam });
        }
        let matrices: Vec<Weight> = self.runs.iter().filter(|run| run.muon).map(|run| run.weight).collect();
        if !matrices.is_empty() {
            let rule = Muon {
                lr: factor * c.learning_rate as f32,
                decay: c.weight_decay as f32,
                momentum: c.momentum as f32,
                grad_scale,
            };
            ops::muon(data, grads, &mut self.first, &matrices, rule);
        }
        StepReport { grad_norm, skipped: false }
    }
}
