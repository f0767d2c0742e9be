//! One optimizer step on packed tokens: forward, losses, backward, clipping, update, balance of the experts.

use model::{ExpertLoad, Model, PassOptions, Segment, whole};
use tensor::ops::{self, TokenStats};
use tensor::{Tape, Weight};

use crate::optim::{Optimizer, StepReport};

pub use data::Packed as Batch;

fn weight(weights: &[f32]) -> f64 {
    weights.iter().map(|&w| f64::from(w)).sum()
}

/// What the losses of a whole step are divided by, however many passes it takes.
struct Totals {
    main: f64,
    mtp: f64,
    tokens: usize,
}

/// Cuts a batch into `parts` batches of whole documents and about equal numbers of tokens.
pub(crate) fn split(batch: Batch, parts: usize) -> Vec<Batch> {
    if parts <= 1 {
        return vec![batch];
    }
    let share = batch.tokens.len().div_ceil(parts);
    let mut out = vec![Batch::default()];
    let mut at = 0;
    for &len in &batch.lens {
        if out.last().is_some_and(|b| !b.tokens.is_empty() && b.tokens.len() + len / 2 > share)
            && out.len() < parts
        {
            out.push(Batch::default());
        }
        let b = out.last_mut().expect("starts with one");
        b.tokens.extend(&batch.tokens[at..at + len]);
        b.targets.extend(&batch.targets[at..at + len]);
        b.weights.extend(&batch.weights[at..at + len]);
        b.lens.push(len);
        at += len;
    }
    out
}

/// How steps are done.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepOptions {
    /// Weight of the MTP loss; 0 leaves the MTP layer alone.
    pub mtp_weight: f32,
    /// How far the routers' balance bias moves per step (gamma of the V3 report, section 2.1.2).
    pub router_bias_rate: f32,
    /// Weight of the sequence-wise balance loss.
    pub balance_alpha: f32,
    /// Recompute activations layer by layer.
    pub recompute: bool,
    /// Passes whose gradients are added up for one step.
    pub accumulate: usize,
    /// A loss above this is taken for a spike and the weights are left alone; 0 for no limit.
    pub loss_limit: f64,
}

impl StepOptions {
    pub(crate) fn pass(&self) -> PassOptions {
        PassOptions { recompute: self.recompute, balance_alpha: self.balance_alpha }
    }
}

/// What a step measured.
#[derive(Clone, Debug)]
pub struct StepStats {
    /// Mean negative log-likelihood of the weighted targets, in nats.
    pub loss: f64,
    /// The same for the MTP layer, if it was trained.
    pub mtp_loss: Option<f64>,
    /// Largest share of one layer's choices that one expert got, times the number of experts (1 is even).
    pub max_load: Option<f64>,
    /// The optimizer's report.
    pub report: StepReport,
}

/// One step on the mean loss over the batch's weighted targets.
pub fn train_step(
    model: &mut Model,
    optimizer: &mut Optimizer,
    batch: Batch,
    options: &StepOptions,
    lr_factor: f32,
) -> StepStats {
    let totals = Totals {
        main: weight(&batch.weights).max(1e-9),
        mtp: weight(&one_further(&batch).1).max(1e-9),
        tokens: batch.tokens.len(),
    };
    let parts = split(batch, options.accumulate);
    let StepOptions { router_bias_rate, loss_limit, .. } = *options;
    let done =
        descend(model, optimizer, Descent { lr_factor, router_bias_rate, loss_limit }, |model, balance| {
            let (mut loss, mut mtp_loss) = (0.0, 0.0);
            for part in &parts {
                let (l, m, loads) = accumulate(model, part, &totals, options);
                loss += l;
                mtp_loss += m;
                balance.add(loads);
            }
            (Some(loss), (loss, mtp_loss))
        });
    let (loss, mtp_loss) = done.found;
    let has_mtp = model.has_mtp() && options.mtp_weight > 0.0;
    StepStats { loss, mtp_loss: has_mtp.then_some(mtp_loss), max_load: done.max_load, report: done.report }
}

/// How a gradient becomes a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descent {
    /// The factor on the highest learning rates.
    pub lr_factor: f32,
    /// How far the routers' balance bias moves.
    pub router_bias_rate: f32,
    /// A loss above this is taken for a spike; 0 for no limit.
    pub loss_limit: f64,
}

/// What a descent did.
pub struct Descended<T> {
    /// What `backward` found.
    pub found: T,
    /// Largest share of one layer's choices that one expert got, times the number of experts (1 is even).
    pub max_load: Option<f64>,
    /// The optimizer's report.
    pub report: StepReport,
}

