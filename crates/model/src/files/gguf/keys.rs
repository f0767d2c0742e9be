//! What a GGUF file's keys say about a model, as the `config.json` that says the same, and the way back.

use ground::gguf::{Gguf, Keys, Value as Field};
use serde_json::{Map, Value, json};

use crate::config::{ConfigError, ModelConfig};

/// A file's keys under its architecture's prefix.
pub(crate) struct Fields<'a> {
    /// The file.
    pub(crate) file: &'a Gguf,
    /// The architecture, llama.cpp's name for a family.
    pub(crate) arch: &'a str,
}

/// A problem with the container as one with the configuration: a key that holds the wrong thing.
fn config(error: ground::gguf::Error) -> ConfigError {
    ConfigError::Gguf(error.to_string())
}

impl<'a> Fields<'a> {
    pub(crate) fn of(file: &'a Gguf) -> Result<Fields<'a>, ConfigError> {
        let arch = file.text("general.architecture").map_err(config)?;
        let arch = arch.ok_or_else(|| ConfigError::Gguf("it names no `general.architecture`".into()))?;
        Ok(Fields { file, arch })
    }
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }
    /// A whole number, or a list that holds the same one for every layer.
    pub(crate) fn int(&self, key: &str) -> Result<Option<i64>, ConfigError> {
        let key = self.key(key);
        if let Some(Field::Ints(list)) = self.file.get(&key) {
            return match list.first() {
                Some(first) if list.iter().all(|n| n == first) => Ok(Some(*first)),
                _ => Err(ConfigError::unsupported(&key, "a list", "must be the same for every layer")),
            };
        }
        self.file.int(&key).map_err(config)
    }
    /// A whole number that must be there.
    pub(crate) fn need(&self, key: &str) -> Result<i64, ConfigError> {
        self.int(key)?.ok_or_else(|| ConfigError::Missing {
            key: self.key(key),
            expected: "it must hold a positive integer".into(),
        })
    }
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.file.float(&self.key(key)).map_err(config)
    }
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.file.flag(&self.key(key)).map_err(config)
    }
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.file.text(&self.key(key)).map_err(config)
    }
    fn token(&self, name: &str) -> Result<Option<i64>, ConfigError> {
        self.file.int(&format!("tokenizer.ggml.{name}_token_id")).map_err(config)
    }

    /// The first dimension of a tensor.
    pub(crate) fn rows(&self, tensor: &str) -> Option<usize> {
        let found = self.file.tensors.iter().find(|t| t.name == tensor)?;
        found.shape.first().copied()
    }

    /// The keys that all families share.
    pub(crate) fn shared(&self) -> Result<Map<String, Value>, ConfigError> {
        let vocab = self.rows("token_embd.weight");
        let vocab = vocab.ok_or_else(|| ConfigError::Gguf("it has no tensor `token_embd.weight`".into()))?;
        let mut ends = Vec::new();
        for name in ["eos", "eot", "eom"] {
            ends.extend(self.token(name)?.filter(|id| !ends.contains(id)));
        }
        let heads = self.need("attention.head_count")?;
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| {
            if !value.is_null() {
                map.insert(key.to_owned(), value);
            }
        };
        put("vocab_size", json!(vocab));
        put("hidden_size", json!(self.need("embedding_length")?));
        put("num_hidden_layers", json!(self.need("block_count")?));
        put("num_attention_heads", json!(heads));
        put("max_position_embeddings", json!(self.need("context_length")?));
        put("rms_norm_eps", json!(self.float("attention.layer_norm_rms_epsilon")?));
        put("intermediate_size", json!(self.int("feed_forward_length")?));
        put("tie_word_embeddings", json!(self.rows("output.weight").is_none()));
        put("bos_token_id", json!(self.token("bos")?));
        put("eos_token_id", json!(ends));
        put("pad_token_id", json!(self.token("padding")?));
        put("rope_theta", json!(self.float("rope.freq_base")?.unwrap_or(10_000.0)));
        put("rope_scaling", self.rope_scaling()?);
        Ok(map)
    }

    /// The keys of grouped-query attention.
    pub(crate) fn grouped(&self) -> Result<Map<String, Value>, ConfigError> {
        let mut map = self.shared()?;
        let heads = self.need("attention.head_count")?;
        let kv = self.int("attention.head_count_kv")?.unwrap_or(heads);
        map.insert("num_key_value_heads".into(), json!(kv));
        let derived = self.need("embedding_length")?.checked_div(heads);
        let dim = self.int("attention.key_length")?.or(derived);
        map.insert("head_dim".into(), json!(dim));
        self.same("attention.value_length", dim, "the width of a head's values")?;
        self.same("rope.dimension_count", dim, "every dimension of a head rotates")?;
        Ok(map)
    }

    /// Refuses a key that says something else than what is built.
    fn same(&self, key: &str, wanted: Option<i64>, why: &str) -> Result<(), ConfigError> {
        match self.int(key)? {
            Some(found) if Some(found) != wanted => {
                let wanted = wanted.unwrap_or_default();
                Err(ConfigError::unsupported(
                    &self.key(key),
                    found,
                    format!("only {wanted} is supported: {why}"),
                ))
            }
            _ => Ok(()),
        }
    }

    fn rope_scaling(&self) -> Result<Value, ConfigError> {
        let kind = self.text("rope.scaling.type")?.unwrap_or("none");
        // Before there was a type, a factor alone meant linear scaling.
        let factor = self.float("rope.scaling.factor")?.or(self.float("rope.scale_linear")?);
        let original = self.int("rope.scaling.original_context_length")?;
        match (kind, factor) {
            ("none", None) => Ok(Value::Null),
            ("none" | "linear", Some(1.0)) => Ok(Value::Null),
            ("none" | "linear", Some(factor)) => Ok(json!({ "rope_type": "linear", "factor": factor })),
            ("yarn", Some(factor)) => {
                let mut yarn = json!({ "rope_type": "yarn", "factor": factor });
                for (key, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                    if let Some(x) = self.float(&format!("rope.scaling.{name}"))? {
                        yarn[key] = json!(x);
                    }
                }
                if let Some(original) = original {
                    yarn["original_max_position_embeddings"] = json!(original);
                }
                if let Some(scale) = self.float("rope.scaling.yarn_log_multiplier")? {
                    // Written as a tenth of it; llama.cpp takes both scales for equal.
                    let scale = ((scale * 10.0) as f32).to_string().parse::<f64>().unwrap_or(scale * 10.0);
                    yarn["mscale"] = json!(scale);
                    yarn["mscale_all_dim"] = json!(scale);
                }
                Ok(yarn)
            }
            (other, _) => {
                let key = self.key("rope.scaling.type");
                Err(ConfigError::unsupported(&key, other, "supported are none, linear and yarn"))
            }
        }
    }
}

