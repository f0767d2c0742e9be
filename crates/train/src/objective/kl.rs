//! Estimates of the divergence from a reference model, per token, and their slopes.

pub use crate::run::recipe::KlEstimate as KlKind;

impl KlKind {
    /// The estimate and its slope by the new log-probability.
    pub fn estimate(self, new: f32, old: f32, reference: f32) -> (f32, f32) {
        let d = reference - new;
        let (k3, slope) = (d.exp() - d - 1.0, 1.0 - d.exp());
        match self {
            KlKind::K3 => (k3, slope),
            KlKind::Unbiased => {
                let ratio = (new - old).exp();
                (ratio * k3, ratio * (k3 + slope))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_derivatives() {
        for kind in [KlKind::K3, KlKind::Unbiased] {
            let (new, old, reference, h) = (-1.0f32, -1.2, -0.6, 1e-3);
            let up = kind.estimate(new + h, old, reference).0;
            let down = kind.estimate(new - h, old, reference).0;
            let slope = kind.estimate(new, old, reference).1;
            assert!((slope - (up - down) / (2.0 * h)).abs() < 1e-3, "{kind:?}");
            assert_eq!(kind.estimate(-1.0, -1.0, -1.0), (0.0, 0.0));
        }
    }
}
