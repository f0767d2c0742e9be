//! Rotary position embedding: its configuration, its frequencies and the scales that come with it.
//!
//! The frequencies follow `modeling_rope_utils.py` of `transformers` 5.23 operation by operation, in
//! float32 where it computes in float32, so that a model sees the angles that it was trained with.

use std::f64::consts::PI;

use serde::Serialize;

use super::{ConfigError, GqaConfig, MlaConfig};

/// Rotary position embedding as the configuration states it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeConfig {
    /// `rope_theta`: the base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched to longer contexts.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// RoPE without scaling.
    pub fn plain(theta: f64) -> Self {
        RopeConfig { theta, scaling: RopeScaling::None }
    }
}

/// The kinds of RoPE scaling, by Hugging Face's `rope_type`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// `default`: none.
    None,
    /// `linear`: all frequencies divided by the factor.
    Linear {
        /// How much longer the context is.
        factor: f64,
    },
    /// `yarn` (<https://arxiv.org/abs/2309.00071>).
    Yarn(YarnScaling),
    /// `llama3`: by wavelength, as Llama 3.1.
    Llama3(Llama3Scaling),
}

/// Parameters of YaRN.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct YarnScaling {
    /// How much longer the context is.
    pub factor: f64,
    /// Context length of the model before it was stretched.
    pub original_max_position_embeddings: usize,
    /// Rotations over the original length above which a frequency stays as it is; 32.
    pub beta_fast: f64,
    /// Rotations over the original length below which a frequency is fully stretched; 1.
    pub beta_slow: f64,
    /// Numerator's scale in the factor on cos and sin; counts only together with `mscale_all_dim`.
    pub mscale: Option<f64>,
    /// Denominator's scale in the factor on cos and sin, and DeepSeek's scale on the softmax.
    pub mscale_all_dim: Option<f64>,
    /// Replaces the factor on cos and sin.
    pub attention_factor: Option<f64>,
    /// Whether the range of stretched dimensions is rounded outwards to integers; true.
    pub truncate: bool,
}

/// Parameters of Llama 3.1's scaling.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Llama3Scaling {
    /// How much longer the context is.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` stay as they are.
    pub high_freq_factor: f64,
    /// Context length of the model before it was stretched.
    pub original_max_position_embeddings: usize,
}

/// What the forward pass needs to know about positions.
///
/// The angle of pair `i` at position `p` is `p as f32 * inv_freq[i]`, rounded to f32; its cosine and sine
/// are multiplied by `attention_scaling`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeTablesSpec {
    /// One frequency per rotated pair: `[rotary_dim / 2]`, the highest first.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (YaRN; 1 otherwise).
    pub attention_scaling: f32,
    /// Factor on q·k before the softmax: `qk_head_dim^-1/2`, times YaRN's `mscale²` for DeepSeek.
    pub softmax_scale: f32,
    /// Whether pair `i` is elements `(2i, 2i+1)`; otherwise `(i, i + rotary_dim/2)`.
    pub interleaved: bool,
}

/// YaRN's `0.1 · mscale · ln(factor) + 1`.
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

pub(super) fn gqa_tables(config: &GqaConfig) -> RopeTablesSpec {
    let (inv_freq, attention_scaling) = frequencies(&config.rope, config.head_dim);
    RopeTablesSpec {
        inv_freq,
        attention_scaling,
        softmax_scale: config.query_pre_attn_scalar.unwrap_or(config.head_dim as f64).powf(-0.5) as f32,
        interleaved: false,
    }
}

pub(super) fn mla_tables(config: &MlaConfig) -> RopeTablesSpec {
    let (inv_freq, attention_scaling) = frequencies(&config.rope, config.qk_rope_head_dim);
    let mut softmax_scale = (config.qk_head_dim() as f64).powf(-0.5);
    if let RopeScaling::Yarn(yarn) = &config.rope.scaling {
        // A scale of 0 means "not set", as in transformers' truth test.
        if let Some(all_dim) = yarn.mscale_all_dim.filter(|&m| m != 0.0) {
            let mscale = yarn_mscale(yarn.factor, all_dim);
            softmax_scale = softmax_scale * mscale * mscale;
        }
    }
    RopeTablesSpec {
        inv_freq,
        attention_scaling,
        softmax_scale: softmax_scale as f32,
        interleaved: config.rope_interleave,
    }
}

