//! What a model costs, counted from its configuration: parameters, operations, cache.
//!
//! A multiply-add is two operations. Only products are counted; norms, softmaxes, RoPE, activations and
//! the embedding's look-up are of lower order. Counts are of the arithmetic that the configuration asks
//! for, not of what a kernel may add.

use serde::Serialize;

use crate::config::{GqaConfig, MlaConfig, ModelConfig, TensorKind, TensorSpec, tensor_specs};

/// The count of a model; every number follows from the configuration and the context length alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Number of parameters.
    pub parameters: Parameters,
    /// Operations of one token's forward pass, MTP apart, averaged over a text of `context_length` tokens.
    pub forward: Operations,
    /// The same for all MTP layers, each with its pass through the shared head.
    pub mtp_forward: Operations,
    /// Operations of one token in training, forward and backward, MTP apart.
    pub training_operations_per_token: u64,
    /// The same for the MTP layers.
    pub mtp_training_operations_per_token: u64,
    /// The context length that the scores are counted at.
    pub context_length: usize,
    /// Cache sizes, MTP layers apart.
    pub kv_cache: KvCache,
}

/// Numbers of parameters. `e_score_correction_bias` is no parameter: no gradient trains it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All of the main model.
    pub total: u64,
    /// Those of the main model that one token's pass touches: all but the routed experts not chosen.
    pub active: u64,
    /// `total` without embedding and head.
    pub total_without_embeddings: u64,
    /// `active` without embedding and head.
    pub active_without_embeddings: u64,
    /// Embedding and head (once where tied).
    pub embeddings: u64,
    /// All of the MTP layers.
    pub mtp: u64,
    /// Those of the MTP layers that one token's pass touches.
    pub mtp_active: u64,
}

/// Operations per token, by component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Operations {
    /// The matrices of attention, q, k, v and o or their MLA counterparts.
    pub attention_projections: u64,
    /// q·k and p·v, over the mean number of keys that a causal token sees: `(context_length + 1) / 2`.
    pub attention_scores: u64,
    /// The SwiGLU of dense layers.
    pub dense_mlp: u64,
    /// The routed experts that a token passes.
    pub routed_experts: u64,
    /// The shared experts.
    pub shared_experts: u64,
    /// The router's matrix.
    pub router: u64,
    /// `eh_proj` of MTP layers.
    pub mtp_projection: u64,
    /// The product with the vocabulary.
    pub head: u64,
}

impl Operations {
    /// The sum of all components.
    pub fn total(&self) -> u64 {
        self.products() + self.attention_scores
    }

    /// Products with weights: everything but the scores.
    fn products(&self) -> u64 {
        self.attention_projections
            + self.dense_mlp
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.mtp_projection
            + self.head
    }

    /// Forward and backward. A product with a weight has two in the backward pass, one for each operand's
    /// gradient. The two of attention (q·k and p·v) have four, and the scores are computed once more
    /// because only their log-sum-exp is kept: 2 + 5 products, 3.5 times the forward pass.
    fn training(&self) -> u64 {
        3 * self.products() + self.attention_scores / 2 * 7
    }
}

/// Bytes of cache per token, over all layers of the main model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KvCache {
    /// Keys and values as attention reads them, in f32: per head for MLA, per key/value head for GQA.
    pub expanded_f32: u64,
    /// The same in bf16.
    pub expanded_bf16: u64,
    /// MLA only: the latent `c` and the shared rotated key, in f32.
    pub latent_f32: Option<u64>,
    /// MLA only: the same in bf16.
    pub latent_bf16: Option<u64>,
    /// What a key and a value for every query head would take, in f32.
    pub mha_equivalent_f32: u64,
}

/// Counts a model at a context length (the length of the texts that it reads or writes).
///
/// `config` must be one that [`ModelConfig::validate`] accepts.
pub fn inspect(config: &ModelConfig, context_length: usize) -> Inspection {
    let specs = tensor_specs(config);
    let main_layers = config.num_hidden_layers();
    let forward = forward(config, &specs, 0..main_layers, context_length);
    let all_layers = specs.iter().filter_map(|spec| spec.layer).max().map_or(0, |last| last + 1);
    let mtp_forward = self::forward(config, &specs, main_layers..all_layers, context_length);
    Inspection {
        parameters: parameters(config, &specs),
        training_operations_per_token: forward.training(),
        mtp_training_operations_per_token: mtp_forward.training(),
        forward,
        mtp_forward,
        context_length,
        kv_cache: kv_cache(config),
    }
}

/// How many of a layer's routed experts a token passes, over how many there are.
fn chosen_experts(config: &ModelConfig) -> (u64, u64) {
    match config {
        ModelConfig::Mla(c) => (c.num_experts_per_tok as u64, c.n_routed_experts as u64),
        ModelConfig::Gqa(c) => {
            c.experts.as_ref().map_or((1, 1), |e| (e.num_experts_per_tok as u64, e.num_experts as u64))
        }
    }
}

