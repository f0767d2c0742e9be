//! Accuracy over FLOPs, a line for each way of spending them: the first picture of a report whose recipe compares several.

use std::collections::BTreeMap;

use crate::claims::{ClaimSettings, Figure};
use crate::finished::Finished;
use crate::recipe::Recipe;
use crate::report::{Way, WayPoint};

/// The way to the stage that most claims about answers are about, and those to its baselines; none where only one claim is.
pub(crate) fn ways(recipe: &Recipe, done: &[(String, Finished)]) -> Vec<Way> {
    let about = |stage: &str| -> Vec<&ClaimSettings> {
        let answers = recipe.claims.iter().filter(|c| c.figure != Figure::HeldOutLoss);
        answers.filter(|c| c.stage == stage).collect()
    };
    // The first of those with as many.
    let Some(stage) = recipe.claims.iter().rev().map(|c| c.stage.as_str()).max_by_key(|s| about(s).len())
    else {
        return Vec::new();
    };
    let claims = about(stage);
    if claims.len() < 2 {
        return Vec::new();
    }
    let points = measured(recipe, done);
    let along =
        |name: &str| recipe.lineage(name).into_iter().filter_map(|s| points.get(s).cloned()).collect();
    let mut all: Vec<(String, Vec<WayPoint>)> = vec![(stage.to_owned(), along(stage))];
    for claim in claims {
        let last = claim.baseline.last().cloned().unwrap_or_default();
        let through = match claim.baseline.as_slice() {
            [one] => along(one),
            several => several.iter().filter_map(|s| points.get(s.as_str()).cloned()).collect(),
        };
        all.push((last, through));
    }
    let has = |way: &(String, Vec<WayPoint>), point: &WayPoint| way.1.contains(point);
    let mut ways = Vec::new();
    for (i, way) in all.iter().enumerate() {
        let within = |other: &(String, Vec<WayPoint>)| way.1.iter().all(|point| has(other, point));
        let told = all
            .iter()
            .enumerate()
            .any(|(j, other)| j != i && within(other) && (other.1.len() > way.1.len() || j < i));
        if !told && !way.1.is_empty() {
            let mut points = way.1.clone();
            points.sort_by_key(|point| point.operations);
            ways.push(Way { name: way.0.clone(), points });
        }
    }
    ways
}

/// Every measured stage, as the last evaluation has it.
fn measured(recipe: &Recipe, done: &[(String, Finished)]) -> BTreeMap<String, WayPoint> {
    let found = done.iter().flat_map(|(_, f)| &f.figures.measured);
    let points = found.map(|m| {
        let built = recipe.lineage(&m.stage);
        let own = done.iter().filter(|(name, _)| built.contains(name.as_str()));
        let operations = own.map(|(_, f)| f.cost.operations).sum();
        let (stage, accuracy) = (m.stage.clone(), m.scores.pass_at_1.value);
        (stage.clone(), WayPoint { stage, operations, accuracy })
    });
    points.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each way once, with everything that was paid for on it, and no line for a baseline that stands on another's way.
    #[test]
    fn ways_hold_what_was_measured_along_them() {
        let text = "[models.m]\nmodel_type = 'llama'\n[[stage]]\nkind = 'tokenizer'\n[[stage]]\nkind = 'pretrain'\nmodel = 'm'\n\
            [[stage]]\nkind = 'sft'\n[[stage]]\nkind = 'grpo'\n[[stage]]\nkind = 'sft'\nname = 'more'\nfrom = 'pretrain'\n\
            [[stage]]\nkind = 'eval'\n\
            [[claim]]\nname = 'a'\nstage = 'grpo'\nbaseline = 'more'\n[[claim]]\nname = 'b'\nstage = 'grpo'\nbaseline = 'sft'\n";
        let recipe = Recipe::parse("r.toml", text, &[]).expect("a recipe");
        let cost = |operations: u64| {
            serde_json::json!({"name": "", "seconds": 1.0, "cpu_seconds": 1.0, "tokens": 1,
            "operations": operations, "peak_memory_bytes": 1, "joules": null, "cost": 0.0})
        };
        let stage = |name: &str, operations| {
            let value =
                serde_json::json!({"kind": "", "cost": cost(operations), "summary": "", "figures": {}});
            (name.to_owned(), serde_json::from_value::<Finished>(value).expect("a finished stage"))
        };
        let mut done = vec![
            stage("pretrain", 100),
            stage("sft", 10),
            stage("grpo", 20),
            stage("more", 40),
            stage("eval", 5),
        ];
        let estimate = |value: f64| serde_json::json!({"value": value, "low": value, "high": value});
        done[4].1.figures.measured = [("sft", 0.3), ("grpo", 0.6), ("more", 0.4)].map(|(name, value)| {
            let scores = serde_json::json!({"problems": 10, "samples": 8, "pass@1": estimate(value), "pass@8": estimate(value), "maj@8": estimate(value)});
            let measured = serde_json::json!({"stage": name, "scores": scores, "by_task": {}, "outcomes": [], "mean_tokens": 1.0,
                "truncated_share": 0.0, "answers": []});
            serde_json::from_value(measured).expect("a measurement")
        }).into();
        let shown: Vec<(String, Vec<(u64, f64)>)> = ways(&recipe, &done)
            .into_iter()
            .map(|w| (w.name, w.points.into_iter().map(|p| (p.operations, p.accuracy)).collect()))
            .collect();
        assert_eq!(
            shown,
            [("grpo".to_owned(), vec![(110, 0.3), (130, 0.6)]), ("more".to_owned(), vec![(140, 0.4)])]
        );
        assert!(ways(&Recipe { claims: recipe.claims[..1].to_vec(), ..recipe }, &done).is_empty());
    }
}
