//! The loop around optimizer steps that every training stage shares: resume, guard, log, save, stop.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use comm::collective;
use data::{Packed, Tokenizer};
use engine::{Engine, Request, Sampling};
use model::Model;
use serde::{Deserialize, Serialize};
use tensor::{Gpu, Math, operations};

use crate::TrainError;
use crate::context::{Context, Progress, RankShare};
use crate::ledger::{Meter, StageCost};
use crate::optim::{Optimizer, OptimizerSettings};
use crate::run::checkpoint::{self, Loaded};
use crate::run::metrics::{Metrics, keys};
use crate::speaker::{answer_text, stop_tokens};
use crate::step::{StepOptions, train_step};
use crate::team::Team;
use crate::training::Training;

/// Skipped steps in a row after which a run goes back to its last anchor.
const SKIPS: u64 = 3;
/// Anchors in a stage: checkpoints at steps that do not depend on the clock.
const ANCHORS: u64 = 10;
/// Steps over which rates are averaged.
const WINDOW: usize = 20;
/// Tokens of a printed sample at most.
const SAMPLE_TOKENS: usize = 256;

/// What a stage does in each of its steps; [`Learner::run`] does the rest.
pub trait Steps {
    /// One step: an update of the weights, or a rollout with its updates. What the next step depends on is in the learner,
    /// or a function of the step, so that a stage resumes to the bit.
    fn step(&mut self, learner: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError>;

    /// Measures on what is held out, every `eval_every` steps.
    fn measure(&mut self, learner: &Learner, step: u64, metrics: &mut Metrics) -> Result<(), TrainError>;
}

/// Where a stage stands as a step begins.
pub struct Now {
    /// Steps done.
    pub step: u64,
    /// The factor on the highest learning rates.
    pub lr_factor: f32,
    /// Operations that the stage has spent.
    pub operations: u64,
}

/// A model in training.
pub struct Learner {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// The ranks that train it.
    pub team: Rc<Team>,
    /// How far the data has been read, in units of the stage's own.
    pub cursor: u64,
    /// The usual loss, by which a spike is known.
    pub usual_loss: f64,
    /// What the stage wants to say at its end and knows from its steps; kept with the checkpoints.
    figures: BTreeMap<String, f64>,
    guard: Guard,
}

/// What a checkpoint holds beside weights and moments.
#[derive(Serialize, Deserialize)]
struct State {
    cursor: u64,
    optimizer_steps: u64,
    /// None before the first loss.
    usual_loss: Option<f64>,
    cost: StageCost,
    figures: BTreeMap<String, f64>,
    guard: Guard,
    /// Whether the stage has come to its end.
    ended: bool,
    /// How the device calculates, as `--math` names it.
    math: String,
}

/// What is known of steps that were skipped. It decides weights, and is saved with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Guard {
    /// Steps in a row.
    skips: u64,
    /// Whether the stage has gone back once.
    rolled_back: bool,
}

/// What a checkpoint is for.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// To go on from.
    Passing,
    /// To go back to as well.
    Anchor,
    /// The end of the stage.
    End,
}