/// The frequencies of `dim / 2` pairs, and the factor on cos and sin.
fn frequencies(rope: &RopeConfig, dim: usize) -> (Vec<f32>, f32) {
    // theta^(2i/dim): exponent in f32, the power rounded once to f32 (torch's own is within an ulp of it).
    let powers: Vec<f32> = (0..dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / dim as f32;
            f64::from(rope.theta as f32).powf(f64::from(exponent)) as f32
        })
        .collect();
    let plain = powers.iter().map(|&p| 1.0 / p);
    match &rope.scaling {
        RopeScaling::None => (plain.collect(), 1.0),
        RopeScaling::Linear { factor } => (plain.map(|f| f / *factor as f32).collect(), 1.0),
        RopeScaling::Llama3(scaling) => {
            let stretched = plain.map(|f| llama3_frequency(f, scaling)).collect();
            (stretched, 1.0)
        }
        RopeScaling::Yarn(yarn) => yarn_frequencies(&powers, yarn, rope.theta, dim),
    }
}

fn llama3_frequency(freq: f32, scaling: &Llama3Scaling) -> f32 {
    let original = scaling.original_max_position_embeddings as f64;
    let low_freq_wavelen = (original / scaling.low_freq_factor) as f32;
    let high_freq_wavelen = (original / scaling.high_freq_factor) as f32;
    let factor = scaling.factor as f32;
    let wavelen = (2.0 * PI) as f32 / freq;
    if wavelen > low_freq_wavelen {
        return freq / factor;
    }
    if wavelen < high_freq_wavelen {
        return freq;
    }
    let span = (scaling.high_freq_factor - scaling.low_freq_factor) as f32;
    let smooth = (original as f32 / wavelen - scaling.low_freq_factor as f32) / span;
    (1.0 - smooth) * freq / factor + smooth * freq
}

/// Llama 3.1's scaling by what it divides each frequency by, the highest first: GGUF keeps these numbers and not the
/// parameters, of which only the factor differs between published models. Refused where they give other numbers.
pub(super) fn llama3_of_factors(
    factors: &[f32],
    config: &serde_json::Value,
) -> Result<serde_json::Value, ConfigError> {
    let theta = config["rope_theta"].as_f64().unwrap_or(10_000.0);
    let scaling = Llama3Scaling {
        factor: f64::from(factors.iter().copied().fold(1.0, f32::max)),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let same = llama3_factors(theta, 2 * factors.len(), &scaling);
    if factors.iter().zip(&same).any(|(a, b)| (a - b).abs() > 1e-3 * b) {
        let supported = "must be that of Llama 3.1: one factor, from 1 to 4 rotations over 8192 positions";
        return Err(ConfigError::unsupported(
            "rope_freqs.weight",
            "another stretching of frequencies",
            supported,
        ));
    }
    Ok(serde_json::json!({
        "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }))
}

/// What Llama 3.1's scaling divides each of `dim / 2` frequencies by.
pub(crate) fn llama3_factors(theta: f64, dim: usize, scaling: &Llama3Scaling) -> Vec<f32> {
    let plain = frequencies(&RopeConfig::plain(theta), dim).0;
    plain.iter().map(|&f| f / llama3_frequency(f, scaling)).collect()
}

fn yarn_frequencies(powers: &[f32], yarn: &YarnScaling, theta: f64, dim: usize) -> (Vec<f32>, f32) {
    let attention_factor = yarn.attention_factor.unwrap_or_else(|| {
        let set = |scale: Option<f64>| scale.filter(|&m| m != 0.0);
        match (set(yarn.mscale), set(yarn.mscale_all_dim)) {
            (Some(mscale), Some(all_dim)) => {
                yarn_mscale(yarn.factor, mscale) / yarn_mscale(yarn.factor, all_dim)
            }
            _ => yarn_mscale(yarn.factor, 1.0),
        }
    });

    // The dimension whose pair turns `rotations` times over the original length.
    let original = yarn.original_max_position_embeddings as f64;
    let correction =
        |rotations: f64| dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (correction(yarn.beta_fast), correction(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(dim as f64 - 1.0);
    if low == high {
        high += 0.001; // no division by zero
    }

    let span = (high - low) as f32;
    let inv_freq = powers.iter().enumerate().map(|(i, &power)| {
        let ramp = ((i as f32 - low as f32) / span).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        let stretched = 1.0 / (yarn.factor as f32 * power);
        stretched * (1.0 - kept) + 1.0 / power * kept
    });
    (inv_freq.collect(), attention_factor as f32)
}
