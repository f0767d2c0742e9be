//! Attention on a GPU: which kernel of `attention.cu` suits the heads, and the cache's pages as rows of one slab.

use super::segments::{Segments, Tables};
use super::{AttentionShape, PAGE};
use crate::cuda::{Gpu, GpuError, Math, ROW_THREADS, Slab, args, give_up, row_grid};
use crate::memory::{Data, Ints};

/// A layer's cache on a GPU: rows of keys and of values, PAGE to a page, as products read them.
pub(super) struct Pages {
    k: Slab,
    v: Slab,
    /// Pages that there is room for.
    room: usize,
    /// Values of a row of keys, of a row of values.
    widths: (usize, usize),
}

/// Four-byte words of a page of rows of `width` values.
fn page_words(gpu: &Gpu, width: usize) -> usize {
    match gpu.math() {
        Math::Exact => PAGE * width,
        Math::Fast => PAGE / 2 * width,
    }
}

impl Pages {
    pub(super) fn copy(&self, from: u32, to: u32) {
        for (slab, width) in [(&self.k, self.widths.0), (&self.v, self.widths.1)] {
            let words = page_words(slab.gpu(), width);
            let at = |page: u32| slab.at(page as usize * words);
            slab.gpu().copy(at(from), at(to), words);
        }
    }
    pub(super) fn bytes(&self) -> usize {
        let words = |width| page_words(self.k.gpu(), width);
        4 * self.room * (words(self.widths.0) + words(self.widths.1))
    }
    /// Puts rows in their slots.
    fn store(&self, gpu: &Gpu, k: &Data, v: &Data, slots: &Ints) {
        let kernel = match gpu.math() {
            Math::Exact => "elementwise_scatter_rows",
            Math::Fast => "fast_attention_store",
        };
        for (from, to, width) in [(k, &self.k, self.widths.0), (v, &self.v, self.widths.1)] {
            let args = args![from.operand(gpu).at(0), slots.on(gpu), to, width];
            gpu.launch(kernel, row_grid(slots.len(), width), ROW_THREADS, args);
        }
    }
}

/// Makes room for `pages` pages, keeping what is there: twice as many each time, as the slabs are copied.
pub(super) fn grow(pages: &mut Option<Pages>, gpu: &Gpu, wanted: usize, shape: &AttentionShape) {
    let have = pages.as_ref().map_or(0, |p| p.room);
    if wanted <= have {
        return;
    }
    let room = wanted.max(2 * have).max(16);
    let widths = (shape.kv_heads * shape.qk_dim, shape.kv_heads * shape.v_dim);
    let words = (page_words(gpu, widths.0), page_words(gpu, widths.1));
    let (k, v) = (gpu.alloc(room * words.0), gpu.alloc(room * words.1));
    if let Some(old) = pages {
        gpu.copy(old.k.at(0), k.at(0), have * words.0);
        gpu.copy(old.v.at(0), v.at(0), have * words.1);
    }
    *pages = Some(Pages { k, v, room, widths });
}

/// The window of attention without one: more keys than there are, and their sum fits an int.
const NO_WINDOW: usize = 1 << 30;

