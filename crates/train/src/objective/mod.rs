//! Objectives of reinforcement learning: from a group's rewards and its tokens' log-probabilities to the slope of the
//! loss by each log-probability. One file each; the trainer knows none of them.

mod bnpo;
mod cispo;
mod dapo;
mod dr_grpo;
mod grpo;
mod gspo;
pub mod kl;

pub use crate::run::recipe::Objective as ObjectiveKind;

/// Numbers that objectives share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Ratios below `1 - low` are clipped.
    pub low: f32,
    /// Ratios above `1 + high` are clipped.
    pub high: f32,
}

/// One completion.
pub struct Sequence<'a> {
    /// Log-probabilities now, `[tokens]`.
    pub new: &'a [f32],
    /// Log-probabilities when it was sampled, `[tokens]`.
    pub old: &'a [f32],
    /// Its advantage.
    pub advantage: f32,
}

/// Sizes that losses are divided by.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Completions of the step.
    pub sequences: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Tokens of the whole rollout over the number of steps that it is worked off in.
    pub mean_tokens: f32,
    /// Tokens that a completion may have.
    pub max_new: usize,
}

/// What an objective gives for one completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slopes {
    /// d loss / d log-probability, `[tokens]`.
    pub slopes: Vec<f32>,
    /// Tokens whose ratio was clipped so that they have no gradient.
    pub clipped: usize,
}

/// An objective.
pub trait Objective {
    /// Advantages of a group from its rewards; all zero where the rewards are equal.
    fn advantages(&self, rewards: &[f32]) -> Vec<f32> {
        standardised(rewards)
    }
    /// What a token of a completion of `len` tokens weighs in the loss, its divergence from the reference included.
    fn weight(&self, len: usize, norm: Norm) -> f32;
    /// Slopes of the loss for one completion whose tokens weigh `weight` each, without the divergence.
    fn slopes(&self, s: &Sequence, clip: Clip, weight: f32) -> Slopes {
        clipped_surrogate(s, clip, weight)
    }
}

/// The objective of a name.
pub fn objective(kind: ObjectiveKind) -> &'static dyn Objective {
    match kind {
        ObjectiveKind::Grpo => &grpo::Grpo,
        ObjectiveKind::DrGrpo => &dr_grpo::DrGrpo,
        ObjectiveKind::Dapo => &dapo::Dapo,
        ObjectiveKind::Bnpo => &bnpo::Bnpo,
        ObjectiveKind::Gspo => &gspo::Gspo,
        ObjectiveKind::Cispo => &cispo::Cispo,
    }
}

/// `r - mean`.
fn centred(rewards: &[f32]) -> Vec<f32> {
    // The mean of equal numbers may miss them by a rounding.
    if rewards.iter().all(|&r| r == rewards[0]) {
        return vec![0.0; rewards.len()];
    }
    let mean = rewards.iter().sum::<f32>() / rewards.len().max(1) as f32;
    rewards.iter().map(|r| r - mean).collect()
}

/// `(r - mean) / (std + 1e-4)`, as TRL has it: the deviation of a sample, over n - 1.
fn standardised(rewards: &[f32]) -> Vec<f32> {
    let centred = centred(rewards);
    let squares = centred.iter().map(|c| c * c).sum::<f32>();
    let std = (squares / rewards.len().saturating_sub(1).max(1) as f32).sqrt();
    centred.into_iter().map(|c| c / (std + 1e-4)).collect()
}

/// PPO's clipped surrogate `-min(ratio A, clip(ratio) A)` per token, times `scale`.
fn clipped_surrogate(s: &Sequence, clip: Clip, scale: f32) -> Slopes {
    let mut out = Slopes { slopes: Vec::with_capacity(s.new.len()), clipped: 0 };
    for (new, old) in s.new.iter().zip(s.old) {
        let ratio = (new - old).exp();
        let held =
            (s.advantage > 0.0 && ratio > 1.0 + clip.high) || (s.advantage < 0.0 && ratio < 1.0 - clip.low);
        out.clipped += usize::from(held);
        out.slopes.push(if held { 0.0 } else { -s.advantage * ratio * scale });
    }
    out
}

