//! What a recipe must satisfy beyond its form.

use super::{Recipe, resolve};
use crate::claims::{ClaimSettings, Figure};
use crate::settings::check::{At, Check, Checked};
use crate::settings::node;
use crate::source::{Problems, TooLong, check_mix, check_prompt};
use crate::stages::{AnyStage, Earlier, NamedStage, is_path};
use crate::team::MOST_SHARDS;

/// Names that a run folder uses itself.
const RESERVED: [&str; 3] = ["tensorboard", "samples", "recipe"];

/// Problems that are drawn beforehand.
const MOST_PROBLEMS: usize = 10_000_000;

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
    let shards = recipe.parallel.shards;
    let message = format!("expected 1 to {MOST_SHARDS}, found {shards}");
    check.that((1..=MOST_SHARDS).contains(&shards), &["parallel", "shards"], message)?;
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
    let reinforces = recipe.stages.iter().any(|s| matches!(s.stage(), AnyStage::Grpo(_)));
    let message = "rewards are for `grpo` stages, and the recipe has none";
    check.that(recipe.problems.reward.is_empty() || reinforces, &["problems", "reward"], message)?;
    let (outlines, models) = resolve::outlines(recipe);
    for (before, stage) in recipe.stages.iter().enumerate() {
        let at = At { check, stage: stage.name() };
        stage.check(&at, &Earlier { all: &outlines, before, models: &models, problems: &recipe.problems })?;
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
        if recipe.stage(name).is_none() && !is_path(name) {
            let hint = node::hint(name, recipe.stages.iter().map(NamedStage::name), "there are");
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
        let pretrains = |name: &str| {
            recipe.stage(name).is_some_and(|stage| matches!(stage.stage(), AnyStage::Pretrain(_)))
        };
        return match claim.sides().find(|name| !pretrains(name)) {
            Some(other) => Err(error("figure", format!("`{other}` is no pretrain stage"))),
            None => Ok(()),
        };
    }
    claim.sides().try_for_each(|name| {
        let evals = recipe.stages.iter().rev().filter_map(|s| {
            let (of, samples) = s.measures()?;
            of.iter().any(|other| other == name).then_some((s.name(), samples))
        });
        // The report takes the last one that will do.
        if evals.clone().any(|(_, samples)| claim.figure.is_of(samples)) {
            return Ok(());
        }
        Err(match { evals }.next() {
            Some((eval, samples)) => {
                error("figure", format!("`{eval}` has {samples} samples, and measures no {}", claim.figure))
            }
            None => error("stage", format!("no eval stage measures {name}; name it in the `of` of one")),
        })
    })
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
    let mixed = !problems.mix.is_empty() || !problems.command.is_empty();
    check.that(
        mixed != problems.jsonl.is_some(),
        &["problems"],
        "give one of `mix`, `jsonl` and `command`, or `mix` beside `command`",
    )?;
    let tasks = problems.tasks.is_empty() || !problems.command.is_empty();
    check.that(
        tasks,
        &["problems", "tasks"],
        "`tasks` goes with `command`; the tasks of a mix stand in `mix`",
    )?;
    let env = problems.env.is_empty() || !problems.command.is_empty();
    let which = "`env` goes with `command`; that of a verifier stands in its table";
    check.that(env, &["problems", "env"], which)?;
    let endless = !problems.mix.is_empty() && problems.command.is_empty();
    let listed = !endless || problems.too_long == TooLong::Refuse;
    let which = "problems of a mix are drawn without end, and none is left out: lower their `level` instead";
    check.that(listed, &["problems", "too_long"], which)?;
    // Held in memory, all of them.
    for (key, count) in [("count", problems.count), ("held_out", problems.held_out.unwrap_or(1))] {
        let message = format!("expected 1 to {MOST_PROBLEMS}, found {count}");
        check.that((1..=MOST_PROBLEMS).contains(&count), &["problems", key], message)?;
    }
    if let Some(n) = problems.solved {
        let message = format!("expected 1 to {MOST_PROBLEMS}, found {n}");
        check.that((1..=MOST_PROBLEMS).contains(&n), &["problems", "solved"], message)?;
    }
    check_mix(&problems.mix, &["problems", "mix"], check)?;
    let place = problems.answer.parse::<tasks::AnswerPlace>();
    place.map_err(|e| check.error(&["problems", "answer"], e.to_string()))?;
    if let Some(prompt) = &problems.prompt {
        check_prompt(prompt).map_err(|message| check.error(&["problems", "prompt"], message))?;
    }
    if let Some(verifier) = &problems.verifier {
        verifier.check(check, &["problems", "verifier"])?;
    }
    for (i, reward) in problems.reward.iter().enumerate() {
        let number = (i + 1).to_string();
        let path = |key| ["problems", "reward", number.as_str(), key];
        let plain = reward.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let free = plain
            && !reward.name.is_empty()
            && !["std", "accuracy", "format"].contains(&reward.name.as_str());
        let once = problems.reward[..i].iter().all(|other| other.name != reward.name);
        let message = "expected a name of its own, of letters, digits and `_`, not std, accuracy or format";
        check.that(free && once, &path("name"), message)?;
        let weighs = reward.weight.is_finite() && reward.weight != 0.0;
        check.that(weighs, &path("weight"), "expected a number other than 0")?;
        reward.verifier.check(check, &path("verifier"))?;
    }
    Ok(())
}
