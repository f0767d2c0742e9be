//! `grpo`: reinforcement learning from verifiers alone.

use std::ops::Bound::{Excluded, Included};
use std::path::PathBuf;

use engine::Sampling;
use model::{Model, Use};
use serde::{Deserialize, Serialize};
use tasks::{Reward, RewardConfig};

use super::{Answers, Earlier, Known, Makes, Stage, StageResult, Work, guess};
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::learner::{Learner, Now, StepOutcome, Steps};
use crate::objective::kl::KlKind;
use crate::objective::{Clip, Norm, ObjectiveKind, objective};
use crate::memory::room_for_passes;
use crate::policy::{PASS_TOKENS, PolicySettings, PolicyStats, Prompted, flatten, mismatched, policy_step};
use crate::rollout::{Answer, Group, SampleSettings, sample};
use crate::room::StageProblems;
use crate::run::metrics::{Metrics, NAMED_REWARD, keys};
use crate::run::share::share;
use crate::settings::check::{At, Checked, POSITIVE};
use crate::settings::{UNSET, one_or_many, one_table, set};
use crate::source::{TaskMix, check_own_mix};
use crate::step::{StepOptions, score};
use crate::team::Team;
use crate::training::{Adapting, Training};

/// Training problems of this stage come after those of fine-tuning.
const FIRST_PROBLEM: u64 = 1 << 33;
/// Rounds of replacing groups that teach nothing.
const ROUNDS: usize = 3;
/// Held-out problems that are tried greedily during the stage.
const EVAL_PROBLEMS: usize = 60;

/// Reinforcement learning: the model's own answers, scored by the verifiers.
#[derive(Debug, Clone, PartialEq)]
pub struct GrpoStage {
    /// How it trains; a step is a rollout.
    pub training: Training,
    /// What of the model it trains.
    pub adapting: Adapting,
    /// What is its own.
    pub own: Grpo,
}

one_table!(GrpoStage { training, adapting, own });

/// What `grpo` alone has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpo {
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
    pub objective: ObjectiveKind,
    /// How far below 1 the probability ratio may go before it is clipped; by default the objective's own.
    pub clip_low: f64,
    /// How far above 1 the probability ratio may go before it is clipped; by default the objective's own.
    pub clip_high: f64,
    /// Weight of the KL penalty against the reference model, averaged as the objective averages its loss; 0 keeps no
    /// reference.
    pub kl_coefficient: f64,
    /// How the KL divergence is estimated.
    pub kl: KlKind,
    /// Rollouts after which the reference becomes the present model; 0 never changes it.
    pub reference_every: u64,
    /// Whether groups whose answers are all right or all wrong are replaced by fresh ones (DAPO).
    pub dynamic_sampling: bool,
    /// What negative advantages are multiplied by: 1 leaves them as the objective has them, 0 learns from the better answers of a
    /// group alone.
    pub negative_weight: f64,
    /// Optimizer steps that a rollout is split into.
    pub minibatches: usize,
    /// Passes over each rollout.
    pub epochs: usize,
    /// What counts.
    pub reward: RewardConfig,
    /// Tokens before `max_new` over which an answer loses up to `overlong_penalty` (DAPO); 0 for none.
    pub overlong_buffer: usize,
    /// The loss of reward of an answer that reaches `max_new`.
    pub overlong_penalty: f64,
    /// Step of the router's selection bias per optimizer step.
    pub router_bias_rate: f64,
}

impl Default for Grpo {
    fn default() -> Self {
        Grpo {
            from: String::new(),
            mix: None,
            steps: 100,
            budget_of: Vec::new(),
            prompts: 32,
            group: 8,
            max_new: 256,
            temperature: 1.0,
            objective: ObjectiveKind::Grpo,
            clip_low: UNSET,
            clip_high: UNSET,
            kl_coefficient: 0.0,
            kl: KlKind::K3,
            reference_every: 0,
            dynamic_sampling: false,
            negative_weight: 1.0,
            minibatches: 1,
            epochs: 1,
            reward: RewardConfig::default(),
            overlong_buffer: 0,
            overlong_penalty: 1.0,
            router_bias_rate: 0.0,
        }
    }
}

