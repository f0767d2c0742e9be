//! Tensor names: Hugging Face's and llama.cpp's (`gguf-py/gguf/constants.py` and `tensor_mapping.py` of llama.cpp).

/// Where a tensor of ours lies in a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A tensor of its own.
    Whole(String),
    /// One expert's part of a tensor that holds all experts of a layer.
    Expert {
        /// The tensor.
        name: String,
        /// The expert's number.
        expert: usize,
    },
}

/// Names outside of the layers.
const ENDS: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Names within a layer, without the final `.weight` or `.bias`.
const LAYER: [(&str, &str); 20] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

/// The place of a tensor by its Hugging Face name; `norms` are a family's own names for those of its layers that llama.cpp
/// calls otherwise. `None` for tensors that the format has no place for.
pub(crate) fn place(name: &str, norms: &[(&str, &str)]) -> Option<Place> {
    if let Some((_, gguf)) = ENDS.iter().find(|(hf, _)| *hf == name) {
        return Some(Place::Whole((*gguf).to_owned()));
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    if rest == "mlp.gate.e_score_correction_bias" {
        return Some(Place::Whole(format!("blk.{layer}.exp_probs_b.bias")));
    }
    let (stem, ending) = rest.rsplit_once('.')?;
    if let Some(expert) = stem.strip_prefix("mlp.experts.") {
        let (expert, part) = expert.split_once('.')?;
        let part = part.strip_suffix("_proj")?;
        let name = format!("blk.{layer}.ffn_{part}_exps.{ending}");
        return Some(Place::Expert { name, expert: expert.parse().ok()? });
    }
    let common = [("post_attention_layernorm", "ffn_norm")];
    let gguf = norms.iter().chain(&LAYER).chain(&common).find(|(hf, _)| *hf == stem)?.1;
    Some(Place::Whole(format!("blk.{layer}.{gguf}.{ending}")))
}