/// What a step did.
pub struct StepOutcome {
    /// The figure that is watched.
    pub headline: (&'static str, f64),
    /// The others, for the log.
    pub values: Vec<(&'static str, f64)>,
    /// Those of the recipe's own naming.
    pub named: Vec<(String, f64)>,
    /// Tokens trained on and generated.
    pub tokens: u64,
    /// Whether the weights were left alone.
    pub skipped: bool,
    /// Whether the stage has done enough before its last step.
    pub enough: bool,
}

/// The loss from which on a step is taken for a spike: ten times the usual, and never less than one nat a token. Where the
/// usual is a thousandth, as after many passes over few examples, one hard example is many times that, and nothing has gone wrong.
fn spike_above(usual_loss: f64) -> f64 {
    (10.0 * usual_loss).max(1.0)
}

impl Learner {
    /// A learner with fresh optimizer state.
    pub fn new(
        model: Model,
        tokenizer: Tokenizer,
        optimizer: &OptimizerSettings,
        team: &Rc<Team>,
    ) -> Learner {
        let optimizer = Optimizer::new(&model, optimizer.clone(), team);
        let team = team.clone();
        let (cursor, usual_loss, figures, guard) = (0, f64::INFINITY, BTreeMap::new(), Guard::default());
        Learner { model, tokenizer, optimizer, team, cursor, usual_loss, figures, guard }
    }

    /// A step of next-token prediction. A loss far above the usual is taken for a spike and leaves the weights alone.
    pub fn next_token_step(&mut self, batch: Packed, options: StepOptions, lr_factor: f32) -> StepOutcome {
        let tokens = batch.tokens.len() as u64;
        let options = StepOptions { loss_limit: spike_above(self.usual_loss), ..options };
        let stats = train_step(&mut self.model, &mut self.optimizer, &self.team, batch, &options, lr_factor);
        if !stats.report.skipped {
            self.saw_loss(stats.loss);
        }
        let mut values = vec![
            ("grad_norm", f64::from(stats.report.grad_norm)),
            ("learning_rate_factor", f64::from(lr_factor)),
        ];
        values.extend(stats.mtp_loss.map(|l| ("mtp_loss", l)));
        values.extend(stats.max_load.map(|l| ("max_expert_load", l)));
        let skipped = stats.report.skipped;
        StepOutcome {
            headline: (keys::LOSS, stats.loss),
            values,
            named: Vec::new(),
            tokens,
            skipped,
            enough: false,
        }
    }

    /// Takes a loss into the usual one.
    fn saw_loss(&mut self, loss: f64) {
        self.usual_loss = if self.usual_loss.is_finite() { 0.8 * self.usual_loss + 0.2 * loss } else { loss };
    }

    /// A figure that the stage has kept; 0 before it did.
    pub fn figure(&self, name: &str) -> f64 {
        self.figures.get(name).copied().unwrap_or(0.0)
    }

    /// Keeps a figure.
    pub fn set_figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }

    /// How the device calculates, as `--math` names it.
    fn math(&self) -> &'static str {
        match self.model.params().gpu().map(Gpu::math) {
            None | Some(Math::Exact) => "exact",
            Some(Math::Fast) => "fast",
        }
    }

    fn save(
        &self,
        stage: &str,
        dir: &Path,
        step: u64,
        cost: &StageCost,
        kind: Kind,
    ) -> Result<(), TrainError> {
        if !self.model.params().data().iter().all(|w| w.is_finite()) {
            return Err(TrainError::Diverged(stage.to_owned()));
        }
        let (first, second) = self.optimizer.state();
        let (first, second) = (self.whole(first), self.whole(second));
        if !self.team.leads() {
            return Ok(());
        }
        let state = State {
            cursor: self.cursor,
            optimizer_steps: self.optimizer.steps(),
            usual_loss: Some(self.usual_loss).filter(|loss| loss.is_finite()),
            cost: cost.clone(),
            figures: self.figures.clone(),
            guard: self.guard,
            ended: kind == Kind::End,
            math: self.math().to_owned(),
        };
        let sections = [self.model.params().data(), &first, &second];
        Ok(checkpoint::save(dir, step, kind == Kind::Anchor, &state, &sections)?)
    }

