//! Settings of `grpo`, the stage that learns from verifiers.

use serde::{Deserialize, Serialize};

use super::optimizer::{Optimizer, UNSET};
use super::source::TaskMix;
use crate::one_or_many::one_or_many;
use crate::optim::schedule::Schedule;

/// Reinforcement learning: the model's own answers, scored by the verifiers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoStage {
    /// The stage's name; the kind if none is given.
    pub name: String,
    /// An earlier stage or a model folder; by default the last model before this stage.
    pub from: String,
    /// Draws these tasks instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// Rollouts, each followed by `epochs · minibatches` optimizer steps.
    pub steps: u64,
    /// Stops as soon as the operations of these stages together are spent, even before `steps`.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub budget_of: Vec<String>,
    /// Problems of one rollout.
    pub prompts: usize,
    /// Answers to each problem.
    pub group: usize,
    /// The longest answer, in tokens.
    pub max_new: usize,
    /// Temperature of the rollouts. The policy that is trained is the one that sampled: ratios, divergence and entropy are
    /// those of the logits divided by it.
    pub temperature: f64,
    /// The objective.
    pub objective: Objective,
    /// How far below 1 the probability ratio may go before it is clipped; by default the objective's own.
    pub clip_low: f64,
    /// How far above 1 the probability ratio may go before it is clipped; by default the objective's own.
    pub clip_high: f64,
    /// Weight of the KL penalty against the reference model, averaged as the objective averages its loss; 0 keeps no
    /// reference.
    pub kl_coefficient: f64,
    /// How the KL divergence is estimated.
    pub kl: KlEstimate,
    /// Rollouts after which the reference becomes the present model; 0 never changes it.
    pub reference_every: u64,
    /// Whether groups whose answers are all right or all wrong are replaced by fresh ones (DAPO).
    pub dynamic_sampling: bool,
    /// Optimizer steps that a rollout is split into.
    pub minibatches: usize,
    /// Passes over each rollout.
    pub epochs: usize,
    /// What counts.
    pub reward: Reward,
    /// Tokens before `max_new` over which an answer loses up to `overlong_penalty` (DAPO); 0 for none.
    pub overlong_buffer: usize,
    /// The loss of reward of an answer that reaches `max_new`.
    pub overlong_penalty: f64,
    /// Whether layers are computed again in the backward pass instead of being kept.
    pub recompute: bool,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Step of the router's selection bias per optimizer step.
    pub router_bias_rate: f64,
    /// Rollouts between measurements of greedy accuracy on held-out problems; 0 for none.
    pub eval_every: u64,
    /// Rollouts between printed samples; 0 for none.
    pub sample_every: u64,
    /// Rollouts between checkpoints; 0 leaves it to `checkpoint_seconds`.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0 leaves it to `checkpoint_every`.
    pub checkpoint_seconds: f64,
}

impl Default for GrpoStage {
    fn default() -> Self {
        GrpoStage {
            name: String::new(),
            from: String::new(),
            mix: None,
            steps: 100,
            budget_of: Vec::new(),
            prompts: 32,
            group: 8,
            max_new: 256,
            temperature: 1.0,
            objective: Objective::Grpo,
            clip_low: UNSET,
            clip_high: UNSET,
            kl_coefficient: 0.0,
            kl: KlEstimate::K3,
            reference_every: 0,
            dynamic_sampling: false,
            minibatches: 1,
            epochs: 1,
            reward: Reward::default(),
            overlong_buffer: 0,
            overlong_penalty: 1.0,
            recompute: false,
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            router_bias_rate: 0.0,
            eval_every: 20,
            sample_every: 10,
            checkpoint_every: 0,
            checkpoint_seconds: 60.0,
        }
    }
}

/// The objectives of reinforcement learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// DeepSeekMath's and R1's: advantages over the group's deviation, averaged per answer.
    Grpo,
    /// Dr. GRPO: neither the deviation nor the answer's length divides.
    DrGrpo,
    /// DAPO: the higher clip is looser, the loss is averaged over the tokens of the whole rollout, whichever minibatch they
    /// come in.
    Dapo,
    /// As `grpo`, but averaged over the tokens of each minibatch (TRL's BNPO).
    Bnpo,
    /// GSPO: one length-normalised ratio for a whole answer.
    Gspo,
    /// CISPO: clips the weight and keeps every token's gradient. The cap is 1 + `clip_high`, which TRL calls `epsilon_high`.
    Cispo,
}

/// Estimates of the KL divergence from the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimate {
    /// `r − log r − 1`, always positive.
    K3,
    /// k3 times the token's probability ratio, whose gradient is unbiased off policy (DeepSeek-V3.2).
    Unbiased,
}

/// Weights of the rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reward {
    /// For the verifier's score.
    pub accuracy: f64,
    /// For keeping to `<think>…</think><answer>…</answer>`.
    pub format: f64,
}

impl Default for Reward {
    fn default() -> Self {
        Reward { accuracy: 1.0, format: 0.1 }
    }
}
