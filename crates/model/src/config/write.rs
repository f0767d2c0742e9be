//! From [`ModelConfig`] to the `config.json` that `transformers` 4.5x and 5 read alike.
//!
//! The old keys `rope_theta` and `rope_scaling` are written: version 5 still reads them (and moves them to
//! `rope_parameters`), version 4 knows no others. Lengths are integers and factors floats throughout,
//! because version 5 checks types.

use serde_json::{Value, json};

use super::{GqaConfig, MlaConfig, ModelConfig, RopeConfig, RopeScaling};

pub(super) fn config(config: &ModelConfig) -> Value {
    let (mut value, rope) = match config {
        ModelConfig::Mla(c) => (mla(c), &c.rope),
        ModelConfig::Gqa(c) => (gqa(c), &c.rope),
    };
    let shared = json!({
        "architectures": [config.family().class],
        "model_type": config.model_type(),
        "vocab_size": config.vocab_size(),
        "hidden_size": config.hidden_size(),
        "num_hidden_layers": config.num_hidden_layers(),
        "num_attention_heads": config.num_attention_heads(),
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps(),
        "tie_word_embeddings": config.tie_word_embeddings(),
        "max_position_embeddings": config.max_position_embeddings(),
        "initializer_range": config.initializer_range(),
        "rope_theta": rope.theta,
        "rope_scaling": rope_scaling(rope),
        "bos_token_id": config.bos_token_id(),
        "eos_token_id": token_ids(config.eos_token_id()),
        "pad_token_id": config.pad_token_id(),
        "attention_dropout": 0.0,
        "use_cache": true,
    });
    for more in [shared, (config.family().own_keys)(config)] {
        if let (Value::Object(map), Value::Object(more)) = (&mut value, more) {
            map.extend(more);
        }
    }
    value
}

fn gqa(c: &GqaConfig) -> Value {
    json!({
        "intermediate_size": c.intermediate_size,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
    })
}

fn mla(c: &MlaConfig) -> Value {
    json!({
        "intermediate_size": c.intermediate_size,
        "moe_intermediate_size": c.moe_intermediate_size,
        "num_key_value_heads": c.num_attention_heads,
        "q_lora_rank": c.q_lora_rank,
        "kv_lora_rank": c.kv_lora_rank,
        "qk_nope_head_dim": c.qk_nope_head_dim,
        "qk_rope_head_dim": c.qk_rope_head_dim,
        "v_head_dim": c.v_head_dim,
        "n_routed_experts": c.n_routed_experts,
        "n_shared_experts": c.n_shared_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "n_group": c.n_group,
        "topk_group": c.topk_group,
        "norm_topk_prob": c.norm_topk_prob,
        "routed_scaling_factor": c.routed_scaling_factor,
        "first_k_dense_replace": c.first_k_dense_replace,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": c.num_nextn_predict_layers,
        "attention_bias": false,
    })
}

fn rope_scaling(rope: &RopeConfig) -> Value {
    match &rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3(scaling) => json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }),
        RopeScaling::Yarn(yarn) => {
            let mut value = json!({
                "rope_type": "yarn",
                "type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_position_embeddings,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
            });
            let optional = [
                ("mscale", yarn.mscale),
                ("mscale_all_dim", yarn.mscale_all_dim),
                ("attention_factor", yarn.attention_factor),
            ];
            for (key, number) in optional {
                if let Some(number) = number {
                    value[key] = json!(number);
                }
            }
            if !yarn.truncate {
                value["truncate"] = json!(false);
            }
            value
        }
    }
}

/// One id is written as a number, as most tools expect it; several as a list; none as null.
pub(crate) fn token_ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}
