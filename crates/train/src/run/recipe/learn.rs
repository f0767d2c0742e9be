//! Settings of the stages that learn from text: `tokenizer`, `pretrain`, `sft`.

use serde::{Deserialize, Serialize};

use super::optimizer::Optimizer;
use super::source::{Data, Source, TaskMix};
use crate::optim::schedule::Schedule;

/// Trains a byte-level BPE on what `source` gives; each digit is a token of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerStage {
    /// The stage's name; the kind if none is given.
    pub name: String,
    /// Entries of the vocabulary, special tokens included.
    pub vocab_size: usize,
    /// How many documents of the source are read; 0 reads all of a folder.
    pub documents: usize,
    /// The text to learn from.
    pub source: Source,
}

impl Default for TokenizerStage {
    fn default() -> Self {
        TokenizerStage { name: String::new(), vocab_size: 1024, documents: 20_000, source: Source::Problems }
    }
}

/// Next-token prediction from random weights (`model`) or from a model that exists (`from`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainStage {
    /// The stage's name; the kind if none is given.
    pub name: String,
    /// Which of `[models]` to begin with random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// An earlier stage or a model folder to go on from, in place of `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The tokenizer stage, or the folder with a `tokenizer.json`; by default the last tokenizer stage, or
    /// that of `from`.
    pub tokenizer: String,
    /// The text to learn from.
    pub source: Source,
    /// Draws these tasks instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// The share of problems that are answered at once, without thinking.
    pub hurried_share: f64,
    /// Tokens to train on in all.
    pub tokens: u64,
    /// Stops after so many tokens, in the midst of the schedule: enough to compare two models; 0 goes to the end.
    pub stop_after_tokens: u64,
    /// Tokens of one optimizer step, over all `accumulate` parts.
    pub batch_tokens: usize,
    /// The longest packed sequence, in tokens.
    pub seq_len: usize,
    /// Parts that a step is worked off in, to save memory.
    pub accumulate: usize,
    /// Whether layers are computed again in the backward pass instead of being kept.
    pub recompute: bool,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Step of the router's selection bias per optimizer step (DeepSeek-V3's gamma).
    pub router_bias_rate: f64,
    /// The share of the schedule, at its end, over which that bias rests.
    pub router_bias_rest: f64,
    /// Weight of the sequence-wise balance loss.
    pub balance_alpha: f64,
    /// Weight of the multi-token prediction loss.
    pub mtp_weight: f64,
    /// The MTP layer takes part in one step out of so many: it costs as much as a layer and the head.
    pub mtp_every: u64,
    /// Steps between measurements of the held-out loss; 0 for none.
    pub eval_every: u64,
    /// Steps between printed samples; 0 for none.
    pub sample_every: u64,
    /// Steps between checkpoints; 0 leaves it to `checkpoint_seconds`.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0 leaves it to `checkpoint_every`.
    pub checkpoint_seconds: f64,
}

impl PretrainStage {
    /// Tokens that the stage trains on before it ends.
    pub fn trained_tokens(&self) -> u64 {
        if self.stop_after_tokens == 0 { self.tokens } else { self.stop_after_tokens }
    }
}

impl Default for PretrainStage {
    fn default() -> Self {
        PretrainStage {
            name: String::new(),
            model: None,
            from: None,
            tokenizer: String::new(),
            source: Source::Problems,
            mix: None,
            hurried_share: 0.0,
            tokens: 5_000_000,
            stop_after_tokens: 0,
            batch_tokens: 8192,
            seq_len: 512,
            accumulate: 1,
            recompute: false,
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            router_bias_rate: 0.001,
            router_bias_rest: 0.1,
            balance_alpha: 0.0001,
            mtp_weight: 0.3,
            mtp_every: 1,
            eval_every: 100,
            sample_every: 100,
            checkpoint_every: 0,
            checkpoint_seconds: 60.0,
        }
    }
}

/// Supervised fine-tuning, with the loss on the answers alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftStage {
    /// The stage's name; the kind if none is given.
    pub name: String,
    /// An earlier stage or a model folder; by default the last model before this stage.
    pub from: String,
    /// The conversations to learn.
    pub data: Data,
    /// Draws these tasks instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// The share of problems that are answered at once, without thinking.
    pub hurried_share: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of one optimizer step, over all `accumulate` parts.
    pub batch_tokens: usize,
    /// The longest packed sequence, in tokens.
    pub seq_len: usize,
    /// Parts that a step is worked off in, to save memory.
    pub accumulate: usize,
    /// Whether layers are computed again in the backward pass instead of being kept.
    pub recompute: bool,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Step of the router's selection bias per optimizer step.
    pub router_bias_rate: f64,
    /// Weight of the sequence-wise balance loss.
    pub balance_alpha: f64,
    /// Weight of the multi-token prediction loss.
    pub mtp_weight: f64,
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

impl Default for SftStage {
    fn default() -> Self {
        SftStage {
            name: String::new(),
            from: String::new(),
            data: Data::Problems,
            mix: None,
            hurried_share: 0.0,
            steps: 100,
            batch_tokens: 8192,
            seq_len: 512,
            accumulate: 1,
            recompute: false,
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            router_bias_rate: 0.001,
            balance_alpha: 0.0001,
            mtp_weight: 0.1,
            eval_every: 50,
            sample_every: 50,
            checkpoint_every: 0,
            checkpoint_seconds: 60.0,
        }
    }
}
