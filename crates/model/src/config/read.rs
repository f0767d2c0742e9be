//! From `config.json` to [`ModelConfig`]: what families share. Old keys and those of `transformers` 5, everything else refused.

use serde_json::Value;

use super::keys::Keys;
use super::validate::MAX_LAYERS;
use super::{
    Activation, ConfigError, GqaConfig, LayerKind, Llama3Scaling, MlaConfig, QkNorm, RopeConfig, RopeScaling,
    YarnScaling,
};
use crate::family::Family;

const ROPE_TYPES: &str = "supported are default, linear, yarn and llama3";

/// What no family has.
pub(crate) fn common(keys: &Keys) -> Result<(), ConfigError> {
    let no_quantization = "only unquantized weights (f32, bf16, f16) are supported";
    keys.only("quantization_config", &[], no_quantization)?;
    keys.only("mlp_bias", &[false.into()], "only MLPs without biases are supported")?;
    let full = [Value::from(1), Value::from(1.0)];
    let partial = "only 1 is supported: every dimension of a head rotates";
    keys.only("partial_rotary_factor", &full, partial)
}

/// Refuses every activation but SiLU.
pub(crate) fn silu(keys: &Keys) -> Result<(), ConfigError> {
    let silu = [Value::from("silu"), Value::from("swish")];
    keys.only("hidden_act", &silu, "only silu is supported")
}

/// Refuses biases on q, k, v and o.
pub(crate) fn no_attention_bias(keys: &Keys) -> Result<(), ConfigError> {
    let no_bias = "biases on q, k and v are supported for qwen2 only";
    keys.only("attention_bias", &[false.into()], no_bias)
}

/// What `transformers` takes where a file of a family does not say.
pub(crate) struct Defaults {
    /// Heads of keys and values; `None` for as many as there are of queries.
    pub(crate) num_key_value_heads: Option<usize>,
    /// Width of a head; `None` for the hidden width over the heads.
    pub(crate) head_dim: Option<usize>,
    /// The context.
    pub(crate) max_position_embeddings: usize,
    /// Base of RoPE's frequencies.
    pub(crate) rope_theta: f64,
    /// Whether the head is the embedding.
    pub(crate) tie_word_embeddings: bool,
}

impl Defaults {
    /// With a context, and else as Llama.
    pub(crate) const fn llama(max_position_embeddings: usize) -> Defaults {
        Defaults {
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings,
            rope_theta: 10_000.0,
            tie_word_embeddings: false,
        }
    }
}

/// A model with grouped-query attention as Llama has it; families change what they have otherwise.
pub(crate) fn gqa(keys: &Keys, family: &'static Family, d: Defaults) -> Result<GqaConfig, ConfigError> {
    let num_hidden_layers = keys.size("num_hidden_layers")?;
    if num_hidden_layers > MAX_LAYERS {
        let most = format!("must be between 1 and {MAX_LAYERS}");
        return Err(ConfigError::unsupported("num_hidden_layers", num_hidden_layers, most));
    }
    let hidden_size = keys.size("hidden_size")?;
    let num_attention_heads = keys.size("num_attention_heads")?;
    let num_key_value_heads = match (keys.map.get("num_key_value_heads"), d.num_key_value_heads) {
        (None, Some(default)) => default,
        _ => keys.size_or("num_key_value_heads", num_attention_heads)?,
    };
    let derived = || hidden_size.checked_div(num_attention_heads).unwrap_or(0);
    let max_position_embeddings = keys.size_or("max_position_embeddings", d.max_position_embeddings)?;
    Ok(GqaConfig {
        family,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim: keys.size_or("head_dim", d.head_dim.unwrap_or_else(derived))?,
        qkv_bias: false,
        qk_norm: QkNorm::None,
        layers: vec![LayerKind::FULL; num_hidden_layers],
        query_pre_attn_scalar: None,
        activation: Activation::Silu,
        experts: None,
        sandwich_norms: false,
        norms_from_one: false,
        scaled_embedding: false,
        rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", d.tie_word_embeddings)?,
        max_position_embeddings,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        rope: rope(keys, max_position_embeddings, d.rope_theta)?,
        rope_local_base_freq: None,
        bos_token_id: keys.token_id("bos_token_id")?,
        eos_token_id: keys.token_ids("eos_token_id")?,
        pad_token_id: keys.token_id("pad_token_id")?,
    })
}

/// Refuses sliding windows that are in use. Qwen's files carry a window that is switched off.
pub(crate) fn full_attention_only(keys: &Keys, switched_on: bool) -> Result<(), ConfigError> {
    if let Some(value) = keys.get("layer_types") {
        let full = |kind: &Value| kind == "full_attention";
        if !value.as_array().is_some_and(|kinds| kinds.iter().all(full)) {
            return Err(keys.wrong("layer_types", value, "only full_attention is supported"));
        }
    }
    match keys.get("sliding_window") {
        Some(value) if switched_on => {
            Err(keys.wrong("sliding_window", value, "only full attention is supported"))
        }
        _ => Ok(()),
    }
}

/// The same for Qwen, whose window holds from some layer on.
pub(crate) fn qwen_window(keys: &Keys) -> Result<(), ConfigError> {
    let layers = keys.size("num_hidden_layers")?;
    let on = keys.flag_or("use_sliding_window", false)? && keys.size_or("max_window_layers", 28)? < layers;
    full_attention_only(keys, on)
}

/// A model with latent attention as DeepSeek-V3 has it.
pub(crate) fn mla(keys: &Keys, family: &'static Family) -> Result<MlaConfig, ConfigError> {
    let one = [Value::from(1)];
    keys.only("attention_bias", &[false.into()], "only MLA without biases is supported")?;
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
    Ok(MlaConfig {
        family,
        softmax_router: false,
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
        rope: rope(keys, max_position_embeddings, 10_000.0)?,
        bos_token_id: keys.token_id("bos_token_id")?,
        eos_token_id: keys.token_ids("eos_token_id")?,
        pad_token_id: keys.token_id("pad_token_id")?,
    })
}

/// RoPE from `rope_scaling` and `rope_theta` (4.x), or from `rope_parameters` (5). Where both are given,
/// `rope_scaling` wins, and inside the object `rope_theta` wins, as in `transformers` 5.
pub(crate) fn rope(
    keys: &Keys,
    max_position_embeddings: usize,
    theta: f64,
) -> Result<RopeConfig, ConfigError> {
    let outer_theta = keys.number_or("rope_theta", theta)?;
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
