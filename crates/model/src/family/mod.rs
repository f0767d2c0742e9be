//! The families of models: how each states itself in a `config.json` and in a GGUF file. One file and one line each.

mod deepseek_v2;
mod deepseek_v3;
mod gemma3;
mod llama;
mod mistral;
mod olmoe;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::config::keys::Keys;
use crate::config::read::common;
use crate::config::{ConfigError, ModelConfig};
use crate::files::gguf::keys::{Fields, Written};

/// A family of models. The description that it reads into is the same for all ([`ModelConfig`]).
#[derive(Debug)]
pub struct Family {
    /// The class of `transformers` that is named in `architectures`.
    pub class: &'static str,
    /// Hugging Face's `model_type`.
    pub model_type: &'static str,
    /// llama.cpp's name.
    pub gguf: &'static str,
    /// From the keys of a `config.json`.
    read: fn(&Keys) -> Result<ModelConfig, ConfigError>,
    /// The keys of a `config.json` that not all have.
    pub(crate) own_keys: fn(&ModelConfig) -> Value,
    /// Whether a GGUF file of this name is one of these, where several have the name.
    is_gguf: fn(&Fields) -> Result<bool, ConfigError>,
    /// From the keys of a GGUF file to those of a `config.json`.
    from_gguf: fn(&Fields) -> Result<Map<String, Value>, ConfigError>,
    /// The keys of a GGUF file that not all have.
    pub(crate) to_gguf: fn(&mut Written) -> Result<(), ConfigError>,
    /// Whether llama.cpp keeps the rows of q and k in the order of neighbouring RoPE pairs.
    pub(crate) gguf_interleaved: bool,
    /// Names within a layer that llama.cpp gives this family's norms in place of the common ones.
    pub(crate) gguf_names: &'static [(&'static str, &'static str)],
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.class == other.class
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.model_type.serialize(serializer)
    }
}

/// All of them. Where several share a name in GGUF files, the first whose file it is reads it.
static FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &smollm3::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &olmoe::FAMILY,
    &gemma3::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
];

fn known() -> String {
    let names: Vec<String> = FAMILIES.iter().map(|f| format!("{} ({})", f.class, f.model_type)).collect();
    format!("supported are {}", names.join(", "))
}

/// Reads a `config.json`. `architectures` decides where it is given, because relatives of DeepSeek-V3 keep its class under
/// another `model_type`.
pub(crate) fn read(keys: &Keys) -> Result<ModelConfig, ConfigError> {
    let find = |name: &str, of: fn(&Family) -> &str| FAMILIES.iter().find(|f| of(f) == name);
    let family = match (keys.get("architectures"), keys.text("model_type")?) {
        (Some(value), _) => {
            let name = value.get(0).and_then(Value::as_str).unwrap_or_default();
            find(name, |f| f.class).ok_or_else(|| keys.wrong("architectures", value, &known()))?
        }
        (None, Some(name)) => find(name, |f| f.model_type)
            .ok_or_else(|| ConfigError::unsupported("model_type", name, known()))?,
        (None, None) => return Err(keys.missing("model_type", &known())),
    };
    common(keys)?;
    (family.read)(keys)
}

/// The `config.json` that says what a GGUF file says.
pub(crate) fn of_gguf(fields: &Fields) -> Result<Value, ConfigError> {
    let mut named = FAMILIES.iter().filter(|f| f.gguf == fields.arch).peekable();
    if named.peek().is_none() {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.gguf).collect();
        let known = format!("supported are {}", names.join(", "));
        return Err(ConfigError::unsupported("general.architecture", fields.arch, known));
    }
    for family in named {
        if (family.is_gguf)(fields)? {
            let mut map = (family.from_gguf)(fields)?;
            map.insert("architectures".into(), json!([family.class]));
            return Ok(Value::Object(map));
        }
    }
    Err(ConfigError::unsupported(
        "general.architecture",
        fields.arch,
        "of these the file is none that is supported",
    ))
}

/// For families whose name in GGUF files no other has.
fn always(_: &Fields) -> Result<bool, ConfigError> {
    Ok(true)
}
