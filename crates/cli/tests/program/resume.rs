//! A run that is killed at random moments ends with the same bits as one that is not.

use std::path::Path;
use std::time::Duration;

use crate::common::start_run;

const RECIPE: &str = r#"
name = "resume"
seed = 3
[parallel]
shards = 2
[problems]
mix = [{ task = "arithmetic", level = { operands = 2, digits = 1 } }]
held_out = 10
[models.moe]
model_type = "deepseek_v3"
hidden_size = 32
intermediate_size = 64
moe_intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 16
n_routed_experts = 4
num_experts_per_tok = 2
num_nextn_predict_layers = 1
max_position_embeddings = 256
[models.student]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 256
[[stage]]
kind = "tokenizer"
vocab_size = 380
documents = 500
[[stage]]
kind = "pretrain"
model = "moe"
tokens = 60000
batch_tokens = 2048
seq_len = 128
checkpoint_every = 3
optimizer = { kind = "muon", learning_rate = 0.01, adam_learning_rate = 0.004 }
[[stage]]
kind = "sft"
steps = 12
batch_tokens = 1024
eval_every = 4
checkpoint_every = 3
[[stage]]
kind = "grpo"
steps = 9
prompts = 4
group = 4
max_new = 24
temperature = 0.7
kl_coefficient = 0.01
reference_every = 4
minibatches = 2
checkpoint_every = 2
[[stage]]
kind = "distill"
method = "on_policy"
student = "student"
steps = 6
prompts = 8
max_new = 24
temperature = 1.3
eval_every = 3
checkpoint_every = 2
"#;

#[test]
fn killed_runs_end_with_the_same_bits() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = dir.path().join("resume.toml");
    std::fs::write(&recipe, RECIPE).expect("written");
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    assert!(start_run(&recipe, &whole, &["--threads", "2"]).wait().expect("ends").success());
    // Killed after ever other times, until one gets through; on one thread, as their number must not matter.
    let mut kills = 0;
    for attempt in 0u64..400 {
        let mut child = start_run(&recipe, &broken, &["--threads", "1"]);
        // Measuring the machine comes first and takes 600 ms.
        let patience = 650 + attempt * 7919 % 350;
        let mut waited = 0;
        let ended = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                assert!(status.success());
                break true;
            }
            if waited >= patience {
                child.kill().expect("SIGKILL");
                child.wait().expect("reaped");
                break false;
            }
            std::thread::sleep(Duration::from_millis(10));
            waited += 10;
        };
        if ended {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "the run was too short to be killed");
    for stage in ["pretrain", "sft", "grpo", "distill"] {
        let bytes = |run: &Path| std::fs::read(run.join(stage).join("model.safetensors")).expect("a model");
        assert!(bytes(&whole) == bytes(&broken), "stage {stage} differs after {kills} kills");
    }
    let lines = |run: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
        let keep = |l: &str| {
            let v: serde_json::Value = serde_json::from_str(l).expect("JSON");
            let values = ["stage", "step", "loss", "reward", "eval_loss"].map(|key| v[key].to_string());
            assert!(v["mismatched_logprobs"].as_f64().unwrap_or(0.0) == 0.0, "{l}");
            values.join(" ")
        };
        text.lines().map(keep).collect()
    };
    for (stage, count) in [("sft", 3), ("distill", 2)] {
        let of = |l: &&String| l.starts_with(&format!("\"{stage}\"")) && !l.ends_with("null");
        assert_eq!(lines(&whole).iter().filter(of).count(), count, "held-out losses of {stage}");
    }
    let figures = |run: &Path| {
        let text = std::fs::read_to_string(run.join("grpo/done.json")).expect("an end mark");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["figures"].clone()
    };
    assert_eq!(figures(&whole), figures(&broken), "what a stage says at its end");
    assert_eq!(lines(&whole), lines(&broken), "every step stands in the metrics once, with the same values");
}
