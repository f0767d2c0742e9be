//! Qwen2 and Qwen2.5: biases on q, k and v.

use serde_json::json;

use super::{Family, always};
use crate::config::keys::Keys;
use crate::config::read::{Defaults, gqa, qwen_window, silu};
use crate::config::{ConfigError, GqaConfig, ModelConfig};

pub(super) static FAMILY: Family = Family {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    gguf: "qwen2",
    read,
    own_keys: |_| json!({ "use_sliding_window": false }),
    is_gguf: always,
    from_gguf: |fields| fields.grouped(),
    to_gguf: |keys| keys.heads(),
    gguf_interleaved: false,
    gguf_names: &[],
};

/// What Qwen's files leave out.
pub(super) const DEFAULTS: Defaults = Defaults { num_key_value_heads: Some(32), ..Defaults::llama(32_768) };

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    silu(keys)?;
    qwen_window(keys)?;
    // Biases are there without a key that says so.
    Ok(ModelConfig::Gqa(GqaConfig { qkv_bias: true, ..gqa(keys, &FAMILY, DEFAULTS)? }))
}
