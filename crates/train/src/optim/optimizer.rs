//! An optimizer at work: whose rule moves which part of a model's flat arenas, and the guard before it.

use std::ops::Range;

use comm::collective::Slices;
use model::Model;
use tensor::ops;
use tensor::{Data, Params, Weight};

use crate::team::Team;

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

    /// Leaves what lies within `own`: whole matrices, or parts of what can be cut.
    fn keep(&mut self, own: &Range<usize>) {
        self.pieces.retain_mut(|Piece { weight, .. }| {
            let (start, end) = (weight.offset.max(own.start), (weight.offset + weight.len()).min(own.end));
            if start < end && end - start < weight.len() {
                *weight = Weight { offset: start, rows: 1, cols: end - start };
            }
            start < end
        });
    }
}

/// About equal parts of an arena of so many values for so many ranks. They end where the pieces of a norm do; within a matrix that
/// goes whole to one of them, they end with it.
fn slices(len: usize, ranks: usize, whole: &[Piece]) -> Slices {
    let mut bounds = vec![0; ranks + 1];
    for rank in 1..=ranks {
        let fair = (len as u128 * rank as u128 / ranks as u128) as usize;
        let at = if rank == ranks { len } else { fair / ops::NORM_PIECE * ops::NORM_PIECE };
        let cut = |piece: &&Piece| {
            (piece.weight.offset + 1..piece.weight.offset + piece.weight.len()).contains(&at)
        };
        let at = whole.iter().find(cut).map_or(at, |piece| piece.weight.offset + piece.weight.len());
        bounds[rank] = at.max(bounds[rank - 1]);
    }
    Slices::new(bounds)
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Whether the weights were left alone because the gradient was not finite.
    pub skipped: bool,
}

/// An optimizer's state: both moments (Muon's momentum is the first) of a rank's slice of the weights, of all where there is one rank
/// alone, and the number of steps taken.
pub struct Optimizer {
    config: OptimizerSettings,
    slices: Slices,
    /// This rank's slice.
    own: Range<usize>,
    /// What is AdamW's for want of another, then what the optimizer itself takes.
    groups: [Group; 2],
    first: Data,
    second: Data,
    steps: u64,
}

impl Optimizer {
    /// Fresh state for a model.
    pub fn new(model: &Model, config: OptimizerSettings, team: &Team) -> Optimizer {
        let mut groups = [
            Group::new(OptimizerKind::AdamW, config.adam_learning_rate),
            Group::new(config.kind, config.learning_rate),
        ];
        for (spec, p) in model.specs().iter().zip(model.params().list()).filter(|(_, p)| p.trained) {
            let taken = groups[1].rule.takes(spec);
            groups[usize::from(taken)].add(p.weight, spec.shape.len() > 1);
        }
        let whole = if groups[1].rule.is_elementwise() { &[][..] } else { &groups[1].pieces };
        let slices = slices(model.params().trained_len(), team.ranks(), whole);
        let own = slices.of(team.rank());
        groups.iter_mut().for_each(|group| group.keep(&own));
        let moment = || Data::zeros(model.params().gpu(), own.len());
        Optimizer { config, groups, first: moment(), second: moment(), steps: 0, slices, own }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }
    /// What of the weights each rank moves.
    pub fn slices(&self) -> &Slices {
        &self.slices
    }
    /// Both moments of this rank's slice.
    pub fn state(&self) -> (&[f32], &[f32]) {
        (self.first.host(), self.second.host())
    }
    /// Both moments of this rank's slice and the number of steps, to restore them.
    pub fn state_mut(&mut self) -> (&mut [f32], &mut [f32], &mut u64) {
        (self.first.host_mut(), self.second.host_mut(), &mut self.steps)
    }

    /// Moves the weights by the gradients in the arena, at `factor` times the peak learning rates: each rank its slice, by the
    /// gradients there, and all get all weights.
    pub fn step(&mut self, params: &mut Params, factor: f32, team: &Team) -> StepReport {
        let c = &self.config;
        let (data, grads) = params.data_and_grads_mut();
        let grad_norm = team.squared_norm(grads, &self.slices).sqrt() as f32;
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
                start: self.own.start,
            };
            let now = Update { lr: factor * group.peak as f32, grad_scale, step: self.steps };
            group.rule.step(&group.pieces, arenas, c, now);
        }
        team.all_gather(data, &self.slices);
        StepReport { grad_norm, skipped: false }
    }
}
