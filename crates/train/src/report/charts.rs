//! From the lines of `metrics.jsonl` to charts.

use super::axis::{Axis, Unit, percent};
use super::svg::{LineChart, Mark, Series};
use super::{Overlay, RunReport, Way};
use crate::run::metrics::{Line, NAMED_REWARD, keys};

const WIDE: f64 = 880.0;

/// The width of charts of which `count` stand together, so that text is of one size in all of them.
pub(super) fn panel_width(count: usize) -> f64 {
    match count {
        1 => WIDE,
        2 | 4 => 520.0,
        _ => 340.0,
    }
}

/// The points of a number over a stage's steps.
fn points(metrics: &[Line], stage: &str, key: &str) -> Vec<(f64, f64)> {
    metrics
        .iter()
        .filter(|line| line.stage == stage)
        .filter_map(|line| Some((line.step as f64, line.get(key)?)))
        .collect()
}

/// Stages that logged a number, in the order in which they ran.
fn stages_with<'a>(metrics: &'a [Line], key: &str) -> Vec<&'a str> {
    let mut stages: Vec<&str> = Vec::new();
    for line in metrics {
        if !stages.contains(&line.stage.as_str()) && line.get(key).is_some_and(f64::is_finite) {
            stages.push(&line.stage);
        }
    }
    stages
}

fn ys(series: &[Series]) -> impl Iterator<Item = f64> {
    series.iter().flat_map(|series| series.points.iter().map(|(_, y)| *y))
}

fn last_x(series: &[Series]) -> f64 {
    series.iter().flat_map(|series| series.points.iter().map(|(x, _)| *x)).fold(1.0, f64::max)
}

/// Accuracy over FLOPs, a line for each way of spending them.
pub(super) fn ways(report: &RunReport) -> Option<LineChart> {
    if report.ways.is_empty() {
        return None;
    }
    let line = |(i, way): (usize, &Way)| Series {
        name: way.name.clone(),
        colour: 1 + i % 6,
        points: way.points.iter().map(|p| (p.operations as f64, p.accuracy)).collect(),
        dots: true,
        ..Series::default()
    };
    let series: Vec<Series> = report.ways.iter().enumerate().map(line).collect();
    let (x, y) = (series.iter().flat_map(|s| s.points.iter().map(|p| p.0)), ys(&series).chain([0.0]));
    Some(LineChart {
        title: "Accuracy over FLOPs".into(),
        x: Axis::over("FLOPs", Unit::Plain, x),
        y: Axis::over("pass@1", Unit::Share, y),
        series,
        parts: Vec::new(),
        marks: Vec::new(),
        width: WIDE,
        height: 380.0,
    })
}

/// The rewards that a recipe names, each by its key and its name, in the order in which they are logged.
pub(super) fn named_rewards(metrics: &[Line]) -> Vec<(&str, &str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (key, _) in metrics.iter().flat_map(|line| &line.values) {
        if let Some(name) = key.strip_prefix(NAMED_REWARD)
            && key != keys::REWARD_STD
            && !found.iter().any(|(known, _)| known == key)
        {
            found.push((key, name));
        }
    }
    found
}

