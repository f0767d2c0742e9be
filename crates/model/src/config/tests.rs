//! What a configuration must accept, refuse and preserve.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

const CASES: [&str; 16] = [
    "mistral_window",
    "smollm3",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v2_groups",
    "gemma3",
    "deepseek_q_lora",
    "deepseek_no_q_lora",
    "deepseek_groups",
    "deepseek_yarn",
    "deepseek_mtp",
    "llama_tied",
    "llama3_rope",
    "qwen2",
    "qwen3",
];

fn deepseek_v3() -> Value {
    serde_json::from_str(DEEPSEEK_V3_JSON).unwrap()
}

fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936,
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 131072,
        "rope_theta": 10000, "use_sliding_window": false, "sliding_window": 4096,
        "max_window_layers": 21, "eos_token_id": [151643, 151645], "tie_word_embeddings": false
    })
}

/// The configuration with one key replaced.
fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn a_published_old_style_config_is_read() {
    let ModelConfig::Mla(c) = ModelConfig::from_value(&deepseek_v3()).unwrap() else {
        panic!("DeepSeek-V3 was read as a dense model");
    };
    assert_eq!((c.q_lora_rank, c.qk_head_dim(), c.num_nextn_predict_layers), (Some(1536), 192, 1));
    assert!(!c.is_moe_layer(2) && c.is_moe_layer(3) && c.is_moe_layer(61));
    let RopeScaling::Yarn(yarn) = &c.rope.scaling else { panic!("YaRN was lost") };
    assert_eq!((yarn.factor, yarn.original_max_position_embeddings), (40.0, 4096));

    let ModelConfig::Gqa(c) = ModelConfig::from_value(&qwen2()).unwrap() else {
        panic!("Qwen2 was read as DeepSeek");
    };
    assert!(c.qkv_bias && c.qk_norm == QkNorm::None);
    assert_eq!((c.head_dim, c.eos_token_id.len()), (128, 2));
}

/// The configurations that transformers 5 writes are read, and what we write means the same to us.
#[test]
fn configs_survive_writing_and_reading() {
    for case in CASES {
        let config = ModelConfig::load(goldens().join(case)).unwrap();
        assert_eq!(ModelConfig::from_value(&config.to_json()).unwrap(), config, "{case}");
    }
    for value in [deepseek_v3(), qwen2()] {
        let config = ModelConfig::from_value(&value).unwrap();
        assert_eq!(ModelConfig::from_value(&config.to_json()).unwrap(), config);
    }
}

/// Features that would change the arithmetic are refused by key, never ignored.
#[test]
fn unsupported_features_are_refused_by_name() {
    let deepseek = [
        ("attention_bias", json!(true)),
        ("topk_method", json!("greedy")),
        ("scoring_func", json!("softmax")),
        ("moe_layer_freq", json!(2)),
        ("hidden_act", json!("gelu")),
        ("num_key_value_heads", json!(8)),
        ("quantization_config", json!({"quant_method": "fp8"})),
        ("architectures", json!(["DeepseekV4ForCausalLM"])),
        ("n_group", json!(7)),
        ("n_group", json!(256)),
        ("topk_group", json!(9)),
        ("num_experts_per_tok", json!(129)),
        ("n_shared_experts", json!(0)),
        ("qk_rope_head_dim", json!(63)),
        ("vocab_size", json!(-4)),
        ("vocab_size", json!("many")),
        ("hidden_size", json!(0)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(1.0)),
        ("eos_token_id", json!(129280)),
        ("bos_token_id", json!("<s>")),
    ];
    let dense = [
        ("use_sliding_window", "sliding_window", json!(true)),
        ("layer_types", "layer_types", json!(["sliding_attention"])),
        ("mlp_bias", "mlp_bias", json!(true)),
        ("partial_rotary_factor", "partial_rotary_factor", json!(0.5)),
        ("rope_scaling", "rope_scaling.rope_type", json!({"type": "dynamic", "factor": 2.0})),
        ("rope_scaling", "rope_scaling.factor", json!({"type": "linear", "factor": 0.5})),
        ("rope_parameters", "rope_parameters.full_attention", json!({"full_attention": {}})),
        ("num_key_value_heads", "num_key_value_heads", json!(5)),
        ("head_dim", "head_dim", json!(7)),
    ];
    let deepseek = deepseek.into_iter().map(|(key, value)| (key, with(deepseek_v3(), key, value)));
    let dense = dense.into_iter().map(|(key, named, value)| (named, with(qwen2(), key, value)));
    for (key, config) in deepseek.chain(dense) {
        let error = ModelConfig::from_value(&config).expect_err(key).to_string();
        assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
    }
    // A window that is switched off, or that no layer uses, is none.
    ModelConfig::from_value(&with(qwen2(), "use_sliding_window", json!(false))).unwrap();
}

#[test]
fn a_missing_key_is_named() {
    for key in ["vocab_size", "kv_lora_rank", "q_lora_rank", "moe_intermediate_size"] {
        let mut config = deepseek_v3();
        config.as_object_mut().unwrap().remove(key);
        let error = ModelConfig::from_value(&config).unwrap_err();
        assert!(matches!(&error, ConfigError::Missing { key: k, .. } if k == key), "{error}");
    }
}

