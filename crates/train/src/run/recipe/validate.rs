//! What a recipe must satisfy beyond its form.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use super::check::{At, Check, Checked, Earlier};
use super::node;
use super::source::{Data, Problems, Source, TaskMix, Verifier};
use super::stage::Stage;
use super::{
    DistillMethod, DistillStage, EvalStage, GrpoStage, Optimizer, PretrainStage, Recipe, RejectStage,
    SftStage, TokenizerStage,
};
use crate::claims::{ClaimSettings, Figure};
use crate::optim::schedule::Schedule;

/// Tokens of one step.
const MOST_TOKENS: f64 = (1u64 << 32) as f64;

/// Names that a run folder uses itself.
const RESERVED: [&str; 3] = ["tensorboard", "samples", "recipe"];

/// Problems that are drawn beforehand.
const MOST_PROBLEMS: usize = 10_000_000;

const POSITIVE: (Bound<f64>, Bound<f64>) = (Excluded(0.0), Unbounded);

/// Stage names: present, usable as folders, no two the same.
pub(super) fn names(recipe: &Recipe, check: &Check<'_>) -> Checked {
    check.that(is_name(&recipe.name), &["name"], "use letters, digits, `.`, `-` and `_`")?;
    if recipe.stages.is_empty() {
        let message = "the recipe has no stages; begin one with `[[stage]]` and a `kind`";
        return Err(check.error(&["stage"], message));
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        let name = stage.name();
        let number = (index + 1).to_string();
        let path = ["stage", &number, "name"];
        let free = !RESERVED.contains(&name.to_lowercase().as_str()) && is_name(name);
        check.that(
            free,
            &path,
            format!(
                "a stage cannot be called {name:?}: use letters, digits, `.`, `-` and `_`, and none of {}",
                RESERVED.join(", ")
            ),
        )?;
        let twice = recipe.stages[..index].iter().any(|other| other.name().eq_ignore_ascii_case(name));
        check.that(
            !twice,
            &path,
            format!("two stages are called `{name}`; give one of them another `name`"),
        )?;
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.len() <= 100 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(inner)
}

/// Everything else.
pub(super) fn all(recipe: &Recipe, check: &Check<'_>) -> Checked {
    machine(recipe, check)?;
    for (name, config) in &recipe.models {
        check.that(
            config.is_table(),
            &["models", name],
            "expected a table with the keys of a config.json",
        )?;
    }
    if recipe.draws_problems() {
        problems(&recipe.problems, check)?;
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        let at = At { check, stage: stage.name() };
        let earlier = Earlier { recipe, stages: &recipe.stages[..index], at: &at };
        one_stage(stage, &at, &earlier)?;
    }
    (1..).zip(&recipe.claims).try_for_each(|(number, claim)| self::claim(number, claim, recipe, check))
}

/// A claim compares what the recipe measures, and states nothing that would be ignored.
fn claim(number: usize, claim: &ClaimSettings, recipe: &Recipe, check: &Check<'_>) -> Checked {
    let number = number.to_string();
    let error = |key: &str, message: String| check.error(&["claim", &number, key], message);
    if claim.name.is_empty() {
        return Err(error("name", "say what is claimed, in a sentence".into()));
    }
    for (key, name) in claim
        .sides()
        .zip(std::iter::once("stage").chain(std::iter::repeat("baseline")))
        .map(|(name, key)| (key, name))
        .chain(claim.given.iter().map(|name| ("given", name.as_str())))
    {
        if recipe.stage(name).is_none() {
            let hint = node::hint(name, recipe.stages.iter().map(Stage::name), "there are");
            return Err(error(key, format!("no stage is called `{name}`; {hint}")));
        }
    }
    let baselines = claim.baseline.len();
    if baselines == 0 || baselines > 1 && claim.figure != Figure::Flops {
        let message = format!("expected one stage, found {baselines}; several are for `figure = \"flops\"`");
        return Err(error("baseline", message));
    }
    if claim.above.is_nan() || claim.above < 1.0 {
        return Err(error("above", format!("expected a number at least 1, found {}", claim.above)));
    }
    let answers = claim.figure != Figure::HeldOutLoss;
    for (key, stated, means) in [
        ("equal_flops", claim.equal_flops, answers && claim.figure != Figure::Flops),
        ("given", !claim.given.is_empty(), answers),
    ] {
        if stated && !means {
            return Err(error(key, format!("it means nothing for `{}`", claim.figure)));
        }
    }
    if let Figure::HeldOutLoss = claim.figure {
        let pretrains = |name: &str| matches!(recipe.stage(name), Some(Stage::Pretrain(_)));
        return match claim.sides().find(|name| !pretrains(name)) {
            Some(other) => Err(error("figure", format!("`{other}` is no pretrain stage"))),
            None => Ok(()),
        };
    }
    let measures = |e: &EvalStage| claim.sides().all(|name| e.of.iter().any(|of| of == name));
    let samples = |e: &EvalStage| match claim.figure {
        Figure::PassAt(k) | Figure::MajAt(k) => e.samples == k,
        _ => true,
    };
    // The report takes the last one that measures them all.
    let last = recipe.stages.iter().rev().find_map(|s| match s {
        Stage::Eval(e) if measures(e) => Some(e),
        _ => None,
    });
    match last {
        Some(e) if samples(e) => Ok(()),
        Some(e) => {
            let message = format!("`{}` has {} samples, and measures no {}", e.name, e.samples, claim.figure);
            Err(error("figure", message))
        }
        None => {
            let names: Vec<&str> = claim.sides().collect();
            Err(error(
                "stage",
                format!("no eval stage measures {} together; name them in its `of`", names.join(", ")),
            ))
        }
    }
}

fn machine(recipe: &Recipe, check: &Check<'_>) -> Checked {
    let machine = &recipe.machine;
    let price = machine.price_per_core_hour;
    check.that(
        price >= 0.0,
        &["machine", "price_per_core_hour"],
        format!("a price is not negative, found {price}"),
    )?;
    let memory = machine.memory_gib;
    check.that(memory > 0.0, &["machine", "memory_gib"], format!("expected a number above 0, found {memory}"))
}

fn problems(problems: &Problems, check: &Check<'_>) -> Checked {
    let given = [!problems.mix.is_empty(), problems.jsonl.is_some(), !problems.command.is_empty()];
    let one = given.iter().filter(|given| **given).count() == 1;
    check.that(one, &["problems"], "give one of `mix`, `jsonl` and `command`")?;
    let tasks = problems.tasks.is_empty() || !problems.command.is_empty();
    check.that(
        tasks,
        &["problems", "tasks"],
        "`tasks` goes with `command`; the tasks of a mix stand in `mix`",
    )?;
    // Held in memory, all of them.
    for (key, count) in [("count", problems.count), ("held_out", problems.held_out.unwrap_or(1))] {
        let message = format!("expected 1 to {MOST_PROBLEMS}, found {count}");
        check.that((1..=MOST_PROBLEMS).contains(&count), &["problems", key], message)?;
    }
    mix(&problems.mix, &["problems", "mix"], check)?;
    if let Some(Verifier::Command(verifier)) = &problems.verifier {
        let path = |key| ["problems", "verifier", key];
        check.that(!verifier.command.is_empty(), &path("command"), "name a program")?;
        check.that((1..=1024).contains(&verifier.workers), &path("workers"), "expected 1 to 1024")?;
        let patient = (0.001..=86_400.0).contains(&verifier.timeout_seconds);
        check.that(patient, &path("timeout_seconds"), "expected 0.001 to 86400")?;
    }
    Ok(())
}

fn mix(mix: &[TaskMix], path: &[&str], check: &Check<'_>) -> Checked {
    for (index, task) in mix.iter().enumerate() {
        let number = (index + 1).to_string();
        let at = |key| [path, &[number.as_str(), key]].concat();
        let message = format!("the weight of {} must be at least 0, found {}", task.task, task.weight);
        check.that(task.weight >= 0.0, &at("weight"), message)?;
        let known = tasks::task(&task.task).map_err(|e| check.error(&at("task"), e.to_string()))?;
        let level = task.level().map_err(|e| check.error(&at("level"), e.to_string()))?;
        known.check(&level).map_err(|e| check.error(&at("level"), e.to_string()))?;
    }
    let drawn = mix.is_empty() || mix.iter().any(|task| task.weight > 0.0);
    check.that(drawn, path, "every weight is 0, so that nothing would ever be drawn")
}

fn one_stage(stage: &Stage, at: &At<'_>, earlier: &Earlier<'_>) -> Checked {
    if let Some(schedule) = stage.schedule() {
        self::schedule(schedule, at)?;
    }
    if let Some(optimizer) = stage.optimizer() {
        self::optimizer(optimizer, at)?;
    }
    match stage {
        Stage::Tokenizer(stage) => tokenizer(stage, at),
        Stage::Pretrain(stage) => pretrain(stage, at, earlier),
        Stage::Sft(stage) => sft(stage, at, earlier),
        Stage::Grpo(stage) => grpo(stage, at, earlier),
        Stage::Reject(stage) => reject(stage, at, earlier),
        Stage::Distill(stage) => distill(stage, at, earlier),
        Stage::Eval(stage) => eval(stage, at, earlier),
    }
}

fn tokenizer(stage: &TokenizerStage, at: &At<'_>) -> Checked {
    // 256 bytes and a few special tokens are the least that any text needs.
    at.number("vocab_size", stage.vocab_size as f64, 264.0..=1_000_000.0)?;
    source(&stage.source, at)
}

fn pretrain(stage: &PretrainStage, at: &At<'_>, earlier: &Earlier<'_>) -> Checked {
    match (&stage.model, &stage.from) {
        (Some(model), None) => earlier.config("model", model)?,
        (None, Some(from)) => earlier.model("from", from)?,
        (None, None) => return Err(at.error("model", "name one of `[models]`, or give `from`")),
        (Some(_), Some(_)) => return Err(at.error("from", "give either `model` or `from`, not both")),
    }
    let tokenizes = |stage: &Stage| stage.makes_model() || matches!(stage, Stage::Tokenizer(_));
    earlier.refers("tokenizer", &stage.tokenizer, "a tokenizer", tokenizes, &[])?;
    source(&stage.source, at)?;
    own_mix(&stage.mix, at)?;
    at.number("hurried_share", stage.hurried_share, 0.0..=1.0)?;
    at.positive(&[
        ("tokens", stage.tokens),
        ("accumulate", stage.accumulate as u64),
        ("mtp_every", stage.mtp_every),
    ])?;
    at.number("router_bias_rest", stage.router_bias_rest, 0.0..=1.0)?;
    at.number("stop_after_tokens", stage.stop_after_tokens as f64, 0.0..=stage.tokens as f64)?;
    packing(stage.batch_tokens, stage.seq_len, stage.accumulate, at)?;
    at.number("checkpoint_seconds", stage.checkpoint_seconds, 0.0..)?;
    side_losses(stage.router_bias_rate, stage.balance_alpha, stage.mtp_weight, at)
}

fn sft(stage: &SftStage, at: &At<'_>, earlier: &Earlier<'_>) -> Checked {
    earlier.model("from", &stage.from)?;
    if let Data::Stage { stage } = &stage.data {
        earlier.traces("data.stage", stage)?;
    }
    own_mix(&stage.mix, at)?;
    at.number("hurried_share", stage.hurried_share, 0.0..=1.0)?;
    at.positive(&[("steps", stage.steps), ("accumulate", stage.accumulate as u64)])?;
    packing(stage.batch_tokens, stage.seq_len, stage.accumulate, at)?;
    at.number("checkpoint_seconds", stage.checkpoint_seconds, 0.0..)?;
    side_losses(stage.router_bias_rate, stage.balance_alpha, stage.mtp_weight, at)
}

fn grpo(stage: &GrpoStage, at: &At<'_>, earlier: &Earlier<'_>) -> Checked {
    earlier.model("from", &stage.from)?;
    for name in &stage.budget_of {
        earlier.refers("budget_of", name, "operations", |_| true, &[])?;
    }
    own_mix(&stage.mix, at)?;
    at.positive(&[
        ("steps", stage.steps),
        ("prompts", stage.prompts as u64),
        ("max_new", stage.max_new as u64),
        ("minibatches", stage.minibatches as u64),
        ("epochs", stage.epochs as u64),
    ])?;
    // A group of one has no advantage over itself.
    at.number("group", stage.group as f64, 2.0..=1e6)?;
    at.number("temperature", stage.temperature, POSITIVE)?;
    at.number("clip_low", stage.clip_low, (Excluded(0.0), Included(1.0)))?;
    at.number("clip_high", stage.clip_high, POSITIVE)?;
    let answers = stage.prompts.saturating_mul(stage.group);
    if stage.minibatches > answers {
        let message = format!("{} parts of {answers} answers are too many", stage.minibatches);
        return Err(at.error("minibatches", message));
    }
    at.number("overlong_buffer", stage.overlong_buffer as f64, 0.0..=stage.max_new as f64)?;
    at.numbers(
        &[
            ("kl_coefficient", stage.kl_coefficient),
            ("reward.accuracy", stage.reward.accuracy),
            ("reward.format", stage.reward.format),
            ("overlong_penalty", stage.overlong_penalty),
            ("router_bias_rate", stage.router_bias_rate),
            ("checkpoint_seconds", stage.checkpoint_seconds),
        ],
        0.0..,
    )?;
    let paid = stage.reward.accuracy + stage.reward.format > 0.0;
    if paid { Ok(()) } else { Err(at.error("reward", "every weight is 0, so that nothing would be learnt")) }
}

fn reject(stage: &RejectStage, at: &At<'_>, earlier: &Earlier<'_>) -> Checked {
    earlier.model("from", &stage.from)?;
    own_mix(&stage.mix, at)?;
    at.positive(&[
        ("problems", stage.problems as u64),
        ("samples", stage.samples as u64),
        ("keep", stage.keep as u64),
        ("max_new", stage.max_new as u64),
    ])?;
    at.number("temperature", stage.temperature, 0.0..)
}

fn distill(stage: &DistillStage, at: &At<'_>, earlier: &Earlier<'_>) -> Checked {
    earlier.model("teacher", &stage.teacher)?;
    let configs: Vec<&str> = earlier.recipe.models.keys().map(String::as_str).collect();
    earlier.refers("student", &stage.student, "a student", Stage::makes_model, &configs)?;
    if stage.method == DistillMethod::Traces {
        earlier.traces("traces", stage.traces.as_deref().unwrap_or_default())?;
    }
    own_mix(&stage.mix, at)?;
    let timed = stage.steps > 0 || (stage.method == DistillMethod::Traces && stage.epochs > 0);
    if !timed {
        return Err(at.error("steps", "say how long to train: expected at least 1 step, found 0"));
    }
    at.positive(&[
        ("prompts", stage.prompts as u64),
        ("max_new", stage.max_new as u64),
        ("accumulate", stage.accumulate as u64),
    ])?;
    packing(stage.batch_tokens, stage.seq_len, stage.accumulate, at)?;
    at.number("checkpoint_seconds", stage.checkpoint_seconds, 0.0..)?;
    at.number("temperature", stage.temperature, POSITIVE)
}

fn eval(stage: &EvalStage, at: &At<'_>, earlier: &Earlier<'_>) -> Checked {
    if stage.of.is_empty() {
        return Err(at.error("of", "no earlier stage makes a model; name a model folder"));
    }
    for name in &stage.of {
        earlier.model("of", name)?;
    }
    at.positive(&[("samples", stage.samples as u64), ("max_new", stage.max_new as u64)])?;
    at.number("temperature", stage.temperature, 0.0..)
}

/// What is learnt beside the next token: the experts' balance and the MTP layer.
fn side_losses(router_bias_rate: f64, balance_alpha: f64, mtp_weight: f64, at: &At<'_>) -> Checked {
    at.numbers(
        &[
            ("router_bias_rate", router_bias_rate),
            ("balance_alpha", balance_alpha),
            ("mtp_weight", mtp_weight),
        ],
        0.0..,
    )
}

fn optimizer(optimizer: &Optimizer, at: &At<'_>) -> Checked {
    at.numbers(
        &[("optimizer.learning_rate", optimizer.learning_rate), ("optimizer.eps", optimizer.eps)],
        POSITIVE,
    )?;
    at.number("optimizer.adam_learning_rate", optimizer.adam_learning_rate, POSITIVE)?;
    at.numbers(
        &[
            ("optimizer.beta1", optimizer.beta1),
            ("optimizer.beta2", optimizer.beta2),
            ("optimizer.momentum", optimizer.momentum),
        ],
        0.0..1.0,
    )?;
    at.numbers(
        &[("optimizer.weight_decay", optimizer.weight_decay), ("optimizer.clip", optimizer.clip)],
        0.0..,
    )
}

fn source(source: &Source, at: &At<'_>) -> Checked {
    match source {
        Source::Problems => Ok(()),
        Source::Files(files) => {
            if files.extensions.is_empty() {
                return Err(at.error("source.extensions", "name at least one, such as \"txt\""));
            }
            // With one in one nothing would be left to train on.
            at.number("source.held_out_one_in", files.held_out_one_in as f64, 2.0..)
        }
    }
}

fn own_mix(own: &Option<Vec<TaskMix>>, at: &At<'_>) -> Checked {
    match own.as_deref() {
        None => Ok(()),
        Some([]) => Err(at.error("mix", "name at least one task, or leave the key out")),
        Some(tasks) => mix(tasks, &["stage", at.stage, "mix"], at.check),
    }
}

fn packing(batch_tokens: usize, seq_len: usize, accumulate: usize, at: &At<'_>) -> Checked {
    // The target is the next token, so that one token teaches nothing.
    at.number("seq_len", seq_len as f64, 2.0..=MOST_TOKENS)?;
    at.number("batch_tokens", batch_tokens as f64, 1.0..=MOST_TOKENS)?;
    if batch_tokens / accumulate < seq_len {
        return Err(at.error(
            "batch_tokens",
            format!(
                "{batch_tokens} tokens in {accumulate} parts are fewer than one sequence of {seq_len} tokens each; \
                 raise `batch_tokens` or lower `seq_len` or `accumulate`"
            ),
        ));
    }
    Ok(())
}

fn schedule(schedule: &Schedule, at: &At<'_>) -> Checked {
    at.numbers(
        &[
            ("schedule.warmup", schedule.warmup),
            ("schedule.decay", schedule.decay),
            ("schedule.final_ratio", schedule.final_ratio),
        ],
        0.0..=1.0,
    )
}
