//! Llama, and what has its arithmetic: SmolLM2 and many others.

use serde_json::{Map, Value, json};

use super::{Family, always};
use crate::config::keys::Keys;
use crate::config::read::{Defaults, full_attention_only, gqa, no_attention_bias, silu};
use crate::config::{ConfigError, ModelConfig};
use crate::files::gguf::keys::Fields;

pub(super) static FAMILY: Family = Family {
    class: "LlamaForCausalLM",
    model_type: "llama",
    gguf: "llama",
    read,
    own_keys: |_| json!({ "attention_bias": false, "mlp_bias": false }),
    is_gguf: always,
    from_gguf: of_gguf,
    to_gguf: |keys| keys.heads(),
    gguf_interleaved: true,
    gguf_names: &[],
};

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    silu(keys)?;
    no_attention_bias(keys)?;
    full_attention_only(keys, true)?;
    Ok(ModelConfig::Gqa(gqa(keys, &FAMILY, Defaults::llama(2048))?))
}

pub(super) fn of_gguf(fields: &Fields) -> Result<Map<String, Value>, ConfigError> {
    if fields.int("expert_count")?.is_some_and(|n| n > 0) {
        let key = fields.key("expert_count");
        let no_experts = "experts of the llama family are not supported";
        return Err(ConfigError::unsupported(&key, "above zero", no_experts));
    }
    fields.grouped()
}