fn parameters(config: &ModelConfig, specs: &[TensorSpec]) -> Parameters {
    let mut sum = Parameters::default();
    let (mut experts, mut mtp_experts) = (0, 0);
    for spec in specs {
        let elements = spec.elements() as u64;
        let is_mtp = spec.layer.is_some_and(|layer| layer >= config.num_hidden_layers());
        match spec.kind {
            TensorKind::RouterBias => continue,
            TensorKind::Embedding | TensorKind::Head => sum.embeddings += elements,
            TensorKind::Expert { .. } if is_mtp => mtp_experts += elements,
            TensorKind::Expert { .. } => experts += elements,
            _ => {}
        }
        *(if is_mtp { &mut sum.mtp } else { &mut sum.total }) += elements;
    }
    let (chosen, all) = chosen_experts(config);
    // Experts are alike, so dividing first is exact.
    sum.active = sum.total - experts + experts / all * chosen;
    sum.mtp_active = sum.mtp - mtp_experts + mtp_experts / all * chosen;
    sum.total_without_embeddings = sum.total - sum.embeddings;
    sum.active_without_embeddings = sum.active - sum.embeddings;
    sum
}

fn forward(
    config: &ModelConfig,
    specs: &[TensorSpec],
    layers: std::ops::Range<usize>,
    context_length: usize,
) -> Operations {
    let mut sum = Operations::default();
    let (mut heads, mut experts) = (u64::from(layers.start == 0), 0);
    for spec in specs.iter().filter(|spec| spec.layer.is_some_and(|layer| layers.contains(&layer))) {
        let operations = 2 * spec.elements() as u64;
        let part = match spec.kind {
            TensorKind::Expert { .. } => &mut experts,
            TensorKind::Router => &mut sum.router,
            TensorKind::Matrix if spec.name.contains(".self_attn.") => &mut sum.attention_projections,
            TensorKind::Matrix if spec.name.contains(".shared_experts.") => &mut sum.shared_experts,
            TensorKind::Matrix if spec.name.contains(".mlp.") => &mut sum.dense_mlp,
            TensorKind::Matrix => {
                heads += 1; // an MTP layer, which ends in the shared head
                &mut sum.mtp_projection
            }
            _ => continue,
        };
        *part += operations;
    }
    let (chosen, all) = chosen_experts(config);
    sum.routed_experts = experts / all * chosen;
    // 2 operations · (context + 1) / 2 keys, per element of a head's key and value.
    let keys_twice = context_length as u64 + 1;
    sum.attention_scores = layers.len() as u64 * keys_twice * key_value_elements(config);
    sum.head = heads * 2 * config.vocab_size() as u64 * config.hidden_size() as u64;
    sum
}

/// Elements of one key and one value for every query head.
fn key_value_elements(config: &ModelConfig) -> u64 {
    let per_head = match config {
        ModelConfig::Mla(c) => c.qk_head_dim() + c.v_head_dim,
        ModelConfig::Gqa(c) => 2 * c.head_dim,
    };
    config.num_attention_heads() as u64 * per_head as u64
}

fn kv_cache(config: &ModelConfig) -> KvCache {
    let layers = config.num_hidden_layers() as u64;
    let mha = layers * key_value_elements(config);
    let (expanded, latent) = match config {
        ModelConfig::Mla(c) => (mha, Some(layers * latent_elements(c))),
        ModelConfig::Gqa(c) => (layers * grouped_elements(c), None),
    };
    KvCache {
        expanded_f32: 4 * expanded,
        expanded_bf16: 2 * expanded,
        latent_f32: latent.map(|n| 4 * n),
        latent_bf16: latent.map(|n| 2 * n),
        mha_equivalent_f32: 4 * mha,
    }
}

fn latent_elements(c: &MlaConfig) -> u64 {
    (c.kv_lora_rank + c.qk_rope_head_dim) as u64
}

