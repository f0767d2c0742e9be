//! What a model is, whatever its family: per layer an attention and a feed-forward, and norms between them.
//!
//! Field names are Hugging Face's keys, so that a reader who knows one knows the other. How a family states itself in a
//! `config.json` or a GGUF file is in its file under `family/`. A key that would change the arithmetic in a way that the forward
//! pass does not implement is refused when the file is read, never ignored.

pub(crate) mod keys;
pub(crate) mod read;
mod rope;
pub(crate) mod tensors;
mod validate;
pub(crate) mod write;

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tensor::cuda::MAX_HEAD_DIM;
use thiserror::Error;

use crate::family::Family;
use crate::files::gguf::{is_gguf, keys::to_config as keys_of_gguf};
use keys::Keys;

pub(crate) use rope::llama3_factors;
pub use rope::{Llama3Scaling, RopeConfig, RopeScaling, RopeTablesSpec, YarnScaling};
pub use tensors::{TensorKind, TensorSpec, tensor_specs};

/// The largest JSON configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A model's architecture and sizes, by the kind of its attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "attention", rename_all = "lowercase")]
pub enum ModelConfig {
    /// Multi-head latent attention, experts, multi-token prediction: DeepSeek-V2 and V3.
    Mla(MlaConfig),
    /// Grouped-query attention: Llama and most others.
    Gqa(GqaConfig),
}

/// Norms on queries and keys before RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QkNorm {
    /// None.
    None,
    /// RMSNorm over `head_dim`, on each head.
    Head,
    /// RMSNorm over all heads together.
    Whole,
}

/// Which positions a layer's queries and keys are rotated by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerRope {
    /// The model's RoPE.
    Main,
    /// The one of layers with a window (`rope_local_base_freq`).
    Local,
    /// None at all.
    None,
}

/// What differs from layer to layer in its attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LayerKind {
    /// Its positions.
    pub rope: LayerRope,
    /// Keys that a token sees at most, its own and those just before; `None` for all.
    pub window: Option<usize>,
}

impl LayerKind {
    /// RoPE over all tokens before.
    pub const FULL: LayerKind = LayerKind { rope: LayerRope::Main, window: None };
}

/// What the gate of a feed-forward layer goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU in its form with tanh.
    Gelu,
}

/// Routed experts in place of every layer's dense feed-forward (softmax over all, no shared expert).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpertsConfig {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts that a token passes.
    pub num_experts_per_tok: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    /// Whether the chosen experts' weights are normalised to one.
    pub norm_topk_prob: bool,
}

/// Sizes of a model with grouped-query attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GqaConfig {
    /// Its family.
    pub family: &'static Family,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated layer between `gate_proj`/`up_proj` and `down_proj`.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Whether q, k and v have biases. `o_proj` never has one.
    pub qkv_bias: bool,
    /// Norms on q and k.
    pub qk_norm: QkNorm,
    /// One for each block.
    pub layers: Vec<LayerKind>,
    /// What replaces `head_dim` in the factor of the scores, its root's inverse.
    pub query_pre_attn_scalar: Option<f64>,
    /// What the gate goes through.
    pub activation: Activation,
    /// Experts in place of the dense feed-forward.
    pub experts: Option<ExpertsConfig>,
    /// Whether the outputs of attention and feed-forward are normalised before they are added.
    pub sandwich_norms: bool,
    /// Whether a norm's scale is stored as its distance from one.
    pub norms_from_one: bool,
    /// Whether the embedding is multiplied by the root of its width.
    pub scaled_embedding: bool,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding; then no `lm_head.weight` is stored.
    pub tie_word_embeddings: bool,
    /// The context length that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Base of the frequencies of [`LayerRope::Local`].
    pub rope_local_base_freq: Option<f64>,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_id: Vec<u32>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u32>,
}

