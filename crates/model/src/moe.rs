//! Feed-forward layers: a dense SwiGLU, or routed experts beside a shared one (V3 report, section 2.1.2).

use std::sync::Arc;

use tensor::ops::{self, Expert, RouterShape};
use tensor::{Ints, Params, Tape, Tensor, Weight};

use crate::config::DeepseekConfig;

/// What a pass leaves behind for the trainer, layer by layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLoad {
    /// The router's balance bias, to be moved after the step.
    pub bias: Weight,
    /// Tokens that each expert got.
    pub load: Ints,
}

/// `down(silu(gate x) * up x)`.
#[derive(Clone, Copy)]
pub(crate) struct SwiGlu {
    gate_up: Weight,
    down: Weight,
}

impl SwiGlu {
    pub(crate) fn new(params: &Params, prefix: &str) -> SwiGlu {
        let w = |name: &str| params.weight(&format!("{prefix}{name}_proj.weight"));
        SwiGlu { gate_up: w("gate").stacked(w("up")), down: w("down") }
    }

    fn forward(&self, tape: &Tape, x: &Tensor) -> Tensor {
        let h = ops::swiglu(tape, &ops::linear(tape, x, self.gate_up, None));
        ops::linear(tape, &h, self.down, None)
    }
}

/// A layer's feed-forward part.
pub(crate) enum FeedForward {
    Dense(SwiGlu),
    Moe { router: Weight, bias: Weight, shape: RouterShape, bank: Arc<Vec<Expert>>, shared: Option<SwiGlu> },
}

impl FeedForward {
    pub(crate) fn dense(params: &Params, layer: &str) -> FeedForward {
        FeedForward::Dense(SwiGlu::new(params, &format!("{layer}mlp.")))
    }

    pub(crate) fn moe(params: &Params, c: &DeepseekConfig, layer: &str) -> FeedForward {
        let bank = (0..c.n_routed_experts).map(|e| SwiGlu::new(params, &format!("{layer}mlp.experts.{e}.")));
        let bank = bank.map(|s| Expert { gate_up: s.gate_up, down: s.down }).collect();
        let shared =
            (c.n_shared_experts > 0).then(|| SwiGlu::new(params, &format!("{layer}mlp.shared_experts.")));
        FeedForward::Moe {
            router: params.weight(&format!("{layer}mlp.gate.weight")),
            bias: params.weight(&format!("{layer}mlp.gate.e_score_correction_bias")),
            shape: RouterShape {
                experts: c.n_routed_experts,
                top_k: c.num_experts_per_tok,
                groups: c.n_group,
                top_groups: c.topk_group,
                normalize: c.norm_topk_prob,
                scaling: c.routed_scaling_factor as f32,
            },
            bank: Arc::new(bank),
            shared,
        }
    }

    /// `x [tokens, H]` (normalised) → `[tokens, H]`, and the experts' load.
    pub(crate) fn forward(
        &self,
        tape: &Tape,
        x: &Tensor,
        lens: &[usize],
        alpha: f32,
    ) -> (Tensor, Option<ExpertLoad>) {
        match self {
            FeedForward::Dense(mlp) => (mlp.forward(tape, x), None),
            FeedForward::Moe { router, bias, shape, bank, shared } => {
                let logits = ops::exact_linear(tape, x, *router);
                let routes = ops::route(tape, &logits, *bias, *shape, lens, alpha);
                let base = shared.as_ref().map(|s| s.forward(tape, x));
                let y = ops::experts(tape, x, &routes, bank.clone(), base.as_ref());
                (y, Some(ExpertLoad { bias: *bias, load: routes.load }))
            }
        }
    }
}
