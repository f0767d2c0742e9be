//! One optimizer step on packed tokens: forward, losses, backward, clipping, update, balance of the experts.

use model::{ExpertLoad, Model, PassOptions, Segment, whole};
use tensor::ops::{self, TokenStats};
use tensor::{Tape, Weight};

use crate::optim::{Optimizer, StepReport};
use crate::team::Team;

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

/// Cuts a batch into the shards of a step, each of whole documents: that in which a document's middle lies. One without
/// documents is none.
pub(crate) fn split(batch: Batch, team: &Team) -> Vec<Option<Batch>> {
    if team.shards() == 1 {
        return vec![Some(batch)];
    }
    let mut shards = vec![None; team.shards()];
    let mut at = 0;
    for &len in &batch.lens {
        let shard = &mut shards[team.shard_at(at, len, batch.tokens.len())];
        let part = shard.get_or_insert_with(Batch::default);
        part.tokens.extend(&batch.tokens[at..at + len]);
        part.targets.extend(&batch.targets[at..at + len]);
        part.weights.extend(&batch.weights[at..at + len]);
        part.lens.push(len);
        at += len;
    }
    shards
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
    team: &Team,
    batch: Batch,
    options: &StepOptions,
    lr_factor: f32,
) -> StepStats {
    let totals = Totals {
        main: weight(&batch.weights).max(1e-9),
        mtp: weight(&one_further(&batch).1).max(1e-9),
        tokens: batch.tokens.len(),
    };
    let StepOptions { router_bias_rate, loss_limit, .. } = *options;
    let how = Descent { lr_factor, router_bias_rate, loss_limit };
    let loss = |[loss, _]: &[f64; 2]| *loss;
    let done = descend(model, optimizer, team, how, &split(batch, team), loss, |model, shard, balance| {
        let (loss, mtp_loss, loads) = accumulate(model, shard, &totals, options);
        balance.add(loads);
        [loss, mtp_loss]
    });
    let [loss, mtp_loss] = done.found;
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

/// One optimizer step on the gradients of some shards, as many as the team has: each of those that are there is cleared, computed by
/// `backward` and added in the tree. Then the weights move, and the routers' bias, unless there is no usable gradient. What
/// `backward` finds is added up over the shards in their order; `loss` says which of it is the loss: one that is not finite or above the
/// limit leaves the weights alone, as does a gradient that is not finite, or no shard at all.
pub fn descend<W, const N: usize>(
    model: &mut Model,
    optimizer: &mut Optimizer,
    team: &Team,
    how: Descent,
    shards: &[Option<W>],
    loss: impl Fn(&[f64; N]) -> f64,
    mut backward: impl FnMut(&Model, &W, &mut Balance) -> [f64; N],
) -> Descended<[f64; N]> {
    let mut balance = Balance::default();
    let mut own: Vec<[f64; N]> = Vec::new();
    let any = add_up(model, &shards[team.own_shards()], &mut |model, shard| {
        own.push(backward(model, shard, &mut balance));
    });
    if !any {
        model.params_mut().zero_grads();
    }
    let own: Vec<u64> = own.into_iter().flatten().map(f64::to_bits).collect();
    let (mut found, mut all_loads) = ([0.0; N], Balance::default());
    for (words, loads) in team.all((own, balance.0)) {
        for shard in words.as_chunks::<N>().0 {
            found.iter_mut().zip(shard).for_each(|(sum, bits)| *sum += f64::from_bits(*bits));
        }
        all_loads.add_loads(loads);
    }
    let present: Vec<bool> = shards.iter().map(Option::is_some).collect();
    let loss = loss(&found);
    let report = if !present.contains(&true) {
        StepReport { grad_norm: 0.0, skipped: true }
    } else if !loss.is_finite() || (how.loss_limit > 0.0 && loss > how.loss_limit) {
        StepReport { grad_norm: f32::NAN, skipped: true }
    } else {
        let params = model.params_mut();
        team.reduce(params.data_and_grads_mut().1, optimizer.slices(), &present);
        optimizer.step(params, how.lr_factor, team)
    };
    if !report.skipped {
        all_loads.apply(model, how.router_bias_rate);
    }
    Descended { found, max_load: all_loads.max_load(), report }
}

/// Leaves the sum of the shards' gradients in the arena: each half of them, then both halves. Whether there are any.
fn add_up<W>(model: &mut Model, shards: &[Option<W>], backward: &mut dyn FnMut(&Model, &W)) -> bool {
    if let [shard] = shards {
        if let Some(shard) = shard {
            model.params_mut().zero_grads();
            backward(model, shard);
        }
        return shard.is_some();
    }
    let (left, right) = shards.split_at(shards.len() / 2);
    if !add_up(model, left, backward) {
        return add_up(model, right, backward);
    }
    if right.iter().any(Option::is_some) {
        let sum = model.params_mut().set_grads_aside();
        add_up(model, right, backward);
        model.params_mut().add_grads(&sum);
    }
    true
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

/// How often each expert of a layer was chosen, and the layer's balance bias: its address, rows and columns.
type LayerLoad = (Option<[usize; 3]>, Vec<u32>);

/// The experts' load over the passes of a step, and the rule that evens it out (loss-free balance).
#[derive(Default)]
pub struct Balance(Vec<LayerLoad>);

impl Balance {
    /// Counts the choices of a pass.
    pub fn add(&mut self, loads: Vec<ExpertLoad>) {
        let place = |bias: Weight| [bias.offset, bias.rows, bias.cols];
        self.add_loads(loads.into_iter().map(|l| (l.bias.map(place), l.load.host().to_vec())).collect());
    }

    fn add_loads(&mut self, loads: Vec<LayerLoad>) {
        if self.0.is_empty() {
            self.0 = loads;
            return;
        }
        for ((_, sum), (_, more)) in self.0.iter_mut().zip(loads) {
            sum.iter_mut().zip(more).for_each(|(a, b)| *a += b);
        }
    }

    /// `b_i ± rate` by the sign of the expert's load error.
    fn apply(&self, model: &mut Model, rate: f32) {
        if rate == 0.0 || self.0.is_empty() {
            return;
        }
        for (bias, load) in &self.0 {
            let weight = bias.map(|[offset, rows, cols]| Weight { offset, rows, cols });
            // One that is frozen rests.
            if let Some(bias) = weight.filter(|&bias| model.params().trains(bias)) {
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
