//! Qwen3-MoE: Qwen3's attention, experts in every layer, chosen by softmax.

use serde_json::{Map, Value, json};

use super::{Family, always, qwen3};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ExpertsConfig, GqaConfig, ModelConfig};
use crate::files::gguf::keys::{Fields, Written};

pub(super) static FAMILY: Family = Family {
    class: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    gguf: "qwen3moe",
    read,
    own_keys,
    is_gguf: always,
    from_gguf,
    to_gguf,
    gguf_interleaved: false,
    gguf_names: &[],
};

/// The keys of experts that are chosen by softmax.
pub(super) fn experts(keys: &Keys, width: &str) -> Result<ExpertsConfig, ConfigError> {
    Ok(ExpertsConfig {
        // Version 5 of transformers writes it under another name.
        num_experts: match keys.size_opt("num_local_experts")? {
            Some(experts) => experts,
            None => keys.size("num_experts")?,
        },
        num_experts_per_tok: keys.size("num_experts_per_tok")?,
        moe_intermediate_size: keys.size(width)?,
        norm_topk_prob: keys.flag_or("norm_topk_prob", false)?,
    })
}

/// The same, to be written.
pub(super) fn expert_keys(config: &ModelConfig) -> Map<String, Value> {
    let ModelConfig::Gqa(GqaConfig { experts: Some(e), .. }) = config else { return Map::new() };
    let keys = [
        ("num_experts", json!(e.num_experts)),
        ("num_experts_per_tok", json!(e.num_experts_per_tok)),
        ("norm_topk_prob", json!(e.norm_topk_prob)),
        ("output_router_logits", json!(false)),
    ];
    keys.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// Both ways of a GGUF file, which does not say whether weights are normalised: the family does.
pub(super) fn expert_fields(
    fields: &Fields,
    map: &mut Map<String, Value>,
    normalised: bool,
) -> Result<(), ConfigError> {
    map.insert("num_experts".into(), json!(fields.need("expert_count")?));
    map.insert("num_experts_per_tok".into(), json!(fields.need("expert_used_count")?));
    map.insert("norm_topk_prob".into(), json!(normalised));
    Ok(())
}

/// See [`expert_fields`].
pub(super) fn write_expert_fields(keys: &mut Written, normalised: bool) -> Result<(), ConfigError> {
    if keys.config["norm_topk_prob"] != normalised {
        let found = &keys.config["norm_topk_prob"];
        let one = format!("GGUF files of this family know {normalised} alone");
        return Err(ConfigError::unsupported("norm_topk_prob", found, one));
    }
    keys.number("expert_count", "num_experts");
    keys.number("expert_used_count", "num_experts_per_tok");
    Ok(())
}

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    keys.only("decoder_sparse_step", &[1.into()], "only 1 is supported: every layer holds experts")?;
    keys.only("mlp_only_layers", &[json!([])], "only experts in every layer are supported")?;
    let experts = Some(experts(keys, "moe_intermediate_size")?);
    Ok(ModelConfig::Gqa(GqaConfig { experts, ..qwen3::attention(keys, &FAMILY, None)? }))
}

fn own_keys(config: &ModelConfig) -> Value {
    let mut map = expert_keys(config);
    if let ModelConfig::Gqa(GqaConfig { experts: Some(e), .. }) = config {
        map.insert("moe_intermediate_size".into(), json!(e.moe_intermediate_size));
    }
    map.insert("decoder_sparse_step".into(), json!(1));
    map.insert("mlp_only_layers".into(), json!([]));
    if let Value::Object(more) = qwen3::own_keys() {
        map.extend(more);
    }
    Value::Object(map)
}

fn from_gguf(fields: &Fields) -> Result<Map<String, Value>, ConfigError> {
    let mut map = fields.grouped()?;
    expert_fields(fields, &mut map, true)?;
    let width = fields.need("expert_feed_forward_length")?;
    map.insert("moe_intermediate_size".into(), json!(width));
    // No layer is as wide, but the key must be there.
    map.entry("intermediate_size").or_insert(json!(width));
    Ok(map)
}

fn to_gguf(keys: &mut Written) -> Result<(), ConfigError> {
    keys.heads()?;
    write_expert_fields(keys, true)?;
    keys.number("expert_feed_forward_length", "moe_intermediate_size");
    Ok(())
}
