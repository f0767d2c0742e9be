//! The device changes no bit: answers, scores and whole runs are those of the processor, and a run may begin on one and
//! end on the other. The GPU is the emulated one (see CONTRIBUTING.md), so that every machine can test this.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::common::{arg, object, refusal, shoestring, start_run, text, tiny, with_input};

/// `--device emulated:…`; none where there is no C++ compiler.
fn emulated() -> Option<String> {
    Some(format!("emulated:{}", arg(&crate::emulator::library()?)))
}

#[test]
fn answers_and_scores_are_the_processors() {
    let Some(device) = emulated() else { return };
    let model = tiny();
    let folder = arg(model.path());
    let commands: [&[&str]; 4] = [
        &["generate", folder, "--prompt", "What is 3 + 4?", "--samples", "3", "--max-new", "12", "--json"],
        &[
            "generate",
            folder,
            "--prompt",
            "2 + 2",
            "--top-k",
            "5",
            "--temperature",
            "0.8",
            "--max-new",
            "9",
            "--json",
        ],
        &["generate", folder, "--prompt", "2 + 2", "--temperature", "0", "--max-new", "9", "--json"],
        &["score", folder, "--text", "Tom has 3 apples", "--json"],
    ];
    for command in commands {
        let on = |device: &str| text(&[command, &["--device", device]].concat());
        assert_eq!(on(&device), on("cpu"), "{command:?}");
    }
}

/// The whole of an evaluation but its time, and a conversation through a pipe.
#[test]
fn evaluations_and_conversations_are_the_processors() {
    let Some(device) = emulated() else { return };
    let model = tiny();
    let folder = arg(model.path());
    let evaluated = |device: &str| {
        let options = ["--limit", "3", "--samples", "2", "--max-new", "8", "--json", "--device", device];
        let mut found = object(&[&["eval", folder, "--task", "arithmetic"][..], &options].concat());
        assert!(found["seconds"].take().is_number());
        found
    };
    assert_eq!(evaluated(&device), evaluated("cpu"));
    let talked = |device: &str| {
        let out =
            with_input(&["chat", folder, "--max-new", "9", "--device", device], "Hello\nWhat is 3 + 4?\n");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("UTF-8")
    };
    assert_eq!(talked(&device), talked("cpu"));
    assert!(!talked("cpu").trim().is_empty());
}

/// A GPU whose memory does not suffice ends a command with a sentence, and as bad input does.
#[test]
fn too_little_memory_is_a_sentence() {
    let Some(device) = emulated() else { return };
    let model = tiny();
    let question = "Tom has 3 apples and buys 4 more. ".repeat(2);
    let out = Command::new(env!("CARGO_BIN_EXE_shoestring"))
        .args(["generate", arg(model.path()), "--prompt", &question, "--samples", "64", "--device", &device])
        .env("SHOESTRING_EMULATED_MIB", "1")
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(out.stdout.is_empty());
    assert!(said.starts_with("error: the GPU has no ") && said.trim_end().lines().count() == 1, "{said}");
    assert!(said.contains("1 MiB are there") && said.contains("--device cpu"), "{said}");
}

const RECIPE: &str = r#"
name = "devices"
seed = 5
[problems]
mix = [{ task = "arithmetic", level = { operands = 2, digits = 1 } }]
held_out = 4
[models.moe]
model_type = "deepseek_v3"
hidden_size = 16
intermediate_size = 24
moe_intermediate_size = 8
num_hidden_layers = 2
num_attention_heads = 2
kv_lora_rank = 8
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
n_routed_experts = 4
num_experts_per_tok = 2
num_nextn_predict_layers = 1
max_position_embeddings = 128
[[stage]]
kind = "tokenizer"
vocab_size = 300
documents = 200
[[stage]]
kind = "pretrain"
model = "moe"
tokens = 1024
batch_tokens = 128
seq_len = 64
checkpoint_every = 1
sample_every = 0
optimizer = { kind = "muon", learning_rate = 0.01, adam_learning_rate = 0.004 }
[[stage]]
kind = "grpo"
steps = 2
prompts = 2
group = 2
max_new = 6
kl_coefficient = 0.01
sample_every = 0
optimizer = { kind = "adamw", learning_rate = 0.001 }
"#;

fn start(recipe: &Path, out: &Path, device: &str) -> Child {
    start_run(recipe, out, &["--device", device])
}

/// Runs on one device until it has saved a step of the first training stage, is killed, and goes on with another. A run
/// that was faster than the kill is thrown away.
fn begun_and_ended(recipe: &Path, out: &Path, first: &str, then: &str) {
    for _ in 0..50 {
        let mut child = start(recipe, out, first);
        let saved =
            || std::fs::read_dir(out.join("pretrain/checkpoints")).is_ok_and(|mut dir| dir.next().is_some());
        while !saved() && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("reaped");
        if !out.join("pretrain/model.safetensors").exists() {
            assert!(start(recipe, out, then).wait().expect("ends").success());
            return;
        }
        std::fs::remove_dir_all(out).expect("removed");
    }
    panic!("the run on {first} was never killed in time");
}

