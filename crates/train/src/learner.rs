//! The loop around optimizer steps that every training stage shares: resume, guard, log, save, stop.

use std::collections::VecDeque;
use std::time::Instant;

use data::Tokenizer;
use engine::{Engine, Request, Sampling};
use model::Model;
use serde_json::{Value, json};
use tensor::{Gpu, Math, operations};

use crate::TrainError;
use crate::context::{Context, Progress};
use crate::ledger::{Meter, StageCost};
use crate::optim::Optimizer;
use crate::optim::schedule::Schedule;
use crate::run::checkpoint;
use crate::run::metrics::{Metrics, keys};
use crate::run::recipe;
use crate::speaker::{answer_text, stop_tokens};

/// Skipped steps in a row after which a run goes back to its last checkpoint.
const SKIPS: u32 = 3;
/// Steps over which rates are averaged.
const WINDOW: usize = 20;
/// Tokens of a printed sample at most.
const SAMPLE_TOKENS: usize = 256;

/// How often a stage does what.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// Steps in all.
    pub total: u64,
    /// Steps that the schedule spans.
    pub scheduled: u64,
    /// Steps between samples; 0 for none.
    pub sample_every: u64,
    /// Steps between checkpoints; 0 for none.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints; 0 for none.
    pub checkpoint_seconds: f64,
}

/// A model in training.
pub struct Learner {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// How far the data has been read, in units of the stage's own.
    pub cursor: u64,
    /// The usual loss, by which a spike is known.
    pub usual_loss: f64,
}

/// What a step did.
pub struct StepOutcome {
    /// Figures for the log; the first is the headline.
    pub values: Vec<(&'static str, f64)>,
    /// Tokens trained on and generated.
    pub tokens: u64,
    /// Whether the weights were left alone.
    pub skipped: bool,
    /// Whether the stage has done enough before its last step.
    pub enough: bool,
}

impl Learner {
    /// A learner with fresh optimizer state.
    pub fn new(model: Model, tokenizer: Tokenizer, optimizer: &recipe::Optimizer) -> Learner {
        let optimizer = Optimizer::new(&model, optimizer.clone());
        Learner { model, tokenizer, optimizer, cursor: 0, usual_loss: f64::INFINITY }
    }

    /// Loss above which a step is taken for a spike.
    pub fn loss_limit(&self) -> f64 {
        10.0 * self.usual_loss
    }

    /// Takes a loss into the usual one.
    pub fn saw_loss(&mut self, loss: f64) {
        self.usual_loss = if self.usual_loss.is_finite() { 0.8 * self.usual_loss + 0.2 * loss } else { loss };
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
        dir: &std::path::Path,
        step: u64,
        cost: &StageCost,
        ended: bool,
    ) -> Result<(), TrainError> {
        if !self.model.params().data().iter().all(|w| w.is_finite()) {
            return Err(TrainError::Diverged(stage.to_owned()));
        }
        let (first, second) = self.optimizer.state();
        let state = json!({
            "cursor": self.cursor,
            "optimizer_steps": self.optimizer.steps(),
            "usual_loss": self.usual_loss.is_finite().then_some(self.usual_loss),
            "cost": cost,
            "ended": ended,
            "math": self.math(),
        });
        Ok(checkpoint::save(dir, step, state, &[self.model.params().data(), first, second])?)
    }

    fn load(&mut self, dir: &std::path::Path) -> Result<Option<(u64, Value, usize)>, TrainError> {
        let math = self.math();
        let (first, second, steps) = self.optimizer.state_mut();
        let Some(loaded) = checkpoint::load(dir, &mut [self.model.params_mut().data_mut(), first, second])?
        else {
            return Ok(None);
        };
        let (was, is) = (loaded.state["math"].as_str().unwrap_or("exact"), math);
        if was != is {
            return Err(TrainError::Recipe(format!(
                "the stage was begun in {was} mode and would go on in {is} mode, with other bits: run it with \
                 `--math {was}`"
            )));
        }
        *steps = loaded.state["optimizer_steps"].as_u64().unwrap_or(loaded.step);
        self.cursor = loaded.state["cursor"].as_u64().unwrap_or(0);
        self.usual_loss = loaded.state["usual_loss"].as_f64().unwrap_or(f64::INFINITY);
        Ok(Some((loaded.step, loaded.state, loaded.passed_over.len())))
    }

