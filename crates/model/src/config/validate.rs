//! Bounds on a configuration, so that a hostile file gives an error instead of a panic or an allocation.

use tensor::ops::MAX_EXPERTS;

use super::{ConfigError, GqaConfig, MlaConfig, ModelConfig, RopeConfig, RopeScaling, tensors};

/// No single size of a real model is near this.
const MAX_SIZE: usize = 1 << 24;
pub(crate) const MAX_LAYERS: usize = 4096;
const MAX_POSITIONS: usize = 1 << 28;
/// More tensors than any published model has (Kimi K2: 70 thousand), few enough to list their names in some 40 MB.
const MAX_TENSORS: u64 = 1 << 18;
/// 281 trillion parameters.
const MAX_PARAMETERS: u64 = 1 << 48;

type Checked = Result<(), ConfigError>;

/// The router ranks so many experts at most.
fn experts(key: &'static str, count: usize) -> Checked {
    let most = format!("must be at most {MAX_EXPERTS}");
    ensure(count <= MAX_EXPERTS, key, count, most)
}

fn size(key: &str, found: usize, max: usize) -> Checked {
    if (1..=max).contains(&found) {
        return Ok(());
    }
    Err(ConfigError::unsupported(key, found, format!("must be between 1 and {max}")))
}

fn sizes(list: &[(&str, usize)]) -> Checked {
    list.iter().try_for_each(|&(key, found)| size(key, found, MAX_SIZE))
}

fn number(key: &str, found: f64, range: std::ops::RangeInclusive<f64>) -> Checked {
    if range.contains(&found) {
        return Ok(());
    }
    let (low, high) = range.into_inner();
    Err(ConfigError::unsupported(key, found, format!("must be between {low} and {high}")))
}

fn ensure(holds: bool, key: &str, found: impl ToString, supported: impl Into<String>) -> Checked {
    if holds {
        return Ok(());
    }
    Err(ConfigError::unsupported(key, found, supported))
}

pub(super) fn config(config: &ModelConfig) -> Checked {
    sizes(&[
        ("vocab_size", config.vocab_size()),
        ("hidden_size", config.hidden_size()),
        ("num_attention_heads", config.num_attention_heads()),
    ])?;
    size("num_hidden_layers", config.num_hidden_layers(), MAX_LAYERS)?;
    size("max_position_embeddings", config.max_position_embeddings(), MAX_POSITIONS)?;
    number("rms_norm_eps", config.rms_norm_eps(), 1e-30..=1.0)?;
    number("initializer_range", config.initializer_range(), 0.0..=10.0)?;
    token_ids(config)?;
    rope(config.rope())?;
    match config {
        ModelConfig::Mla(c) => mla(c)?,
        ModelConfig::Gqa(c) => gqa(c)?,
    }

    let tensors = tensors::count(config);
    let too_many = format!("the model would have {tensors} tensors, more than {MAX_TENSORS}");
    ensure(tensors <= MAX_TENSORS, "num_hidden_layers", config.num_hidden_layers(), too_many)?;
    // Every tensor is listed only now that their number is known to be bounded.
    let mut parameters = 0u64;
    for spec in tensors::tensor_specs(config) {
        let elements = spec.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        parameters = elements
            .and_then(|n| parameters.checked_add(n))
            .filter(|&n| n <= MAX_PARAMETERS)
            .ok_or_else(|| {
                let many = "together with the other sizes it gives more than 2^48 parameters";
                ConfigError::unsupported("hidden_size", config.hidden_size(), many)
            })?;
    }
    Ok(())
}

fn token_ids(config: &ModelConfig) -> Checked {
    let vocab = config.vocab_size();
    let named = config.bos_token_id().map(|id| ("bos_token_id", id)).into_iter();
    let named = named.chain(config.pad_token_id().map(|id| ("pad_token_id", id)));
    let named = named.chain(config.eos_token_id().iter().map(|&id| ("eos_token_id", id)));
    for (key, id) in named {
        let below = format!("must be below vocab_size ({vocab})");
        ensure((id as usize) < vocab, key, id, below)?;
    }
    Ok(())
}

fn gqa(c: &GqaConfig) -> Checked {
    sizes(&[
        ("intermediate_size", c.intermediate_size),
        ("num_key_value_heads", c.num_key_value_heads),
        ("head_dim", c.head_dim),
    ])?;
    ensure(
        c.num_attention_heads.is_multiple_of(c.num_key_value_heads),
        "num_key_value_heads",
        c.num_key_value_heads,
        format!("must divide num_attention_heads ({})", c.num_attention_heads),
    )?;
    ensure(
        c.family.model_type != "llama" || c.hidden_size.is_multiple_of(c.num_attention_heads),
        "num_attention_heads",
        c.num_attention_heads,
        format!("must divide hidden_size ({}) for llama", c.hidden_size),
    )?;
    if let Some(e) = &c.experts {
        sizes(&[
            ("num_experts", e.num_experts),
            ("num_experts_per_tok", e.num_experts_per_tok),
            ("moe_intermediate_size", e.moe_intermediate_size),
        ])?;
        experts("num_experts", e.num_experts)?;
        let most = format!("must be at most num_experts ({})", e.num_experts);
        ensure(e.num_experts_per_tok <= e.num_experts, "num_experts_per_tok", e.num_experts_per_tok, most)?;
    }
    if let Some(window) = c.layers.iter().find_map(|l| l.window) {
        size("sliding_window", window, MAX_POSITIONS)?;
    }
    number("query_pre_attn_scalar", c.query_pre_attn_scalar.unwrap_or(1.0), 1e-3..=1e6)?;
    number("rope_local_base_freq", c.rope_local_base_freq.unwrap_or(10_000.0), 1.001..=1e15)?;
    ensure(c.head_dim.is_multiple_of(2), "head_dim", c.head_dim, "must be even: RoPE rotates pairs")
}