fn grouped_elements(c: &GqaConfig) -> u64 {
    2 * (c.num_key_value_heads * c.head_dim) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ModelConfig {
        ModelConfig::from_json(json).unwrap()
    }

    /// Hand count of a two-layer Qwen-shaped model: protects the dense formulas and the tied head.
    #[test]
    fn dense_model_equals_the_hand_count() {
        let config = config(
            r#"{"model_type":"llama","vocab_size":100,"hidden_size":24,"intermediate_size":40,
                "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":6,
                "tie_word_embeddings":true}"#,
        );
        let found = inspect(&config, 9);
        // q 24·24, k and v 12·24 each, o 24·24; three MLP matrices of 40·24; two norms of 24.
        let attention = 576 + 2 * 288 + 576;
        let layer = attention + 3 * 960 + 48;
        assert_eq!(found.parameters.total, 2 * layer + 2400 + 24);
        assert_eq!(found.parameters.active, found.parameters.total);
        assert_eq!(found.parameters.embeddings, 2400);
        assert_eq!(found.forward.attention_projections, 2 * 2 * attention);
        assert_eq!(found.forward.dense_mlp, 2 * 2 * 3 * 960);
        // 5 keys on average, 4 heads of 6 for q·k and for p·v, two operations each, two layers.
        assert_eq!(found.forward.attention_scores, 2 * (5 * 4 * 6 * 2) * 2);
        assert_eq!(found.forward.head, 2 * 100 * 24);
        let products = found.forward.total() - found.forward.attention_scores;
        assert_eq!(found.training_operations_per_token, 3 * products + 960 / 2 * 7);
        assert_eq!(found.kv_cache.expanded_f32, 2 * 2 * 12 * 4);
        assert_eq!(found.kv_cache.mha_equivalent_f32, 2 * 2 * 24 * 4);
        assert_eq!(found.kv_cache.latent_f32, None);
    }

    /// Hand count of one dense, one expert and one MTP layer: protects active against total, the split of
    /// the experts, and that MTP stays apart.
    #[test]
    fn expert_model_equals_the_hand_count() {
        let config = config(
            r#"{"model_type":"deepseek_v3","vocab_size":50,"hidden_size":16,"intermediate_size":20,
                "moe_intermediate_size":6,"num_hidden_layers":2,"num_attention_heads":2,
                "q_lora_rank":null,"kv_lora_rank":5,"qk_nope_head_dim":3,"qk_rope_head_dim":2,
                "v_head_dim":4,"n_routed_experts":8,"n_shared_experts":2,"num_experts_per_tok":3,
                "n_group":2,"topk_group":1,"first_k_dense_replace":1,"num_nextn_predict_layers":1}"#,
        );
        let found = inspect(&config, 3);
        let projections = 2 * 5 * 16 + (5 + 2) * 16 + 2 * 7 * 5 + 16 * 2 * 4;
        let (norms, expert) = (16 + 5 + 16, 3 * 6 * 16);
        let shared_and_router = 3 * 12 * 16 + 8 * 16;
        let dense_layer = projections + norms + 3 * 20 * 16;
        let expert_layer = projections + norms + shared_and_router;
        let ends = 2 * 50 * 16 + 16;
        let parameters = found.parameters;
        assert_eq!(parameters.total, (dense_layer + expert_layer + 8 * expert + ends) as u64);
        assert_eq!(parameters.active, (dense_layer + expert_layer + 3 * expert + ends) as u64);
        assert_eq!(parameters.total_without_embeddings, parameters.total - 1600);
        let mtp = expert_layer + 3 * 16 + 16 * 32;
        assert_eq!(parameters.mtp, (mtp + 8 * expert) as u64);
        assert_eq!(parameters.mtp_active, (mtp + 3 * expert) as u64);

        let forward = found.forward;
        assert_eq!(forward.attention_projections, 2 * 2 * projections as u64);
        assert_eq!(forward.routed_experts, 2 * 3 * expert as u64);
        assert_eq!(forward.shared_experts, 2 * 3 * 12 * 16);
        assert_eq!(forward.router, 2 * 8 * 16);
        assert_eq!(forward.dense_mlp, 2 * 3 * 20 * 16);
        assert_eq!(forward.attention_scores, 2 * 2 * 2 * 2 * (5 + 4));
        assert_eq!((forward.head, forward.mtp_projection), (2 * 800, 0));
        assert_eq!(found.mtp_forward.head, 2 * 800);
        assert_eq!(found.mtp_forward.mtp_projection, 2 * 16 * 32);
        assert_eq!(found.mtp_forward.dense_mlp, 0);

        assert_eq!(found.kv_cache.latent_bf16, Some(2 * 7 * 2));
        assert_eq!(found.kv_cache.latent_f32, Some(2 * 7 * 4));
        assert_eq!(found.kv_cache.expanded_f32, 2 * 2 * (5 + 4) * 4);
    }

    /// The published sizes of DeepSeek-V3: 671B in all, 37B active, 70 KB of cache per token.
    #[test]
    fn deepseek_v3_has_its_published_size() {
        let config = config(crate::config::DEEPSEEK_V3_JSON);
        let found = inspect(&config, 4096);
        assert_eq!(found.parameters.total, 671_026_404_352);
        assert_eq!(found.parameters.active / 1_000_000_000, 37);
        assert_eq!(found.kv_cache.latent_bf16, Some(61 * 576 * 2));
    }
}
