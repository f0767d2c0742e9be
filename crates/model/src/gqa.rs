//! Grouped-query attention of the Llama and Qwen families.

use tensor::ops::{self, AttentionShape, GqaHeads, KvLayer, RopeTable, Segments};
use tensor::{Ints, Tape, Tensor, Weight};

use crate::config::DenseConfig;
use crate::linear::{Linear, Parts};

/// One layer's attention. Letters: A heads, G key/value heads, D head width, H hidden.
pub(crate) struct Gqa {
    /// q, k and v, one above the other: `[(A + 2G) D, H]`.
    qkv: Linear,
    /// RMSNorm over each head of q and k (Qwen3): `[D]` each.
    norms: Option<(Weight, Weight)>,
    out: Linear,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    eps: f32,
}

impl Gqa {
    pub(crate) fn new(parts: Parts, c: &DenseConfig, prefix: &str) -> Gqa {
        let name = |name: &str| format!("{prefix}self_attn.{name}");
        let norm = |part: &str| parts.params.weight(&name(part));
        let norms = c.qk_norm().then(|| (norm("q_norm.weight"), norm("k_norm.weight")));
        Gqa {
            qkv: Linear::of(parts, &["q_proj", "k_proj", "v_proj"].map(name)),
            norms,
            out: Linear::of(parts, &[name("o_proj")]),
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            dim: c.head_dim,
            eps: c.rms_norm_eps as f32,
        }
    }

    pub(crate) fn shape(c: &DenseConfig, scale: f32) -> AttentionShape {
        let (heads, kv_heads) = (c.num_attention_heads, c.num_key_value_heads);
        AttentionShape { heads, kv_heads, qk_dim: c.head_dim, v_dim: c.head_dim, scale, window: None }
    }

    /// `x [tokens, H]` (normalised) → `[tokens, H]`.
    pub(crate) fn forward<'p>(
        &self,
        tape: &Tape<'p>,
        x: &Tensor,
        positions: &Ints,
        rope: &'p RopeTable,
        shape: AttentionShape,
        segments: &Segments,
        cache: Option<&mut KvLayer>,
    ) -> Tensor {
        let qkv = self.qkv.forward(tape, x);
        let &Gqa { heads, kv_heads, dim, norms, eps, .. } = self;
        let shape_of_heads = GqaHeads { heads, kv_heads, dim, norms, eps };
        let (q, k, v) = ops::gqa_heads(tape, &qkv, shape_of_heads, positions, rope);
        let y = ops::attention(tape, (&q, &k, &v), shape, segments, cache);
        self.out.forward(tape, &y)
    }
}