/// A kernel as `attention.cu` and `fast_attention.cu` state it: its name, blocks for each tile and head, threads of a
/// block, bytes of shared memory.
type Kernel = (&'static str, usize, usize, usize);

/// The kernels for heads up to some size.
struct Kernels {
    /// The greatest `qk_dim` and `v_dim`.
    dims: (usize, usize),
    forward: Kernel,
    /// The same for two query heads of one key/value head at a time and without a window, where there is such a kernel.
    pairs: Option<Kernel>,
    decode: Kernel,
    back_keys: Kernel,
    back_queries: Kernel,
}

#[rustfmt::skip]
const EXACT: [Kernels; 5] = [
    Kernels {
        dims: (32, 32),
        forward: ("attention_forward_32", 1, 128, 48128),
        pairs: None,
        decode: ("attention_decode_32", 8, 256, 46240),
        back_keys: ("attention_backward_keys_32", 1, 128, 48128),
        back_queries: ("attention_backward_queries_32", 1, 192, 47616),
    },
    Kernels {
        dims: (64, 64),
        forward: ("attention_forward_64", 1, 128, 72704),
        pairs: None,
        decode: ("attention_decode_64", 8, 256, 41056),
        back_keys: ("attention_backward_keys_64", 1, 128, 72704),
        back_queries: ("attention_backward_queries_64", 1, 192, 76288),
    },
    Kernels {
        dims: (128, 128),
        forward: ("attention_forward_128", 1, 128, 88064),
        pairs: None,
        decode: ("attention_decode_128", 8, 256, 40000),
        back_keys: ("attention_backward_keys_128", 2, 128, 79872),
        back_queries: ("attention_backward_queries_128", 1, 192, 93696),
    },
    Kernels {
        dims: (192, 128),
        forward: ("attention_forward_192", 1, 128, 96256),
        pairs: None,
        decode: ("attention_decode_256", 8, 512, 76864),
        back_keys: ("attention_backward_keys_192", 2, 128, 96256),
        back_queries: ("attention_backward_queries_192", 2, 96, 78080),
    },
    Kernels {
        dims: (256, 256),
        forward: ("attention_forward_256", 2, 128, 77312),
        pairs: None,
        decode: ("attention_decode_256", 8, 512, 76864),
        back_keys: ("attention_backward_keys_256", 4, 128, 70656),
        back_queries: ("attention_backward_queries_256", 2, 96, 86272),
    },
];

#[rustfmt::skip]
const FAST: [Kernels; 4] = [
    Kernels {
        dims: (64, 64),
        forward: ("fast_attention_forward_64", 1, 128, 40960),
        pairs: Some(("fast_attention_forward_pairs_64", 1, 128, 49152)),
        decode: ("fast_attention_decode_64", 16, 256, 19456),
        back_keys: ("fast_attention_backward_keys_64", 1, 128, 50176),
        back_queries: ("fast_attention_backward_queries_64", 1, 128, 49152),
    },
    Kernels {
        dims: (128, 128),
        forward: ("fast_attention_forward_128", 1, 128, 81920),
        pairs: Some(("fast_attention_forward_pairs_128", 1, 128, 98304)),
        decode: ("fast_attention_decode_128", 16, 256, 21504),
        back_keys: ("fast_attention_backward_keys_128", 1, 128, 99328),
        back_queries: ("fast_attention_backward_queries_128", 1, 128, 65536),
    },
    Kernels {
        dims: (192, 128),
        forward: ("fast_attention_forward_192", 1, 128, 65536),
        pairs: Some(("fast_attention_forward_pairs_192", 1, 128, 90112)),
        decode: ("fast_attention_decode_192", 16, 256, 23552),
        back_keys: ("fast_attention_backward_keys_192", 1, 128, 82432),
        back_queries: ("fast_attention_backward_queries_192", 1, 128, 81920),
    },
    Kernels {
        dims: (256, 256),
        forward: ("fast_attention_forward_256", 1, 128, 98304),
        pairs: None,
        decode: ("fast_attention_decode_256", 16, 256, 25600),
        back_keys: ("fast_attention_backward_keys_256", 2, 128, 98560),
        back_queries: ("fast_attention_backward_queries_256", 1, 128, 98304),
    },
];

fn kernels(gpu: &Gpu, shape: &AttentionShape) -> &'static Kernels {
    let all: &[Kernels] = match gpu.math() {
        Math::Exact => &EXACT,
        Math::Fast => &FAST,
    };
    let fits = |k: &&Kernels| shape.qk_dim <= k.dims.0 && shape.v_dim <= k.dims.1;
    let AttentionShape { qk_dim, v_dim, .. } = *shape;
    all.iter().find(fits).unwrap_or_else(|| give_up(GpuError::WideHeads { qk_dim, v_dim }))
}

