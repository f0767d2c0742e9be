//! Gemma 3, text: windows in five layers of six with positions of their own, four norms a layer whose scales are stored from one,
//! GELU, an embedding that is multiplied by the root of its width.

use serde_json::{Map, Value, json};

use super::{Family, always};
use crate::config::keys::Keys;
use crate::config::read::{Defaults, gqa, no_attention_bias};
use crate::config::{Activation, ConfigError, GqaConfig, LayerKind, LayerRope, ModelConfig, QkNorm};
use crate::files::gguf::keys::{Fields, Written};

pub(super) static FAMILY: Family = Family {
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    gguf: "gemma3",
    read,
    own_keys,
    is_gguf: always,
    from_gguf,
    to_gguf,
    gguf_interleaved: false,
    gguf_names: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
};

/// Every so many layers one sees all tokens.
const PATTERN: usize = 6;
const LOCAL_THETA: f64 = 10_000.0;

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    no_attention_bias(keys)?;
    for key in ["hidden_activation", "hidden_act"] {
        keys.only(key, &["gelu_pytorch_tanh".into()], "only gelu_pytorch_tanh is supported")?;
    }
    for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
        keys.only(key, &[], "only logits without a cap are supported")?;
    }
    keys.only("use_bidirectional_attention", &[false.into()], "only causal attention is supported")?;
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        rope_theta: 1_000_000.0,
        tie_word_embeddings: true,
        ..Defaults::llama(131_072)
    };
    let mut c = match flattened(keys.map) {
        None => gqa(keys, &FAMILY, defaults)?,
        Some(map) => {
            let flat = Keys::over(&map);
            let c = gqa(&flat, &FAMILY, defaults)?;
            keys.asked_as(&flat);
            c
        }
    };
    let nested = keys.get("rope_parameters").and_then(|r| r["sliding_attention"]["rope_theta"].as_f64());
    let local = nested.unwrap_or(keys.number_or("rope_local_base_freq", LOCAL_THETA)?);
    let window = keys.size_or("sliding_window", 4096)?;
    let pattern = keys.size_or("sliding_window_pattern", PATTERN)?.max(1);
    let kinds = keys.get("layer_types");
    for (i, layer) in c.layers.iter_mut().enumerate() {
        let full = match kinds {
            None => (i + 1) % pattern == 0,
            Some(kinds) => match kinds.get(i).and_then(Value::as_str) {
                Some("full_attention") => true,
                Some("sliding_attention") => false,
                _ => {
                    let each = "must name full_attention or sliding_attention for each layer";
                    return Err(keys.wrong("layer_types", kinds, each));
                }
            },
        };
        if !full {
            *layer = LayerKind { rope: LayerRope::Local, window: Some(window) };
        }
    }
    Ok(ModelConfig::Gqa(GqaConfig {
        qk_norm: QkNorm::Head,
        query_pre_attn_scalar: Some(keys.number_or("query_pre_attn_scalar", 256.0)?),
        activation: Activation::Gelu,
        sandwich_norms: true,
        norms_from_one: true,
        scaled_embedding: true,
        rope_local_base_freq: Some(local),
        ..c
    }))
}

/// `transformers` 5 states a RoPE for each kind of layer: the same keys with that of the layers that see all tokens alone.
fn flattened(keys: &Map<String, Value>) -> Option<Map<String, Value>> {
    let main = keys.get("rope_parameters")?.get("full_attention")?;
    let mut flat = keys.clone();
    flat.insert("rope_parameters".to_owned(), main.clone());
    Some(flat)
}

fn own_keys(config: &ModelConfig) -> Value {
    let ModelConfig::Gqa(c) = config else { return json!({}) };
    let kind = |l: &LayerKind| if l.window.is_some() { "sliding_attention" } else { "full_attention" };
    json!({
        "attention_bias": false,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": c.layers.iter().map(kind).collect::<Vec<_>>(),
        "sliding_window": c.layers.iter().find_map(|l| l.window).unwrap_or(4096),
        "query_pre_attn_scalar": whole(c.query_pre_attn_scalar.unwrap_or(256.0)),
        "rope_local_base_freq": c.rope_local_base_freq.unwrap_or(LOCAL_THETA),
    })
}

/// A whole number as such: version 5 of `transformers` checks types.
fn whole(x: f64) -> Value {
    if x.fract() == 0.0 { json!(x as u64) } else { json!(x) }
}

fn from_gguf(fields: &Fields) -> Result<Map<String, Value>, ConfigError> {
    let mut map = fields.grouped()?;
    let head_dim = map.get("head_dim").cloned();
    // The largest alone scales by something else than the width of a head, which the file does not say.
    if fields.need("block_count")? == 62 {
        let key = fields.key("block_count");
        return Err(ConfigError::unsupported(&key, 62, "the model of 27 B is not supported as GGUF"));
    }
    map.insert("query_pre_attn_scalar".into(), json!(head_dim));
    map.insert("sliding_window".into(), json!(fields.need("attention.sliding_window")?));
    map.insert("sliding_window_pattern".into(), json!(fields.int("attention.sliding_window_pattern")?));
    map.insert(
        "rope_local_base_freq".into(),
        json!(fields.float("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA)),
    );
    Ok(map)
}

fn to_gguf(keys: &mut Written) -> Result<(), ConfigError> {
    keys.heads()?;
    let usual = |(i, kind): (usize, &Value)| (kind == "full_attention") == ((i + 1) % PATTERN == 0);
    let kinds = &keys.config["layer_types"];
    if !kinds.as_array().is_some_and(|kinds| kinds.iter().enumerate().all(usual)) {
        let sixth = "GGUF files know every sixth layer alone to see all tokens";
        return Err(ConfigError::unsupported("layer_types", kinds, sixth));
    }
    if keys.config["query_pre_attn_scalar"].as_f64() != keys.config["head_dim"].as_f64() {
        let found = &keys.config["query_pre_attn_scalar"];
        return Err(ConfigError::unsupported(
            "query_pre_attn_scalar",
            found,
            "GGUF files know the width of a head alone",
        ));
    }
    keys.number("attention.sliding_window", "sliding_window");
    keys.number("rope.freq_base_swa", "rope_local_base_freq");
    Ok(())
}
