//! A model on disk: a Hugging Face folder with `config.json`, weights, `generation_config.json`, or a GGUF file.

use std::path::Path;

use serde_json::{Value, json};
use tensor::blocks::Format;

use super::gguf::{GgufWeights, is_gguf};
use super::weights::compare;
use super::{FileError, TensorReport, WeightsReader};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, read_json, tensor_specs, tensors, write::token_ids};

const GENERATION_FILE: &str = "generation_config.json";

/// The weights of a model on disk, under Hugging Face's names.
#[derive(Debug)]
pub enum Weights {
    /// Of a folder.
    Safetensors(WeightsReader),
    /// Of a GGUF file.
    Gguf(GgufWeights),
}

impl Weights {
    /// The names of all tensors, in no order.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Weights::Safetensors(weights) => weights.names().collect(),
            Weights::Gguf(weights) => weights.names().collect(),
        }
    }
    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Weights::Safetensors(weights) => weights.shape(name),
            Weights::Gguf(weights) => weights.shape(name),
        }
    }
    /// How a tensor is stored, if there is one of that name and its numbers can be held as they are.
    pub fn format(&self, name: &str) -> Option<Format> {
        match self {
            Weights::Safetensors(weights) => weights.format(name),
            Weights::Gguf(weights) => weights.format(name),
        }
    }
    /// A tensor's bytes as they are stored, where [`Weights::format`] says how.
    pub fn read_blocks(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        match self {
            Weights::Safetensors(weights) => Ok(weights.bytes(name).map(<[u8]>::to_vec)),
            Weights::Gguf(weights) => weights.read_blocks(name).map(Some),
        }
    }
    /// Reads a tensor's values.
    ///
    /// # Panics
    /// When `out` does not have `shape`'s number of elements.
    pub fn read_f32(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<(), FileError> {
        match self {
            Weights::Safetensors(weights) => weights.read_f32(name, shape, out),
            Weights::Gguf(weights) => weights.read_f32(name, out),
        }
    }
}

/// A model folder, or a GGUF file, whose configuration and weights fit each other.
#[derive(Debug)]
pub struct ModelFolder {
    /// What the model is. `num_nextn_predict_layers` is 0 where the folder holds no MTP tensors, whatever
    /// the file says: `transformers` states the layers in `config.json` but does not save their weights.
    pub config: ModelConfig,
    /// How it wants to be sampled from.
    pub generation: GenerationConfig,
    /// Its weights, checked to be those of `config`.
    pub weights: Weights,
    /// Tensors that were left out; the rest of the report is empty.
    pub report: TensorReport,
    /// What whoever uses the model should know.
    pub notices: Vec<String>,
}

impl ModelFolder {
    /// Opens a folder or a GGUF file and checks that its tensors are exactly those of its configuration.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, FileError> {
        let dir = dir.as_ref();
        let mut config = ModelConfig::load(dir)?;
        if is_gguf(dir) {
            let weights = Weights::Gguf(GgufWeights::open(dir, &config)?);
            let report = compare(&weights, &tensor_specs(&config));
            report.check(dir)?;
            let generation = GenerationConfig::of_model(&config);
            return Ok(ModelFolder { config, generation, weights, report, notices: Vec::new() });
        }
        let weights = WeightsReader::open(dir)?;
        if let ModelConfig::Mla(c) = &mut config {
            let first_mtp = format!("model.layers.{}.", c.num_hidden_layers);
            if !weights.names().any(|name| name.starts_with(&first_mtp)) {
                c.num_nextn_predict_layers = 0;
            }
        }
        let mut notices = Vec::new();
        if config.tie_word_embeddings() && head_differs(&config, &weights)? {
            notices.push(format!(
                "note: config.json in {} ties the head to the embedding, but lm_head.weight is there and differs: it is used, as \
                 transformers does",
                dir.display()
            ));
            config.untie();
        }
        let (wanted, held) = (tensors::count(&config), weights.names().count() as u64);
        // Before they are all listed.
        if wanted > 2 * held + 1000 {
            let reason = format!("it has {wanted} tensors, the files {held}");
            return Err(FileError::Misfit { dir: dir.to_path_buf(), reason });
        }
        let weights = Weights::Safetensors(weights);
        let report = compare(&weights, &tensor_specs(&config));
        report.check(dir)?;
        let generation = read_generation_config(dir, &config)?;
        Ok(ModelFolder { config, generation, weights, report, notices })
    }
}

