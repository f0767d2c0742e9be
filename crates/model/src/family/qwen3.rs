//! Qwen3: norms on each head of q and k, no biases.

use serde_json::{Value, json};

use super::{Family, always, qwen2};
use crate::config::keys::Keys;
use crate::config::read::{Defaults, gqa, no_attention_bias, qwen_window, silu};
use crate::config::{ConfigError, GqaConfig, ModelConfig, QkNorm};

pub(super) static FAMILY: Family = Family {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    gguf: "qwen3",
    read: |keys| Ok(ModelConfig::Gqa(attention(keys, &FAMILY, Some(128))?)),
    own_keys: |_| own_keys(),
    is_gguf: always,
    from_gguf: |fields| fields.grouped(),
    to_gguf: |keys| keys.heads(),
    gguf_interleaved: false,
    gguf_names: &[],
};

pub(super) fn own_keys() -> Value {
    json!({ "attention_bias": false, "use_sliding_window": false })
}

/// Everything but the feed-forward layers.
pub(super) fn attention(
    keys: &Keys,
    family: &'static Family,
    head_dim: Option<usize>,
) -> Result<GqaConfig, ConfigError> {
    silu(keys)?;
    no_attention_bias(keys)?;
    qwen_window(keys)?;
    let defaults = Defaults { head_dim, ..qwen2::DEFAULTS };
    Ok(GqaConfig { qk_norm: QkNorm::Head, ..gqa(keys, family, defaults)? })
}