    /// A moment of all weights, on the first rank.
    fn whole<'a>(&self, own: &'a [f32]) -> Cow<'a, [f32]> {
        if self.team.ranks() == 1 {
            return Cow::Borrowed(own);
        }
        let len = if self.team.leads() { self.model.params().trained_len() } else { 0 };
        let mut whole = vec![0.0; len];
        collective::gather(self.team.comm(), own, &mut whole, self.optimizer.slices());
        Cow::Owned(whole)
    }

    /// Goes to the newest checkpoint, or the newest anchor; also gives the number of damaged ones that were passed over. The first
    /// rank reads it and gives the others what they need.
    fn load(&mut self, dir: &Path, anchors: bool) -> Result<Option<(u64, State, usize)>, TrainError> {
        let team = self.team.clone();
        let loaded = match team.ranks() {
            1 => {
                let (first, second, _) = self.optimizer.state_mut();
                let mut sections = [self.model.params_mut().data_mut(), first, second];
                checkpoint::load::<State>(dir, anchors, &mut sections)?
            }
            _ => self.load_shared(&team, dir, anchors)?,
        };
        let Some(Loaded { step, state, passed_over }) = loaded else { return Ok(None) };
        let is = self.math();
        if state.math != is {
            let was = &state.math;
            return Err(TrainError::Recipe(format!(
                "the stage was begun in {was} mode and would go on in {is} mode, with other bits: run it with \
                 `--math {was}`"
            )));
        }
        *self.optimizer.state_mut().2 = state.optimizer_steps;
        self.cursor = state.cursor;
        self.usual_loss = state.usual_loss.unwrap_or(f64::INFINITY);
        self.figures.clone_from(&state.figures);
        self.guard = state.guard;
        Ok(Some((step, state, passed_over.len())))
    }

    fn load_shared(
        &mut self,
        team: &Team,
        dir: &Path,
        anchors: bool,
    ) -> Result<Option<Loaded<State>>, TrainError> {
        let len = if team.leads() { self.model.params().trained_len() } else { 0 };
        let (mut whole, mut found) = ([vec![0.0; len], vec![0.0; len]], None);
        if team.leads() {
            let [first, second] = &mut whole;
            let mut sections = [self.model.params_mut().data_mut(), &mut first[..], &mut second[..]];
            found = checkpoint::load::<State>(dir, anchors, &mut sections)?;
        }
        let loaded = team.from_first(|| found);
        if loaded.is_some() {
            let comm = team.comm();
            collective::broadcast(comm, self.model.params_mut().data_mut());
            let slices = self.optimizer.slices().clone();
            let (first, second, _) = self.optimizer.state_mut();
            collective::scatter(comm, &whole[0], first, &slices);
            collective::scatter(comm, &whole[1], second, &slices);
        }
        Ok(loaded)
    }

    /// Runs a stage's steps from where it stands to its end, and writes the model into the stage's folder. Of the
    /// `scheduled` steps that the learning rate is made for, the stage does `total`.
    pub fn run(
        &mut self,
        ctx: &Context,
        stage: &str,
        training: &Training,
        (total, scheduled): (u64, u64),
        steps: &mut dyn Steps,
    ) -> Result<StageCost, TrainError> {
        let dir = ctx.folder.stage_dir(stage)?;
        let checkpoints = dir.join("checkpoints");
        let mut at = 0;
        let (mut before, mut ended) = (None, false);
        if let Some((resumed, state, damaged)) = self.load(&checkpoints, false)? {
            at = resumed;
            (before, ended) = (Some(state.cost), state.ended);
            ctx.reporter.note(&format!("{stage}: going on at step {at} of {total}"));
            if damaged > 0 {
                ctx.reporter.note(&format!("{stage}: {damaged} damaged checkpoint(s) passed over"));
            }
        }
        let (metrics, meter) = (ctx.folder.metrics(stage, at)?, ctx.meter(stage, before));
        let mut log = Log { ctx, stage, total, metrics, meter, window: VecDeque::new() };
        let mut saved = Instant::now();
        // A setting of the recipe, or a part of the stage: where to go back to must not depend on how fast the machine is.
        let anchor_every = match training.checkpoint_every {
            0 => total.div_ceil(ANCHORS),
            every => every,
        };
        let team = self.team.clone();
        let clocks = || (Instant::now(), team.comm().waited(), team.comm().sent());
        let mut told = clocks();
        while at < total && !ended {
            let (clock, counts) = (Instant::now(), operations::counts());
            let lr_factor = training.schedule.factor(at, scheduled);
            let now = Now { step: at, lr_factor, operations: log.meter.operations() };
            let outcome = steps.step(self, &now)?;
            let (seconds, counts) = (clock.elapsed().as_secs_f64(), operations::counts().since(&counts));
            self.guard(ctx, stage, &checkpoints, outcome.skipped)?;
            at += 1;
            let before = std::mem::replace(&mut told, clocks());
            let [own, waited] = [told.0 - before.0, told.1 - before.1].map(|time| time.as_nanos() as u64);
            let ranks = self.team.all_words([counts.total(), waited, told.2 - before.2, own]);
            log.step(at, &outcome, seconds, ranks)?;
            if Training::is_time(training.eval_every, at) {
                steps.measure(self, at, &mut log.metrics)?;
            }
            let samples = self.team.leads() && training.sample_every.is_some_and(|every| every > 0);
            if samples && (Training::is_time(training.sample_every, at) || at == total) {
                self.sample(ctx, stage, at, &mut log.metrics)?;
            }
            let due = training.checkpoint_every > 0 && at % training.checkpoint_every == 0
                || training.checkpoint_seconds > 0.0
                    && saved.elapsed().as_secs_f64() > training.checkpoint_seconds;
            // The clock and the wish to stop are those of the first rank.
            let (due, stop) = self.team.from_first(|| (due, ctx.reporter.stop()));
            let anchor = at % anchor_every == 0 && self.guard.skips == 0;
            if (due || stop || anchor) && at < total && !outcome.enough {
                log.metrics.sync()?;
                let kind = if anchor { Kind::Anchor } else { Kind::Passing };
                let cost = log.meter.so_far().over(&self.team);
                self.save(stage, &checkpoints, at, &cost, kind)?;
                saved = Instant::now();
            }
            if outcome.enough {
                break;
            }
            if stop && at < total {
                return Err(TrainError::Interrupted);
            }
        }
        log.metrics.sync()?;
        let cost = log.meter.stop().over(&self.team);
        self.save(stage, &checkpoints, at, &cost, Kind::End)?;
        if self.team.leads() {
            self.model.save(&dir)?;
            self.tokenizer.save(&dir)?;
        }
        Ok(cost)
    }

    /// Goes back to the last anchor, once in a stage, after too many skipped steps in a row.
    fn guard(
        &mut self,
        ctx: &Context,
        stage: &str,
        checkpoints: &Path,
        skipped: bool,
    ) -> Result<(), TrainError> {
        self.guard.skips = if skipped { self.guard.skips + 1 } else { 0 };
        if self.guard.skips < SKIPS {
            return Ok(());
        }
        // The data that broke it is passed over.
        let (cursor, figures) = (self.cursor, self.figures.clone());
        let anchor = if self.guard.rolled_back { None } else { self.load(checkpoints, true)? };
        let Some((from, ..)) = anchor else { return Err(TrainError::Diverged(stage.to_owned())) };
        (self.cursor, self.figures) = (cursor, figures);
        self.guard = Guard { skips: 0, rolled_back: true };
        ctx.reporter.note(&format!(
            "{stage}: {SKIPS} steps without a usable loss; back to the weights after step {from}"
        ));
        Ok(())
    }

    /// Thinks aloud on one fixed problem.
    fn sample(&self, ctx: &Context, stage: &str, step: u64, metrics: &mut Metrics) -> Result<(), TrainError> {
        let (prompt, ids) = match &ctx.problems {
            Some(p) if self.tokenizer.chat_template().is_some() => {
                let prompt = p.held_out().next().map_or_else(String::new, |p| p.prompt.clone());
                let ids = data::encode_prompt(&self.tokenizer, &[data::Message::user(prompt.clone())])?;
                (prompt, ids)
            }
            _ => (String::new(), vec![self.tokenizer.bos_id().or(self.tokenizer.eos_id()).unwrap_or(0)]),
        };
        let room = self.model.positions().min(self.model.config().max_position_embeddings());
        let max_new = SAMPLE_TOKENS.min(room.saturating_sub(ids.len()));
        let stop_tokens = stop_tokens(&self.model, &self.tokenizer);
        let request =
            Request { prompt: ids, samples: 1, max_new, sampling: Sampling::greedy(), stop_tokens, seed: 0 };
        let done = Engine::new(&self.model, None).run(std::slice::from_ref(&request), |_| true)?;
        let text = answer_text(&self.tokenizer, &request.prompt, &done[0][0].token_ids)?;
        metrics.text(step, "sample", &format!("{prompt}\n\n{text}"))?;
        ctx.reporter.sample(stage, step, &prompt, &text);
        Ok(())
    }
}

