//! OLMoE: norms over all heads of q and of k together, experts in every layer.

use serde_json::{Map, Value, json};

use super::qwen3_moe::{expert_fields, expert_keys, experts, write_expert_fields};
use super::{Family, always};
use crate::config::keys::Keys;
use crate::config::read::{Defaults, gqa, no_attention_bias, silu};
use crate::config::{ConfigError, GqaConfig, ModelConfig, QkNorm};
use crate::files::gguf::keys::{Fields, Written};

pub(super) static FAMILY: Family = Family {
    class: "OlmoeForCausalLM",
    model_type: "olmoe",
    gguf: "olmoe",
    read,
    own_keys,
    is_gguf: always,
    from_gguf,
    to_gguf,
    gguf_interleaved: false,
    gguf_names: &[],
};

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    silu(keys)?;
    no_attention_bias(keys)?;
    keys.only("clip_qkv", &[], "only queries, keys and values without a clip are supported")?;
    // Where the key is missing, transformers takes this one and not 1e-6.
    let rms_norm_eps = keys.number_or("rms_norm_eps", 1e-5)?;
    let c = gqa(keys, &FAMILY, Defaults::llama(4096))?;
    if c.head_dim * c.num_attention_heads != c.hidden_size {
        return Err(ConfigError::unsupported(
            "head_dim",
            c.head_dim,
            "must be the hidden width over the heads",
        ));
    }
    let experts = Some(experts(keys, "intermediate_size")?);
    Ok(ModelConfig::Gqa(GqaConfig { rms_norm_eps, experts, qk_norm: QkNorm::Whole, ..c }))
}

fn own_keys(config: &ModelConfig) -> Value {
    let mut map = expert_keys(config);
    map.insert("attention_bias".into(), json!(false));
    map.insert("clip_qkv".into(), Value::Null);
    Value::Object(map)
}

fn from_gguf(fields: &Fields) -> Result<Map<String, Value>, ConfigError> {
    let mut map = fields.grouped()?;
    expert_fields(fields, &mut map, false)?;
    Ok(map)
}

fn to_gguf(keys: &mut Written) -> Result<(), ConfigError> {
    let (heads, kv_heads) = (&keys.config["num_attention_heads"], &keys.config["num_key_value_heads"]);
    if heads != kv_heads {
        let all = "llama.cpp knows as many heads of keys as of queries alone";
        return Err(ConfigError::unsupported("num_key_value_heads", kv_heads, all));
    }
    keys.heads()?;
    write_expert_fields(keys, false)
}
