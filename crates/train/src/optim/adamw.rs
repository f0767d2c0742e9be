//! AdamW (Loshchilov and Hutter 2019), with clipping folded into its pass.

use model::config::TensorSpec;
use tensor::ops;

use super::{Arenas, OptimizerSettings, Piece, Rule, Update};

pub(super) struct AdamW;

impl Rule for AdamW {
    fn takes(&self, _: &TensorSpec) -> bool {
        true
    }

    fn is_elementwise(&self) -> bool {
        true
    }

    fn rate(&self) -> f64 {
        1.0
    }

    fn step(&self, pieces: &[Piece], arenas: Arenas, c: &OptimizerSettings, now: Update) {
        let Arenas { weights, gradients, first, second, start } = arenas;
        let t = now.step.min(1 << 20) as i32;
        for piece in pieces {
            let rule = ops::AdamW {
                lr: now.lr,
                beta1: c.beta1 as f32,
                beta2: c.beta2 as f32,
                eps: c.eps as f32,
                weight_decay: if piece.decays { c.weight_decay as f32 } else { 0.0 },
                correction1: (1.0 - c.beta1.powi(t)) as f32,
                correction2: (1.0 - c.beta2.powi(t)) as f32,
                grad_scale: now.grad_scale,
            };
            let range = piece.weight.offset..piece.weight.offset + piece.weight.len();
            ops::adamw(weights, gradients, (first, second), start, range, rule);
        }
    }
}