/// Sizes that are each allowed but together absurd are refused before anything is listed or allocated.
#[test]
fn hostile_products_are_refused() {
    let mut config = deepseek_v3();
    config["num_hidden_layers"] = json!(4096);
    config["n_routed_experts"] = json!(512);
    assert!(ModelConfig::from_value(&config).is_err(), "millions of tensors");
    let mut config = deepseek_v3();
    for (experts, fits) in [(512, true), (520, false)] {
        config["n_routed_experts"] = json!(experts);
        assert_eq!(
            ModelConfig::from_value(&config).is_ok(),
            fits,
            "{experts} experts, which the router cannot rank"
        );
    }
    let mut config = qwen2();
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim"] {
        config[key] = json!(1 << 24);
    }
    config["num_key_value_heads"] = json!(1 << 24);
    assert!(ModelConfig::from_value(&config).is_err());
}

#[test]
fn a_file_is_named_in_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("not valid JSON"), "{error}");
}

/// Frequencies, cos/sin factor and softmax scale equal those of transformers, for every kind of RoPE:
/// the powers differ by an ulp at most, everything after them is the same arithmetic.
#[test]
fn rope_equals_transformers() {
    let text = std::fs::read_to_string(goldens().join("rope.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 5);
    for (name, case) in cases {
        let spec = ModelConfig::from_value(&case["config"]).unwrap().rope_tables_spec();
        let expected: Vec<f32> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        assert_eq!(spec.inv_freq.len(), expected.len(), "{name}");
        for (i, (ours, theirs)) in spec.inv_freq.iter().zip(&expected).enumerate() {
            assert!((ours - theirs).abs() <= 3e-7 * theirs, "{name}[{i}]: {ours} and {theirs}");
        }
        let first = |key: &str| case[key][0].as_f64().unwrap() as f32;
        assert_eq!(spec.attention_scaling, first("attention_scaling"), "{name}");
        assert_eq!(spec.softmax_scale, first("softmax_scale"), "{name}");
    }
}

/// The engine takes matrices that share an input as one: they must be neighbours in the list.
#[test]
fn matrices_that_share_an_input_are_neighbours() {
    for case in CASES {
        let config = ModelConfig::load(goldens().join(case)).unwrap();
        let names: Vec<String> = tensor_specs(&config).into_iter().map(|spec| spec.name).collect();
        let follows = |first: &str, second: &str| {
            for (i, name) in names.iter().enumerate().filter(|(_, name)| name.ends_with(first)) {
                let expected = name.replace(first, second);
                assert_eq!(names.get(i + 1), Some(&expected), "{case}");
            }
        };
        follows("gate_proj.weight", "up_proj.weight");
        follows("k_proj.weight", "v_proj.weight");
        match &config {
            ModelConfig::Gqa(_) => follows("q_proj.weight", "k_proj.weight"),
            ModelConfig::Mla(_) => {
                follows("q_proj.weight", "kv_a_proj_with_mqa.weight");
                follows("q_a_proj.weight", "kv_a_proj_with_mqa.weight");
            }
        }
        follows("k_proj.bias", "v_proj.bias");
    }
}

#[test]
fn the_count_of_tensors_is_that_of_the_list() {
    for case in CASES {
        let config = ModelConfig::load(goldens().join(case)).unwrap();
        assert_eq!(tensors::count(&config), tensor_specs(&config).len() as u64, "{case}");
    }
    let v3 = ModelConfig::from_value(&deepseek_v3()).unwrap();
    assert_eq!(tensors::count(&v3), tensor_specs(&v3).len() as u64);
}

/// JSON of any kind, with an eye for the extreme.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..70).prop_map(Value::from),
        prop::sample::select(vec![u64::MAX, 1 << 24, 1 << 32, 1 << 53]).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("(type|rope_type|factor|rope_theta)", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever a config.json holds under its keys: an error or a model that can be listed, counted and
    /// written, never a panic.
    #[test]
    fn any_values_give_a_model_or_an_error(
        dense: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
    ) {
        let mut config = if dense { qwen2() } else { deepseek_v3() };
        config["rope_scaling"] = config["rope_scaling"].clone();
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        for (index, value) in changes {
            config[index.get(&keys)] = value;
        }
        if let Ok(config) = ModelConfig::from_value(&config) {
            config.rope_tables_spec();
            crate::inspect::inspect(&config, 128);
            prop_assert_eq!(ModelConfig::from_value(&config.to_json()).unwrap(), config);
        }
    }

    /// Any text at all, too.
    #[test]
    fn any_text_gives_a_model_or_an_error(text in ".{0,200}") {
        let _ = ModelConfig::from_json(&text);
    }
}

/// A slip in a recipe is named; the files of others may say more than is read.
#[test]
fn only_recipes_are_refused_for_a_key_that_means_nothing() {
    let mut value = json!({
        "model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    });
    assert!(ModelConfig::from_recipe(&value).is_ok());
    value["hidden_sizee"] = 3.into();
    let message = ModelConfig::from_recipe(&value).unwrap_err().to_string();
    assert!(
        message.contains("`hidden_sizee`") && message.contains("did you mean `hidden_size`?"),
        "{message}"
    );
    assert!(ModelConfig::from_value(&value).is_ok());
}