impl Stage for GrpoStage {
    fn makes(&self) -> Makes {
        Makes::Model
    }

    fn resolve(&mut self, earlier: &Earlier) {
        earlier.fill(&mut self.own.from, Makes::Model);
        self.training.resolve(1e-4, 20, 10);
        let clip = objective(self.own.objective).clip();
        set(&mut self.own.clip_low, clip.0);
        set(&mut self.own.clip_high, clip.1);
    }

    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        self.training.check(at)?;
        self.adapting.check(at)?;
        self.own.check(at, earlier)
    }

    fn model(&self) -> Option<&str> {
        Some(&self.own.from)
    }

    fn length(&self) -> Option<(&'static str, usize)> {
        Some(("max_new", self.own.max_new.saturating_add(1)))
    }

    fn budget_of(&self) -> &[String] {
        &self.own.budget_of
    }

    fn work(&self, _: &Known) -> Option<Work<'_>> {
        let own = &self.own;
        let answers = own.steps as f64 * guess(own.prompts, own.group, own.max_new);
        Some(Work {
            optimizer: Some(&self.training.optimizer),
            steps: own.steps as f64 * own.epochs as f64 * own.minibatches as f64,
            trained: answers * own.epochs as f64,
            generated: answers,
            answers: Some(Answers { problems: own.prompts, each: own.group, max_new: own.max_new }),
            // Prompts come on top, whose length nobody knows yet.
            held: PASS_TOKENS.min(own.prompts * own.group * own.max_new / own.minibatches.max(1)),
            cut: Some(2 * own.max_new),
            recompute: self.training.recompute,
            reference: own.kl_coefficient > 0.0,
            remedy: "lower `max_new`, set `recompute = true` or `adapter`, take a smaller model, or raise `machine.memory_gib`",
            ..Work::default()
        }
        .adapting(&self.adapting))
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let own = &self.own;
        let wanted = self.adapting.wanted();
        let (model, tokenizer) = ctx.model(&own.from, wanted.clone())?;
        note_unfiltered(ctx, name, &model);
        let first = ctx.first_problem(name, FIRST_PROBLEM);
        let of = (&model, &tokenizer);
        let problems = StageProblems::with_room(ctx, name, &own.mix, of, first, own.max_new)?;
        let left_out = problems.left_out() as f64;
        let reference = if own.kl_coefficient > 0.0 {
            let dir = ctx.folder.stage_dir(name)?.join("reference");
            let model = ctx.model(&own.from, wanted.clone())?.0;
            Some(Reference { model, wanted, of: 0, dir, every: own.reference_every })
        } else {
            None
        };
        let mut learner = Learner::new(model, tokenizer, &self.training.optimizer, &ctx.team);
        let budget = own.budget(ctx)?;
        let (recompute, before) = (self.training.recompute, ctx.rounds_before(name));
        let beside = reference.as_ref().map(|r| &r.model);
        let room = room_for_passes(&learner.model, beside, ctx.machine.memory_gib, recompute);
        let pass_tokens = room.clamp(2 * own.max_new, PASS_TOKENS.max(2 * own.max_new));
        if pass_tokens < PASS_TOKENS {
            ctx.reporter.note(&format!("{name}: passes of {pass_tokens} tokens, to keep to machine.memory_gib"));
        }
        let mut steps = Reinforcing { pass_tokens, ctx, s: own, first, before, recompute, problems, reference, budget };
        let cost = learner.run(ctx, name, &self.training, (own.steps, own.steps), &mut steps)?;
        let [reward, accuracy] = [keys::REWARD, keys::ACCURACY].map(|key| learner.figure(key));
        let summary = format!("reward {reward:.3}, accuracy of samples {:.1} %", 100.0 * accuracy);
        let figures = Figures::of([
            (keys::REWARD, reward),
            (keys::ACCURACY, accuracy),
            ("problems_left_out", left_out),
        ]);
        Ok(StageResult { cost, summary, figures })
    }
}

