//! From finished stages to the report: evaluations, claims, the ledger.

use serde_json::{Value, json};

use crate::TrainError;
use crate::context::Context;
use crate::ledger::Claim;
use crate::pipeline::finished;
use crate::run::folder::write_atomic;
use crate::stats::{Estimate, ratio_paired};

/// Writes `report.json` from what is finished.
pub(crate) fn write(ctx: &Context) -> Result<(), TrainError> {
    let done = finished(ctx)?;
    let stages: Vec<Value> = done.iter().map(|(_, v)| v["cost"].clone()).collect();
    let (mut evaluation, mut by_task) = (json!({}), json!({}));
    for (_, v) in done.iter().filter(|(_, v)| v["kind"] == "eval") {
        for (name, of) in v["figures"]["of"].as_object().into_iter().flatten() {
            evaluation[name] = of["scores"].clone();
            by_task[name] = of["by_task"].clone();
        }
    }
    let report = json!({"stages": stages, "evaluation": evaluation, "evaluation_by_task": by_task, "claims": claims(&done)});
    let text = serde_json::to_string_pretty(&report).expect("plain JSON");
    Ok(write_atomic(&ctx.folder.path().join("report.json"), text.as_bytes())?)
}

/// What the run was meant to show, where its stages are named as in the launch recipe.
pub(crate) fn claims(done: &[(String, Value)]) -> Vec<Claim> {
    let right = |name: &str| -> Option<Vec<f64>> {
        let of = done.iter().rev().find_map(|(_, v)| v["figures"]["of"].get(name))?;
        Some(of["greedy_right"].as_array()?.iter().filter_map(Value::as_f64).collect())
    };
    let losses = |name: &str| -> Option<Vec<f64>> {
        let (_, v) = done.iter().find(|(n, _)| n == name)?;
        Some(v["figures"]["held_out_losses"].as_array()?.iter().filter_map(Value::as_f64).collect())
    };
    let mut claims = Vec::new();
    let mut claim = |name: &str, baseline: &str, a: Option<Vec<f64>>, b: Option<Vec<f64>>| {
        if let (Some(a), Some(b)) = (a, b) {
            let ratio: Estimate = ratio_paired(&a, &b);
            claims.push(Claim::new(name, baseline, ratio));
        }
    };
    claim("reinforcement: pass@1 after grpo", "pass@1 after sft", right("grpo"), right("sft"));
    claim("distillation: pass@1 of the student", "pass@1 of the same student by RL alone at equal operations", right("distill"), right("distill_rl_only"));
    claim("experts: held-out loss of the dense model", "held-out loss of the mixture of experts at equal operations per token", losses("pretrain_dense"), losses("pretrain"));
    claims
}
