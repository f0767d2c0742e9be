//! An optimizer at work: whose rule moves which part of a model's flat arenas, and the guard before it.

use model::Model;
use tensor::ops;
use tensor::{Data, Params, Weight};

use super::{Arenas, OptimizerKind, OptimizerSettings, Piece, Rule, Update};

/// The tensors of one rule.
struct Group {
    rule: &'static dyn Rule,
    /// The highest learning rate.
    peak: f64,
    pieces: Vec<Piece>,
}

impl Group {
    fn new(kind: OptimizerKind, peak: f64) -> Group {
        Group { rule: kind.rule(), peak, pieces: Vec::new() }
    }

    /// Adds a tensor, to its neighbour where the rule cannot tell.
    fn add(&mut self, weight: Weight, decays: bool) {
        let last = self.pieces.last_mut().filter(|last| {
            let weight_ends = last.weight.offset + last.weight.len();
            self.rule.is_elementwise() && last.decays == decays && weight_ends == weight.offset
        });
        match last.map(|last| &mut last.weight) {
            Some(last) => *last = Weight { offset: last.offset, rows: 1, cols: last.len() + weight.len() },
            None => self.pieces.push(Piece { weight, decays }),
        }
    }
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
    /// What is AdamW's for want of another, then what the optimizer itself takes.
    groups: [Group; 2],
    first: Data,
    second: Data,
    steps: u64,
}

impl Optimizer {
    /// Fresh state for a model.
    pub fn new(model: &Model, config: OptimizerSettings) -> Optimizer {
        let mut groups = [
            Group::new(OptimizerKind::AdamW, config.adam_learning_rate),
            Group::new(config.kind, config.learning_rate),
        ];
        for (spec, p) in model.specs().iter().zip(model.params().list()).filter(|(_, p)| p.trained) {
            let taken = groups[1].rule.takes(spec);
            groups[usize::from(taken)].add(p.weight, spec.shape.len() > 1);
        }
        let moment = || Data::zeros(model.params().gpu(), model.params().trained_len());
        Optimizer { config, groups, first: moment(), second: moment(), steps: 0 }
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
        for group in self.groups.iter().filter(|group| !group.pieces.is_empty()) {
            let arenas = Arenas {
                weights: &mut *data,
                gradients: grads,
                first: &mut self.first,
                second: &mut self.second,
            };
            let now = Update { lr: factor * group.peak as f32, grad_scale, step: self.steps };
            group.rule.step(&group.pieces, arenas, c, now);
        }
        StepReport { grad_norm, skipped: false }
    }
}