impl Grpo {
    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        earlier.model(at, "from", &self.from)?;
        for name in &self.budget_of {
            earlier.refers(at, "budget_of", name, "operations", |_| true, &[])?;
        }
        check_own_mix(&self.mix, at)?;
        at.positive(&[
            ("steps", self.steps),
            ("prompts", self.prompts as u64),
            ("max_new", self.max_new as u64),
            ("minibatches", self.minibatches as u64),
            ("epochs", self.epochs as u64),
        ])?;
        // A group of one has no advantage over itself.
        at.number("group", self.group as f64, 2.0..=1e6)?;
        at.number("temperature", self.temperature, POSITIVE)?;
        at.number("clip_low", self.clip_low, (Excluded(0.0), Included(1.0)))?;
        at.number("clip_high", self.clip_high, POSITIVE)?;
        let answers = self.prompts.saturating_mul(self.group);
        if self.minibatches > answers {
            let message = format!("{} parts of {answers} answers are too many", self.minibatches);
            return Err(at.error("minibatches", message));
        }
        at.number("overlong_buffer", self.overlong_buffer as f64, 0.0..=self.max_new as f64)?;
        at.numbers(
            &[
                ("kl_coefficient", self.kl_coefficient),
                ("reward.accuracy", self.reward.accuracy),
                ("reward.format", self.reward.format),
                ("negative_weight", self.negative_weight),
                ("overlong_penalty", self.overlong_penalty),
                ("router_bias_rate", self.router_bias_rate),
            ],
            0.0..,
        )?;
        let paid = self.reward.accuracy + self.reward.format > 0.0 || !earlier.problems.reward.is_empty();
        if paid { Ok(()) } else { Err(at.error("reward", "every weight is 0, so that nothing would be learnt")) }
    }

    /// Operations that this stage may spend: those of the stages that it is compared with.
    fn budget(&self, ctx: &Context) -> Result<Option<u64>, TrainError> {
        let mut sum = 0;
        for stage in &self.budget_of {
            sum += ctx.finished(stage)?.map_or(0, |f| f.cost.operations);
        }
        Ok((!self.budget_of.is_empty()).then_some(sum))
    }
}

/// Says that wishes of a model's folder about sampling do not hold here: what is trained is the model's own distribution.
pub(super) fn note_unfiltered(ctx: &Context, stage: &str, model: &Model) {
    let wished = Sampling { temperature: 1.0, ..Sampling::wished(model.generation(), 1.0) };
    if wished != Sampling::default() {
        ctx.reporter.note(&format!(
            "{stage}: samples from the model itself: top_k, top_p, min_p and repetition_penalty of its \
             generation_config.json are for `generate`, `chat`, `eval` and `reject`"
        ));
    }
}

/// The model that the divergence is measured from.
struct Reference {
    model: Model,
    /// How it is read: as the policy is.
    wanted: Use,
    /// The step whose policy it is.
    of: u64,
    every: u64,
    dir: PathBuf,
}

impl Reference {
    /// Makes the reference that of `step`: the policy as it was at the last multiple of `every`. Each is kept in a folder
    /// of its own, so that a resumed run finds the one it had.
    fn renew(&mut self, l: &Learner, step: u64) -> Result<(), TrainError> {
        let wanted = step.checked_div(self.every).unwrap_or(0) * self.every;
        if wanted == self.of {
            return Ok(());
        }
        let folder = self.dir.join(format!("{wanted:09}"));
        if wanted == step {
            self.model.params_mut().data_mut().copy_from_slice(l.model.params().data());
            if l.team.leads() {
                std::fs::create_dir_all(&folder).map_err(crate::run::RunError::io("create", &folder))?;
                self.model.save(&folder)?;
            }
        } else {
            share(&l.team, &folder)?;
            self.model = Model::open(&folder, self.wanted.clone())?;
        }
        self.of = wanted;
        Ok(())
    }
}

struct Reinforcing<'a> {
    /// Tokens of a pass, at most.
    pass_tokens: usize,
    ctx: &'a Context<'a>,
    s: &'a Grpo,
    /// The first problem that it draws, and how many stages of reinforcement it is built on.
    first: u64,
    before: u64,
    recompute: bool,
    problems: StageProblems<'a>,
    reference: Option<Reference>,
    budget: Option<u64>,
}

