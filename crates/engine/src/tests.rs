//! Models for the tests of this crate.

use model::{Model, ModelConfig};
use serde_json::json;

/// A model of random weights over 61 tokens, with experts ("moe"; "mtp" has an MTP layer too) or dense.
pub(crate) fn tiny(kind: &str) -> Model {
    let config = if kind != "dense" {
        json!({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 48, "moe_intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
            "v_head_dim": 10, "n_routed_experts": 5, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu", "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.3, "tie_word_embeddings": false,
            "num_nextn_predict_layers": u8::from(kind == "mtp")})
    } else {
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "initializer_range": 0.3, "tie_word_embeddings": true})
    };
    Model::random(ModelConfig::from_value(&config).expect("a valid config"), 3)
}
