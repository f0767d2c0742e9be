//! Objectives of reinforcement learning: from a group's rewards and its tokens' log-probabilities to the gradient of
//! the loss by each log-probability. One file each; the trainer knows none of them.

pub mod kl;
#[cfg(test)]
mod trl;

use serde::{Deserialize, Serialize};

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
pub struct Gradients {
    /// d loss / d log-probability, `[tokens]`.
    pub gradients: Vec<f32>,
    /// Tokens whose ratio was clipped so that they have no gradient.
    pub clipped: usize,
}

/// An objective.
pub trait Objective {
    /// Where the probability ratio is clipped unless the recipe says otherwise: below `1 - .0` and above `1 + .1`.
    fn clip(&self) -> (f64, f64) {
        (0.2, 0.2)
    }
    /// Advantages of a group from its rewards; all zero where the rewards are equal.
    fn advantages(&self, rewards: &[f32]) -> Vec<f32> {
        standardised(rewards)
    }
    /// What a token of a completion of `len` tokens weighs in the loss, its divergence from the reference included.
    fn weight(&self, len: usize, norm: Norm) -> f32;
    /// Gradients of the loss for one completion whose tokens weigh `weight` each, without the divergence.
    fn gradients(&self, s: &Sequence, clip: Clip, weight: f32) -> Gradients {
        clipped_surrogate(s, clip, weight)
    }
    /// The loss of one completion as its paper writes it, for the tests; `None` where its gradient is no derivative.
    #[cfg(test)]
    fn published(&self, of: &tests::Published) -> Option<f64>;
}

macro_rules! objectives {
    ($($(#[$doc:meta])* $name:literal $variant:ident = $module:ident;)+) => {
        $(mod $module;)+

        /// The objectives of reinforcement learning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum ObjectiveKind {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)+
        }

        impl ObjectiveKind {
            /// All of them, by name.
            pub const ALL: [(&'static str, ObjectiveKind); [$($name),+].len()] =
                [$(($name, ObjectiveKind::$variant)),+];
        }

        /// The objective of a kind.
        pub fn objective(kind: ObjectiveKind) -> &'static dyn Objective {
            match kind {
                $(ObjectiveKind::$variant => &$module::$variant,)+
            }
        }
    };
}

objectives! {
    /// DeepSeekMath's and R1's: advantages over the group's deviation, averaged per answer.
    "grpo" Grpo = grpo;
    /// Dr. GRPO: neither the deviation nor the answer's length divides.
    "dr_grpo" DrGrpo = dr_grpo;
    /// DAPO: the higher clip is looser, the loss is averaged over the tokens of the whole rollout, whichever minibatch they
    /// come in.
    "dapo" Dapo = dapo;
    /// As `grpo`, but averaged over the tokens of each minibatch (TRL's BNPO).
    "bnpo" Bnpo = bnpo;
    /// GSPO: one length-normalised ratio for a whole answer.
    "gspo" Gspo = gspo;
    /// CISPO: clips the weight and keeps every token's gradient. The cap is 1 + `clip_high`, which TRL calls `epsilon_high`.
    "cispo" Cispo = cispo;
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
fn clipped_surrogate(s: &Sequence, clip: Clip, scale: f32) -> Gradients {
    let mut out = Gradients { gradients: Vec::with_capacity(s.new.len()), clipped: 0 };
    for (new, old) in s.new.iter().zip(s.old) {
        let ratio = (new - old).exp();
        let held =
            (s.advantage > 0.0 && ratio > 1.0 + clip.high) || (s.advantage < 0.0 && ratio < 1.0 - clip.low);
        out.clipped += usize::from(held);
        out.gradients.push(if held { 0.0 } else { -s.advantage * ratio * scale });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.28 };
    const NORM: Norm = Norm { sequences: 4, tokens: 10, mean_tokens: 12.0, max_new: 8 };

    /// One completion in f64, to differentiate its published loss numerically.
    pub struct Published<'a> {
        pub new: &'a [f64],
        pub old: &'a [f64],
        pub advantage: f64,
        pub clip: Clip,
        pub norm: Norm,
    }

    impl Published<'_> {
        /// PPO's clipped surrogate of one ratio.
        pub fn surrogate(&self, log_ratio: f64) -> f64 {
            let (ratio, a) = (log_ratio.exp(), self.advantage);
            let held = ratio.clamp(1.0 - f64::from(self.clip.low), 1.0 + f64::from(self.clip.high));
            -(ratio * a).min(held * a)
        }

        /// Its sum over the tokens.
        pub fn tokens(&self) -> f64 {
            self.new.iter().zip(self.old).map(|(n, o)| self.surrogate(n - o)).sum()
        }
    }

    #[test]
    fn gradients_are_the_derivatives_of_the_published_losses() {
        let old = [-0.5f64, -1.2, -0.1];
        let new = [-0.45f64, -0.8, -0.4];
        for (name, kind) in ObjectiveKind::ALL {
            for a in [1.3f64, -0.7] {
                let (new32, old32): (Vec<f32>, Vec<f32>) =
                    (new.map(|x| x as f32).into(), old.map(|x| x as f32).into());
                let s = Sequence { new: &new32, old: &old32, advantage: a as f32 };
                let weight = objective(kind).weight(3, NORM);
                let got = objective(kind).gradients(&s, CLIP, weight).gradients;
                for t in 0..3 {
                    let (mut up, mut down) = (new, new);
                    up[t] += 1e-6;
                    down[t] -= 1e-6;
                    let of = |new| Published { new, old: &old, advantage: a, clip: CLIP, norm: NORM };
                    let loss = |new| objective(kind).published(&of(new));
                    let Some((up, down)) = loss(&up).zip(loss(&down)) else { continue };
                    let want = (up - down) / 2e-6;
                    assert!((f64::from(got[t]) - want).abs() < 1e-4, "{name} {a} {t}: {} for {want}", got[t]);
                }
            }
        }
    }

    #[test]
    fn cispo_clips_the_weight_but_keeps_the_gradient() {
        let s = Sequence { new: &[0.0, -1.0, -2.0], old: &[-1.0, -1.0, -1.0], advantage: 2.0 };
        let got = objective(ObjectiveKind::Cispo).gradients(&s, CLIP, 0.5);
        assert_eq!(got.gradients, [-1.28, -1.0, -0.8]);
        assert_eq!(got.clipped, 2);
    }

    #[test]
    fn a_group_without_variance_teaches_nothing() {
        // Of most of these numbers, n times one over n is another number.
        for ((_, kind), n) in ObjectiveKind::ALL.into_iter().flat_map(|kind| (1..20).map(move |n| (kind, n)))
        {
            for reward in [0.5, 0.1, 1.1, 0.7, -1.3e-3, 1e8] {
                assert_eq!(objective(kind).advantages(&vec![reward; n]), vec![0.0; n], "{kind:?} {reward}");
            }
        }
        let far = 0.5 / (0.5f32.sqrt() + 1e-4);
        assert_eq!(objective(ObjectiveKind::Grpo).advantages(&[1.0, 0.0]), [far, -far]);
        assert_eq!(objective(ObjectiveKind::DrGrpo).advantages(&[1.0, 0.0]), [0.5, -0.5]);
    }
}
