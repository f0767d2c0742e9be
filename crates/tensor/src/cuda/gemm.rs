//! Products on a GPU: which kernel of `gemm.cu` suits a shape, or whether NVIDIA's library computes it. All of them give
//! the same bits.

use super::gpu::MOST_BLOCKS;
use super::library::{self, Product};
use super::{Gpu, Math, Ptr, Slab, args};

/// How the factors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    /// `C = A · Bᵀ`, `A [m, k]`, `B [n, k]`.
    Nt,
    /// `C = A · B`, `A [m, k]`, `B [k, n]`.
    Nn,
    /// `C = Aᵀ · B`, `A [k, m]`, `B [k, n]`.
    Tn,
}

/// Where the factors and the result lie.
#[derive(Clone, Copy)]
pub(crate) struct Matrices {
    pub(crate) a: Ptr,
    pub(crate) b: Ptr,
    pub(crate) c: Ptr,
}

/// Rows or steps of k in groups, each with its own weight.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a> {
    /// Where each group begins, and the end.
    pub(crate) starts: &'a Slab,
    /// Groups.
    pub(crate) count: usize,
    /// Values from one group's weight, or weight gradient, to the next one's.
    pub(crate) stride: i64,
}

/// A kernel's tile and what it takes, as `gemm.cu` states them.
struct Tile {
    flat: &'static str,
    /// The forms over groups, over a batch, and for symmetric products, where there are such.
    grouped: Option<&'static str>,
    batched: Option<&'static str>,
    symmetric: Option<&'static str>,
    rows: usize,
    cols: usize,
    threads: usize,
    /// Bytes of dynamic shared memory.
    shared: usize,
    /// Cycles of a step of k where a multiprocessor has one tile, and for each tile where it has several.
    alone: f64,
    crowded: f64,
}

macro_rules! tile {
    ($layout:literal, $rows:literal, $cols:literal, $threads:literal, $shared:literal, $alone:literal, $crowded:literal) => {
        tile!("gemm_", $layout, $rows, $cols, $threads, $shared, $alone, $crowded)
    };
    ($family:literal, $layout:literal, $rows:literal, $cols:literal, $threads:literal, $shared:literal, $alone:literal, $crowded:literal) => {
        Tile {
            flat: concat!($family, $layout, "_", $rows, "x", $cols),
            grouped: Some(concat!($family, "grouped_", $layout, "_", $rows, "x", $cols)),
            batched: None,
            symmetric: None,
            rows: $rows,
            cols: $cols,
            threads: $threads,
            shared: $shared,
            alone: $alone,
            crowded: $crowded,
        }
    };
}

const NT: [Tile; 6] = [
    tile!("nt", 128, 128, 256, 50688, 190.0, 155.0),
    Tile { symmetric: Some("gemm_symmetric_64x64"), ..tile!("nt", 64, 64, 128, 34816, 50.0, 44.0) },
    Tile { symmetric: Some("gemm_symmetric_32x32"), ..tile!("nt", 32, 32, 128, 36864, 15.0, 13.0) },
    tile!("nt", 16, 32, 128, 39168, 9.0, 8.0),
    tile!("nt", 8, 8, 32, 33792, 5.5, 2.0),
    Tile { grouped: None, ..tile!("nt", 4, 8, 32, 25344, 5.0, 1.5) },
];
const NN: [Tile; 5] = [
    tile!("nn", 128, 128, 256, 49920, 190.0, 155.0),
    Tile { batched: Some("gemm_batched_nn_64x64"), ..tile!("nn", 64, 64, 128, 33792, 50.0, 44.0) },
    Tile { batched: Some("gemm_batched_nn_32x32"), ..tile!("nn", 32, 32, 128, 34816, 15.0, 13.0) },
    tile!("nn", 16, 32, 128, 37632, 9.0, 8.0),
    tile!("nn", 8, 16, 64, 31360, 5.5, 3.0),
];
const TN: [Tile; 4] = [
    tile!("tn", 128, 128, 256, 49152, 190.0, 155.0),
    tile!("tn", 64, 64, 128, 32768, 50.0, 43.0),
    tile!("tn", 32, 32, 128, 32768, 15.0, 13.0),
    Tile { grouped: None, ..tile!("tn", 16, 32, 128, 36864, 9.0, 8.0) },
];

macro_rules! fast_tiles {
    ($layout:literal) => {
        [
            Tile { grouped: None, ..tile!("fast_gemm_", $layout, 128, 256, 256, 98304, 40.0, 38.0) },
            tile!("fast_gemm_", $layout, 128, 128, 128, 65536, 26.0, 20.0),
            tile!("fast_gemm_", $layout, 64, 64, 128, 49152, 6.0, 6.0),
            Tile { grouped: None, ..tile!("fast_gemm_", $layout, 64, 32, 128, 49152, 3.5, 3.2) },
            tile!("fast_gemm_", $layout, 16, 64, 128, 40960, 2.5, 2.4),
            tile!("fast_gemm_", $layout, 16, 16, 32, 49152, 2.3, 0.8),
        ]
    };
}

/// The fast mode's: factors in bf16, the same sum for every output whatever the tile.
const FAST_NT: [Tile; 6] = fast_tiles!("nt");
const FAST_NN: [Tile; 6] = fast_tiles!("nn");
const FAST_TN: [Tile; 4] = [
    Tile { grouped: None, ..tile!("fast_gemm_", "tn", 128, 256, 256, 98304, 40.0, 38.0) },
    tile!("fast_gemm_", "tn", 128, 128, 128, 65536, 26.0, 20.0),
    tile!("fast_gemm_", "tn", 64, 64, 128, 49152, 6.0, 6.0),
    tile!("fast_gemm_", "tn", 32, 32, 128, 32768, 2.5, 2.2),
];