#[test]
fn a_run_begins_on_one_device_and_ends_on_another() {
    let Some(device) = emulated() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = dir.path().join("devices.toml");
    std::fs::write(&recipe, RECIPE).expect("written");
    let [cpu, from_gpu, to_gpu] = ["cpu", "from_gpu", "to_gpu"].map(|name| dir.path().join(name));
    assert!(start(&recipe, &cpu, "cpu").wait().expect("ends").success());
    begun_and_ended(&recipe, &from_gpu, &device, "cpu");
    begun_and_ended(&recipe, &to_gpu, "cpu", &device);
    for stage in ["pretrain", "grpo"] {
        let weights = |run: &Path| std::fs::read(run.join(stage).join("model.safetensors")).expect("a model");
        assert!(weights(&from_gpu) == weights(&cpu), "{stage}: begun on the GPU");
        assert!(weights(&to_gpu) == weights(&cpu), "{stage}: ended on the GPU");
    }
}

const ADAPTERS: &str = r#"
name = "adapters"
seed = 3
[machine]
memory_gib = 0.0477
[problems]
mix = [{ task = "arithmetic", level = { operands = 2, digits = 1 } }]
held_out = 4
[[stage]]
kind = "sft"
from = "BASE"
steps = 2
batch_tokens = 128
seq_len = 64
sample_every = 0
[stage.adapter]
rank = 4
alpha = 8
[[stage]]
kind = "grpo"
steps = 1
prompts = 4
group = 4
max_new = 10
kl_coefficient = 0.01
sample_every = 0
reward = { accuracy = 0.0, format = 1.0 }
[stage.adapter]
rank = 4
alpha = 8
"#;

/// Adapters on a file of blocks: what is learnt, with passes that are cut for want of memory, and what it does to the answers.
#[test]
fn adapters_on_a_file_of_blocks_are_the_processors() {
    let Some(device) = emulated() else { return };
    let (dir, out) = (tiny(), tempfile::tempdir().expect("a folder"));
    let (base, recipe) = (out.path().join("base.gguf"), out.path().join("adapters.toml"));
    text(&["convert", arg(dir.path()), "--to", arg(&base), "--type", "q8_0"]);
    std::fs::write(&recipe, ADAPTERS.replace("BASE", arg(&base))).expect("written");
    let [cpu, gpu] = ["cpu", "gpu"].map(|name| out.path().join(name));
    let [on_cpu, on_gpu] = [(&cpu, "cpu"), (&gpu, &*device)].map(|(run, device)| {
        let done = shoestring(&["run", arg(&recipe), "--out", arg(run), "--device", device]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        said.lines().find(|line| line.contains("passes of ")).map(str::to_owned)
    });
    assert!(on_cpu.is_some(), "passes are cut");
    assert_eq!(on_gpu, on_cpu);
    for stage in ["sft", "grpo"] {
        let adapter = |run: &Path| {
            std::fs::read(run.join(stage).join("adapter_model.safetensors")).expect("an adapter")
        };
        assert!(adapter(&cpu) == adapter(&gpu), "{stage}");
    }
    let taught = gpu.join("grpo");
    for weights in ["stored", "bf16", "q8_0"] {
        let command = ["score", arg(&taught), "--weights", weights, "--text", "Tom has 3 apples", "--json"];
        let on = |device: &str| text(&[&command[..], &["--device", device]].concat());
        assert_eq!(on(&device), on("cpu"), "{weights}");
    }
}

/// In fast mode, whose bits are not the processor's, the sampler's are still the trainer's.
#[test]
fn fast_rollouts_have_the_trainers_log_probabilities() {
    let Some(device) = emulated() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.json");
    let text = crate::common::config(300, Some(1)).to_json().to_string();
    std::fs::write(&file, text).expect("written");
    let sizes = ["--prompts", "2", "--group", "3", "--max-new", "7", "--prompt-len", "5", "--steps", "1"];
    let bench = ["bench", "grpo", "--config", arg(&file), "--json", "--math", "fast", "--device", &device];
    let said = crate::common::object(&[&bench[..], &sizes].concat());
    assert_eq!(said["mismatched_logprobs"], 0);
    assert_eq!(said["device"], "emulated GPU");
}

#[test]
fn devices_names_all_that_is_missing_at_once() {
    let said = object(&["devices", "--json"]);
    let missing: Vec<&str> =
        said["missing"].as_array().expect("a list").iter().filter_map(|m| m.as_str()).collect();
    for (there, name) in [
        (said["gpus"] != serde_json::json!([]), "NVIDIA"),
        (!said["compiler"].is_null(), "libnvrtc.so"),
        (!said["cublaslt"].is_null(), "pip install nvidia-cublas"),
    ] {
        assert!(there || missing.iter().any(|m| m.contains(name)), "{name}: {said}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_in_a_sentence() {
    let model = tiny();
    let generate = ["generate", arg(model.path()), "--prompt", "a"];
    let with = |more: &[&'static str]| refusal(&[&generate[..], more].concat());
    assert!(with(&["--device", "cpu", "--math", "fast"]).contains("needs a GPU"));
    assert!(with(&["--device", "emulated:/nowhere/lib.so"]).contains("emulator"));
    if let Some(device) = emulated() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("config.json");
        let mut wide = crate::common::config(50, None).to_json();
        wide["head_dim"] = 258.into();
        std::fs::write(&config, wide.to_string()).expect("written");
        let said = refusal(&["bench", "train", "--config", arg(&config), "--device", &device]);
        assert!(said.contains("heads of 258") && said.contains("--device cpu"), "{said}");
    }
    if !Path::new("/proc/driver/nvidia").exists() {
        let said = with(&["--device", "cuda"]);
        assert!(said.contains("driver") && said.contains("--device cpu"), "{said}");
    }
}
