//! Causal attention over packed documents or over a paged cache, with an online softmax.
//!
//! Keys are walked in pages of [`PAGE`] from the start of the sequence, so a query's result depends on the number
//! of its keys alone; training writes its keys into pages too and runs the same code as generation. Scores are
//! `q · kᵀ` with keys stored component by component, `[dim][PAGE]`, so that lanes are keys and no sum crosses lanes.
//!
//! Online softmax after Milakov & Gimelshein 2018; tiling and recomputation in the backward pass after
//! FlashAttention (Dao et al. 2022).

mod cpu;
mod cuda;
mod segments;

use crate::buffer::Buf;
use crate::cuda::Gpu;
use crate::memory::Data;
use crate::operations::{Part, add_product};
use crate::tape::{Tape, Tensor};

use segments::{Place, number_pages, places};
pub use segments::{Segment, Segments};

/// Keys of one page, and of one step of the running softmax.
pub const PAGE: usize = 64;

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Components of a query or key.
    pub qk_dim: usize,
    /// Components of a value.
    pub v_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// If given, a token sees so many keys at most: its own and those just before.
    pub window: Option<usize>,
}

/// One layer's keys and values in pages: in the host's memory keys `[kv_heads][qk_dim][PAGE]` and values
/// `[kv_heads][PAGE][v_dim]`; on a GPU rows of `kv_heads * qk_dim` and `kv_heads * v_dim`, PAGE to a page.
#[derive(Default)]
pub struct KvLayer {
    k: Vec<Buf>,
    v: Vec<Buf>,
    device: Option<cuda::Pages>,
}

impl KvLayer {
    /// Makes room for `pages` pages, with unspecified contents: keys and values are written before they are read.
    pub fn grow(&mut self, gpu: Option<&Gpu>, pages: usize, shape: &AttentionShape) {
        if let Some(gpu) = gpu {
            return cuda::grow(&mut self.device, gpu, pages, shape);
        }
        while self.k.len() < pages {
            self.k.push(Buf::new(shape.kv_heads * shape.qk_dim * PAGE));
            self.v.push(Buf::new(shape.kv_heads * shape.v_dim * PAGE));
        }
    }
    /// Copies a page's contents.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        if let Some(pages) = &self.device {
            return pages.copy(from, to);
        }
        for pages in [&mut self.k, &mut self.v] {
            let copy = Buf::copy_of(&pages[from as usize]);
            pages[to as usize] = copy;
        }
    }
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let host: usize = self.k.iter().chain(&self.v).map(|b| 4 * b.len()).sum();
        host + self.device.as_ref().map_or(0, |pages| pages.bytes())
    }
}

/// `q [tokens, heads * qk_dim]`, `k [tokens, kv_heads * qk_dim]`, `v [tokens, kv_heads * v_dim]` →
/// `[tokens, heads * v_dim]`. Tokens attend to their own segment's earlier tokens and themselves.
///
/// With `cache` the new keys and values are stored there first. Panics if a recording tape is given a cache.
pub fn attention(
    tape: &Tape,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    shape: AttentionShape,
    segments: &Segments,
    cache: Option<&mut KvLayer>,
) -> Tensor {
    let n = q.rows();
    let AttentionShape { heads, kv_heads, qk_dim, v_dim, .. } = shape;
    assert!(
        heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads) && qk_dim > 0 && v_dim > 0,
        "attention: {shape:?}"
    );
    let covered = segments.iter().try_fold(0usize, |sum, s| sum.checked_add(s.rows));
    assert!(
        covered == Some(n) && k.rows() == n && v.rows() == n,
        "attention: segments of {covered:?} rows for a batch of {n}"
    );
    assert!(
        q.cols() == shape.heads * shape.qk_dim
            && k.cols() == shape.kv_heads * shape.qk_dim
            && v.cols() == shape.kv_heads * shape.v_dim,
        "attention: q {} k {} v {} for {shape:?}",
        q.cols(),
        k.cols(),
        v.cols()
    );
    assert!(shape.window != Some(0), "attention: a window of nothing");
    let recording = tape.is_recording();
    assert!(!(recording && cache.is_some()), "attention: a cache has no gradient");
    let pairs: usize = segments.iter().map(|s| s.rows * s.past + s.rows * (s.rows + 1) / 2).sum();
    add_product(Part::Attention, shape.heads * pairs, shape.qk_dim + shape.v_dim, 1);
    let places = places(segments, cache.is_some());
    let mut out = Data::new(tape.gpu(), n * shape.heads * shape.v_dim);
    let mut lse = Data::new(tape.gpu(), n * shape.heads);
    match tape.gpu() {
        Some(gpu) => {
            let pages = cache.map(|layer| layer.device.as_ref().expect("a cache that lies on the GPU"));
            let qkv = (&*q.data, &*k.data, &*v.data);
            cuda::forward(gpu, qkv, &shape, segments, pages, out.on_mut(gpu), lse.on_mut(gpu));
        }
        None => {
            let mut own = KvLayer::default();
            let paged;
            let (layer, segments): (&mut KvLayer, &[Segment]) = match cache {
                Some(layer) => (layer, segments),
                None => {
                    paged = number_pages(segments);
                    own.grow(None, paged.iter().map(|s| s.pages.len()).sum(), &shape);
                    (&mut own, &paged)
                }
            };
            cpu::store(layer, k.host(), v.host(), &shape, segments, &places);
            cpu::forward(q.host(), layer, &shape, segments, out.host_mut(), lse.host_mut());
        }
    }
    let y = tape.output(out, n, shape.heads * shape.v_dim);
    if let Some(gy) = y.grad.clone() {
        let (q, k, v, y) = (q.clone(), k.clone(), v.clone(), y.detached());
        let segments = segments.clone();
        tape.record(move |params| {
            let Some(dy) = gy.take() else { return };
            // Scores again, then the gradients of values, weights, queries and keys.
            add_product(Part::Attention, shape.heads * pairs, 3 * shape.qk_dim + 2 * shape.v_dim, 1);
            let gpu = params.gpu();
            let mut dq = Data::new(gpu, q.data.len());
            let mut dk = Data::zeros(gpu, k.data.len());
            let mut dv = Data::zeros(gpu, v.data.len());
            match gpu {
                Some(gpu) => {
                    let qkv = [&*q.data, &*k.data, &*v.data];
                    let outputs = (&*y.data, &*dy, &lse);
                    let grads = (dq.on_mut(gpu), dk.on_mut(gpu), dv.on_mut(gpu));
                    cuda::backward(gpu, qkv, outputs, &shape, &segments, grads);
                }
                None => {
                    let grads = (dq.host_mut(), dk.host_mut(), dv.host_mut());
                    let qkv = (q.host(), k.host(), v.host());
                    cpu::backward(qkv, (y.host(), dy.host(), lse.host()), &shape, &places, grads);
                }
            }
            for (t, d) in [(q, dq), (k, dk), (v, dv)] {
                if let Some(g) = &t.grad {
                    g.give(d);
                }
            }
        });
    }
    y
}