fn tiles_of(layout: Layout, math: Math) -> &'static [Tile] {
    match (layout, math) {
        (Layout::Nt, Math::Exact) => &NT,
        (Layout::Nn, Math::Exact) => &NN,
        (Layout::Tn, Math::Exact) => &TN,
        (Layout::Nt, Math::Fast) => &FAST_NT,
        (Layout::Nn, Math::Fast) => &FAST_NN,
        (Layout::Tn, Math::Fast) => &FAST_TN,
    }
}

/// The tile that finishes first by the cycles of a step; of equals the larger. `grid` says how many there are in each direction.
fn choose<'t>(
    gpu: &Gpu,
    tiles: impl Iterator<Item = &'t Tile>,
    grid: impl Fn(&Tile) -> [usize; 3],
) -> &'t Tile {
    let processors = gpu.info().multiprocessors.max(1) as usize;
    let count = |t: &Tile| grid(t).iter().product::<usize>();
    let cost = |t: &Tile| t.alone.max(count(t).div_ceil(processors) as f64 * t.crowded);
    let startable = tiles.filter(|t| grid(t)[1..].iter().all(|&n| n <= MOST_BLOCKS));
    startable
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))
        .expect("a pass has fewer rows than the largest tiles take")
}

/// `C [m, n] (+)= A · B`, one chain over k for every output; `[lda, ldb, ldc]` are the values of a row. The factors are
/// what the GPU's mode reads (see [`super::Operand`]).
pub(crate) fn product(
    gpu: &Gpu,
    layout: Layout,
    at: Matrices,
    [m, n, k]: [usize; 3],
    [lda, ldb, ldc]: [usize; 3],
    accumulate: bool,
) {
    if m == 0 || n == 0 || (k == 0 && accumulate) {
        return;
    }
    let p = Product { layout, math: gpu.math(), accumulate, sizes: [m, n, k], strides: [lda, ldb, ldc] };
    if !library::multiply(gpu, &p, at) {
        own_product(gpu, &p, at);
    }
}

/// A product by our own kernels.
pub(super) fn own_product(gpu: &Gpu, p: &Product, at: Matrices) {
    let ([m, n, k], [lda, ldb, ldc]) = (p.sizes, p.strides);
    let grid = |t: &Tile| [n.div_ceil(t.cols), m.div_ceil(t.rows), 1];
    let tile = choose(gpu, tiles_of(p.layout, p.math).iter(), grid);
    let args = args![at.a, at.b, at.c, m, n, k, lda, ldb, ldc, p.accumulate];
    gpu.launch_shared(tile.flat, grid(tile), tile.threads, tile.shared, args);
}

/// The same for every group: of rows (nt and nn; `m` rows in all, each group with its own `B`) or of steps of k (tn; `k`
/// steps in all, each group with its own `C`).
pub(crate) fn grouped(
    gpu: &Gpu,
    layout: Layout,
    at: Matrices,
    [m, n, k]: [usize; 3],
    [lda, ldb, ldc]: [usize; 3],
    accumulate: bool,
    groups: Groups,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let count = groups.count;
    let by_rows = layout != Layout::Tn;
    let grid = |t: &Tile| match by_rows {
        true => [n.div_ceil(t.cols), m.div_ceil(t.rows) + count, 1],
        false => [n.div_ceil(t.cols), m.div_ceil(t.rows), count],
    };
    let tiles = tiles_of(layout, gpu.math()).iter().filter(|t| t.grouped.is_some());
    let tile = choose(gpu, tiles, grid);
    let args =
        args![at.a, at.b, at.c, m, n, k, lda, ldb, ldc, accumulate, groups.starts, count, groups.stride];
    let kernel = tile.grouped.expect("filtered above");
    gpu.launch_shared(kernel, grid(tile), tile.threads, tile.shared, args);
}

/// `count` products whose factors and results lie one behind the other; each by itself as [`product`] has it.
pub(crate) fn batched(
    gpu: &Gpu,
    at: Matrices,
    [m, n, k]: [usize; 3],
    [lda, ldb, ldc]: [usize; 3],
    accumulate: bool,
    count: usize,
) {
    let grid = |t: &Tile| [n.div_ceil(t.cols), m.div_ceil(t.rows), count];
    let tiles = NN.iter().filter(|t| t.batched.is_some());
    let tile = choose(gpu, tiles, grid);
    let strides = [m * lda, k * ldb, m * ldc].map(|s| s as i64);
    let args =
        args![at.a, at.b, at.c, m, n, k, lda, ldb, ldc, accumulate, strides[0], strides[1], strides[2]];
    gpu.launch_shared(tile.batched.expect("filtered above"), grid(tile), tile.threads, tile.shared, args);
}

/// `count` products `C [n, n] = X Xᵀ`, `X [n, k]`, one behind the other: half of each is computed and mirrored.
pub(crate) fn symmetric(gpu: &Gpu, x: &Slab, c: &Slab, n: usize, k: usize, count: usize) {
    let tiles = NT.iter().filter(|t| t.symmetric.is_some());
    // Blocks above the diagonal end at once.
    let tile = choose(gpu, tiles, |t| {
        let side = n.div_ceil(t.rows);
        [side * (side + 1) / 2, 1, count]
    });
    let grid = [n.div_ceil(tile.cols), n.div_ceil(tile.rows), count];
    let kernel = tile.symmetric.expect("filtered above");
    gpu.launch_shared(kernel, grid, tile.threads, tile.shared, args![x, c, n, k, k, n]);
}
