//! Mistral: Llama's arithmetic, in early versions through a window.

use serde_json::json;

use super::{Family, llama};
use crate::config::keys::Keys;
use crate::config::read::{Defaults, gqa, silu};
use crate::config::{ConfigError, GqaConfig, LayerKind, ModelConfig};
use crate::files::gguf::keys::Written;

pub(super) static FAMILY: Family = Family {
    class: "MistralForCausalLM",
    model_type: "mistral",
    gguf: "llama",
    read,
    own_keys: |c| json!({ "sliding_window": window(c) }),
    // Files of this name are Llama's.
    is_gguf: |_| Ok(false),
    from_gguf: llama::of_gguf,
    to_gguf,
    gguf_interleaved: true,
    gguf_names: &[],
};

fn window(config: &ModelConfig) -> Option<usize> {
    match config {
        ModelConfig::Gqa(GqaConfig { layers, .. }) => layers.first().and_then(|l| l.window),
        ModelConfig::Mla(_) => None,
    }
}

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    silu(keys)?;
    let defaults = Defaults { num_key_value_heads: Some(8), ..Defaults::llama(131_072) };
    let mut c = gqa(keys, &FAMILY, defaults)?;
    // Where the key is missing, transformers has a window of 4096.
    let window = match keys.map.get("sliding_window") {
        None => Some(4096),
        Some(_) => keys.size_opt("sliding_window")?,
    };
    // One that nothing is longer than is none.
    let window = window.filter(|&w| w < c.max_position_embeddings);
    c.layers.fill(LayerKind { window, ..LayerKind::FULL });
    Ok(ModelConfig::Gqa(c))
}

fn to_gguf(keys: &mut Written) -> Result<(), ConfigError> {
    let window = &keys.config["sliding_window"];
    if !window.is_null() {
        return Err(ConfigError::unsupported(
            "sliding_window",
            window,
            "GGUF files of this family know none",
        ));
    }
    keys.heads()
}
