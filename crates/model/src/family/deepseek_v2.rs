//! DeepSeek-V2 and V2-Lite: V3's attention, experts chosen by softmax, the groups by their best expert.

use serde_json::{Map, Value, json};

use super::{Family, deepseek_v3};
use crate::config::keys::Keys;
use crate::config::read::{mla, silu};
use crate::config::{ConfigError, MlaConfig, ModelConfig};
use crate::files::gguf::keys::{Fields, Written};

pub(super) static FAMILY: Family = Family {
    class: "DeepseekV2ForCausalLM",
    model_type: "deepseek_v2",
    gguf: "deepseek2",
    read,
    own_keys,
    is_gguf: |fields| Ok(fields.int("expert_gating_func")?.unwrap_or(1) == 1),
    from_gguf,
    to_gguf: |keys| to_gguf(keys),
    gguf_interleaved: false,
    gguf_names: &[],
};

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    silu(keys)?;
    keys.only("scoring_func", &["softmax".into()], "only softmax (DeepSeek-V2) is supported")?;
    // transformers does not normalise, whatever the key says.
    keys.only("norm_topk_prob", &[false.into()], "only weights that are not normalised are supported")?;
    let limited = match keys.text("topk_method")? {
        None | Some("greedy") => false,
        Some("group_limited_greedy") => true,
        Some(other) => {
            let known = "supported are greedy and group_limited_greedy";
            return Err(ConfigError::unsupported("topk_method", other, known));
        }
    };
    let c = mla(keys, &FAMILY)?;
    Ok(ModelConfig::Mla(MlaConfig {
        softmax_router: true,
        norm_topk_prob: false,
        n_group: if limited { keys.size("n_group")? } else { 1 },
        topk_group: if limited { keys.size("topk_group")? } else { 1 },
        n_shared_experts: keys.size_or("n_shared_experts", 2)?,
        first_k_dense_replace: keys.size_or("first_k_dense_replace", 0)?,
        routed_scaling_factor: keys.number_or("routed_scaling_factor", 1.0)?,
        num_nextn_predict_layers: 0,
        rope_interleave: true,
        ..c
    }))
}

fn own_keys(config: &ModelConfig) -> Value {
    let limited = matches!(config, ModelConfig::Mla(c) if c.n_group > 1);
    let method = if limited { "group_limited_greedy" } else { "greedy" };
    json!({ "topk_method": method, "scoring_func": "softmax" })
}

fn from_gguf(fields: &Fields) -> Result<Map<String, Value>, ConfigError> {
    let mut map = deepseek_v3::latent(fields)?;
    let limited = map.get("n_group").and_then(Value::as_i64).is_some_and(|n| n > 1);
    map.insert("topk_method".into(), json!(if limited { "group_limited_greedy" } else { "greedy" }));
    Ok(map)
}

fn to_gguf(keys: &mut Written) -> Result<(), ConfigError> {
    keys.latent(1)
}
