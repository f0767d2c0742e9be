//! Grouped-query attention of the Llama and Qwen families.

use tensor::ops::{self, AttentionShape, KvLayer, RopeTable, Segments};
use tensor::{Ints, Params, Tape, Tensor, Weight};

use crate::config::DenseConfig;

/// One layer's attention. Letters: A heads, G key/value heads, D head width, H hidden.
pub(crate) struct Gqa {
    /// q, k and v, one above the other: `[(A + 2G) D, H]`.
    qkv: Weight,
    bias: Option<Weight>,
    /// RMSNorm over each head of q and k (Qwen3): `[D]` each.
    norms: Option<(Weight, Weight)>,
    out: Weight,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    eps: f32,
}

impl Gqa {
    pub(crate) fn new(params: &Params, c: &DenseConfig, prefix: &str) -> Gqa {
        let w = |name: &str| params.weight(&format!("{prefix}self_attn.{name}"));
        let qkv = w("q_proj.weight").stacked(w("k_proj.weight")).stacked(w("v_proj.weight"));
        let bias = c.attention_bias().then(|| {
            let (q, k, v) = (w("q_proj.bias"), w("k_proj.bias"), w("v_proj.bias"));
            Weight { offset: q.offset, rows: 1, cols: q.cols + k.cols + v.cols }
        });
        let norms = c.qk_norm().then(|| (w("q_norm.weight"), w("k_norm.weight")));
        let (heads, kv_heads, dim) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        Gqa { qkv, bias, norms, out: w("o_proj.weight"), heads, kv_heads, dim, eps: c.rms_norm_eps as f32 }
    }

    pub(crate) fn shape(c: &DenseConfig, scale: f32) -> AttentionShape {
        let (heads, kv_heads) = (c.num_attention_heads, c.num_key_value_heads);
        AttentionShape { heads, kv_heads, qk_dim: c.head_dim, v_dim: c.head_dim, scale }
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
        let qkv = ops::linear(tape, x, self.qkv, self.bias);
        let (q, k, v) = match self.norms {
            None => ops::split_qkv(tape, &qkv, (self.heads, self.kv_heads, self.dim), positions, rope),
            Some((qn, kn)) => {
                let (wq, wk) = (self.heads * self.dim, self.kv_heads * self.dim);
                let parts = ops::split_cols(tape, &qkv, &[wq, wk, wk]);
                let q = ops::grouped_rms_norm(tape, &parts[0], qn, self.eps);
                let k = ops::grouped_rms_norm(tape, &parts[1], kn, self.eps);
                (ops::rope(tape, &q, positions, rope), ops::rope(tape, &k, positions, rope), parts[2].clone())
            }
        };
        let y = ops::attention(tape, (&q, &k, &v), shape, segments, cache);
        ops::linear(tape, &y, self.out, None)
    }
}