fn mla(c: &MlaConfig) -> Checked {
    sizes(&[
        ("intermediate_size", c.intermediate_size),
        ("moe_intermediate_size", c.moe_intermediate_size),
        ("kv_lora_rank", c.kv_lora_rank),
        ("qk_nope_head_dim", c.qk_nope_head_dim),
        ("qk_rope_head_dim", c.qk_rope_head_dim),
        ("v_head_dim", c.v_head_dim),
        ("n_routed_experts", c.n_routed_experts),
        ("n_shared_experts", c.n_shared_experts),
        ("num_experts_per_tok", c.num_experts_per_tok),
        ("n_group", c.n_group),
        ("topk_group", c.topk_group),
    ])?;
    experts("n_routed_experts", c.n_routed_experts)?;
    if let Some(rank) = c.q_lora_rank {
        size("q_lora_rank", rank, MAX_SIZE)?;
    }
    number("routed_scaling_factor", c.routed_scaling_factor, 1e-6..=1e6)?;
    let even = "must be even: RoPE rotates pairs";
    ensure(c.qk_rope_head_dim.is_multiple_of(2), "qk_rope_head_dim", c.qk_rope_head_dim, even)?;
    ensure(
        c.first_k_dense_replace <= MAX_SIZE,
        "first_k_dense_replace",
        c.first_k_dense_replace,
        format!("must be at most {MAX_SIZE}"),
    )?;
    ensure(
        c.num_nextn_predict_layers <= 1,
        "num_nextn_predict_layers",
        c.num_nextn_predict_layers,
        "must be 0 or 1: only one layer of multi-token prediction is built",
    )?;
    ensure(
        c.n_routed_experts.is_multiple_of(c.n_group) && c.n_routed_experts >= 2 * c.n_group,
        "n_group",
        c.n_group,
        format!("must divide n_routed_experts ({}) into groups of two or more", c.n_routed_experts),
    )?;
    let most_groups = format!("must be at most n_group ({})", c.n_group);
    ensure(c.topk_group <= c.n_group, "topk_group", c.topk_group, most_groups)?;
    let candidates = c.n_routed_experts / c.n_group * c.topk_group;
    let most_experts = format!("must be at most the {candidates} experts of the topk_group groups");
    ensure(c.num_experts_per_tok <= candidates, "num_experts_per_tok", c.num_experts_per_tok, most_experts)?;
    let shared = c.n_shared_experts.checked_mul(c.moe_intermediate_size);
    ensure(
        shared.is_some_and(|width| width <= MAX_SIZE),
        "n_shared_experts",
        c.n_shared_experts,
        format!("the shared experts' width must be at most {MAX_SIZE}"),
    )
}

fn rope(rope: &RopeConfig) -> Checked {
    number("rope_theta", rope.theta, 1.001..=1e15)?;
    let key = |name| format!("rope_scaling.{name}");
    let factor = |factor| number(&key("factor"), factor, 1.0..=1e6);
    let original = |length| size(&key("original_max_position_embeddings"), length, MAX_POSITIONS);
    match &rope.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor: f } => factor(*f),
        RopeScaling::Llama3(scaling) => {
            factor(scaling.factor)?;
            original(scaling.original_max_position_embeddings)?;
            number(&key("low_freq_factor"), scaling.low_freq_factor, 1e-6..=1e6)?;
            number(&key("high_freq_factor"), scaling.high_freq_factor, 1e-6..=1e6)?;
            ensure(
                scaling.high_freq_factor > scaling.low_freq_factor,
                &key("high_freq_factor"),
                scaling.high_freq_factor,
                format!("must be above low_freq_factor ({})", scaling.low_freq_factor),
            )
        }
        RopeScaling::Yarn(yarn) => {
            factor(yarn.factor)?;
            original(yarn.original_max_position_embeddings)?;
            number(&key("beta_slow"), yarn.beta_slow, 1e-6..=1e6)?;
            number(&key("beta_fast"), yarn.beta_fast, yarn.beta_slow..=1e6)?;
            let optional = [
                ("mscale", yarn.mscale),
                ("mscale_all_dim", yarn.mscale_all_dim),
                ("attention_factor", yarn.attention_factor),
            ];
            for (name, value) in optional {
                number(&key(name), value.unwrap_or(0.0), 0.0..=1e3)?;
            }
            Ok(())
        }
    }
}
