//! DeepSeek-V3, and what has its arithmetic: Moonlight, and the models with experts that are trained here.

use serde_json::{Map, Value, json};

use super::Family;
use crate::config::keys::Keys;
use crate::config::read::{mla, silu};
use crate::config::{ConfigError, ModelConfig};
use crate::files::gguf::keys::Fields;

pub(super) static FAMILY: Family = Family {
    class: "DeepseekV3ForCausalLM",
    model_type: "deepseek_v3",
    gguf: "deepseek2",
    read,
    own_keys,
    is_gguf: |fields| Ok(fields.int("expert_gating_func")? == Some(2)),
    from_gguf: latent,
    to_gguf: |keys| keys.latent(2),
    gguf_interleaved: false,
    gguf_names: &[],
};

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    silu(keys)?;
    keys.only("topk_method", &["noaux_tc".into()], "only noaux_tc (DeepSeek-V3) is supported")?;
    keys.only("scoring_func", &["sigmoid".into()], "only sigmoid (DeepSeek-V3) is supported")?;
    Ok(ModelConfig::Mla(mla(keys, &FAMILY)?))
}

fn own_keys(config: &ModelConfig) -> Value {
    let interleave = matches!(config, ModelConfig::Mla(c) if c.rope_interleave);
    json!({ "topk_method": "noaux_tc", "scoring_func": "sigmoid", "rope_interleave": interleave })
}

/// The keys of latent attention and of experts.
pub(super) fn latent(fields: &Fields) -> Result<Map<String, Value>, ConfigError> {
    let mut map = fields.shared()?;
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    // Files for absorbed decoding state the latent's width as that of a key, and the true ones beside it.
    let key = fields.int("attention.key_length_mla")?;
    let key = if key.is_some() { key } else { fields.int("attention.key_length")? };
    let value = fields.int("attention.value_length_mla")?;
    let value = if value.is_some() { value } else { fields.int("attention.value_length")? };
    let rope = fields.need("rope.dimension_count")?;
    let nope = key.and_then(|k| k.checked_sub(rope)).filter(|&n| n > 0);
    let nope = nope.ok_or_else(|| {
        ConfigError::unsupported(
            &fields.key("attention.key_length"),
            json!(key),
            "must exceed rope.dimension_count",
        )
    })?;
    put("qk_rope_head_dim", json!(rope));
    put("qk_nope_head_dim", json!(nope));
    put("v_head_dim", json!(value));
    put("q_lora_rank", json!(fields.int("attention.q_lora_rank")?.filter(|&rank| rank > 0)));
    put("kv_lora_rank", json!(fields.need("attention.kv_lora_rank")?));
    put("n_routed_experts", json!(fields.need("expert_count")?));
    put("num_experts_per_tok", json!(fields.need("expert_used_count")?));
    put("n_shared_experts", json!(fields.int("expert_shared_count")?.unwrap_or(0)));
    put("moe_intermediate_size", json!(fields.need("expert_feed_forward_length")?));
    put("first_k_dense_replace", json!(fields.int("leading_dense_block_count")?.unwrap_or(0)));
    put("routed_scaling_factor", json!(fields.float("expert_weights_scale")?.unwrap_or(1.0)));
    put("norm_topk_prob", json!(fields.flag("expert_weights_norm")?.unwrap_or(false)));
    put("n_group", json!(fields.int("expert_group_count")?.unwrap_or(1)));
    put("topk_group", json!(fields.int("expert_group_used_count")?.unwrap_or(1)));
    put("rope_interleave", json!(true));
    Ok(map)
}