/// The reward while the model learns by reinforcement, with what it began with and ended with.
pub(super) fn reinforcement(report: &RunReport, metrics: &[Line]) -> Option<LineChart> {
    let (before, after) = match &report.reinforcement {
        Some((before, after)) => (Some(before.as_str()), after.as_str()),
        None => (None, *stages_with(metrics, keys::REWARD).first()?),
    };
    let rewards = points(metrics, after, keys::REWARD);
    if rewards.is_empty() {
        return None;
    }
    // A rollout without a spread must not shift those of the others.
    let line = |step: f64| metrics.iter().find(|line| line.stage == after && line.step as f64 == step);
    let spread = rewards.iter().map(|(step, _)| line(*step)?.get(keys::REWARD_STD)).collect();
    let mut series = vec![Series {
        name: "mean reward (band: one standard deviation)".into(),
        colour: 1,
        points: rewards,
        spread,
        noisy: true,
        dots: false,
    }];
    let held_out = points(metrics, after, keys::EVAL_ACCURACY);
    if !held_out.is_empty() {
        series.push(Series {
            name: "held-out problems solved".into(),
            colour: 2,
            points: held_out,
            dots: true,
            ..Series::default()
        });
    }
    let end = last_x(&series);
    let mut marks = Vec::new();
    if let Some(before) = before {
        let ends = [(before, 0.0, "before"), (after, end, "after")];
        for (stage, x, word) in ends {
            if let Some(evaluation) = report.evaluation_of(stage) {
                let value = evaluation.pass_at_1;
                marks.push(Mark { x, value, label: format!("pass@1 {word}: {}", percent(value.value)) });
            }
        }
    }
    let highest = ys(&series).fold(1.0, f64::max);
    let lowest = ys(&series).fold(0.0, f64::min);
    Some(LineChart {
        title: format!("Reward during {after}"),
        x: Axis::linear("rollouts", Unit::Plain, 0.0, end),
        y: Axis::over("reward", Unit::Plain, [lowest, highest]),
        series,
        parts: Vec::new(),
        marks,
        width: WIDE,
        height: 380.0,
    })
}

/// The loss of every stage that learns from text, one after the other along the time that the run took.
pub(super) fn losses(metrics: &[Line]) -> Option<LineChart> {
    let rl = stages_with(metrics, keys::REWARD);
    let stages: Vec<&str> =
        stages_with(metrics, keys::LOSS).into_iter().filter(|stage| !rl.contains(stage)).collect();
    let mut start = 0.0;
    let (mut parts, mut series) = (Vec::new(), Vec::<Series>::new());
    for stage in stages {
        let lines: Vec<&Line> = metrics.iter().filter(|line| line.stage == stage).collect();
        let minutes = active_minutes(&lines);
        let along = |key: &str| -> Vec<(f64, f64)> {
            let places = lines.iter().zip(&minutes);
            places.filter_map(|(line, at)| Some((start + at, line.get(key)?))).collect()
        };
        parts.push((start, stage.to_owned()));
        let training = along(keys::LOSS);
        match series.first_mut() {
            // NaN lifts the pen between two stages.
            Some(first) => first.points.extend([(start, f64::NAN)].into_iter().chain(training)),
            None => series.push(Series {
                name: "training".into(),
                colour: 1,
                points: training,
                noisy: true,
                ..Series::default()
            }),
        }
        let held_out = along(keys::EVAL_LOSS);
        match series.get_mut(1) {
            Some(second) => second.points.extend([(start, f64::NAN)].into_iter().chain(held_out)),
            None => series.push(Series {
                name: "held out".into(),
                colour: 2,
                points: held_out,
                dots: true,
                ..Series::default()
            }),
        }
        start += minutes.last().copied().unwrap_or(0.0);
    }
    series.retain(|series| series.points.iter().any(|(_, y)| y.is_finite()));
    if series.is_empty() {
        return None;
    }
    Some(LineChart {
        title: "Loss, stage after stage".into(),
        x: Axis::linear("minutes of training", Unit::Plain, 0.0, start.max(1e-3)),
        y: Axis::log_over("nats per token", ys(&series).collect::<Vec<_>>()),
        series,
        parts,
        marks: Vec::new(),
        width: WIDE,
        height: 320.0,
    })
}

/// Minutes since a stage began at each of its lines. A gap ten times the usual step is an interruption and
/// counts as one step.
fn active_minutes(lines: &[&Line]) -> Vec<f64> {
    let gaps: Vec<f64> = lines.windows(2).map(|pair| (pair[1].time - pair[0].time).max(0.0)).collect();
    let mut sorted = gaps.clone();
    sorted.sort_by(f64::total_cmp);
    let usual = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    // The first line stands at the end of the first step.
    let mut at = usual;
    let mut minutes = vec![at / 60.0];
    for gap in gaps {
        at += if gap > 10.0 * usual && gap > 30.0 { usual } else { gap };
        minutes.push(at / 60.0);
    }
    minutes.truncate(lines.len());
    minutes
}