/// Sizes of a DeepSeek model (V3 report §2.1).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MlaConfig {
    /// Its family.
    pub family: &'static Family,
    /// Whether affinities are a softmax over all experts, without a balance bias (V2), or sigmoids with one (V3).
    pub softmax_router: bool,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the SwiGLU of the first `first_k_dense_replace` layers.
    pub intermediate_size: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    /// Number of blocks of the main model (MTP layers apart).
    pub num_hidden_layers: usize,
    /// Attention heads; MLA has as many key heads.
    pub num_attention_heads: usize,
    /// Width of the query latent; `None` for a single `q_proj`.
    pub q_lora_rank: Option<usize>,
    /// Width of the key/value latent `c`.
    pub kv_lora_rank: usize,
    /// Per-head width of the part of q and k that has no position.
    pub qk_nope_head_dim: usize,
    /// Width of the rotated part of q (per head) and of k (shared by all heads); even.
    pub qk_rope_head_dim: usize,
    /// Per-head width of the values.
    pub v_head_dim: usize,
    /// Routed experts of a layer.
    pub n_routed_experts: usize,
    /// Shared experts; stored as one SwiGLU of width `n_shared_experts · moe_intermediate_size`.
    pub n_shared_experts: usize,
    /// Routed experts that a token passes.
    pub num_experts_per_tok: usize,
    /// Groups that the routed experts are divided into.
    pub n_group: usize,
    /// Groups that a token may choose experts from.
    pub topk_group: usize,
    /// Whether the chosen experts' weights are normalised to one.
    pub norm_topk_prob: bool,
    /// Factor on the (normalised) expert weights.
    pub routed_scaling_factor: f64,
    /// The first so many layers have a dense SwiGLU; may be 0 or all.
    pub first_k_dense_replace: usize,
    /// Multi-token-prediction layers stored after the main ones.
    pub num_nextn_predict_layers: usize,
    /// Whether RoPE rotates neighbouring pairs (as published) or the two halves.
    pub rope_interleave: bool,
    /// Epsilon of the RMSNorms on the residual stream. Those inside MLA always use
    /// [`MlaConfig::LATENT_NORM_EPS`].
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding; then no `lm_head.weight` is stored.
    pub tie_word_embeddings: bool,
    /// The context length that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Rotary position embedding of the rope slice.
    pub rope: RopeConfig,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_id: Vec<u32>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u32>,
}

impl MlaConfig {
    /// Epsilon of `q_a_layernorm` and `kv_a_layernorm`: `transformers` leaves those two norms at their
    /// default, whatever `rms_norm_eps` says.
    pub const LATENT_NORM_EPS: f64 = 1e-6;

    /// Per-head width of q and k: `qk_nope_head_dim + qk_rope_head_dim`.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Width of the shared experts' SwiGLU.
    pub fn shared_intermediate_size(&self) -> usize {
        self.n_shared_experts * self.moe_intermediate_size
    }

    /// Whether a layer holds experts. MTP layers, which count on from the main ones, always do.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        layer >= self.first_k_dense_replace.min(self.num_hidden_layers)
    }
}

/// Why a model configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any real configuration.
    #[error("{path} has {found} bytes, but a configuration has at most {MAX_CONFIG_BYTES}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
    },
    /// The text is not JSON.
    #[error("the model configuration is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON is not an object.
    #[error("the model configuration is a JSON {found}, but must be an object")]
    NotAnObject {
        /// The kind of JSON value found.
        found: &'static str,
    },
    /// A key that has no safe default is absent.
    #[error("config key `{key}` is missing; {expected}")]
    Missing {
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
    },
    /// A key that means nothing, in a configuration written by hand.
    #[error("there is no key `{key}`: did you mean `{nearest}`?")]
    Unknown {
        /// The key.
        key: String,
        /// The known key that is most like it.
        nearest: String,
    },
    /// A key holds something that is malformed, out of range or not implemented.
    #[error("config key `{key}` is {found}, but {supported}")]
    Unsupported {
        /// The key.
        key: String,
        /// The value found, shortened.
        found: String,
        /// What is supported.
        supported: String,
    },
    /// A GGUF file does not say what a model needs.
    #[error("{0}")]
    Gguf(String),
    /// A file on disk was refused for one of the other reasons.
    #[error("{path}: {source}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: Box<ConfigError>,
    },
}

impl ConfigError {
    pub(crate) fn unsupported(key: &str, found: impl ToString, supported: impl Into<String>) -> Self {
        let mut found = found.to_string();
        if found.chars().count() > 80 {
            found = found.chars().take(77).chain("...".chars()).collect();
        }
        ConfigError::Unsupported { key: key.to_owned(), found, supported: supported.into() }
    }
}

