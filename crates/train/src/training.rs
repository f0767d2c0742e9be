//! Settings that stages share. Each is a part of a stage's table in the recipe.

use model::adapter::MAX_RANK;
use model::{AdapterConfig, HeldAs, Use};
use serde::{Deserialize, Serialize};

use crate::optim::OptimizerSettings;
use crate::optim::schedule::Schedule;
use crate::settings::check::{At, Checked, POSITIVE};
use crate::step::StepOptions;

/// Tokens of one step.
const MOST_TOKENS: f64 = (1u64 << 32) as f64;

/// How a stage that trains by gradients goes about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Whether layers are computed again in the backward pass instead of being kept.
    pub recompute: bool,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Steps between measurements on what is held out; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Steps between printed samples; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_every: Option<u64>,
    /// Steps between checkpoints; 0 leaves it to `checkpoint_seconds`.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0 leaves it to `checkpoint_every`.
    pub checkpoint_seconds: f64,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            recompute: false,
            optimizer: OptimizerSettings::default(),
            schedule: Schedule::default(),
            eval_every: None,
            sample_every: None,
            checkpoint_every: 0,
            checkpoint_seconds: 60.0,
        }
    }
}

impl Training {
    /// Fills in what depends on the kind of stage: the learning rate, and how often it is measured and sampled from.
    pub(crate) fn resolve(&mut self, learning_rate: f64, eval_every: u64, sample_every: u64) {
        self.optimizer.resolve(learning_rate);
        self.eval_every.get_or_insert(eval_every);
        self.sample_every.get_or_insert(sample_every);
    }

    pub(crate) fn check(&self, at: &At) -> Checked {
        self.schedule.check(at)?;
        self.optimizer.check(at)?;
        at.number("checkpoint_seconds", self.checkpoint_seconds, 0.0..)
    }

    /// Whether something that happens every so many steps happens after this one.
    pub(crate) fn is_time(every: Option<u64>, step: u64) -> bool {
        every.is_some_and(|every| every > 0 && step.is_multiple_of(every))
    }
}

/// What of the model is trained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adapting {
    /// Low-rank adapters beside weights that stay as they are, and as they are stored; without it all weights are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterConfig>,
}

impl Adapting {
    pub(crate) fn check(&self, at: &At) -> Checked {
        let Some(adapter) = &self.adapter else { return Ok(()) };
        at.number("adapter.rank", adapter.rank as f64, 1.0..=MAX_RANK as f64)?;
        at.number("adapter.alpha", adapter.alpha, POSITIVE)
    }

    /// How the model is read.
    pub(crate) fn wanted(&self) -> Use {
        match &self.adapter {
            Some(adapter) => Use::Adapt(HeldAs::Stored, adapter.clone()),
            None => Use::Train,
        }
    }
}

/// How documents become the batch of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Packing {
    /// Tokens of one optimizer step.
    pub batch_tokens: usize,
    /// The longest packed sequence, in tokens.
    pub seq_len: usize,
}

impl Default for Packing {
    fn default() -> Self {
        Packing { batch_tokens: 8192, seq_len: 512 }
    }
}

impl Packing {
    pub(crate) fn check(&self, at: &At) -> Checked {
        let Packing { batch_tokens, seq_len } = *self;
        // The target is the next token, so that one token teaches nothing.
        at.number("seq_len", seq_len as f64, 2.0..=MOST_TOKENS)?;
        at.number("batch_tokens", batch_tokens as f64, 1.0..=MOST_TOKENS)?;
        if batch_tokens < seq_len {
            return Err(at.error(
                "batch_tokens",
                format!(
                    "{batch_tokens} tokens are fewer than one sequence of {seq_len}; raise `batch_tokens` or lower \
                     `seq_len`"
                ),
            ));
        }
        Ok(())
    }
}

/// What is learnt beside the next token: the experts' balance and the MTP layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SideLosses {
    /// Step of the router's selection bias per optimizer step (DeepSeek-V3's gamma).
    pub router_bias_rate: f64,
    /// Weight of the sequence-wise balance loss.
    pub balance_alpha: f64,
    /// Weight of the multi-token prediction loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtp_weight: Option<f64>,
}

impl Default for SideLosses {
    fn default() -> Self {
        SideLosses { router_bias_rate: 0.001, balance_alpha: 0.0001, mtp_weight: None }
    }
}

impl SideLosses {
    pub(crate) fn check(&self, at: &At) -> Checked {
        at.numbers(
            &[
                ("router_bias_rate", self.router_bias_rate),
                ("balance_alpha", self.balance_alpha),
                ("mtp_weight", self.mtp_weight.unwrap_or(0.0)),
            ],
            0.0..,
        )
    }

    /// How a step on packed documents is done.
    pub(crate) fn options(&self, training: &Training) -> StepOptions {
        StepOptions {
            mtp_weight: self.mtp_weight.unwrap_or(0.0) as f32,
            router_bias_rate: self.router_bias_rate as f32,
            balance_alpha: self.balance_alpha as f32,
            recompute: training.recompute,
            loss_limit: 0.0,
        }
    }
}
