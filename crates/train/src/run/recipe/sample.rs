//! Settings of the stages around a finished model: `reject`, `distill`, `eval`.

use serde::{Deserialize, Serialize};

use super::optimizer::Optimizer;
use super::source::TaskMix;
use crate::one_or_many::one_or_many;
use crate::optim::schedule::Schedule;

/// Samples answers and keeps those that the verifiers accept, as conversations for `sft` and `distill`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RejectStage {
    /// The stage's name; the kind if none is given.
    pub name: String,
    /// An earlier stage or a model folder; by default the last model before this stage.
    pub from: String,
    /// Draws these tasks instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// Problems to answer.
    pub problems: usize,
    /// Answers to each problem.
    pub samples: usize,
    /// Right answers kept of each problem, at most.
    pub keep: usize,
    /// The longest answer, in tokens.
    pub max_new: usize,
    /// Temperature of the samples.
    pub temperature: f64,
}

impl Default for RejectStage {
    fn default() -> Self {
        RejectStage {
            name: String::new(),
            from: String::new(),
            mix: None,
            problems: 2000,
            samples: 4,
            keep: 1,
            max_new: 256,
            temperature: 1.0,
        }
    }
}

/// Teaches a student what a teacher knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillStage {
    /// The stage's name; the kind if none is given.
    pub name: String,
    /// What the student learns from.
    pub method: DistillMethod,
    /// An earlier stage or a model folder; by default the last model before this stage.
    pub teacher: String,
    /// One of `[models]` with random weights, an earlier stage or a model folder.
    pub student: String,
    /// The reject stage whose traces are learnt (method `traces`); by default the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<String>,
    /// Draws these tasks instead of the recipe's (methods `logits` and `on_policy`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// Optimizer steps; 0 leaves it to `epochs` (method `traces`).
    pub steps: u64,
    /// Passes over the traces, where `steps` is 0.
    pub epochs: u64,
    /// Tokens of one optimizer step, over all `accumulate` parts.
    pub batch_tokens: usize,
    /// The longest packed sequence, in tokens.
    pub seq_len: usize,
    /// Problems of one rollout (method `on_policy`).
    pub prompts: usize,
    /// The longest answer, in tokens (method `on_policy`).
    pub max_new: usize,
    /// Temperature of the student's samples, and of both models where they are compared (method `on_policy`).
    pub temperature: f64,
    /// Parts that a step is worked off in, to save memory.
    pub accumulate: usize,
    /// Whether layers are computed again in the backward pass instead of being kept (method `traces`).
    pub recompute: bool,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Steps between measurements of the loss on worked solutions of the recipe's held-out problems, where it has problems;
    /// 0 for none.
    pub eval_every: u64,
    /// Steps between printed samples; 0 for none.
    pub sample_every: u64,
    /// Steps between checkpoints; 0 leaves it to `checkpoint_seconds`.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0 leaves it to `checkpoint_every`.
    pub checkpoint_seconds: f64,
}

impl Default for DistillStage {
    fn default() -> Self {
        DistillStage {
            name: String::new(),
            method: DistillMethod::Traces,
            teacher: String::new(),
            student: String::new(),
            traces: None,
            mix: None,
            steps: 0,
            epochs: 2,
            batch_tokens: 8192,
            seq_len: 512,
            prompts: 64,
            max_new: 256,
            temperature: 1.0,
            accumulate: 1,
            recompute: false,
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            eval_every: 50,
            sample_every: 50,
            checkpoint_every: 0,
            checkpoint_seconds: 60.0,
        }
    }
}

/// Ways to distil.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillMethod {
    /// Fine-tuning on the teacher's accepted answers.
    Traces,
    /// The teacher's distribution over every token of worked solutions.
    Logits,
    /// Reverse KL on the student's own answers.
    OnPolicy,
}

/// Measures models on the held-out problems: greedy once, then `samples` times at `temperature`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalStage {
    /// The stage's name; the kind if none is given.
    pub name: String,
    /// Earlier stages and model folders to measure; by default every earlier stage that makes a model.
    #[serde(deserialize_with = "one_or_many")]
    pub of: Vec<String>,
    /// Samples of each problem, the k of pass@k and maj@k.
    pub samples: usize,
    /// Temperature of the samples.
    pub temperature: f64,
    /// The longest answer, in tokens.
    pub max_new: usize,
    /// Held-out problems to use, at most; 0 uses all.
    pub limit: usize,
}

impl Default for EvalStage {
    fn default() -> Self {
        EvalStage {
            name: String::new(),
            of: Vec::new(),
            samples: 8,
            temperature: 1.0,
            max_new: 256,
            limit: 0,
        }
    }
}
