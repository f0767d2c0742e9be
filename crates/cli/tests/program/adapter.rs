//! A recipe that trains adapters on a quantised file, from the file to what comes out.

use std::path::Path;

use crate::common::{arg, object, refusal, shoestring, text, tiny};
use model::Model;

fn recipe(base: &Path) -> String {
    format!(
        r#"
name = "adapters"
seed = 3
[problems]
mix = [{{ task = "arithmetic", level = {{ operands = 2, digits = 1 }} }}]
held_out = 6
[[stage]]
kind = "sft"
from = "{}"
steps = 4
batch_tokens = 256
seq_len = 64
sample_every = 0
eval_every = 2
[stage.adapter]
rank = 4
alpha = 8
[[stage]]
kind = "grpo"
steps = 3
prompts = 2
group = 4
max_new = 12
sample_every = 0
eval_every = 0
kl_coefficient = 0.01
reference_every = 2
reward = {{ accuracy = 0.0, format = 1.0 }}
[stage.adapter]
rank = 4
alpha = 8
[[stage]]
kind = "average"
with = "{}"
share = 0.25
[[stage]]
kind = "eval"
of = ["grpo"]
samples = 1
max_new = 8
"#,
        base.display(),
        base.display()
    )
}

/// Fine-tuning and reinforcement go on with one adapter, the sampler's log-probabilities are the trainer's, only the adapter is
/// written, and it applies, unmerged and merged.
#[test]
fn a_quantised_file_is_taught_through_an_adapter() {
    let (dir, out) = (tiny(), tempfile::tempdir().expect("a temporary folder"));
    let (base, file, run) =
        (out.path().join("base.gguf"), out.path().join("recipe.toml"), out.path().join("run"));
    text(&["convert", arg(dir.path()), "--to", arg(&base), "--type", "q8_0"]);
    std::fs::write(&file, recipe(&base)).expect("written");
    text(&["run", arg(&file), "--out", arg(&run)]);

    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = metrics.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"));
    let grpo: Vec<_> =
        lines.filter(|l| l["stage"] == "grpo" && !l["mismatched_logprobs"].is_null()).collect();
    assert!(!grpo.is_empty() && grpo.iter().all(|l| l["mismatched_logprobs"] == 0.0), "{grpo:?}");

    let (sft, taught) = (run.join("sft"), run.join("grpo"));
    for stage in [&sft, &taught] {
        assert!(stage.join("adapter_model.safetensors").exists() && !stage.join("config.json").exists());
        assert!(!stage.join("model.safetensors").exists());
    }
    let score = |args: &[&str]| -> Vec<f64> {
        let found = object(&[&["score"], args, &["--text", "What is 17 + 25?", "--json"]].concat());
        found["logprobs"].as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    let unmerged = score(&[arg(&taught)]);
    assert_eq!(score(&[arg(&base), "--adapter", arg(&taught)]), unmerged);
    assert_ne!(score(&[arg(&base)]), unmerged);
    assert_ne!(score(&[arg(&sft)]), unmerged);
    let merged = out.path().join("merged");
    text(&["convert", arg(&base), "--adapter", arg(&taught), "--to", arg(&merged)]);
    let off = score(&[arg(&merged)]).iter().zip(&unmerged).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(off < 1e-4, "merged off by {off}");
    // A quarter of the way back.
    let weights = |path: &Path| Model::load(path).expect("a model").params().data().to_vec();
    let (ours, theirs) = (weights(&taught), weights(&base));
    let between: Vec<f32> = ours.iter().zip(&theirs).map(|(x, y)| x + 0.25 * (y - x)).collect();
    assert_eq!(weights(&run.join("average")), between);

    // Settings that are not the adapter's are refused before anything is trained.
    let other = recipe(&taught).replace("rank = 4", "rank = 2");
    std::fs::write(&file, other).expect("written");
    let refused = shoestring(&["run", arg(&file), "--out", arg(&out.path().join("other"))]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && error.contains("it has rank 4, alpha 8"), "{error}");
    // Without an adapter of its own a stage trains all weights of the merged model.
    let full = recipe(&taught).replace("[stage.adapter]\nrank = 4\nalpha = 8\n", "");
    std::fs::write(&file, full).expect("written");
    let run = out.path().join("full");
    let done = shoestring(&["run", arg(&file), "--out", arg(&run)]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(run.join("sft/model.safetensors").exists());
}

#[test]
fn an_adapter_that_is_none_is_refused() {
    let (dir, out) = (tiny(), tempfile::tempdir().expect("a temporary folder"));
    let model = arg(dir.path());
    let error = refusal(&["generate", model, "--adapter", model, "--prompt", "x"]);
    assert!(error.contains("holds no adapter"), "{error}");
    let file = out.path().join("recipe.toml");
    for (from, to, want) in [
        ("rank = 4", "rank = 0", "adapter.rank"),
        ("alpha = 8", "alpha = -1", "adapter.alpha"),
        ("rank = 4", "rnak = 4", "rnak"),
        ("rank = 4", "targets = [\"query\"]", "stage `sft`: adapter: the model has no projection \"query\""),
    ] {
        std::fs::write(&file, recipe(dir.path()).replacen(from, to, 1)).expect("written");
        let error = refusal(&["run", arg(&file), "--out", arg(&out.path().join("run"))]);
        assert!(error.contains(want), "{want}: {error}");
        let _ = std::fs::remove_dir_all(out.path().join("run"));
    }
}