/// Whether a folder holds a head of the embedding's shape with other numbers.
fn head_differs(config: &ModelConfig, weights: &WeightsReader) -> Result<bool, FileError> {
    let (embed, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let shape = [config.vocab_size(), config.hidden_size()];
    if [embed, head].iter().any(|name| weights.shape(name) != Some(&shape[..])) {
        return Ok(false);
    }
    let read = |name| {
        let mut values = vec![0.0; shape[0] * shape[1]];
        weights.read_f32(name, &shape, &mut values).map(|()| values)
    };
    Ok(read(embed)? != read(head)?)
}

/// What `transformers` knows to do while it generates and this engine does not, each with the values that mean "as usual".
const UNSUPPORTED: [(&str, &str); 24] = [
    ("num_beams", "[1, 1.0]"),
    ("num_beam_groups", "[1, 1.0]"),
    ("penalty_alpha", "[0, 0.0]"),
    ("dola_layers", "[]"),
    ("typical_p", "[1, 1.0]"),
    ("top_h", "[1, 1.0]"),
    ("epsilon_cutoff", "[0, 0.0]"),
    ("eta_cutoff", "[0, 0.0]"),
    ("encoder_repetition_penalty", "[1, 1.0]"),
    ("no_repeat_ngram_size", "[0]"),
    ("encoder_no_repeat_ngram_size", "[0]"),
    ("min_length", "[0]"),
    ("min_new_tokens", "[0]"),
    ("bad_words_ids", "[[]]"),
    ("force_words_ids", "[[]]"),
    ("constraints", "[[]]"),
    ("forced_bos_token_id", "[]"),
    ("forced_eos_token_id", "[]"),
    ("suppress_tokens", "[[]]"),
    ("begin_suppress_tokens", "[[]]"),
    ("sequence_bias", "[[], {}]"),
    ("exponential_decay_length_penalty", "[]"),
    ("guidance_scale", "[1, 1.0]"),
    ("stop_strings", "[[]]"),
];

/// How a model wants to be sampled from; `None` where its folder does not say.
///
/// Where `transformers` finds nothing either, it takes the most likely token (`do_sample` false), and when
/// it samples: temperature 1, `top_p` 1 and, unlike most engines, `top_k` 50.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_id: Vec<u32>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u32>,
    /// Whether to sample at all.
    pub do_sample: Option<bool>,
    /// Divides the logits; 0 means the most likely token.
    pub temperature: Option<f32>,
    /// Nucleus mass in (0, 1].
    pub top_p: Option<f32>,
    /// Candidates kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Smallest probability kept, relative to the largest, in [0, 1].
    pub min_p: Option<f32>,
    /// Divides positive (multiplies negative) logits of tokens already seen; 1 is none.
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// What a model says about its special tokens, and nothing about sampling.
    pub fn of_model(config: &ModelConfig) -> Self {
        GenerationConfig {
            bos_token_id: config.bos_token_id(),
            eos_token_id: config.eos_token_id().to_vec(),
            pad_token_id: config.pad_token_id(),
            ..Default::default()
        }
    }

    fn from_value(value: &Value) -> Result<Self, ConfigError> {
        let keys = Keys::of(value)?;
        let within = |key: &'static str, range: std::ops::RangeInclusive<f64>| {
            let Some(found) = keys.number_opt(key)? else {
                return Ok(None);
            };
            if range.contains(&found) {
                return Ok(Some(found as f32));
            }
            let (low, high) = range.into_inner();
            Err(ConfigError::unsupported(key, found, format!("must be between {low} and {high}")))
        };
        for (key, usual) in UNSUPPORTED {
            let usual: Vec<Value> = serde_json::from_str(usual)?;
            keys.only(
                key,
                &usual,
                "must not be set, for it would change what is generated: take the key out",
            )?;
        }
        Ok(GenerationConfig {
            bos_token_id: keys.token_id("bos_token_id")?,
            eos_token_id: keys.token_ids("eos_token_id")?,
            pad_token_id: keys.token_id("pad_token_id")?,
            do_sample: keys.get("do_sample").map(|_| keys.flag_or("do_sample", false)).transpose()?,
            temperature: within("temperature", 0.0..=100.0)?,
            top_p: within("top_p", 1e-6..=1.0)?,
            top_k: keys.size_opt("top_k")?,
            min_p: within("min_p", 0.0..=1.0)?,
            repetition_penalty: within("repetition_penalty", 1e-3..=100.0)?,
            max_new_tokens: keys.size_opt("max_new_tokens")?,
        })
    }

    fn to_json(&self) -> Value {
        let mut value = json!({
            "bos_token_id": self.bos_token_id,
            "eos_token_id": token_ids(&self.eos_token_id),
            "pad_token_id": self.pad_token_id,
            "do_sample": self.do_sample,
            "temperature": self.temperature.map(shortest),
            "top_p": self.top_p.map(shortest),
            "top_k": self.top_k,
            "min_p": self.min_p.map(shortest),
            "repetition_penalty": self.repetition_penalty.map(shortest),
            "max_new_tokens": self.max_new_tokens,
        });
        if let Value::Object(map) = &mut value {
            map.retain(|_, value| !value.is_null());
        }
        value
    }
}

/// The double that prints like the float: 0.6 and not 0.6000000238418579.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// Reads `generation_config.json`. Special tokens that it does not name are those of `config.json`, and so
/// is everything where the file does not exist.
pub fn read_generation_config(dir: &Path, config: &ModelConfig) -> Result<GenerationConfig, FileError> {
    let of_model = GenerationConfig::of_model(config);
    let path = dir.join(GENERATION_FILE);
    let value = match read_json(&path) {
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(of_model);
        }
        value => value?,
    };
    let mut generation = GenerationConfig::from_value(&value)
        .map_err(|source| ConfigError::InFile { path, source: Box::new(source) })?;
    generation.bos_token_id = generation.bos_token_id.or(of_model.bos_token_id);
    generation.pad_token_id = generation.pad_token_id.or(of_model.pad_token_id);
    if generation.eos_token_id.is_empty() {
        generation.eos_token_id = of_model.eos_token_id;
    }
    Ok(generation)
}

/// Writes `generation_config.json`, leaving out what is `None`.
pub fn write_generation_config(dir: &Path, generation: &GenerationConfig) -> Result<(), FileError> {
    let text = format!("{:#}\n", generation.to_json());
    replace(&dir.join(GENERATION_FILE), &text)
}

/// Writes `config.json`, with the type that the weights are stored in.
pub fn write_config(dir: &Path, config: &ModelConfig, weights: super::WeightType) -> Result<(), FileError> {
    let mut value = config.to_json();
    value["torch_dtype"] = match weights {
        super::WeightType::F32 => json!("float32"),
        super::WeightType::Bf16 => json!("bfloat16"),
    };
    replace(&dir.join("config.json"), &format!("{value:#}\n"))
}

fn replace(path: &Path, text: &str) -> Result<(), FileError> {
    ground::atomic::replace(path, text.as_bytes()).map_err(FileError::io("write", path))
}
