//! Grouped-query attention, with what families add to it: norms on queries and keys, layers without positions, windows.

use tensor::ops::{self, AttentionShape, GqaHeads, KvLayer, RopeTable};
use tensor::{Tape, Tensor, Weight};

use crate::batch::BatchInfo;
use crate::config::{GqaConfig, LayerKind, LayerRope, QkNorm};
use crate::linear::{Linear, Parts};

/// The rotary tables of a model.
pub(crate) struct Ropes {
    /// Of most layers.
    pub(crate) main: RopeTable,
    /// Of those with [`LayerRope::Local`].
    pub(crate) local: Option<RopeTable>,
}

/// One layer's attention. Letters: A heads, G key/value heads, D head width, H hidden.
pub(crate) struct Gqa {
    /// q, k and v, one above the other: `[(A + 2G) D, H]`.
    qkv: Linear,
    /// RMSNorm of q and k, over each head (`[D]`) or over all (`[A D]`, `[G D]`).
    norms: Option<(Weight, Weight)>,
    qk_norm: QkNorm,
    out: Linear,
    kind: LayerKind,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    eps: f32,
}

impl Gqa {
    pub(crate) fn new(parts: Parts, c: &GqaConfig, layer: usize, prefix: &str) -> Gqa {
        let name = |name: &str| format!("{prefix}self_attn.{name}");
        let norm = |part: &str| parts.params.weight(&name(part));
        let norms = (c.qk_norm != QkNorm::None).then(|| (norm("q_norm.weight"), norm("k_norm.weight")));
        Gqa {
            qkv: Linear::of(parts, &["q_proj", "k_proj", "v_proj"].map(name)),
            norms,
            qk_norm: c.qk_norm,
            out: Linear::of(parts, &[name("o_proj")]),
            kind: c.layers[layer],
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            dim: c.head_dim,
            eps: c.rms_norm_eps as f32,
        }
    }

    pub(crate) fn shape(c: &GqaConfig, scale: f32) -> AttentionShape {
        let (heads, kv_heads) = (c.num_attention_heads, c.num_key_value_heads);
        AttentionShape { heads, kv_heads, qk_dim: c.head_dim, v_dim: c.head_dim, scale, window: None }
    }

    /// `x [tokens, H]` (normalised) → `[tokens, H]`.
    pub(crate) fn forward<'p>(
        &self,
        tape: &Tape<'p>,
        x: &Tensor,
        batch: &BatchInfo,
        ropes: &'p Ropes,
        shape: AttentionShape,
        cache: Option<&mut KvLayer>,
    ) -> Tensor {
        let rope = match self.kind.rope {
            LayerRope::Main => Some(&ropes.main),
            LayerRope::Local => Some(ropes.local.as_ref().expect("a model with positions of its windows")),
            LayerRope::None => None,
        };
        let positions = &batch.positions;
        let qkv = self.qkv.forward(tape, x);
        let &Gqa { heads, kv_heads, dim, norms, eps, .. } = self;
        let (q, k, v) = match (rope, self.qk_norm) {
            (Some(rope), QkNorm::None | QkNorm::Head) => {
                ops::gqa_heads(tape, &qkv, GqaHeads { heads, kv_heads, dim, norms, eps }, positions, rope)
            }
            (rope, _) => {
                let (wq, wk) = (heads * dim, kv_heads * dim);
                let parts = ops::split_cols(tape, &qkv, &[wq, wk, wk]);
                let (mut q, mut k) = (parts[0].clone(), parts[1].clone());
                if let Some((qn, kn)) = norms {
                    (q, k) = (self.norm(tape, &q, qn), self.norm(tape, &k, kn));
                }
                if let Some(rope) = rope {
                    (q, k) = (ops::rope(tape, &q, positions, rope), ops::rope(tape, &k, positions, rope));
                }
                (q, k, parts[2].clone())
            }
        };
        let shape = AttentionShape { window: self.kind.window, ..shape };
        let y = ops::attention(tape, (&q, &k, &v), shape, &batch.segments, cache);
        self.out.forward(tape, &y)
    }

    fn norm(&self, tape: &Tape, x: &Tensor, w: Weight) -> Tensor {
        match self.qk_norm {
            QkNorm::Whole => ops::rms_norm(tape, x, w, self.eps),
            _ => ops::grouped_rms_norm(tape, x, w, self.eps),
        }
    }
}
