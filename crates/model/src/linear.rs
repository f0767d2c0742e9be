//! Projections as the layers use them: one product for all that read the same input, each with its adapter if it has one.

use std::sync::Arc;

use tensor::ops::{self, Adapter};
use tensor::{Params, Tape, Tensor, Weight};

use crate::adapter::{AdapterConfig, lora_a, lora_b};

/// What layers are made from.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) params: &'a Params,
    pub(crate) adapter: Option<&'a AdapterConfig>,
}

/// `x Wᵀ (+ b)`, plus the adapters'.
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Weight>,
    adapters: Arc<Vec<Adapter>>,
}

impl Linear {
    /// The projections of these names (without `.weight`), one above the other. They have biases if the first has one.
    pub(crate) fn of(parts: Parts, names: &[String]) -> Linear {
        let find = |name: &String, part: &str| parts.params.find(&format!("{name}.{part}"));
        let weights = names.iter().map(|name| parts.params.weight(&format!("{name}.weight")));
        let mut adapters = Vec::new();
        let mut column = 0;
        for (name, weight) in names.iter().zip(weights.clone()) {
            if let (Some(a), Some(b), Some(config)) =
                (parts.params.find(&lora_a(name)), parts.params.find(&lora_b(name)), parts.adapter)
            {
                adapters.push(Adapter { a, b, column, scale: config.scale() });
            }
            column += weight.rows;
        }
        let bias = find(&names[0], "bias").map(|first| {
            let all = names.iter().map(|name| find(name, "bias").map_or(0, |b| b.cols)).sum();
            Weight { offset: first.offset, rows: 1, cols: all }
        });
        let weight = weights.reduce(Weight::stacked).expect("a projection");
        Linear { weight, bias, adapters: Arc::new(adapters) }
    }

    /// The rows of a projection from `start` on, as a projection of its own.
    pub(crate) fn rows(&self, start: usize, rows: usize) -> Linear {
        assert!(self.bias.is_none(), "a part of a projection with a bias");
        let part = |a: &Adapter| Adapter { b: a.b.row_range(start, rows), ..*a };
        Linear {
            weight: self.weight.row_range(start, rows),
            bias: None,
            adapters: Arc::new(self.adapters.iter().map(part).collect()),
        }
    }

    /// The weight alone.
    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }

    pub(crate) fn forward(&self, tape: &Tape, x: &Tensor) -> Tensor {
        if self.adapters.is_empty() {
            return ops::linear(tape, x, self.weight, self.bias);
        }
        ops::adapted_linear(tape, x, self.weight, self.bias, &self.adapters)
    }
}