impl Steps for Reinforcing<'_> {
    /// Samples, scores, and moves the policy.
    fn step(&mut self, l: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError> {
        if let Some(reference) = &mut self.reference {
            reference.renew(l, now.step)?;
        }
        let Collected { mut groups, replaced, tokens: sampled, drawn } = self.collect(l, now.step)?;
        let found = RolloutStats::of(&groups, drawn);
        let objective = objective(self.s.objective);
        for group in &mut groups {
            let reward = |a: &Answer| a.reward.total - overlong(self.s, a.sampled.tokens.len());
            let rewards: Vec<f32> = group.answers.iter().map(reward).collect();
            for (a, advantage) in group.answers.iter_mut().zip(objective.advantages(&rewards)) {
                let negative = advantage < 0.0;
                a.sampled.advantage = if negative { advantage * self.s.negative_weight as f32 } else { advantage };
            }
        }
        if let Some(reference) = &self.reference {
            with_reference(&reference.model, &l.team, &mut groups, self.s.temperature as f32);
        }
        let stats = self.update(l, &groups, &replaced, now.lr_factor);
        l.set_figure(keys::REWARD, found.reward);
        l.set_figure(keys::ACCURACY, found.accuracy);
        let names = self.ctx.problems()?.rewards().iter().map(|r| format!("{NAMED_REWARD}{}", r.name));
        Ok(StepOutcome {
            named: names.zip(found.others).collect(),
            headline: (keys::REWARD, found.reward),
            values: vec![
                (keys::ACCURACY, found.accuracy),
                (keys::REWARD_STD, found.reward_std),
                ("format", found.format),
                (keys::COMPLETION_LENGTH, found.length),
                ("truncated_share", found.truncated),
                ("zero_variance_share", found.flat),
                (keys::ENTROPY, stats.entropy),
                ("kl", stats.kl),
                ("clip_share", stats.clip_share),
                ("mismatched_logprobs", stats.mismatched as f64),
                ("checked_logprobs", stats.checked as f64),
                ("grad_norm", stats.grad_norm),
                ("learning_rate_factor", f64::from(now.lr_factor)),
            ],
            tokens: sampled + stats.trained as u64,
            // A step in which no group taught anything is no failure.
            skipped: !stats.grad_norm.is_finite(),
            enough: self.budget.is_some_and(|budget| now.operations >= budget),
        })
    }

    /// Greedy accuracy on some of the held-out problems.
    fn measure(&mut self, l: &Learner, step: u64, metrics: &mut Metrics) -> Result<(), TrainError> {
        let source = self.ctx.problems()?;
        let problems: Vec<_> = self.problems.held_out().take(EVAL_PROBLEMS).cloned().collect();
        let n = problems.len().max(1) as f64;
        let sampling = Sampling { temperature: 0.0, ..Sampling::wished(l.model.generation(), 1.0) };
        let settings = SampleSettings { group: 1, max_new: self.s.max_new, sampling, seed: 0 };
        let (groups, _) = sample(&l.model, &l.tokenizer, &l.team, problems, &source.accuracy(), settings)?;
        let right: f64 = groups.iter().flat_map(|g| &g.answers).map(|a| f64::from(a.reward.accuracy)).sum();
        Ok(metrics.log(step, &[(keys::EVAL_ACCURACY, right / n)])?)
    }
}

/// What was sampled for one step.
struct Collected {
    /// To learn from.
    groups: Vec<Group>,
    /// Without variance, and not learned from.
    replaced: Vec<Group>,
    tokens: u64,
    /// The reward of every answer.
    drawn: Vec<Reward>,
}

