//! The ledger's operation counts against a count by hand.

use model::{Model, ModelConfig, whole};
use serde_json::json;
use tensor::operations::{self, Part};
use tensor::{Tape, ops};

#[test]
fn one_layer_counts_what_a_hand_count_gives() {
    // H 32, A 2 heads of nope 12 + rope 8, values of 10, latent 16; 5 experts of width 20, 2 active, 1 shared; V 61.
    let config = json!({"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 61, "hidden_size": 32,
        "intermediate_size": 48, "moe_intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "n_routed_experts": 5,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
        "routed_scaling_factor": 1.0, "first_k_dense_replace": 0, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false});
    let mut model = Model::random(ModelConfig::from_value(&config).expect("valid"), 1);
    model.params_mut().zero_grads();
    let lens = [7usize, 4];
    let n: u64 = 11;
    let before = operations::counts();
    let tape = Tape::recording(model.params());
    let ids: Vec<u32> = (0..11).collect();
    let pass = model.forward(&tape, &ids, &whole(&lens), Default::default(), None);
    let forward = operations::counts().since(&before);
    // Per token: q 32·40, latent and rotary key 32·24, keys and values 16·44, output 20·32, router 32·5,
    // shared expert 3·32·20; a multiply-add is two operations.
    let linear = 2 * n * (32 * 40 + 32 * 24 + 16 * 44 + 20 * 32 + 32 * 5 + 3 * 32 * 20);
    let experts = 2 * n * 2 * 3 * 32 * 20;
    // Each token sees those before it and itself: 28 + 10 pairs, two heads, 20 components of a key and 10 of a value.
    let pairs = (7 * 8 + 4 * 5) / 2;
    let attention = 2 * 2 * pairs * (20 + 10);
    assert_eq!(forward.of(Part::Linear), linear);
    assert_eq!(forward.of(Part::Experts), experts);
    assert_eq!(forward.of(Part::Attention), attention);
    assert_eq!(forward.of(Part::Head), 0);

    let before = operations::counts();
    ops::cross_entropy(&tape, &pass.hidden, model.head(), &ids, &[1.0; 11]);
    tape.backward();
    let backward = operations::counts().since(&before);
    // Every product has two gradients; the scores are computed once more; the head's forward is in here.
    assert_eq!(backward.of(Part::Linear), 2 * linear);
    assert_eq!(backward.of(Part::Experts), 2 * experts);
    assert_eq!(backward.of(Part::Attention), 2 * 2 * pairs * (3 * 20 + 2 * 10));
    assert_eq!(backward.of(Part::Head), 3 * 2 * n * 32 * 61);
}
