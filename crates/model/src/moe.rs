//! Feed-forward layers: a dense SwiGLU, or routed experts beside a shared one (V3 report, section 2.1.2).

use std::sync::Arc;

use tensor::ops::{self, Expert, RouterShape, Scoring};
use tensor::{Ints, Tape, Tensor, Weight};

use crate::config::DeepseekConfig;
use crate::linear::{Linear, Parts};

/// What a pass leaves behind for the trainer, layer by layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLoad {
    /// The router's balance bias, to be moved after the step.
    pub bias: Weight,
    /// Tokens that each expert got.
    pub load: Ints,
}

/// `down(silu(gate x) * up x)`.
pub(crate) struct SwiGlu {
    gate_up: Linear,
    down: Linear,
}

impl SwiGlu {
    pub(crate) fn new(parts: Parts, prefix: &str) -> SwiGlu {
        let name = |name: &str| format!("{prefix}{name}_proj");
        let gate_up = Linear::of(parts, &["gate", "up"].map(name));
        SwiGlu { gate_up, down: Linear::of(parts, &[name("down")]) }
    }

    fn forward(&self, tape: &Tape, x: &Tensor) -> Tensor {
        self.down.forward(tape, &ops::swiglu(tape, &self.gate_up.forward(tape, x)))
    }
}

/// A layer's feed-forward part.
pub(crate) enum FeedForward {
    Dense(SwiGlu),
    Moe { router: Weight, bias: Weight, shape: RouterShape, bank: Arc<Vec<Expert>>, shared: Option<SwiGlu> },
}

impl FeedForward {
    pub(crate) fn dense(parts: Parts, layer: &str) -> FeedForward {
        FeedForward::Dense(SwiGlu::new(parts, &format!("{layer}mlp.")))
    }

    pub(crate) fn moe(parts: Parts, c: &DeepseekConfig, layer: &str) -> FeedForward {
        let bank = (0..c.n_routed_experts).map(|e| SwiGlu::new(parts, &format!("{layer}mlp.experts.{e}.")));
        let bank = bank.map(|s| Expert { gate_up: s.gate_up.weight(), down: s.down.weight() }).collect();
        let shared =
            (c.n_shared_experts > 0).then(|| SwiGlu::new(parts, &format!("{layer}mlp.shared_experts.")));
        FeedForward::Moe {
            router: parts.params.weight(&format!("{layer}mlp.gate.weight")),
            bias: parts.params.weight(&format!("{layer}mlp.gate.e_score_correction_bias")),
            shape: RouterShape {
                experts: c.n_routed_experts,
                top_k: c.num_experts_per_tok,
                groups: c.n_group,
                top_groups: c.topk_group,
                normalize: c.norm_topk_prob,
                scaling: c.routed_scaling_factor as f32,
                scoring: Scoring::Sigmoid,
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
                let routes = ops::route(tape, &logits, Some(*bias), *shape, lens, alpha);
                let base = shared.as_ref().map(|s| s.forward(tape, x));
                let y = ops::experts(tape, x, &routes, bank.clone(), base.as_ref());
                (y, Some(ExpertLoad { bias: *bias, load: routes.load }))
            }
        }
    }
}
