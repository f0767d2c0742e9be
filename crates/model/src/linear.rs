//! Projections as the layers use them: one product for all that read the same input, each with its adapter if it has one.

use std::sync::Arc;

use tensor::ops::{self, Adapter, AdapterPart};
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
    adapter: Option<Arc<Adapter>>,
}

impl Linear {
    /// The projections of these names (without `.weight`), one above the other. They have biases if the first has one.
    pub(crate) fn of(parts: Parts, names: &[String]) -> Linear {
        let find = |name: &String, part: &str| parts.params.find(&format!("{name}.{part}"));
        let weights = names.iter().map(|name| parts.params.weight(&format!("{name}.weight")));
        let mut pairs = Vec::new();
        let mut column = 0;
        for (name, weight) in names.iter().zip(weights.clone()) {
            if let (Some(a), Some(b)) = (parts.params.find(&lora_a(name)), parts.params.find(&lora_b(name))) {
                pairs.push((a, AdapterPart { b, column }));
            }
            column += weight.rows;
        }
        let (a, of_parts): (Vec<Weight>, Vec<AdapterPart>) = pairs.into_iter().unzip();
        let adapter = a.into_iter().reduce(Weight::stacked).zip(parts.adapter);
        let adapter =
            adapter.map(|(a, config)| Arc::new(Adapter { a, parts: of_parts, scale: config.scale() }));
        let bias = find(&names[0], "bias").map(|first| {
            let all = names.iter().map(|name| find(name, "bias").map_or(0, |b| b.cols)).sum();
            Weight { offset: first.offset, rows: 1, cols: all }
        });
        let weight = weights.reduce(Weight::stacked).expect("a projection");
        Linear { weight, bias, adapter }
    }

    /// The rows of a projection from `start` on, as a projection of its own.
    pub(crate) fn rows(&self, start: usize, rows: usize) -> Linear {
        assert!(self.bias.is_none(), "a part of a projection with a bias");
        let part = |p: &AdapterPart| AdapterPart { b: p.b.row_range(start, rows), column: p.column };
        let parts = |a: &Arc<Adapter>| Arc::new(Adapter { parts: a.parts.iter().map(part).collect(), ..**a });
        Linear {
            weight: self.weight.row_range(start, rows),
            bias: None,
            adapter: self.adapter.as_ref().map(parts),
        }
    }

    /// The weight alone.
    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }

    pub(crate) fn forward(&self, tape: &Tape, x: &Tensor) -> Tensor {
        match &self.adapter {
            None => ops::linear(tape, x, self.weight, self.bias),
            Some(adapter) => ops::adapted_linear(tape, x, self.weight, self.bias, adapter),
        }
    }
}
