//! Every tensor of a model: its Hugging Face name, its shape and its role, in the order of the weight arena.
//!
//! The order is part of the contract with the engine: matrices that share an input lie next to each other,
//! so that one product serves them all. Per layer these are q, k, v (dense), `q_a_proj` or `q_proj` with
//! `kv_a_proj_with_mqa` (DeepSeek), and `gate_proj` with `up_proj` in every MLP and expert.
//!
//! Letters: V vocabulary, H hidden, I width of an MLP, A heads, G key/value heads, D head width.

use serde::Serialize;

use super::{GqaConfig, MlaConfig, ModelConfig, QkNorm};

/// What a tensor is for: decides its initialisation, its weight decay and its optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorKind {
    /// `embed_tokens`, `[V, H]`.
    Embedding,
    /// A projection outside of the routed experts, `[out, in]`.
    Matrix,
    /// A projection of a routed expert, `[out, in]`.
    Expert {
        /// The layer, counted through MTP layers.
        layer: usize,
        /// The expert's number in its layer.
        expert: usize,
    },
    /// Scale of an RMSNorm, `[width]`; starts at one.
    Norm,
    /// Bias of q, k or v, `[out]`; starts at zero.
    Bias,
    /// The router's matrix, `[experts, H]`.
    Router,
    /// `e_score_correction_bias`, `[experts]`: moved by the load of the experts, never by a gradient, and
    /// kept in f32 in every file.
    RouterBias,
    /// `lm_head`, `[V, H]`; absent where it is tied to the embedding.
    Head,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Row-major shape; a matrix is `[out, in]`.
    pub shape: Vec<usize>,
    /// Its role.
    pub kind: TensorKind,
    /// The layer that it belongs to, counted through MTP layers; `None` for embedding, last norm and head.
    pub layer: Option<usize>,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All tensors that a model folder holds for this configuration, in the fixed order of the weight arena:
/// embedding, layers, last norm, head (unless tied), MTP layers.
///
/// An MTP layer shares the embedding and the head of the main model; they are not listed again.
///
/// # Panics
/// A configuration that [`ModelConfig::validate`] accepts never panics; others may.
pub fn tensor_specs(config: &ModelConfig) -> Vec<TensorSpec> {
    let (v, h) = (config.vocab_size(), config.hidden_size());
    let mut list =
        List { specs: Vec::with_capacity(count(config) as usize), prefix: "model.".to_owned(), layer: None };
    list.push("embed_tokens.weight", &[v, h], TensorKind::Embedding);
    for layer in 0..config.num_hidden_layers() {
        list.enter(layer);
        match config {
            ModelConfig::Mla(c) => mla_layer(&mut list, c, layer),
            ModelConfig::Gqa(c) => gqa_layer(&mut list, c, layer),
        }
    }
    list.leave("model.");
    list.norm("norm", h);
    if !config.tie_word_embeddings() {
        list.leave("");
        list.push("lm_head.weight", &[v, h], TensorKind::Head);
    }
    if let ModelConfig::Mla(c) = config {
        for layer in c.num_hidden_layers..c.num_hidden_layers + c.num_nextn_predict_layers {
            list.enter(layer);
            list.norm("enorm", h);
            list.norm("hnorm", h);
            // Over [RMSNorm(embedding); RMSNorm(hidden)], the order of published checkpoints.
            list.matrix("eh_proj", h, 2 * h);
            mla_layer(&mut list, c, layer);
            list.norm("shared_head.norm", h);
        }
    }
    list.specs
}

/// How many tensors [`tensor_specs`] lists, saturating, without listing them.
pub(crate) fn count(config: &ModelConfig) -> u64 {
    let head = 2 + u64::from(!config.tie_word_embeddings());
    match config {
        ModelConfig::Gqa(c) => {
            let norms = 2 + 2 * u64::from(c.qk_norm != QkNorm::None) + 2 * u64::from(c.sandwich_norms);
            let mlp =
                c.experts.as_ref().map_or(3, |e| (e.num_experts as u64).saturating_mul(3).saturating_add(1));
            let layer = mlp.saturating_add(4 + norms + 3 * u64::from(c.qkv_bias));
            head.saturating_add(layer.saturating_mul(c.num_hidden_layers as u64))
        }
        ModelConfig::Mla(c) => {
            let layers = c.num_hidden_layers.saturating_add(c.num_nextn_predict_layers) as u64;
            let dense = c.num_hidden_layers.min(c.first_k_dense_replace) as u64;
            let attention = 6 + if c.q_lora_rank.is_some() { 3 } else { 1 };
            let moe = (5 - u64::from(c.softmax_router))
                .saturating_add((c.n_routed_experts as u64).saturating_mul(3));
            layers
                .saturating_mul(attention)
                .saturating_add(dense.saturating_mul(3))
                .saturating_add((layers - dense).saturating_mul(moe))
                .saturating_add((c.num_nextn_predict_layers as u64).saturating_mul(4))
                .saturating_add(head)
        }
    }
}