/// Loss curves side by side, against tokens where they are logged.
pub(super) fn overlay(overlay: &Overlay, metrics: &[Line]) -> Option<LineChart> {
    let key = |stage: &str| {
        let held_out = points(metrics, stage, keys::EVAL_LOSS).len() >= 4;
        if held_out { keys::EVAL_LOSS } else { keys::LOSS }
    };
    let all_held_out = overlay.stages.iter().all(|stage| key(stage) == keys::EVAL_LOSS);
    let key = if all_held_out { keys::EVAL_LOSS } else { keys::LOSS };
    let in_tokens = overlay.stages.iter().all(|stage| !points(metrics, stage, keys::TOKENS).is_empty());
    let series: Vec<Series> = overlay
        .stages
        .iter()
        .enumerate()
        .map(|(index, stage)| {
            let lines = metrics.iter().filter(|line| line.stage == *stage);
            let place = |line: &Line| if in_tokens { line.get(keys::TOKENS) } else { Some(line.step as f64) };
            Series {
                name: stage.clone(),
                colour: index % 6 + 1,
                points: lines.filter_map(|line| Some((place(line)?, line.get(key)?))).collect(),
                noisy: key == keys::LOSS,
                dots: key == keys::EVAL_LOSS,
                ..Series::default()
            }
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.len() < 2 {
        return None;
    }
    Some(LineChart {
        title: overlay.title.clone(),
        x: Axis::linear(if in_tokens { "tokens" } else { "steps" }, Unit::Plain, 0.0, last_x(&series)),
        y: Axis::log_over(
            if all_held_out { "held-out loss, nats per token" } else { "loss, nats per token" },
            ys(&series).collect::<Vec<_>>(),
        ),
        series,
        parts: Vec::new(),
        marks: Vec::new(),
        width: WIDE,
        height: 300.0,
    })
}

/// One number over the steps of every stage that logs it and is among `stages`.
pub(super) fn over_steps(
    metrics: &[Line],
    stages: &[&str],
    key: &str,
    title: &str,
    y: &str,
    unit: Unit,
) -> Option<LineChart> {
    let series: Vec<Series> = stages
        .iter()
        .map(|stage| (stage, points(metrics, stage, key)))
        .filter(|(_, points)| points.iter().any(|(_, y)| y.is_finite()))
        .enumerate()
        .map(|(index, (stage, points))| Series {
            name: (*stage).to_owned(),
            colour: index % 6 + 1,
            points,
            noisy: true,
            ..Series::default()
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let values: Vec<f64> = ys(&series).collect();
    let positive = values.iter().all(|value| value.is_nan() || *value >= 0.0);
    // Lengths and entropies are read against nothing, so that their axis begins there.
    let values = values.into_iter().chain(positive.then_some(0.0));
    Some(LineChart {
        title: title.to_owned(),
        x: Axis::linear("steps", Unit::Plain, 0.0, last_x(&series)),
        y: Axis::over(y, unit, values),
        series,
        parts: Vec::new(),
        marks: Vec::new(),
        width: WIDE,
        height: 250.0,
    })
}

/// Stages that learn by reinforcement.
pub(super) fn reinforced(metrics: &[Line]) -> Vec<&str> {
    stages_with(metrics, keys::REWARD)
}

/// Every number that is not drawn elsewhere, each with the stages that logged it.
pub(super) fn others(metrics: &[Line]) -> Vec<LineChart> {
    let drawn =
        [keys::LOSS, keys::EVAL_LOSS, keys::REWARD, keys::COMPLETION_LENGTH, keys::ENTROPY, keys::TOKENS];
    let mut names: Vec<&str> = Vec::new();
    for line in metrics {
        for (key, _) in &line.values {
            if !drawn.contains(&key.as_str()) && !names.contains(&key.as_str()) {
                names.push(key);
            }
        }
    }
    let chart = |name: &&str| {
        let title = name.replace('_', " ");
        over_steps(metrics, &stages_with(metrics, name), name, &title, "", Unit::Plain)
    };
    names.iter().filter_map(chart).collect()
}