impl Reinforcing<'_> {
    /// Groups for one step. With dynamic sampling, groups without variance are replaced by fresh ones, in a few rounds.
    fn collect(&self, l: &mut Learner, step: u64) -> Result<Collected, TrainError> {
        let (s, source) = (self.s, self.ctx.problems()?);
        let (mut groups, mut replaced) = (Vec::new(), Vec::new());
        let (mut tokens, mut drawn) = (0, Vec::new());
        for round in 0..if s.dynamic_sampling { ROUNDS } else { 1 } {
            let first = self.first + l.cursor;
            // The first of a recipe draws as it did before there could be a second.
            let mut place = vec![step, round as u64];
            place.extend(Some(self.before).filter(|before| *before > 0));
            let want = (s.prompts - groups.len()) as u64;
            let problems = (first..first + want).map(|i| self.problems.train(i)).collect();
            let settings = SampleSettings {
                group: s.group,
                max_new: s.max_new,
                sampling: Sampling { temperature: s.temperature as f32, ..Sampling::default() },
                seed: tensor::Rng::at(self.ctx.seed, &place).next_u64(),
            };
            l.cursor += want;
            let (fresh, n) = sample(&l.model, &l.tokenizer, &l.team, problems, &source.scoring(&s.reward), settings)?;
            tokens += n;
            drawn.extend(fresh.iter().flat_map(|g| &g.answers).map(|a| a.reward.clone()));
            let last = round + 1 == ROUNDS;
            let teaches = |g: &Group| !s.dynamic_sampling || last || varies(g);
            let (kept, flat): (Vec<Group>, Vec<Group>) = fresh.into_iter().partition(teaches);
            groups.extend(kept);
            replaced.extend(flat);
            if groups.len() >= s.prompts {
                break;
            }
        }
        Ok(Collected { groups, replaced, tokens, drawn })
    }

    /// `epochs · minibatches` optimizer steps. The first one compares the log-probabilities that it trains on with the
    /// sampler's; those of all other tokens, of groups without advantage, of other minibatches and of `replaced`, are
    /// computed before it.
    fn update(&self, l: &mut Learner, groups: &[Group], replaced: &[Group], lr_factor: f32) -> Updates {
        let s = self.s;
        let size = groups.len().div_ceil(s.minibatches).max(1);
        let tokens = |part: &[Group]| part.iter().map(Group::tokens).sum::<usize>();
        let mean_tokens = tokens(groups) as f32 / groups.len().div_ceil(size) as f32;
        let (first, later) = groups.split_at(size.min(groups.len()));
        let mut left_out: Vec<Prompted> = first.iter().map(Group::prompted).collect();
        left_out.iter_mut().for_each(|g| g.answers.retain(|a| !a.teaches(s.kl_coefficient as f32)));
        left_out.extend(later.iter().chain(replaced).map(Group::prompted));
        let differing = mismatched(&l.model, &l.team, &left_out, self.pass_tokens, s.temperature as f32);
        let mut steps: Vec<PolicyStats> = Vec::new();
        for _ in 0..s.epochs {
            for part in groups.chunks(size) {
                let sequences = part.iter().map(|g| g.answers.len()).sum();
                let settings = PolicySettings {
                    objective: objective(s.objective),
                    clip: Clip { low: s.clip_low as f32, high: s.clip_high as f32 },
                    kl: s.kl,
                    kl_coefficient: s.kl_coefficient as f32,
                    norm: Norm { sequences, tokens: tokens(part), mean_tokens, max_new: s.max_new },
                    temperature: s.temperature as f32,
                    on_policy: steps.is_empty(),
                    pass_tokens: self.pass_tokens,
                    options: StepOptions {
                        recompute: self.recompute,
                        router_bias_rate: s.router_bias_rate as f32,
                        ..StepOptions::default()
                    },
                };
                let part: Vec<Prompted> = part.iter().map(Group::prompted).collect();
                let (model, optimizer) = (&mut l.model, &mut l.optimizer);
                steps.push(policy_step(model, optimizer, &l.team, &part, &settings, lr_factor));
            }
        }
        let trained = steps.iter().map(|u| u.trained_tokens).sum();
        let mean = |f: &dyn Fn(&PolicyStats) -> f64| {
            steps.iter().map(|u| f(u) * u.trained_tokens as f64).sum::<f64>() / (trained as f64).max(1.0)
        };
        Updates {
            trained,
            entropy: mean(&|u| u.entropy),
            kl: mean(&|u| u.kl),
            clip_share: mean(&|u| u.clip_share),
            checked: left_out.iter().flat_map(|g| &g.answers).map(|a| a.tokens.len()).sum::<usize>()
                + steps.first().map_or(0, |u| u.trained_tokens),
            mismatched: differing + steps.first().map_or(0, |u| u.mismatched),
            grad_norm: steps.iter().map(|u| f64::from(u.report.grad_norm)).sum::<f64>()
                / steps.len().max(1) as f64,
        }
    }
}

