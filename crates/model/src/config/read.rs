//! From `config.json` to [`ModelConfig`]: old keys and those of `transformers` 5, everything else refused.

use serde_json::Value;

use super::keys::Keys;
use super::{
    ConfigError, DeepseekConfig, DenseConfig, DenseFamily, Llama3Scaling, ModelConfig, RopeConfig,
    RopeScaling, YarnScaling,
};

const ARCHITECTURES: &str = "supported are DeepseekV3ForCausalLM (deepseek_v3), LlamaForCausalLM \
    (llama), Qwen2ForCausalLM (qwen2) and Qwen3ForCausalLM (qwen3)";
const ROPE_TYPES: &str = "supported are default, linear, yarn and llama3";

pub(super) fn config(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    let model_type = architecture(keys)?;

    let no_quantization = "only unquantized weights (f32, bf16, f16) are supported";
    keys.only("quantization_config", &[], no_quantization)?;
    let silu = [Value::from("silu"), Value::from("swish")];
    keys.only("hidden_act", &silu, "only silu is supported")?;
    keys.only("mlp_bias", &[false.into()], "only MLPs without biases are supported")?;
    let full = [Value::from(1), Value::from(1.0)];
    let partial = "only 1 is supported: every dimension of a head rotates";
    keys.only("partial_rotary_factor", &full, partial)?;

    Ok(match model_type {
        "deepseek_v3" => ModelConfig::Deepseek(deepseek(keys)?),
        "llama" => ModelConfig::Dense(dense(keys, DenseFamily::Llama)?),
        "qwen2" => ModelConfig::Dense(dense(keys, DenseFamily::Qwen2)?),
        _ => ModelConfig::Dense(dense(keys, DenseFamily::Qwen3)?),
    })
}

/// The model type; `architectures` decides where it is given, because relatives of DeepSeek-V3 keep its
/// class under another `model_type`.
fn architecture(keys: &Keys) -> Result<&'static str, ConfigError> {
    if let Some(value) = keys.get("architectures") {
        let name = value.get(0).and_then(Value::as_str);
        return match name {
            Some("DeepseekV3ForCausalLM") => Ok("deepseek_v3"),
            Some("LlamaForCausalLM") => Ok("llama"),
            Some("Qwen2ForCausalLM") => Ok("qwen2"),
            Some("Qwen3ForCausalLM") => Ok("qwen3"),
            _ => Err(keys.wrong("architectures", value, ARCHITECTURES)),
        };
    }
    match keys.text("model_type")? {
        Some("deepseek_v3") => Ok("deepseek_v3"),
        Some("llama") => Ok("llama"),
        Some("qwen2") => Ok("qwen2"),
        Some("qwen3") => Ok("qwen3"),
        Some(other) => Err(ConfigError::unsupported("model_type", other, ARCHITECTURES)),
        None => Err(keys.missing("model_type", ARCHITECTURES)),
    }
}

fn dense(keys: &Keys, model_type: DenseFamily) -> Result<DenseConfig, ConfigError> {
    if model_type != DenseFamily::Qwen2 {
        // There it would put a bias on o_proj too; Qwen2 has its q, k, v biases without the key.
        let no_bias = "biases on q, k and v are supported for qwen2 only";
        keys.only("attention_bias", &[false.into()], no_bias)?;
    }
    let num_hidden_layers = keys.size("num_hidden_layers")?;
    full_attention_only(keys, model_type, num_hidden_layers)?;

    let hidden_size = keys.size("hidden_size")?;
    let num_attention_heads = keys.size("num_attention_heads")?;
    let num_key_value_heads = match (keys.map.get("num_key_value_heads"), model_type) {
        (None, DenseFamily::Qwen2 | DenseFamily::Qwen3) => 32, // the default of transformers
        _ => keys.size_or("num_key_value_heads", num_attention_heads)?,
    };
    let derived_head_dim = match model_type {
        DenseFamily::Qwen3 => 128,
        _ => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
    };
    let default_positions = match model_type {
        DenseFamily::Llama => 2048,
        DenseFamily::Qwen2 | DenseFamily::Qwen3 => 32768,
    };
    let max_position_embeddings = keys.size_or("max_position_embeddings", default_positions)?;
    Ok(DenseConfig {
        model_type,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim: keys.size_or("head_dim", derived_head_dim)?,
        rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", false)?,
        max_position_embeddings,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        rope: rope(keys, max_position_embeddings)?,
        bos_token_id: keys.token_id("bos_token_id")?,
        eos_token_id: keys.token_ids("eos_token_id")?,
        pad_token_id: keys.token_id("pad_token_id")?,
    })
}

/// Refuses sliding windows that are in use. Qwen's files carry a window that is switched off.
fn full_attention_only(keys: &Keys, family: DenseFamily, layers: usize) -> Result<(), ConfigError> {
    if let Some(value) = keys.get("layer_types") {
        let full = |kind: &Value| kind == "full_attention";
        if !value.as_array().is_some_and(|kinds| kinds.iter().all(full)) {
            return Err(keys.wrong("layer_types", value, "only full_attention is supported"));
        }
    }
    let window = keys.get("sliding_window");
    let switched_on = match family {
        DenseFamily::Llama => true,
        _ => keys.flag_or("use_sliding_window", false)? && keys.size_or("max_window_layers", 28)? < layers,
    };
    match window {
        Some(value) if switched_on => {
            Err(keys.wrong("sliding_window", value, "only full attention is supported"))
        }
        _ => Ok(()),
    }
}

