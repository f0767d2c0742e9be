//! Estimates of the divergence from a reference model, per token, and their gradients.

use serde::{Deserialize, Serialize};

/// Estimates of the KL divergence from the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlKind {
    /// `r − log r − 1`, always positive.
    K3,
    /// k3 times the token's probability ratio, whose gradient is unbiased off policy (DeepSeek-V3.2).
    Unbiased,
}

impl KlKind {
    /// The estimate and its gradient by the new log-probability.
    pub fn estimate(self, new: f32, old: f32, reference: f32) -> (f32, f32) {
        let d = reference - new;
        let (k3, gradient) = (d.exp() - d - 1.0, 1.0 - d.exp());
        match self {
            KlKind::K3 => (k3, gradient),
            KlKind::Unbiased => {
                let ratio = (new - old).exp();
                (ratio * k3, ratio * (k3 + gradient))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_derivatives() {
        for kind in [KlKind::K3, KlKind::Unbiased] {
            let (new, old, reference, h) = (-1.0f32, -1.2, -0.6, 1e-3);
            let up = kind.estimate(new + h, old, reference).0;
            let down = kind.estimate(new - h, old, reference).0;
            let gradient = kind.estimate(new, old, reference).1;
            assert!((gradient - (up - down) / (2.0 * h)).abs() < 1e-3, "{kind:?}");
            assert_eq!(kind.estimate(-1.0, -1.0, -1.0), (0.0, 0.0));
        }
    }
}