fn varies(g: &Group) -> bool {
    g.answers.iter().any(|a| a.reward.total != g.answers[0].reward.total)
}

/// DAPO's soft punishment of answers that come near the limit.
fn overlong(s: &Grpo, len: usize) -> f32 {
    if s.overlong_buffer == 0 {
        return 0.0;
    }
    let over = (len + s.overlong_buffer).saturating_sub(s.max_new);
    (s.overlong_penalty * over as f64 / s.overlong_buffer as f64) as f32
}

/// Fills in the reference model's log-probabilities at the temperature of the rollouts.
fn with_reference(reference: &Model, team: &Team, groups: &mut [Group], temperature: f32) {
    let found = team.deal_all(groups.len(), |part| {
        let mut found = Vec::new();
        for group in &groups[part] {
            let flat = flatten(&[group.prompted()]);
            let stats = score(reference, &flat.tokens, &flat.targets, &flat.segments, temperature);
            let bits = |x: &f32| x.to_bits();
            let answers = flat.predictions.into_iter();
            found.push(answers.map(|rows| stats.logprobs[rows].iter().map(bits).collect()).collect());
        }
        found
    });
    for (group, found) in groups.iter_mut().zip::<Vec<Vec<Vec<u32>>>>(found) {
        for (a, bits) in group.answers.iter_mut().zip(found) {
            a.sampled.reference = Some(bits.into_iter().map(f32::from_bits).collect());
        }
    }
}

/// What the optimizer steps on one rollout measured.
#[derive(Default)]
struct Updates {
    /// Tokens trained on, and means over them.
    trained: usize,
    entropy: f64,
    kl: f64,
    clip_share: f64,
    /// Tokens sampled, whose log-probabilities at the weights that sampled were all compared with the sampler's, and those
    /// that differ.
    checked: usize,
    mismatched: usize,
    /// The mean norm; not finite if that of any step was not.
    grad_norm: f64,
}

struct RolloutStats {
    reward: f64,
    reward_std: f64,
    accuracy: f64,
    format: f64,
    length: f64,
    truncated: f64,
    flat: f64,
    /// Of each named reward.
    others: Vec<f64>,
}

impl RolloutStats {
    /// Reward and accuracy over all answers drawn (also of groups that were replaced), the rest over those kept.
    fn of(groups: &[Group], drawn: Vec<Reward>) -> RolloutStats {
        let n = drawn.len().max(1) as f64;
        let total = |r: &Reward| f64::from(r.total);
        let reward = drawn.iter().map(total).sum::<f64>() / n;
        let answers = || groups.iter().flat_map(|g| &g.answers);
        let count = answers().count().max(1) as f64;
        let mean = |f: &dyn Fn(&Answer) -> f64| answers().map(f).sum::<f64>() / count;
        RolloutStats {
            reward,
            others: (0..drawn.first().map_or(0, |d| d.others.len()))
                .map(|i| drawn.iter().map(|d| f64::from(d.others[i])).sum::<f64>() / n)
                .collect(),
            reward_std: (drawn.iter().map(|d| (total(d) - reward).powi(2)).sum::<f64>() / n).sqrt(),
            accuracy: drawn.iter().map(|d| f64::from(d.accuracy)).sum::<f64>() / n,
            format: mean(&|a| f64::from(a.reward.format)),
            length: mean(&|a| a.sampled.tokens.len() as f64),
            truncated: mean(&|a| f64::from(u8::from(a.truncated))),
            flat: groups.iter().filter(|g| !varies(g)).count() as f64 / groups.len().max(1) as f64,
        }
    }
}