/// `q`, `k`, `v` → `out [tokens, heads * v_dim]`, `lse [tokens, heads]`; with a cache, keys and values go there first.
pub(super) fn forward(
    gpu: &Gpu,
    (q, k, v): (&Data, &Data, &Data),
    shape: &AttentionShape,
    segments: &Segments,
    cache: Option<&Pages>,
    out: &Slab,
    lse: &Slab,
) {
    let t = segments.tables(cache.is_some());
    let AttentionShape { heads, kv_heads, qk_dim, v_dim, scale, window } = *shape;
    let window = window.map_or(NO_WINDOW, |keys| keys.min(NO_WINDOW));
    let kernels = kernels(gpu, shape);
    let q = q.operand(gpu).at(0);
    let (k, v) = match cache {
        Some(pages) => {
            assert!(
                pages.widths == (kv_heads * qk_dim, kv_heads * v_dim) && t.last_page < pages.room,
                "attention: page {} of {} pages of {:?} values for {shape:?}",
                t.last_page,
                pages.room,
                pages.widths
            );
            pages.store(gpu, k, v, &t.slots);
            (pages.k.at(0), pages.v.at(0))
        }
        None => (k.operand(gpu).at(0), v.operand(gpu).at(0)),
    };
    let (table, pages) = (t.segments.on(gpu), t.pages.on(gpu));
    if !t.rows.is_empty() {
        let pairs = kernels.pairs.filter(|_| shape.window.is_none() && (heads / kv_heads).is_multiple_of(2));
        let blocks = if pairs.is_some() { heads / 2 } else { heads };
        let (name, parts, threads, shared) = pairs.unwrap_or(kernels.forward);
        let grid = [t.rows.len() / 2, blocks, parts];
        let (tiles, cached) = (t.rows.on(gpu), cache.is_some());
        let args = args![
            q, k, v, table, tiles, pages, out, lse, heads, kv_heads, qk_dim, v_dim, scale, window, cached
        ];
        gpu.launch_shared(name, grid, threads, shared, args);
    }
    if !t.single.is_empty() {
        // A decoding block has some of the query heads of a key/value head.
        let (name, queries, threads, shared) = kernels.decode;
        let grid = [t.single.len(), kv_heads, (heads / kv_heads).div_ceil(queries)];
        let list = t.single.on(gpu);
        let args =
            args![q, k, v, table, list, pages, out, lse, heads, kv_heads, qk_dim, v_dim, scale, window];
        gpu.launch_shared(name, grid, threads, shared, args);
    }
}

/// The gradients `dq`, `dk`, `dv` from `dy`, without a cache.
pub(super) fn backward(
    gpu: &Gpu,
    qkv: [&Data; 3],
    (y, dy, lse): (&Data, &Data, &Data),
    shape: &AttentionShape,
    segments: &Segments,
    (dq, dk, dv): (&Slab, &Slab, &Slab),
) {
    let t: &Tables = segments.tables(false);
    let AttentionShape { heads, kv_heads, qk_dim, v_dim, scale, window } = *shape;
    let window = window.map_or(NO_WINDOW, |keys| keys.min(NO_WINDOW));
    let tokens = t.row_segment.len();
    let kernels = kernels(gpu, shape);
    let (pairs, table) = (tokens * heads, t.segments.on(gpu));
    let delta = gpu.alloc(pairs);
    let args = args![y.on(gpu), dy.on(gpu), &delta, pairs as i64, v_dim];
    gpu.launch("attention_delta", [pairs.div_ceil(16), 1, 1], 256, args);
    let [q, k, v] = qkv.map(|x| x.operand(gpu).at(0));
    let (dy, lse) = (dy.operand(gpu).at(0), lse.on(gpu));

    // Where no segment's keys are another's too, what the kernel gives for each segment are the gradients.
    let apart = gpu.math() == Math::Fast && t.keys == tokens;
    let parts = (!apart).then(|| [qk_dim, v_dim].map(|dim| gpu.alloc(t.keys * kv_heads * dim)));
    let [dk_part, dv_part] = parts.as_ref().map_or([dk, dv], |p| p.each_ref());
    let (name, parts, threads, shared) = kernels.back_keys;
    let args = args![
        q,
        k,
        v,
        dy,
        lse,
        &delta,
        table,
        t.back_keys.on(gpu),
        dk_part,
        dv_part,
        heads,
        kv_heads,
        qk_dim,
        v_dim,
        scale,
        window
    ];
    gpu.launch_shared(name, [t.back_keys.len() / 2, kv_heads, parts], threads, shared, args);

    // The exact kernels' tiles of rows are the processor's.
    let tiles = match gpu.math() {
        Math::Exact => &t.back_rows,
        Math::Fast => &t.rows,
    };
    let (name, parts, threads, shared) = kernels.back_queries;
    let args = args![
        q,
        k,
        v,
        dy,
        lse,
        &delta,
        table,
        tiles.on(gpu),
        dq,
        heads,
        kv_heads,
        qk_dim,
        v_dim,
        scale,
        window
    ];
    gpu.launch_shared(name, [tiles.len() / 2, heads, parts], threads, shared, args);

    if apart {
        return;
    }
    for (part, grad, width) in [(dk_part, dk, kv_heads * qk_dim), (dv_part, dv, kv_heads * v_dim)] {
        let args = args![part, table, t.row_segment.on(gpu), grad, segments.len(), width];
        gpu.launch("attention_reduce", [tokens, 1, 1], 128, args);
    }
}
