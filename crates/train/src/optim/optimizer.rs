//! AdamW and Muon over a model's flat arenas, with clipping folded into the same pass.

use model::Model;
use model::config::tensor_specs;
use tensor::cpu::update::{self, AdamW};
use tensor::{Buf, Params, Weight, threads};

use super::muon;
use crate::run::recipe::{self, OptimizerKind};

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
    config: recipe::Optimizer,
    runs: Vec<Run>,
    first: Buf,
    second: Buf,
    steps: u64,
}

impl Optimizer {
    /// Fresh state for a model.
    pub fn new(model: &Model, config: recipe::Optimizer) -> Optimizer {
        let mut runs: Vec<Run> = Vec::new();
        for (spec, p) in tensor_specs(model.config()).iter().zip(model.params().list()) {
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
        let n = model.params().len();
        Optimizer { config, runs, first: Buf::zeros(n), second: Buf::zeros(n), steps: 0 }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }
    /// Both moments, `[parameters]` each.
    pub fn state(&self) -> (&[f32], &[f32]) {
        (&self.first, &self.second)
    }
    /// Both moments and the number of steps, to restore them.
    pub fn state_mut(&mut self) -> (&mut [f32], &mut [f32], &mut u64) {
        (&mut self.first, &mut self.second, &mut self.steps)
    }

    /// Moves the weights by the gradients in the arena, at `factor` times the peak learning rates.
    pub fn step(&mut self, params: &mut Params, factor: f32) -> StepReport {
        let c = &self.config;
        let grad_norm = update::squared_norm(&params.grads()).sqrt() as f32;
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
        let (data, grads) = params.data_and_grads_mut();
        let mut matrices = Vec::new();
        let (mut data, mut first, mut second) = (data, &mut self.first[..], &mut self.second[..]);
        let mut at = 0;
        for run in &self.runs {
            let (skip, len) = (run.weight.offset - at, run.weight.len());
            let p = take(&mut data, skip, len);
            let m = take(&mut first, skip, len);
            let v = take(&mut second, skip, len);
            let g = &grads[run.weight.offset..][..len];
            at = run.weight.offset + len;
            if run.muon {
                matrices.push((p, g, m, run.weight));
            } else {
                let weight_decay = if run.decay { c.weight_decay as f32 } else { 0.0 };
                update::adamw(p, g, m, v, AdamW { weight_decay, ..adam });
            }
        }
        // One matrix per piece of work, the largest first.
        matrices.sort_by_key(|x| std::cmp::Reverse(x.3.len()));
        let rule = muon::Muon {
            lr: factor * c.learning_rate as f32,
            decay: c.weight_decay as f32,
            momentum: c.momentum as f32,
            grad_scale,
        };
        threads::parallel_chunks(&mut matrices, 1, |_, x| {
            let (p, g, m, w) = &mut x[0];
            rule.step(p, g, m, (w.rows, w.cols));
        });
        StepReport { grad_norm, skipped: false }
    }
}

/// Cuts `len` values off the front after `skip`.
fn take<'a>(rest: &mut &'a mut [f32], skip: usize, len: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(skip + len);
    *rest = back;
    &mut front[skip..]
}
