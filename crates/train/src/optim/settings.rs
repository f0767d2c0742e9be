//! Settings of an optimizer.

use serde::{Deserialize, Serialize};

use super::OptimizerKind;
use crate::settings::check::{At, Checked, POSITIVE};
use crate::settings::{UNSET, set};

/// An optimizer with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerSettings {
    /// Which one.
    pub kind: OptimizerKind,
    /// The highest learning rate; by default one that suits the kind of stage.
    pub learning_rate: f64,
    /// AdamW's learning rate for what the optimizer does not take; with Muon embeddings, head, norms, biases.
    pub adam_learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Muon's momentum.
    pub momentum: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The largest norm of the gradient before it is scaled down; 0 never scales.
    pub clip: f64,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        OptimizerSettings {
            kind: OptimizerKind::AdamW,
            learning_rate: UNSET,
            adam_learning_rate: UNSET,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            momentum: 0.95,
            weight_decay: 0.1,
            clip: 1.0,
        }
    }
}

impl OptimizerSettings {
    /// Fills in the learning rates, of which `rate` suits AdamW.
    pub(crate) fn resolve(&mut self, rate: f64) {
        set(&mut self.learning_rate, self.kind.rule().rate() * rate);
        let own = if self.kind == OptimizerKind::AdamW { self.learning_rate } else { rate };
        set(&mut self.adam_learning_rate, own);
    }

    pub(crate) fn check(&self, at: &At) -> Checked {
        at.numbers(
            &[
                ("optimizer.learning_rate", self.learning_rate),
                ("optimizer.eps", self.eps),
                ("optimizer.adam_learning_rate", self.adam_learning_rate),
            ],
            POSITIVE,
        )?;
        at.numbers(
            &[
                ("optimizer.beta1", self.beta1),
                ("optimizer.beta2", self.beta2),
                ("optimizer.momentum", self.momentum),
            ],
            0.0..1.0,
        )?;
        at.numbers(&[("optimizer.weight_decay", self.weight_decay), ("optimizer.clip", self.clip)], 0.0..)?;
        self.check_effect(at)
    }

    /// Refuses what AdamW would leave aside.
    fn check_effect(&self, at: &At) -> Checked {
        if self.kind != OptimizerKind::AdamW {
            return Ok(());
        }
        if self.adam_learning_rate != self.learning_rate {
            let message = "AdamW moves everything at `learning_rate`: leave this out";
            return Err(at.error("optimizer.adam_learning_rate", message));
        }
        if self.momentum != OptimizerSettings::default().momentum {
            return Err(at.error("optimizer.momentum", "AdamW has `beta1` in its place: leave this out"));
        }
        Ok(())
    }
}