/// The list under construction and the place in the model that names are relative to.
struct List {
    specs: Vec<TensorSpec>,
    prefix: String,
    layer: Option<usize>,
}

impl List {
    fn enter(&mut self, layer: usize) {
        self.prefix = format!("model.layers.{layer}.");
        self.layer = Some(layer);
    }

    fn leave(&mut self, prefix: &str) {
        self.prefix = prefix.to_owned();
        self.layer = None;
    }

    fn push(&mut self, name: &str, shape: &[usize], kind: TensorKind) {
        self.specs.push(TensorSpec {
            name: format!("{}{name}", self.prefix),
            shape: shape.to_vec(),
            kind,
            layer: self.layer,
        });
    }

    fn matrix(&mut self, name: &str, out: usize, input: usize) {
        self.push(&format!("{name}.weight"), &[out, input], TensorKind::Matrix);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.push(&format!("{name}.weight"), &[width], TensorKind::Norm);
    }

    fn bias(&mut self, name: &str, width: usize) {
        self.push(&format!("{name}.bias"), &[width], TensorKind::Bias);
    }

    /// gate, up, down of a SwiGLU of width `i`.
    fn swiglu(&mut self, name: &str, h: usize, i: usize, kind: TensorKind) {
        self.push(&format!("{name}.gate_proj.weight"), &[i, h], kind);
        self.push(&format!("{name}.up_proj.weight"), &[i, h], kind);
        self.push(&format!("{name}.down_proj.weight"), &[h, i], kind);
    }
}

fn gqa_layer(list: &mut List, c: &GqaConfig, layer: usize) {
    let h = c.hidden_size;
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    list.norm("input_layernorm", h);
    list.matrix("self_attn.q_proj", q, h);
    list.matrix("self_attn.k_proj", kv, h);
    list.matrix("self_attn.v_proj", kv, h);
    if c.qkv_bias {
        list.bias("self_attn.q_proj", q);
        list.bias("self_attn.k_proj", kv);
        list.bias("self_attn.v_proj", kv);
    }
    let (q_norm, k_norm) = match c.qk_norm {
        QkNorm::None => (0, 0),
        QkNorm::Head => (c.head_dim, c.head_dim),
        QkNorm::Whole => (q, kv),
    };
    if c.qk_norm != QkNorm::None {
        list.norm("self_attn.q_norm", q_norm);
        list.norm("self_attn.k_norm", k_norm);
    }
    list.matrix("self_attn.o_proj", h, q);
    list.norm("post_attention_layernorm", h);
    if c.sandwich_norms {
        list.norm("pre_feedforward_layernorm", h);
    }
    match &c.experts {
        None => list.swiglu("mlp", h, c.intermediate_size, TensorKind::Matrix),
        Some(e) => {
            list.push("mlp.gate.weight", &[e.num_experts, h], TensorKind::Router);
            for expert in 0..e.num_experts {
                let kind = TensorKind::Expert { layer, expert };
                list.swiglu(&format!("mlp.experts.{expert}"), h, e.moe_intermediate_size, kind);
            }
        }
    }
    if c.sandwich_norms {
        list.norm("post_feedforward_layernorm", h);
    }
}

fn mla_layer(list: &mut List, c: &MlaConfig, layer: usize) {
    let (h, heads) = (c.hidden_size, c.num_attention_heads);
    let q = heads * c.qk_head_dim();
    list.norm("input_layernorm", h);
    match c.q_lora_rank {
        Some(rank) => list.matrix("self_attn.q_a_proj", rank, h),
        None => list.matrix("self_attn.q_proj", q, h),
    }
    list.matrix("self_attn.kv_a_proj_with_mqa", c.kv_lora_rank + c.qk_rope_head_dim, h);
    if let Some(rank) = c.q_lora_rank {
        list.norm("self_attn.q_a_layernorm", rank);
        list.matrix("self_attn.q_b_proj", q, rank);
    }
    list.norm("self_attn.kv_a_layernorm", c.kv_lora_rank);
    let kv = heads * (c.qk_nope_head_dim + c.v_head_dim);
    list.matrix("self_attn.kv_b_proj", kv, c.kv_lora_rank);
    list.matrix("self_attn.o_proj", h, heads * c.v_head_dim);
    list.norm("post_attention_layernorm", h);
    if !c.is_moe_layer(layer) {
        return list.swiglu("mlp", h, c.intermediate_size, TensorKind::Matrix);
    }
    let experts = c.n_routed_experts;
    list.push("mlp.gate.weight", &[experts, h], TensorKind::Router);
    if !c.softmax_router {
        list.push("mlp.gate.e_score_correction_bias", &[experts], TensorKind::RouterBias);
    }
    let shared = c.shared_intermediate_size();
    list.swiglu("mlp.shared_experts", h, shared, TensorKind::Matrix);
    for expert in 0..experts {
        let kind = TensorKind::Expert { layer, expert };
        list.swiglu(&format!("mlp.experts.{expert}"), h, c.moe_intermediate_size, kind);
    }
}