#[cfg(test)]
mod trl;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ObjectiveKind; 6] = [
        ObjectiveKind::Grpo,
        ObjectiveKind::DrGrpo,
        ObjectiveKind::Dapo,
        ObjectiveKind::Bnpo,
        ObjectiveKind::Gspo,
        ObjectiveKind::Cispo,
    ];
    const CLIP: Clip = Clip { low: 0.2, high: 0.28 };
    const NORM: Norm = Norm { sequences: 4, tokens: 10, mean_tokens: 12.0, max_new: 8 };

    /// The losses themselves, written from the papers in f64, to differentiate numerically.
    fn loss(kind: ObjectiveKind, new: &[f64], old: &[f64], a: f64) -> f64 {
        let (n, len) = (NORM.sequences as f64, new.len() as f64);
        let surrogate = |new: f64, old: f64| {
            let r = (new - old).exp();
            -(r * a).min(r.clamp(1.0 - f64::from(CLIP.low), 1.0 + f64::from(CLIP.high)) * a)
        };
        let tokens: f64 = new.iter().zip(old).map(|(n, o)| surrogate(*n, *o)).sum();
        match kind {
            ObjectiveKind::Grpo => tokens / len / n,
            ObjectiveKind::DrGrpo => tokens / NORM.max_new as f64 / n,
            ObjectiveKind::Dapo => tokens / f64::from(NORM.mean_tokens),
            ObjectiveKind::Bnpo => tokens / NORM.tokens as f64,
            ObjectiveKind::Gspo => {
                let mean = new.iter().zip(old).map(|(n, o)| n - o).sum::<f64>() / len;
                surrogate(mean, 0.0) / n
            }
            // The weight is held fixed by the caller (stop-gradient).
            ObjectiveKind::Cispo => unreachable!("checked apart"),
        }
    }

    #[test]
    fn slopes_are_the_derivatives_of_the_published_losses() {
        let old = [-0.5f64, -1.2, -0.1];
        let new = [-0.45f64, -0.8, -0.4];
        for kind in ALL.into_iter().filter(|kind| *kind != ObjectiveKind::Cispo) {
            for a in [1.3f64, -0.7] {
                let (new32, old32): (Vec<f32>, Vec<f32>) =
                    (new.map(|x| x as f32).into(), old.map(|x| x as f32).into());
                let s = Sequence { new: &new32, old: &old32, advantage: a as f32 };
                let weight = objective(kind).weight(3, NORM);
                let got = objective(kind).slopes(&s, CLIP, weight).slopes;
                for t in 0..3 {
                    let (mut up, mut down) = (new, new);
                    up[t] += 1e-6;
                    down[t] -= 1e-6;
                    let want = (loss(kind, &up, &old, a) - loss(kind, &down, &old, a)) / 2e-6;
                    assert!(
                        (f64::from(got[t]) - want).abs() < 1e-4,
                        "{kind:?} {a} {t}: {} for {want}",
                        got[t]
                    );
                }
            }
        }
    }

    #[test]
    fn cispo_clips_the_weight_but_keeps_the_gradient() {
        let s = Sequence { new: &[0.0, -1.0, -2.0], old: &[-1.0, -1.0, -1.0], advantage: 2.0 };
        let got = objective(ObjectiveKind::Cispo).slopes(&s, CLIP, 0.5);
        assert_eq!(got.slopes, [-1.28, -1.0, -0.8]);
        assert_eq!(got.clipped, 2);
    }

    #[test]
    fn a_group_without_variance_teaches_nothing() {
        // Of most of these numbers, n times one over n is another number.
        for (kind, n) in ALL.into_iter().flat_map(|kind| (1..20).map(move |n| (kind, n))) {
            for reward in [0.5, 0.1, 1.1, 0.7, -1.3e-3, 1e8] {
                assert_eq!(objective(kind).advantages(&vec![reward; n]), vec![0.0; n], "{kind:?} {reward}");
            }
        }
        let far = 0.5 / (0.5f32.sqrt() + 1e-4);
        assert_eq!(objective(ObjectiveKind::Grpo).advantages(&[1.0, 0.0]), [far, -far]);
        assert_eq!(objective(ObjectiveKind::DrGrpo).advantages(&[1.0, 0.0]), [0.5, -0.5]);
    }
}