/// One optimizer step: clears the gradients, lets `backward` add them up, and moves the weights and the routers' bias,
/// unless there is no usable gradient. `backward` also gives the loss, `None` if there was nothing to learn from; a loss
/// that is not finite or above the limit leaves the weights alone, as does a gradient that is not finite.
pub fn descend<T>(
    model: &mut Model,
    optimizer: &mut Optimizer,
    how: Descent,
    backward: impl FnOnce(&Model, &mut Balance) -> (Option<f64>, T),
) -> Descended<T> {
    model.params_mut().zero_grads();
    let mut balance = Balance::default();
    let (loss, found) = backward(model, &mut balance);
    let report = match loss {
        None => StepReport { grad_norm: 0.0, skipped: true },
        Some(loss) if !loss.is_finite() || (how.loss_limit > 0.0 && loss > how.loss_limit) => {
            StepReport { grad_norm: f32::NAN, skipped: true }
        }
        Some(_) => optimizer.step(model.params_mut(), how.lr_factor),
    };
    if !report.skipped {
        balance.apply(model, how.router_bias_rate);
    }
    Descended { found, max_load: balance.max_load(), report }
}

/// Adds a pass's share of the gradient of the step's losses to the arena; returns its share of both.
fn accumulate(
    model: &Model,
    batch: &Batch,
    totals: &Totals,
    options: &StepOptions,
) -> (f64, f64, Vec<ExpertLoad>) {
    let tape = Tape::recording(model.params());
    let segments = whole(&batch.lens);
    // The balance loss is a mean over the tokens of a pass: this pass's share of the step's mean.
    let mut pass_options = options.pass();
    pass_options.balance_alpha *= batch.tokens.len() as f32 / totals.tokens.max(1) as f32;
    let pass = model.forward(&tape, &batch.tokens, &segments, pass_options, None);
    let mut loads = pass.loads;
    let scaled = |weights: &[f32], factor: f64| -> Vec<f32> {
        weights.iter().map(|w| (f64::from(*w) * factor) as f32).collect()
    };
    let weights = scaled(&batch.weights, 1.0 / totals.main);
    let stats = ops::cross_entropy(&tape, &pass.hidden, model.head(), &batch.targets, &weights);
    let loss = weighted_nll(&stats, &weights);
    let mut mtp_loss = 0.0;
    if model.has_mtp() && options.mtp_weight > 0.0 {
        let mtp = model.forward_mtp(&tape, &pass.hidden, &batch.targets, &segments, pass_options);
        loads.extend(mtp.loads);
        let (targets, weights) = one_further(batch);
        let weights = scaled(&weights, f64::from(options.mtp_weight) / totals.mtp);
        let stats = ops::cross_entropy(&tape, &mtp.hidden, model.head(), &targets, &weights);
        mtp_loss = weighted_nll(&stats, &weights) / f64::from(options.mtp_weight);
    }
    tape.backward();
    (loss, mtp_loss, loads)
}

fn weighted_nll(stats: &TokenStats, weights: &[f32]) -> f64 {
    stats.logprobs.iter().zip(weights).map(|(l, w)| -f64::from(*l) * f64::from(*w)).sum()
}

/// MTP's targets: the token after the next one, within the document; the last input of a document has none.
fn one_further(batch: &Batch) -> (Vec<u32>, Vec<f32>) {
    let (mut targets, mut weights) = (batch.targets.clone(), vec![0.0; batch.weights.len()]);
    let mut at = 0;
    for &len in &batch.lens {
        let (from, to) = (at + 1..at + len, at..at + len - 1);
        targets[to.clone()].copy_from_slice(&batch.targets[from.clone()]);
        weights[to].copy_from_slice(&batch.weights[from]);
        at += len;
    }
    (targets, weights)
}

/// The experts' load over the passes of a step, and the rule that evens it out (loss-free balance).
#[derive(Default)]
pub struct Balance(Vec<(Option<Weight>, Vec<u32>)>);

impl Balance {
    /// Counts the choices of a pass.
    pub fn add(&mut self, loads: Vec<ExpertLoad>) {
        if self.0.is_empty() {
            self.0 = loads.iter().map(|l| (l.bias, l.load.host().to_vec())).collect();
            return;
        }
        for ((_, sum), more) in self.0.iter_mut().zip(loads) {
            sum.iter_mut().zip(more.load.host()).for_each(|(a, b)| *a += b);
        }
    }

    /// `b_i ± rate` by the sign of the expert's load error.
    fn apply(&self, model: &mut Model, rate: f32) {
        if rate == 0.0 || self.0.is_empty() {
            return;
        }
        for (bias, load) in &self.0 {
            // One that is frozen rests.
            if let Some(bias) = bias.filter(|&bias| model.params().trains(bias)) {
                ops::balance_bias(model.params_mut(), bias, load, rate);
            }
        }
    }

    fn max_load(&self) -> Option<f64> {
        self.0
            .iter()
            .map(|(_, load)| {
                let total: u32 = load.iter().sum();
                f64::from(*load.iter().max().unwrap_or(&0)) * load.len() as f64 / f64::from(total.max(1))
            })
            .reduce(f64::max)
    }
}

/// Log-probabilities and entropies of every target at a temperature, without gradients.
pub fn score(
    model: &Model,
    tokens: &[u32],
    targets: &[u32],
    segments: &[Segment],
    temperature: f32,
) -> TokenStats {
    let tape = Tape::inference(model.params());
    let pass = model.forward(&tape, tokens, segments, PassOptions::default(), None);
    ops::log_probs(model.params(), &pass.hidden, model.head(), targets, temperature)
}
