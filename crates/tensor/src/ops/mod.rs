//! The fused ops, each with its forward and backward pass side by side.

mod adamw;
mod add;
mod attention;
mod cross_entropy;
mod embedding;
mod experts;
mod gqa_heads;
mod heads;
mod linear;
mod lora;
mod muon;
mod rms_norm;
mod router;
mod sampling;
mod scaled;
mod swiglu;

pub use adamw::{AdamW, NORM_PIECE, adamw, squared_norm, squared_norm_pieces};
pub use add::{add, add_assign, add_values};
pub use attention::{AttentionShape, KvLayer, PAGE, Segment, Segments, attention};
pub use cross_entropy::{
    TokenStats, cross_entropy, distill_kl, log_probs, logits, normalizer, seed_log_probs,
};
pub use embedding::embedding;
pub use experts::{Expert, experts};
pub use gqa_heads::{GqaHeads, gqa_heads};
pub use heads::{MlaDims, Pairs, RopeTable, concat_cols, mla_heads, rope, split_cols, split_qkv};
pub use linear::{exact_linear, linear};
pub use lora::{Adapter, AdapterPart, adapted_linear, outer};
pub use muon::{MUON_STEPS, Muon, muon};
pub use rms_norm::{add_rms_norm, grouped_rms_norm, rms_norm};
pub use router::{MAX_EXPERTS, RouterShape, Routes, Scoring, balance_bias, route};
pub use sampling::{Draw, Drawn, argmax, pick_rows, sample, walk};
pub use scaled::scaled;
pub use swiglu::{geglu, swiglu};