/// What is told of a stage's steps while it runs.
struct Log<'a> {
    ctx: &'a Context<'a>,
    stage: &'a str,
    total: u64,
    metrics: Metrics,
    meter: Meter,
    window: VecDeque<Past>,
}

/// One of the last steps.
struct Past {
    seconds: f64,
    tokens: u64,
    /// Of each rank its operations, the nanoseconds that it waited, the bytes of values that it sent, and the nanoseconds that have
    /// passed, all since it told them after the step before.
    ranks: Vec<Vec<u64>>,
}

impl Log<'_> {
    fn step(
        &mut self,
        step: u64,
        outcome: &StepOutcome,
        seconds: f64,
        ranks: Vec<Vec<u64>>,
    ) -> Result<(), TrainError> {
        self.meter.add(outcome.tokens, ranks.iter().map(|r| r[0]).sum());
        self.window.push_back(Past { seconds, tokens: outcome.tokens, ranks });
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        let seconds: f64 = self.window.iter().map(|past| past.seconds).sum();
        let tokens: u64 = self.window.iter().map(|past| past.tokens).sum();
        let tokens_per_second = tokens as f64 / seconds;
        let mut values = vec![outcome.headline];
        values.extend(&outcome.values);
        values.extend(outcome.named.iter().map(|(name, value)| (name.as_str(), *value)));
        values.push((keys::TOKENS, self.meter.tokens() as f64));
        values.push((keys::TOKENS_PER_SECOND, tokens_per_second));
        let operations: u64 = self.window.iter().flat_map(|past| &past.ranks).map(|r| r[0]).sum();
        let ceiling_share = self.ctx.ceiling.share(operations as f64 / seconds);
        let seconds_left = (self.total - step) as f64 * seconds / self.window.len() as f64;
        values.push((keys::CEILING_SHARE, ceiling_share));
        values.push((keys::SECONDS_LEFT, seconds_left));
        let shares = self.shares();
        let several = shares.len() > 1;
        if several {
            let last = self.window.back().expect("just pushed");
            let mean = |of: usize| last.ranks.iter().map(|r| r[of]).sum::<u64>() as f64 / shares.len() as f64;
            values.push((keys::STEP_SECONDS, mean(3) / 1e9));
            values.push((keys::WAITING_SECONDS, mean(1) / 1e9));
            values.push((keys::SENT_BYTES, mean(2)));
        }
        self.metrics.log(step, &values)?;
        self.ctx.reporter.progress(&Progress {
            stage: self.stage,
            step,
            total: self.total,
            headline: outcome.headline,
            tokens_per_second,
            ceiling_share,
            seconds_left,
            ranks: if several { &shares } else { &[] },
        });
        Ok(())
    }

    /// What each rank did in the last steps.
    fn shares(&self) -> Vec<RankShare> {
        let count = self.window.front().map_or(0, |past| past.ranks.len());
        let sum =
            |rank: usize, of: usize| self.window.iter().map(|past| past.ranks[rank][of]).sum::<u64>() as f64;
        let all: f64 = (0..count).map(|rank| sum(rank, 0)).sum();
        (0..count)
            .map(|rank| RankShare {
                work: sum(rank, 0) / all.max(1.0),
                waiting: sum(rank, 1) / sum(rank, 3).max(1.0),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