/// The `config.json` of a file.
pub(crate) fn to_config(file: &Gguf) -> Result<Value, ConfigError> {
    crate::family::of_gguf(&Fields::of(file)?)
}

/// The keys of a model's GGUF file, its tokenizer's apart.
pub(crate) fn of_config(config: &ModelConfig) -> Result<Keys, ConfigError> {
    let family = config.family();
    let config = config.to_json();
    let mut keys = Written { arch: family.gguf, config: &config, keys: Keys::new() };
    keys.keys.push(("general.architecture".into(), Field::Text(family.gguf.to_owned())));
    for (gguf, hf) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("vocab_size", "vocab_size"),
        ("rope.freq_base", "rope_theta"),
    ] {
        keys.number(gguf, hf);
    }
    keys.rope_scaling()?;
    (family.to_gguf)(&mut keys)?;
    Ok(keys.keys)
}

/// Keys under construction.
pub(crate) struct Written<'a> {
    arch: &'static str,
    /// The `config.json`.
    pub(crate) config: &'a Value,
    keys: Keys,
}

impl Written<'_> {
    fn put(&mut self, key: &str, value: Field) {
        self.keys.push((format!("{}.{key}", self.arch), value));
    }
    /// A number under its Hugging Face key, if it is there; those that llama.cpp reads as fractions are written so.
    pub(crate) fn number(&mut self, key: &str, hf: &str) {
        match (self.config[hf].as_i64(), self.config[hf].as_f64()) {
            (Some(n), _)
                if !matches!(key, "rope.freq_base" | "rope.freq_base_swa" | "expert_weights_scale") =>
            {
                self.put(key, Field::Int(n))
            }
            (_, Some(x)) => self.put(key, Field::Float(x)),
            _ => {}
        }
    }
    fn int(&mut self, key: &str, n: i64) {
        self.put(key, Field::Int(n));
    }
    fn size(&self, hf: &str) -> i64 {
        self.config[hf].as_i64().unwrap_or(0)
    }

    /// Grouped-query attention.
    pub(crate) fn heads(&mut self) -> Result<(), ConfigError> {
        let dim = self.size("head_dim");
        for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            self.int(key, dim);
        }
        Ok(())
    }

    /// DeepSeek's latent attention, with keys and values expanded, and experts whose affinities are had by ggml's function of that
    /// number (1 softmax, 2 sigmoid).
    pub(crate) fn latent(&mut self, gating: i64) -> Result<(), ConfigError> {
        if self.config["rope_interleave"] == false {
            return Err(ConfigError::unsupported("rope_interleave", "false", "GGUF files know true alone"));
        }
        let rope = self.size("qk_rope_head_dim");
        self.int("rope.dimension_count", rope);
        self.int("attention.key_length", self.size("qk_nope_head_dim") + rope);
        self.int("attention.value_length", self.size("v_head_dim"));
        // llama.cpp wants the key; 0 says that queries have no latent.
        self.int("attention.q_lora_rank", self.size("q_lora_rank"));
        for (gguf, hf) in [
            ("attention.kv_lora_rank", "kv_lora_rank"),
            ("leading_dense_block_count", "first_k_dense_replace"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_count", "n_routed_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_shared_count", "n_shared_experts"),
            ("expert_weights_scale", "routed_scaling_factor"),
        ] {
            self.number(gguf, hf);
        }
        if self.size("n_group") > 1 {
            self.number("expert_group_count", "n_group");
            self.number("expert_group_used_count", "topk_group");
        }
        self.put("expert_weights_norm", Field::Bool(self.config["norm_topk_prob"] == true));
        self.int("expert_gating_func", gating);
        Ok(())
    }

    /// Llama 3.1's scaling is a tensor, `rope_freqs.weight`, and no key.
    fn rope_scaling(&mut self) -> Result<(), ConfigError> {
        let scaling = &self.config["rope_scaling"];
        let Some(kind) = scaling["rope_type"].as_str().filter(|&kind| kind != "llama3") else {
            return Ok(());
        };
        self.put("rope.scaling.type", Field::Text(kind.to_owned()));
        let float = |key: &str| scaling[key].as_f64();
        if let Some(factor) = float("factor") {
            self.put("rope.scaling.factor", Field::Float(factor));
        }
        if kind != "yarn" {
            return Ok(());
        }
        let unwritten = ["attention_factor", "truncate"];
        if let Some(key) = unwritten.iter().find(|key| !scaling[**key].is_null()) {
            return Err(ConfigError::unsupported(key, &scaling[*key], "GGUF files do not know it"));
        }
        if let Some(original) = scaling["original_max_position_embeddings"].as_i64() {
            self.int("rope.scaling.original_context_length", original);
        }
        for (key, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
            if let Some(x) = float(key) {
                self.put(&format!("rope.scaling.{name}"), Field::Float(x));
            }
        }
        if float("mscale") != float("mscale_all_dim") {
            return Err(ConfigError::unsupported(
                "mscale",
                &scaling["mscale"],
                "GGUF files know it equal to mscale_all_dim alone",
            ));
        }
        if let Some(scale) = float("mscale_all_dim").filter(|&x| x != 0.0) {
            self.put("rope.scaling.yarn_log_multiplier", Field::Float(0.1 * scale));
        }
        Ok(())
    }
}