/// Reads a JSON file of a model folder, with or without a byte order mark.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_path_buf(), source };
    let found = std::fs::metadata(path).map_err(read)?;
    if !found.is_file() {
        return Err(read(std::io::Error::other("it is no plain file")));
    }
    if found.len() > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_path_buf(), found: found.len() });
    }
    let bytes = std::fs::read(path).map_err(read)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    serde_json::from_slice(text)
        .map_err(|error| ConfigError::InFile { path: path.to_path_buf(), source: Box::new(error.into()) })
}

/// What a GGUF file says, as the `config.json` that says the same.
fn read_gguf(path: &Path) -> Result<serde_json::Value, ConfigError> {
    let in_file =
        |source: ConfigError| ConfigError::InFile { path: path.to_path_buf(), source: Box::new(source) };
    let read = |source| ConfigError::Read { path: path.to_path_buf(), source };
    let mut source = std::io::BufReader::new(std::fs::File::open(path).map_err(read)?);
    let len = source.get_ref().metadata().map_err(read)?.len();
    let file = ground::gguf::read(&mut source, len).map_err(|e| in_file(ConfigError::Gguf(e.to_string())))?;
    let mut value = keys_of_gguf(&file).map_err(in_file)?;
    if let Some(factors) = gguf_rope_factors(&mut source, &file).map_err(read)? {
        value["rope_scaling"] = rope::llama3_of_factors(&factors, &value).map_err(in_file)?;
    }
    Ok(value)
}

/// By how much the file stretches each frequency, where it says so (Llama 3.1 and later).
fn gguf_rope_factors(
    source: &mut (impl Read + Seek),
    file: &ground::gguf::Gguf,
) -> std::io::Result<Option<Vec<f32>>> {
    let found = file.tensors.iter().find(|t| t.name == "rope_freqs.weight");
    let Some(entry) = found.filter(|t| t.kind == 0 && t.shape.iter().product::<usize>() <= 4096) else {
        return Ok(None);
    };
    let mut bytes = vec![0; 4 * entry.shape.iter().product::<usize>()];
    source.seek(SeekFrom::Start(entry.begin))?;
    source.read_exact(&mut bytes)?;
    Ok(Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()))
}

impl ModelConfig {
    /// Gives the head weights of its own.
    pub(crate) fn untie(&mut self) {
        match self {
            ModelConfig::Mla(c) => c.tie_word_embeddings = false,
            ModelConfig::Gqa(c) => c.tie_word_embeddings = false,
        }
    }

