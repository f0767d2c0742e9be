//! Multi-head latent attention (DeepSeek-V2 report, section 2.1; V3 report, section 2.1.1), with the expanded
//! cache: keys and values per head, in the same order of arithmetic as in training.

use tensor::ops::{self, AttentionShape, KvLayer, MlaDims};
use tensor::{Tape, Tensor, Weight};

use crate::batch::BatchInfo;
use crate::config::MlaConfig;
use crate::gqa::Ropes;
use crate::linear::{Linear, Parts};

/// The epsilon of the norms inside MLA, fixed in the reference code whatever `rms_norm_eps` says.
const LATENT_EPS: f32 = 1e-6;

/// One layer's attention.
pub(crate) struct Mla {
    q: Query,
    /// To the latent c: `[kv_lora_rank, H]`.
    kv_down: Linear,
    /// To the rotary key that all heads share: `[qk_rope_head_dim, H]`.
    k_rope: Linear,
    kv_norm: Weight,
    /// From the latent to all heads' keys and values: `[A (nope + v), kv_lora_rank]`.
    kv_up: Linear,
    out: Linear,
    dims: MlaDims,
}

enum Query {
    Direct(Linear),
    LowRank { down: Linear, norm: Weight, up: Linear },
}

impl Mla {
    pub(crate) fn new(parts: Parts, c: &MlaConfig, prefix: &str) -> Mla {
        let norm = |name: &str| parts.params.weight(&format!("{prefix}self_attn.{name}.weight"));
        let w = |name: &str| Linear::of(parts, &[format!("{prefix}self_attn.{name}")]);
        let q = match c.q_lora_rank {
            None => Query::Direct(w("q_proj")),
            Some(_) => Query::LowRank { down: w("q_a_proj"), norm: norm("q_a_layernorm"), up: w("q_b_proj") },
        };
        let kv_a = w("kv_a_proj_with_mqa");
        Mla {
            q,
            kv_down: kv_a.rows(0, c.kv_lora_rank),
            k_rope: kv_a.rows(c.kv_lora_rank, c.qk_rope_head_dim),
            kv_norm: norm("kv_a_layernorm"),
            kv_up: w("kv_b_proj"),
            out: w("o_proj"),
            dims: MlaDims {
                heads: c.num_attention_heads,
                nope: c.qk_nope_head_dim,
                rope: c.qk_rope_head_dim,
                v: c.v_head_dim,
            },
        }
    }

    pub(crate) fn shape(c: &MlaConfig, scale: f32) -> AttentionShape {
        let heads = c.num_attention_heads;
        AttentionShape {
            heads,
            kv_heads: heads,
            qk_dim: c.qk_head_dim(),
            v_dim: c.v_head_dim,
            scale,
            window: None,
        }
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
        let q = match &self.q {
            Query::Direct(w) => w.forward(tape, x),
            Query::LowRank { down, norm, up } => {
                up.forward(tape, &ops::rms_norm(tape, &down.forward(tape, x), *norm, LATENT_EPS))
            }
        };
        let c = ops::rms_norm(tape, &self.kv_down.forward(tape, x), self.kv_norm, LATENT_EPS);
        let k_rope = self.k_rope.forward(tape, x);
        let kv = self.kv_up.forward(tape, &c);
        let (q, k, v) = ops::mla_heads(tape, (&q, &kv, &k_rope), self.dims, &batch.positions, &ropes.main);
        let y = ops::attention(tape, (&q, &k, &v), shape, &batch.segments, cache);
        self.out.forward(tape, &y)
    }
}