    /// Runs a stage's steps from where it stands to its end, and writes the model into the stage's folder.
    pub fn run(
        &mut self,
        ctx: &Context,
        stage: &str,
        schedule: &Schedule,
        rhythm: Rhythm,
        mut step: impl FnMut(&mut Learner, u64, f32, &Meter) -> Result<StepOutcome, TrainError>,
        mut every: impl FnMut(&mut Learner, u64, &mut Metrics) -> Result<(), TrainError>,
    ) -> Result<StageCost, TrainError> {
        let dir = ctx.folder.stage_dir(stage)?;
        let checkpoints = dir.join("checkpoints");
        let mut at = 0;
        let (mut before, mut ended) = (None, false);
        if let Some((resumed, state, damaged)) = self.load(&checkpoints)? {
            at = resumed;
            before = serde_json::from_value(state["cost"].clone()).ok();
            ended = state["ended"] == true;
            ctx.reporter.note(&format!("{stage}: going on at step {at} of {}", rhythm.total));
            if damaged > 0 {
                ctx.reporter.note(&format!("{stage}: {damaged} damaged checkpoint(s) passed over"));
            }
        }
        let mut metrics = ctx.folder.metrics(stage, at)?;
        let mut meter = ctx.meter(stage, before);
        let mut saved = Instant::now();
        let mut window: VecDeque<(f64, u64, u64)> = VecDeque::new();
        let (mut skips, mut rolled_back) = (0, false);
        while at < rhythm.total && !ended {
            let (clock, counts) = (Instant::now(), operations::counts());
            let outcome = step(self, at, schedule.factor(at, rhythm.scheduled), &meter)?;
            let done = operations::counts().since(&counts).total();
            meter.add(outcome.tokens, done);
            window.push_back((clock.elapsed().as_secs_f64(), outcome.tokens, done));
            if window.len() > WINDOW {
                window.pop_front();
            }
            skips = if outcome.skipped { skips + 1 } else { 0 };
            if skips >= SKIPS {
                // The data that broke it is passed over.
                let cursor = self.cursor;
                if rolled_back || self.load(&checkpoints)?.is_none() {
                    return Err(TrainError::Diverged(stage.to_owned()));
                }
                self.cursor = cursor;
                ctx.reporter.note(&format!(
                    "{stage}: {SKIPS} steps without a usable loss; back to the last checkpoint"
                ));
                (skips, rolled_back) = (0, true);
            }
            at += 1;
            self.tell(ctx, stage, at, rhythm.total, &outcome, &window, meter.tokens(), &mut metrics)?;
            every(self, at, &mut metrics)?;
            if rhythm.sample_every > 0 && (at % rhythm.sample_every == 0 || at == rhythm.total) {
                self.sample(ctx, stage, at, &mut metrics)?;
            }
            let due = rhythm.checkpoint_every > 0 && at % rhythm.checkpoint_every == 0
                || rhythm.checkpoint_seconds > 0.0
                    && saved.elapsed().as_secs_f64() > rhythm.checkpoint_seconds;
            let stop = ctx.reporter.stop();
            if (due || stop) && at < rhythm.total && !outcome.enough {
                metrics.sync()?;
                self.save(stage, &checkpoints, at, &meter.so_far(), false)?;
                saved = Instant::now();
            }
            if outcome.enough {
                break;
            }
            if stop && at < rhythm.total {
                return Err(TrainError::Interrupted);
            }
        }
        metrics.sync()?;
        let cost = meter.stop();
        self.save(stage, &checkpoints, at, &cost, true)?;
        self.model.save(&dir)?;
        self.tokenizer.save(&dir)?;
        Ok(cost)
    }

    fn tell(
        &self,
        ctx: &Context,
        stage: &str,
        step: u64,
        total: u64,
        outcome: &StepOutcome,
        window: &VecDeque<(f64, u64, u64)>,
        tokens: u64,
        metrics: &mut Metrics,
    ) -> Result<(), TrainError> {
        let sum = window.iter().fold((0.0, 0, 0), |s, w| (s.0 + w.0, s.1 + w.1, s.2 + w.2));
        let tokens_per_second = sum.1 as f64 / sum.0;
        let mut values = outcome.values.clone();
        values.push((keys::TOKENS, tokens as f64));
        values.push((keys::TOKENS_PER_SECOND, tokens_per_second));
        metrics.log(step, &values)?;
        ctx.reporter.progress(&Progress {
            stage,
            step,
            total,
            headline: outcome.values[0],
            tokens_per_second,
            ceiling_share: sum.2 as f64 / sum.0 / ctx.ceiling,
            seconds_left: (total - step) as f64 * sum.0 / window.len() as f64,
        });
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
