//! How the learning rate changes over a stage: a pure function of the step, so that nothing of it needs saving.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::settings::check::{At, Checked};

/// A learning-rate schedule: a linear warm-up, then a shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of warm-up; in place of `warmup`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of all steps.
    pub warmup: f64,
    /// For `wsd`, the share of all steps, at the end, over which the rate falls.
    pub decay: f64,
    /// The rate at the last step, as a share of the highest (`cosine`, `wsd`).
    pub final_ratio: f64,
}

/// The shapes of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Stays at the highest rate.
    Constant,
    /// Half a cosine from the highest rate to `final_ratio`.
    Cosine,
    /// Warm-up, stable, decay: stays, then falls in a straight line to `final_ratio`.
    Wsd,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            kind: ScheduleKind::Cosine,
            warmup_steps: None,
            warmup: 0.05,
            decay: 0.2,
            final_ratio: 0.1,
        }
    }
}

impl Schedule {
    pub(crate) fn check(&self, at: &At) -> Checked {
        at.numbers(
            &[
                ("schedule.warmup", self.warmup),
                ("schedule.decay", self.decay),
                ("schedule.final_ratio", self.final_ratio),
            ],
            0.0..=1.0,
        )
    }

    /// The factor on the highest learning rate at `step` of `total`, steps counted from 0.
    ///
    /// The warm-up climbs to 1 at its last step and never gives 0, so that no step is wasted; the last step
    /// (`total − 1`) gives `final_ratio` exactly, unless the warm-up covers it. Later steps stay there.
    pub fn factor(&self, step: u64, total: u64) -> f32 {
        let warmup = self.warmup_length(total);
        if step < warmup {
            return ((step + 1) as f64 / warmup as f64) as f32;
        }
        let last = total.saturating_sub(1);
        let from = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Cosine => warmup,
            ScheduleKind::Wsd => total.saturating_sub(share(self.decay, total)).max(warmup),
        };
        // The fall takes the steps from `from` to `last`; the step before it is still at the highest rate.
        let start = from.saturating_sub(1);
        let progress = match last.saturating_sub(start) {
            0 => 0.0,
            length => (step.saturating_sub(start) as f64 / length as f64).min(1.0),
        };
        let left = match self.kind {
            ScheduleKind::Cosine => (1.0 + (PI * progress).cos()) / 2.0,
            _ => 1.0 - progress,
        };
        (self.final_ratio + (1.0 - self.final_ratio) * left) as f32
    }

    /// Steps of warm-up in a stage of `total`.
    pub fn warmup_length(&self, total: u64) -> u64 {
        self.warmup_steps.unwrap_or_else(|| share(self.warmup, total))
    }
}

fn share(part: f64, total: u64) -> u64 {
    (part * total as f64).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule { kind, warmup_steps: Some(10), warmup: 0.0, decay: 0.2, final_ratio: 0.1 }
    }

    /// Guards both ends and the joint of every shape: an off-by-one here wastes the first step or never
    /// reaches the final rate.
    #[test]
    fn the_ends_of_every_shape() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            let schedule = schedule(kind);
            assert_eq!(schedule.factor(0, 100), 0.1, "{kind:?}");
            assert_eq!(schedule.factor(9, 100), 1.0, "{kind:?}");
            let last = if kind == ScheduleKind::Constant { 1.0 } else { 0.1 };
            assert_eq!(schedule.factor(99, 100), last, "{kind:?}");
            assert_eq!(schedule.factor(1000, 100), last, "{kind:?}");
        }
    }

    #[test]
    fn wsd_stays_up_until_the_decay() {
        let schedule = schedule(ScheduleKind::Wsd);
        assert_eq!(schedule.factor(79, 100), 1.0);
        assert_eq!(schedule.factor(89, 100), 0.55);
        assert!(schedule.factor(80, 100) < 1.0);
    }

    #[test]
    fn cosine_is_halfway_in_the_middle() {
        let schedule = Schedule { warmup_steps: Some(0), final_ratio: 0.0, ..Schedule::default() };
        assert_eq!(schedule.factor(0, 101), 1.0);
        assert!((schedule.factor(50, 101) - 0.5).abs() < 1e-6);
        assert_eq!(schedule.factor(100, 101), 0.0);
    }

    /// Guards stages so short that the warm-up, the decay and the whole coincide.
    #[test]
    fn short_stages_stay_finite() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            for warmup_steps in [None, Some(0), Some(1), Some(5)] {
                for total in 0..4 {
                    for step in 0..=total {
                        let schedule = Schedule { warmup_steps, ..schedule(kind) };
                        let factor = schedule.factor(step, total);
                        assert!((0.0..=1.0).contains(&factor), "{schedule:?} {step}/{total}: {factor}");
                    }
                }
            }
        }
    }
}