fn deepseek(keys: &Keys) -> Result<DeepseekConfig, ConfigError> {
    let one = [Value::from(1)];
    keys.only("attention_bias", &[false.into()], "only MLA without biases is supported")?;
    keys.only("topk_method", &["noaux_tc".into()], "only noaux_tc (DeepSeek-V3) is supported")?;
    keys.only("scoring_func", &["sigmoid".into()], "only sigmoid (DeepSeek-V3) is supported")?;
    let every_layer = "only 1 is supported: every layer after the dense ones holds experts";
    keys.only("moe_layer_freq", &one, every_layer)?;

    let num_attention_heads = keys.size("num_attention_heads")?;
    let kv_heads = [Value::from(num_attention_heads)];
    let mla =
        format!("MLA has a key per head: only num_attention_heads ({num_attention_heads}) is supported");
    keys.only("num_key_value_heads", &kv_heads, &mla)?;
    if !keys.map.contains_key("q_lora_rank") {
        return Err(keys.missing("q_lora_rank", "it must hold a rank, or null for a plain q_proj"));
    }
    let max_position_embeddings = keys.size_or("max_position_embeddings", 4096)?;
    Ok(DeepseekConfig {
        vocab_size: keys.size("vocab_size")?,
        hidden_size: keys.size("hidden_size")?,
        intermediate_size: keys.size("intermediate_size")?,
        moe_intermediate_size: keys.size("moe_intermediate_size")?,
        num_hidden_layers: keys.size("num_hidden_layers")?,
        num_attention_heads,
        q_lora_rank: keys.size_opt("q_lora_rank")?,
        kv_lora_rank: keys.size("kv_lora_rank")?,
        qk_nope_head_dim: keys.size("qk_nope_head_dim")?,
        qk_rope_head_dim: keys.size("qk_rope_head_dim")?,
        v_head_dim: keys.size("v_head_dim")?,
        n_routed_experts: keys.size("n_routed_experts")?,
        n_shared_experts: keys.size_or("n_shared_experts", 1)?,
        num_experts_per_tok: keys.size("num_experts_per_tok")?,
        n_group: keys.size_or("n_group", 8)?,
        topk_group: keys.size_or("topk_group", 4)?,
        norm_topk_prob: keys.flag_or("norm_topk_prob", true)?,
        routed_scaling_factor: keys.number_or("routed_scaling_factor", 2.5)?,
        first_k_dense_replace: keys.size_or("first_k_dense_replace", 3)?,
        num_nextn_predict_layers: keys.size_or("num_nextn_predict_layers", 0)?,
        rope_interleave: keys.flag_or("rope_interleave", true)?,
        rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", false)?,
        max_position_embeddings,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        rope: rope(keys, max_position_embeddings)?,
        bos_token_id: keys.token_id("bos_token_id")?,
        eos_token_id: keys.token_ids("eos_token_id")?,
        pad_token_id: keys.token_id("pad_token_id")?,
    })
}

/// RoPE from `rope_scaling` and `rope_theta` (4.x), or from `rope_parameters` (5). Where both are given,
/// `rope_scaling` wins, and inside the object `rope_theta` wins, as in `transformers` 5.
fn rope(keys: &Keys, max_position_embeddings: usize) -> Result<RopeConfig, ConfigError> {
    let outer_theta = keys.number_or("rope_theta", 10_000.0)?;
    let scaling = keys.object("rope_scaling", "rope_scaling.")?.filter(|scaling| !scaling.map.is_empty());
    let parameters = match scaling {
        Some(scaling) => Some(scaling),
        None => keys.object("rope_parameters", "rope_parameters.")?,
    };
    let Some(rope) = parameters else {
        return Ok(RopeConfig::plain(outer_theta));
    };
    if let Some((key, value)) = rope.map.iter().find(|(_, value)| value.is_object()) {
        return Err(rope.wrong(key, value, "only one RoPE for all layers is supported"));
    }
    let theta = rope.number_or("rope_theta", outer_theta)?;
    let full = [Value::from(1), Value::from(1.0)];
    rope.only("partial_rotary_factor", &full, "only 1 is supported: every dimension of a head rotates")?;
    rope.only("mrope_section", &[], "only RoPE over one axis is supported")?;

    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    // transformers gives the key outside of the object priority.
    let original = match keys.size_opt("original_max_position_embeddings")? {
        Some(length) => length,
        None => rope.size_or("original_max_position_embeddings", max_position_embeddings)?,
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: rope.number("factor")? },
        "yarn" => RopeScaling::Yarn(YarnScaling {
            factor: match rope.number_opt("factor")? {
                Some(factor) => factor,
                None => max_position_embeddings as f64 / original.max(1) as f64,
            },
            original_max_position_embeddings: original,
            beta_fast: nonzero_or(rope.number_opt("beta_fast")?, 32.0),
            beta_slow: nonzero_or(rope.number_opt("beta_slow")?, 1.0),
            mscale: rope.number_opt("mscale")?,
            mscale_all_dim: rope.number_opt("mscale_all_dim")?,
            attention_factor: rope.number_opt("attention_factor")?,
            truncate: rope.flag_or("truncate", true)?,
        }),
        "llama3" => RopeScaling::Llama3(Llama3Scaling {
            factor: rope.number("factor")?,
            low_freq_factor: rope.number("low_freq_factor")?,
            high_freq_factor: rope.number("high_freq_factor")?,
            original_max_position_embeddings: original,
        }),
        other => {
            return Err(ConfigError::unsupported(&rope.path("rope_type"), other, ROPE_TYPES));
        }
    };
    Ok(RopeConfig { theta, scaling })
}

/// `x or default` of Python.
fn nonzero_or(value: Option<f64>, default: f64) -> f64 {
    value.filter(|&v| v != 0.0).unwrap_or(default)
}
