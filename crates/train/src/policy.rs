//! The policy step: from rollouts with advantages to one update of the weights.

use model::{Model, whole};
use tensor::Tape;
use tensor::ops;

use crate::objective::kl::KlKind;
use crate::objective::{Clip, Norm, Objective, Sequence};
use crate::optim::{Optimizer, StepReport};
use crate::step::{Balance, StepOptions};

/// Tokens of one pass; more rollouts are worked off in several passes.
const PASS_TOKENS: usize = 8192;

/// One completion with what is known of it.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// Completion tokens; at least one.
    pub completion: Vec<u32>,
    /// Log-probabilities that the sampler reported, `[completion]`.
    pub old: Vec<f32>,
    /// Log-probabilities under the reference model, `[completion]`, where a divergence is charged.
    pub reference: Option<Vec<f32>>,
    /// What its tokens are reinforced by.
    pub advantage: f32,
}

/// How a policy step is done.
pub struct PolicySettings<'a> {
    /// The objective.
    pub objective: &'a dyn Objective,
    /// Its clip.
    pub clip: Clip,
    /// The estimate of the divergence.
    pub kl: KlKind,
    /// Its weight.
    pub kl_coefficient: f32,
    /// Tokens that a completion may have.
    pub max_new: usize,
    /// Completions and tokens by which the loss is normalised: those of the whole step.
    pub sequences: usize,
    /// See `sequences`.
    pub tokens: usize,
    /// Passes and balance.
    pub options: StepOptions,
}

/// What a policy step measured, over the tokens that it trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyStats {
    /// Mean entropy of the predictions, in nats.
    pub entropy: f64,
    /// Mean divergence from the reference (0 without one).
    pub kl: f64,
    /// Share of tokens whose ratio was clipped.
    pub clip_share: f64,
    /// Tokens whose log-probability differs by a bit from the sampler's. On the first step after sampling this is
    /// zero by the engine's contract.
    pub mismatched: usize,
    /// Tokens trained on.
    pub trained_tokens: usize,
    /// The optimizer's report.
    pub report: StepReport,
}

/// One optimizer step. Rollouts without advantage add nothing to the gradient and are left out, unless a divergence
/// is charged; the normalisation still counts them.
pub fn policy_step(
    model: &mut Model,
    optimizer: &mut Optimizer,
    rollouts: &[&Rollout],
    s: &PolicySettings,
    lr_factor: f32,
) -> PolicyStats {
    model.params_mut().zero_grads();
    let active: Vec<&Rollout> =
        rollouts.iter().copied().filter(|r| r.advantage != 0.0 || s.kl_coefficient != 0.0).collect();
    let mut sums = Sums::default();
    let mut balance = Balance::default();
    let mut at = 0;
    while at < active.len() {
        let mut tokens = 0;
        let end = at
            + active[at..]
                .iter()
                .take_while(|r| {
                    let fits = tokens == 0 || tokens + r.prompt.len() + r.completion.len() <= PASS_TOKENS;
                    tokens += r.prompt.len() + r.completion.len();
                    fits
                })
                .count();
        pass(model, &active[at..end], s, &mut sums, &mut balance);
        at = end;
    }
    let report = if active.is_empty() {
        StepReport { grad_norm: 0.0, skipped: true }
    } else {
        optimizer.step(model.params_mut(), lr_factor)
    };
    if !report.skipped {
        balance.apply(model, s.options.router_bias_rate);
    }
    let n = sums.tokens.max(1) as f64;
    PolicyStats {
        entropy: sums.entropy / n,
        kl: sums.kl / n,
        clip_share: sums.clipped as f64 / n,
        mismatched: sums.mismatched,
        trained_tokens: sums.tokens,
        report,
    }
}

#[derive(Default)]
struct Sums {
    tokens: usize,
    entropy: f64,
    kl: f64,
    clipped: usize,
    mismatched: usize,
}

/// Adds the gradient of some rollouts.
fn pass(model: &Model, rollouts: &[&Rollout], s: &PolicySettings, sums: &mut Sums, balance: &mut Balance) {
    let Flat { tokens, targets, lens } = flatten(rollouts);
    let tape = Tape::recording(model.params());
    let out = model.forward(&tape, &tokens, &whole(&lens), s.options.pass(), None);
    balance.add(out.loads);
    let stats = ops::log_probs(model.params(), &out.hidden, model.head(), &targets);
    let norm = Norm { sequences: s.sequences, tokens: s.tokens, max_new: s.max_new };
    let mut slopes = vec![0.0; tokens.len()];
    let mut at = 0;
    for (r, len) in rollouts.iter().zip(&lens) {
        let range = at + r.prompt.len() - 1..at + len;
        at += len;
        let new = &stats.logprobs[range.clone()];
        let got = s.objective.slopes(&Sequence { new, old: &r.old, advantage: r.advantage }, s.clip, norm);
        slopes[range.clone()].copy_from_slice(&got.slopes);
        if let Some(reference) = &r.reference {
            let share = s.kl_coefficient / (r.completion.len() * s.sequences) as f32;
            for ((slope, new), (old, reference)) in
                slopes[range.clone()].iter_mut().zip(new).zip(r.old.iter().zip(reference))
            {
                let (kl, d) = s.kl.estimate(*new, *old, *reference);
                *slope += share * d;
                sums.kl += f64::from(kl);
            }
        }
        sums.clipped += got.clipped;
        sums.mismatched += new.iter().zip(&r.old).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        sums.entropy += stats.entropies[range].iter().map(|&e| f64::from(e)).sum::<f64>();
        sums.tokens += new.len();
    }
    ops::seed_log_probs(model.params(), &out.hidden, model.head(), &targets, &slopes);
    tape.backward();
}

/// Rollouts as one batch of inputs and targets.
pub(crate) struct Flat {
    pub tokens: Vec<u32>,
    pub targets: Vec<u32>,
    pub lens: Vec<usize>,
}

pub(crate) fn flatten(rollouts: &[&Rollout]) -> Flat {
    let mut flat = Flat { tokens: Vec::new(), targets: Vec::new(), lens: Vec::new() };
    for r in rollouts {
        let all = || r.prompt.iter().chain(&r.completion).copied();
        let n = r.prompt.len() + r.completion.len();
        flat.tokens.extend(all().take(n - 1));
        flat.targets.extend(all().skip(1));
        flat.lens.push(n - 1);
    }
    flat
}
