//! `grpo`: reinforcement learning from verifiers alone.

use std::path::Path;

use engine::Sampling;
use model::Model;
use serde_json::json;
use tasks::{Mix, RewardConfig};

use super::StageResult;
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::learner::{Learner, Rhythm, StepOutcome};
use crate::objective::{Clip, Norm, Objective, objective};
use crate::policy::{PolicySettings, PolicyStats, Rollout, flatten, policy_step};
use crate::rollout::{Group, SampleSettings, sample};
use crate::run::metrics::keys;
use crate::run::recipe::GrpoStage;
use crate::step::{StepOptions, score};

/// Training problems of this stage come after those of fine-tuning.
const FIRST_PROBLEM: u64 = 1 << 33;
/// Rounds of replacing groups that teach nothing.
const ROUNDS: usize = 3;
/// Held-out problems that are tried greedily during the stage.
const EVAL_PROBLEMS: usize = 60;

pub(super) fn run(ctx: &Context, s: &GrpoStage) -> Result<StageResult, TrainError> {
    let (model, tokenizer) = ctx.model(&s.from)?;
    note_unfiltered(ctx, &s.name, &model);
    let mut reference = if s.kl_coefficient > 0.0 { Some(ctx.model(&s.from)?.0) } else { None };
    let source = ctx.problems()?;
    let mix = source.training_mix(&s.mix)?;
    source.check_lengths(&model, &tokenizer, mix.as_ref(), FIRST_PROBLEM, s.max_new)?;
    let budget = budget(ctx, s)?;
    let rhythm = Rhythm {
        total: s.steps,
        scheduled: s.steps,
        sample_every: s.sample_every,
        checkpoint_every: s.checkpoint_every,
        checkpoint_seconds: s.checkpoint_seconds,
    };
    let mut learner = Learner::new(model, tokenizer, &s.optimizer);
    let references = ctx.folder.stage_dir(&s.name)?.join("reference");
    let mut reference_of = 0;
    let cost = learner.run(
        ctx,
        &s.name,
        &s.schedule,
        rhythm,
        |l, step, factor, meter| {
            if let Some(r) = &mut reference {
                renew_reference(&references, s.reference_every, r, l, step, &mut reference_of)?;
            }
            let outcome = one_step(ctx, s, l, step, factor, mix.as_ref(), reference.as_ref())?;
            l.figures = json!({"reward": outcome.values[0].1, "accuracy": outcome.values[1].1});
            let enough = budget.is_some_and(|b| meter.operations() >= b);
            Ok(StepOutcome { enough, ..outcome })
        },
        |l, step, metrics| {
            if s.eval_every > 0 && step.is_multiple_of(s.eval_every) {
                metrics.log(step, &[(keys::EVAL_ACCURACY, greedy_accuracy(ctx, s, l)?)])?;
            }
            Ok(())
        },
    )?;
    let figures = learner.figures;
    let [reward, accuracy] = ["reward", "accuracy"].map(|key| figures[key].as_f64().unwrap_or(0.0));
    let summary = format!("reward {reward:.3}, accuracy of samples {:.1} %", 100.0 * accuracy);
    Ok(StageResult { cost, summary, figures: Figures::of([("reward", reward), ("accuracy", accuracy)]) })
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

/// Operations that this stage may spend: those of the stages that it is compared with.
fn budget(ctx: &Context, s: &GrpoStage) -> Result<Option<u64>, TrainError> {
    let mut sum = 0;
    for stage in &s.budget_of {
        sum += ctx.finished(stage)?.map_or(0, |f| f.cost.operations);
    }
    Ok((!s.budget_of.is_empty()).then_some(sum))
}

/// Makes the reference that of `step`: the policy as it was at the last multiple of `every`. Each is kept in a folder
/// of its own, so that a resumed run finds the one it had.
fn renew_reference(
    dir: &Path,
    every: u64,
    reference: &mut Model,
    l: &Learner,
    step: u64,
    holds: &mut u64,
) -> Result<(), TrainError> {
    let wanted = step.checked_div(every).unwrap_or(0) * every;
    if wanted == *holds {
        return Ok(());
    }
    let folder = dir.join(format!("{wanted:09}"));
    if wanted == step {
        reference.params_mut().data_mut().copy_from_slice(l.model.params().data());
        std::fs::create_dir_all(&folder).map_err(crate::run::RunError::io("create", &folder))?;
        reference.save(&folder)?;
    } else {
        *reference = Model::load(&folder)?;
    }
    *holds = wanted;
    Ok(())
}

/// Samples, scores, and moves the policy.
fn one_step(
    ctx: &Context,
    s: &GrpoStage,
    l: &mut Learner,
    step: u64,
    factor: f32,
    mix: Option<&Mix>,
    reference: Option<&Model>,
) -> Result<StepOutcome, TrainError> {
    let objective = objective(s.objective);
    let (groups, sampled, drawn) = collect(ctx, s, l, step, mix)?;
    let figures = RolloutStats::of(&groups, drawn);
    let mut rollouts = Vec::new();
    for g in &groups {
        let rewards: Vec<f32> =
            g.answers.iter().map(|a| a.reward.total - overlong(s, a.completion.token_ids.len())).collect();
        for (a, advantage) in g.answers.iter().zip(objective.advantages(&rewards)) {
            let (completion, old) = (a.completion.token_ids.clone(), a.completion.tempered_logprobs.clone());
            rollouts.push(Rollout { prompt: g.prompt.clone(), completion, old, reference: None, advantage });
        }
    }
    if let Some(reference) = reference {
        with_reference(reference, &mut rollouts, s.temperature as f32);
    }
    let stats = update(s, l, &rollouts, objective, factor);
    let values = vec![
        (keys::REWARD, figures.reward),
        (keys::ACCURACY, figures.accuracy),
        (keys::REWARD_STD, figures.reward_std),
        ("format", figures.format),
        (keys::COMPLETION_LENGTH, figures.length),
        ("truncated_share", figures.truncated),
        ("zero_variance_share", figures.flat),
        (keys::ENTROPY, stats.entropy),
        ("kl", stats.kl),
        ("clip_share", stats.clip_share),
        ("mismatched_logprobs", stats.mismatched as f64),
        ("checked_logprobs", stats.checked as f64),
        ("grad_norm", stats.grad_norm),
        ("learning_rate_factor", f64::from(factor)),
    ];
    // A step in which no group taught anything is no failure.
    let skipped = !stats.grad_norm.is_finite();
    Ok(StepOutcome { values, tokens: sampled + stats.trained as u64, skipped, enough: false })
}

/// Groups to learn from, the tokens sampled for them, and the total and accuracy reward of every answer drawn.
type Collected = (Vec<Group>, u64, Vec<(f64, f64)>);

/// Groups for one step. With dynamic sampling, groups without variance are replaced by fresh ones, in a few rounds.
fn collect(
    ctx: &Context,
    s: &GrpoStage,
    l: &mut Learner,
    step: u64,
    mix: Option<&Mix>,
) -> Result<Collected, TrainError> {
    let source = ctx.problems()?;
    let rewards = RewardConfig { accuracy: s.reward.accuracy as f32, format: s.reward.format as f32 };
    let (mut groups, mut tokens, mut drawn) = (Vec::new(), 0, Vec::new());
    for round in 0..if s.dynamic_sampling { ROUNDS } else { 1 } {
        let want = s.prompts - groups.len();
        let problems = (0..want as u64).map(|i| source.train(mix, FIRST_PROBLEM + l.cursor + i)).collect();
        let settings = SampleSettings {
            group: s.group,
            max_new: s.max_new,
            sampling: Sampling { temperature: s.temperature as f32, ..Sampling::default() },
            seed: tensor::Rng::at(ctx.recipe.seed, &[step, round as u64]).next_u64(),
        };
        l.cursor += want as u64;
        let (fresh, n) = sample(&l.model, &l.tokenizer, problems, source.verifier(), &rewards, settings)?;
        tokens += n;
        drawn.extend(fresh.iter().flat_map(|g| {
            g.answers.iter().map(|a| (f64::from(a.reward.total), f64::from(a.reward.components[0].1)))
        }));
        let last = round + 1 == ROUNDS;
        groups.extend(fresh.into_iter().filter(|g| !s.dynamic_sampling || last || varies(g)));
        if groups.len() >= s.prompts {
            break;
        }
    }
    Ok((groups, tokens, drawn))
}

fn varies(g: &Group) -> bool {
    g.answers.iter().any(|a| a.reward.total != g.answers[0].reward.total)
}

/// DAPO's soft punishment of answers that come near the limit.
fn overlong(s: &GrpoStage, len: usize) -> f32 {
    if s.overlong_buffer == 0 {
        return 0.0;
    }
    let over = (len + s.overlong_buffer).saturating_sub(s.max_new);
    (s.overlong_penalty * over as f64 / s.overlong_buffer as f64) as f32
}

/// Fills in the reference model's log-probabilities at the temperature of the rollouts.
fn with_reference(reference: &Model, rollouts: &mut [Rollout], temperature: f32) {
    for part in rollouts.chunks_mut(64) {
        let flat = flatten(&part.iter().collect::<Vec<_>>());
        let stats = score(reference, &flat.tokens, &flat.targets, &flat.segments, temperature);
        for (r, rows) in part.iter_mut().zip(flat.predictions) {
            r.reference = Some(stats.logprobs[rows].to_vec());
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
    /// Of the first step, the only one whose weights are the sampler's: tokens whose log-probability was compared with
    /// the sampler's, and those that differ.
    checked: usize,
    mismatched: usize,
    /// The mean norm; not finite if that of any step was not.
    grad_norm: f64,
}

/// `epochs · minibatches` optimizer steps.
fn update(
    s: &GrpoStage,
    l: &mut Learner,
    rollouts: &[Rollout],
    objective: &dyn Objective,
    factor: f32,
) -> Updates {
    // Whole groups stay together.
    let size = (rollouts.len() / s.group).div_ceil(s.minibatches).max(1) * s.group;
    let tokens = |part: &[Rollout]| part.iter().map(|r| r.completion.len()).sum::<usize>();
    let mean_tokens = tokens(rollouts) as f32 / rollouts.len().div_ceil(size) as f32;
    let mut steps: Vec<PolicyStats> = Vec::new();
    for _ in 0..s.epochs {
        for part in rollouts.chunks(size) {
            let norm = Norm { sequences: part.len(), tokens: tokens(part), mean_tokens, max_new: s.max_new };
            let part: Vec<&Rollout> = part.iter().collect();
            let settings = PolicySettings {
                objective,
                clip: Clip { low: s.clip_low as f32, high: s.clip_high as f32 },
                kl: s.kl,
                kl_coefficient: s.kl_coefficient as f32,
                norm,
                temperature: s.temperature as f32,
                on_policy: steps.is_empty(),
                options: StepOptions {
                    recompute: s.recompute,
                    router_bias_rate: s.router_bias_rate as f32,
                    ..StepOptions::default()
                },
            };
            steps.push(policy_step(&mut l.model, &mut l.optimizer, &part, &settings, factor));
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
        checked: steps.first().map_or(0, |u| u.trained_tokens),
        mismatched: steps.first().map_or(0, |u| u.mismatched),
        grad_norm: steps.iter().map(|u| f64::from(u.report.grad_norm)).sum::<f64>()
            / steps.len().max(1) as f64,
    }
}

fn greedy_accuracy(ctx: &Context, s: &GrpoStage, l: &Learner) -> Result<f64, TrainError> {
    let source = ctx.problems()?;
    let problems: Vec<_> = source.held_out().take(EVAL_PROBLEMS).cloned().collect();
    let n = problems.len().max(1) as f64;
    let sampling = Sampling { temperature: 0.0, ..Sampling::wished(l.model.generation(), 1.0) };
    let settings = SampleSettings { group: 1, max_new: s.max_new, sampling, seed: 0 };
    let (groups, _) =
        sample(&l.model, &l.tokenizer, problems, source.verifier(), &RewardConfig::default(), settings)?;
    Ok(groups.iter().map(|g| f64::from(g.answers[0].reward.components[0].1)).sum::<f64>() / n)
}

struct RolloutStats {
    reward: f64,
    reward_std: f64,
    accuracy: f64,
    format: f64,
    length: f64,
    truncated: f64,
    flat: f64,
}

impl RolloutStats {
    /// Reward and accuracy over all answers drawn (also of groups that were replaced), the rest over those kept.
    fn of(groups: &[Group], drawn: Vec<(f64, f64)>) -> RolloutStats {
        let n = drawn.len().max(1) as f64;
        let reward = drawn.iter().map(|d| d.0).sum::<f64>() / n;
        let answers = || groups.iter().flat_map(|g| &g.answers);
        let count = answers().count().max(1) as f64;
        let mean = |f: &dyn Fn(&crate::rollout::Answer) -> f64| answers().map(f).sum::<f64>() / count;
        RolloutStats {
            reward,
            reward_std: (drawn.iter().map(|d| (d.0 - reward).powi(2)).sum::<f64>() / n).sqrt(),
            accuracy: drawn.iter().map(|d| d.1).sum::<f64>() / n,
            format: mean(&|a| f64::from(a.reward.components[1].1)),
            length: mean(&|a| a.completion.token_ids.len() as f64),
            truncated: mean(&|a| f64::from(u8::from(a.truncated))),
            flat: groups.iter().filter(|g| !varies(g)).count() as f64 / groups.len().max(1) as f64,
        }
    }
}
