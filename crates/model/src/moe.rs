//! Feed-forward layers: a dense gated one, or routed experts, perhaps beside a shared one (V3 report, section 2.1.2).

use std::sync::Arc;

use tensor::ops::{self, Expert, RouterShape, Scoring};
use tensor::{Ints, Tape, Tensor, Weight};

use crate::config::{Activation, ExpertsConfig, MlaConfig};
use crate::linear::{Linear, Parts};

/// What a pass leaves behind for the trainer, layer by layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLoad {
    /// The router's balance bias, if it has one, to be moved after the step.
    pub bias: Option<Weight>,
    /// Tokens that each expert got.
    pub load: Ints,
}

/// `down(act(gate x) * up x)`.
pub(crate) struct SwiGlu {
    gate_up: Linear,
    down: Linear,
    activation: Activation,
}

impl SwiGlu {
    pub(crate) fn new(parts: Parts, prefix: &str, activation: Activation) -> SwiGlu {
        let name = |name: &str| format!("{prefix}{name}_proj");
        let gate_up = Linear::of(parts, &["gate", "up"].map(name));
        SwiGlu { gate_up, down: Linear::of(parts, &[name("down")]), activation }
    }

    fn forward(&self, tape: &Tape, x: &Tensor) -> Tensor {
        let gate_up = self.gate_up.forward(tape, x);
        let hidden = match self.activation {
            Activation::Silu => ops::swiglu(tape, &gate_up),
            Activation::Gelu => ops::geglu(tape, &gate_up),
        };
        self.down.forward(tape, &hidden)
    }
}

/// A layer's feed-forward part.
pub(crate) enum FeedForward {
    Dense(SwiGlu),
    Moe {
        router: Weight,
        bias: Option<Weight>,
        shape: RouterShape,
        bank: Arc<Vec<Expert>>,
        shared: Option<SwiGlu>,
    },
}

impl FeedForward {
    pub(crate) fn dense(parts: Parts, layer: &str, activation: Activation) -> FeedForward {
        FeedForward::Dense(SwiGlu::new(parts, &format!("{layer}mlp."), activation))
    }

    /// DeepSeek's experts.
    pub(crate) fn shared(parts: Parts, c: &MlaConfig, layer: &str) -> FeedForward {
        let shared = (c.n_shared_experts > 0)
            .then(|| SwiGlu::new(parts, &format!("{layer}mlp.shared_experts."), Activation::Silu));
        let shape = RouterShape {
            experts: c.n_routed_experts,
            top_k: c.num_experts_per_tok,
            groups: c.n_group,
            top_groups: c.topk_group,
            normalize: c.norm_topk_prob,
            scaling: c.routed_scaling_factor as f32,
            scoring: if c.softmax_router { Scoring::Softmax } else { Scoring::Sigmoid },
        };
        FeedForward::moe(parts, shape, layer, shared)
    }

    /// Experts alone.
    pub(crate) fn routed(parts: Parts, e: &ExpertsConfig, layer: &str) -> FeedForward {
        let shape = RouterShape {
            experts: e.num_experts,
            top_k: e.num_experts_per_tok,
            groups: 1,
            top_groups: 1,
            normalize: e.norm_topk_prob,
            scaling: 1.0,
            scoring: Scoring::Softmax,
        };
        FeedForward::moe(parts, shape, layer, None)
    }

    fn moe(parts: Parts, shape: RouterShape, layer: &str, shared: Option<SwiGlu>) -> FeedForward {
        let expert = |e: usize| SwiGlu::new(parts, &format!("{layer}mlp.experts.{e}."), Activation::Silu);
        let bank = (0..shape.experts).map(expert);
        let bank = bank.map(|s| Expert { gate_up: s.gate_up.weight(), down: s.down.weight() }).collect();
        FeedForward::Moe {
            router: parts.params.weight(&format!("{layer}mlp.gate.weight")),
            bias: parts.params.find(&format!("{layer}mlp.gate.e_score_correction_bias")),
            shape,
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