    /// Reads a configuration from the text of a `config.json`, old style or `transformers` 5.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Self::from_value(&serde_json::from_str(text)?)
    }

    /// Reads a configuration from parsed JSON and [validates](Self::validate) it.
    pub fn from_value(value: &serde_json::Value) -> Result<Self, ConfigError> {
        let config = crate::family::read(&Keys::of(value)?)?;
        config.validate()?;
        Ok(config)
    }

    /// The same for a configuration that a person wrote: a key that means nothing here is refused.
    pub fn from_recipe(value: &serde_json::Value) -> Result<Self, ConfigError> {
        let keys = Keys::of(value)?;
        let config = crate::family::read(&keys)?;
        // Known by `architectures` where both are there.
        keys.get("model_type");
        keys.refuse_unasked()?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a configuration from a model folder, from the path of a `config.json`, or from a GGUF file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let mut path = path.as_ref().to_path_buf();
        if path.is_dir() {
            path.push("config.json");
        }
        let value = match is_gguf(&path) {
            true => read_gguf(&path)?,
            false => read_json(&path)?,
        };
        Self::from_value(&value).map_err(|source| ConfigError::InFile { path, source: Box::new(source) })
    }

    /// The `config.json` of this model, in the keys that `transformers` 4.5x and 5 both read.
    pub fn to_json(&self) -> serde_json::Value {
        write::config(self)
    }

    /// Checks that every size is positive and within bounds, that what must divide divides, and that the
    /// model's tensors could exist. Configurations that were read are already validated; those made by
    /// hand (recipes) go through here before anything is allocated.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate::config(self)
    }

    /// RoPE frequencies and the scales that follow from them; see [`RopeTablesSpec`].
    pub fn rope_tables_spec(&self) -> RopeTablesSpec {
        match self {
            ModelConfig::Mla(c) => rope::mla_tables(c),
            ModelConfig::Gqa(c) => rope::gqa_tables(c),
        }
    }

    /// Its family.
    pub(crate) fn family(&self) -> &'static Family {
        match self {
            ModelConfig::Mla(c) => c.family,
            ModelConfig::Gqa(c) => c.family,
        }
    }

    /// The heads of a tensor whose rows llama.cpp keeps in the order of neighbouring RoPE pairs: q and k of some families.
    pub(crate) fn gguf_interleaved_heads(&self, name: &str) -> Option<usize> {
        let ModelConfig::Gqa(c) = self else { return None };
        let is = |part: &str| (c.family.gguf_interleaved && name.contains(part)).then_some(());
        is(".q_proj.").map(|()| c.num_attention_heads).or(is(".k_proj.").map(|()| c.num_key_value_heads))
    }

    /// Whether a norm's scale is stored as its distance from one in a Hugging Face folder.
    pub(crate) fn norms_from_one(&self) -> bool {
        matches!(self, ModelConfig::Gqa(c) if c.norms_from_one)
    }

    /// What of it has no kernel on a GPU, if anything.
    pub(crate) fn without_gpu(&self) -> Option<String> {
        let dims = match self {
            ModelConfig::Mla(c) => [c.qk_nope_head_dim + c.qk_rope_head_dim, c.v_head_dim],
            ModelConfig::Gqa(c) => [c.head_dim; 2],
        };
        let widest = dims.into_iter().max().filter(|&dim| dim > MAX_HEAD_DIM)?;
        Some(format!("attention with heads of {widest} components (above {MAX_HEAD_DIM})"))
    }

    /// The frequencies of layers with [`LayerRope::Local`], if there are such.
    pub fn local_rope_tables_spec(&self) -> Option<RopeTablesSpec> {
        let ModelConfig::Gqa(c) = self else { return None };
        let theta = c.rope_local_base_freq.filter(|_| c.layers.iter().any(|l| l.rope == LayerRope::Local))?;
        Some(rope::gqa_tables(&GqaConfig { rope: RopeConfig::plain(theta), ..c.clone() }))
    }

    /// Hugging Face's `model_type`.
    pub fn model_type(&self) -> &'static str {
        self.family().model_type
    }
}

/// Fields that both families have, under the same names.
macro_rules! shared_fields {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {
        impl ModelConfig {
            $($(#[$doc])*
            pub fn $name(&self) -> $type {
                match self {
                    ModelConfig::Mla(c) => c.$name,
                    ModelConfig::Gqa(c) => c.$name,
                }
            })*
        }
    };
}

shared_fields! {
    /// Rows of the embedding and of the head.
    vocab_size: usize,
    /// Width of the residual stream.
    hidden_size: usize,
    /// Number of blocks of the main model.
    num_hidden_layers: usize,
    /// Query heads.
    num_attention_heads: usize,
    /// Epsilon of the RMSNorms on the residual stream.
    rms_norm_eps: f64,
    /// Whether the head is the embedding.
    tie_word_embeddings: bool,
    /// The context length that the model was made for.
    max_position_embeddings: usize,
    /// Standard deviation of the initial weights.
    initializer_range: f64,
    /// Token that begins a text.
    bos_token_id: Option<u32>,
    /// Token that fills a batch.
    pad_token_id: Option<u32>,
}

impl ModelConfig {
    /// Tokens that end a text; may be empty.
    pub fn eos_token_id(&self) -> &[u32] {
        match self {
            ModelConfig::Mla(c) => &c.eos_token_id,
            ModelConfig::Gqa(c) => &c.eos_token_id,
        }
    }

    /// Rotary position embedding.
    pub fn rope(&self) -> &RopeConfig {
        match self {
            ModelConfig::Mla(c) => &c.rope,
            ModelConfig::Gqa(c) => &c.rope,
        }
    }
}

#[cfg(test)]
mod tests;

/// The published configuration of DeepSeek-V3, without its quantization.
#[cfg(test)]
pub(crate) const DEEPSEEK_V3_JSON: &str = r#"{
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
    "v_head_dim": 128, "vocab_size": 129280}"#;
