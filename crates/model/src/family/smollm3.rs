//! SmolLM3: Llama with layers that have no positions, every fourth unless told otherwise.

use serde_json::{Map, Value, json};

use super::{Family, always};
use crate::config::keys::Keys;
use crate::config::read::{Defaults, full_attention_only, gqa, no_attention_bias, silu};
use crate::config::{ConfigError, GqaConfig, LayerKind, LayerRope, ModelConfig};
use crate::files::gguf::keys::{Fields, Written};

pub(super) static FAMILY: Family = Family {
    class: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    gguf: "smollm3",
    read,
    own_keys,
    is_gguf: always,
    from_gguf: |fields: &Fields| -> Result<Map<String, Value>, ConfigError> { fields.grouped() },
    to_gguf,
    gguf_interleaved: true,
    gguf_names: &[],
};

const INTERVAL: usize = 4;

fn own_keys(config: &ModelConfig) -> Value {
    let rotates: Vec<u8> = match config {
        ModelConfig::Gqa(GqaConfig { layers, .. }) => {
            layers.iter().map(|l| u8::from(l.rope != LayerRope::None)).collect()
        }
        ModelConfig::Mla(_) => Vec::new(),
    };
    json!({
        "attention_bias": false, "mlp_bias": false, "use_sliding_window": false, "no_rope_layers": rotates,
        "layer_types": vec!["full_attention"; rotates.len()],
    })
}

fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    silu(keys)?;
    no_attention_bias(keys)?;
    full_attention_only(keys, keys.flag_or("use_sliding_window", false)?)?;
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        rope_theta: 2_000_000.0,
        tie_word_embeddings: true,
        ..Defaults::llama(32_768)
    };
    let mut c = gqa(keys, &FAMILY, defaults)?;
    let interval = keys.size_or("no_rope_layer_interval", INTERVAL)?.max(1);
    let listed = keys.get("no_rope_layers");
    for (i, layer) in c.layers.iter_mut().enumerate() {
        // A 1 says that the layer has positions, whatever the key's name.
        let rotates = match listed {
            None => (i + 1) % interval != 0,
            Some(list) => match list.get(i).and_then(Value::as_u64) {
                Some(n @ 0..=1) => n == 1,
                _ => {
                    return Err(keys.wrong(
                        "no_rope_layers",
                        list,
                        "must be a list of 0 and 1, one for each layer",
                    ));
                }
            },
        };
        if !rotates {
            *layer = LayerKind { rope: LayerRope::None, ..LayerKind::FULL };
        }
    }
    Ok(ModelConfig::Gqa(c))
}

fn to_gguf(keys: &mut Written) -> Result<(), ConfigError> {
    let list = &keys.config["no_rope_layers"];
    let usual = |(i, n): (usize, &Value)| n.as_u64() == Some(u64::from((i + 1) % INTERVAL != 0));
    if !list.as_array().is_some_and(|list| list.iter().enumerate().all(usual)) {
        let every = "GGUF files know every fourth layer alone to have no positions";
        return Err(ConfigError::unsupported("no_rope_layers", list, every));
    }
    keys.heads()
}
