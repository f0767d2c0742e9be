//! The matrix product: every output is one chain of fused multiply-adds over k = 0, 1, …, K-1 in order.
//!
//! Nothing else touches an output's value, so blocking, packing, the number of rows and the number of threads
//! are free to choose: one row gives the same bits as a thousand, and every instruction set gives the same.
//!
//! Letters: the product is `C[m, n] (+)= Σ_k A[m, k] · B[k, n]`. `B` is read in panels of [`PANEL`] columns.

use super::coded::{Coded, FEW, GROUP, Strip};
use super::simd::{LANES, Simd, kernel};
use crate::buffer::Buf;
use crate::threads::{SharedMut, parallel, threads};
use std::cell::RefCell;
use std::ops::Range;
use tile::Ahead;

mod tile;

pub(crate) use tile::Tile;

/// Columns of one panel of `B`.
pub const PANEL: usize = 32;
/// Steps of k between visits of an output tile; outputs are stored and reloaded exactly, so any value will do.
const KC: usize = 256;
/// Distance between copied rows: not a power of two, so that they spread over the cache.
const ROW: usize = KC + 16;
/// How far apart the steps of k of a transposed left factor may lie to be read in place.
const STRIP_STRIDE: usize = 640;
/// Rows from which copying the right factor pays, where its steps of k lie apart.
const COPY_ROWS: usize = 24;
/// Panels that few rows go over at once.
const WIDE: usize = 4;
/// The most rows of one task.
const MC: usize = 192;
/// The same where the right factor is read as it lies: with their outputs these leave room in a second-level cache that is shared.
const MC_PACKED: usize = 96;
/// Rows from which the whole right factor is brought together once, not each panel anew for every task.
const BRING_ROWS: usize = 512;
/// Steps of k that are brought at a time.
const BRING_STEPS: usize = 64;

/// The left factor: a strided matrix, or rows of one picked by index.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
    /// If given, row `m` is row `rows[m]` of the matrix.
    pub rows: Option<&'a [u32]>,
}

impl<'a> Left<'a> {
    /// A row-major matrix with `stride` values per row.
    pub fn rows(data: &'a [f32], stride: usize) -> Left<'a> {
        Left { data, row_stride: stride, col_stride: 1, rows: None }
    }
    /// The transpose of a row-major matrix with `stride` values per row.
    pub fn transposed(data: &'a [f32], stride: usize) -> Left<'a> {
        Left { data, row_stride: 1, col_stride: stride, rows: None }
    }
    /// Whether to read this factor where it lies: nothing is picked, and what a tile reads is not so spaced that it
    /// would evict itself from the first-level cache, or spread over too many pages.
    fn in_place(&self) -> bool {
        if self.rows.is_some() {
            return false;
        }
        if self.row_stride == 1 {
            return self.col_stride <= STRIP_STRIDE;
        }
        self.col_stride == 1 && !self.row_stride.is_multiple_of(1024)
    }
    /// Whether its rows are columns in memory, so that strips of them are contiguous.
    fn in_strips(&self) -> bool {
        self.row_stride == 1 && self.rows.is_none()
    }
}

/// The right factor, element (k, n) at `(n / PANEL) * panel_stride + k * k_stride + n % PANEL`, or panels of codes.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    /// The values; none where there are codes.
    pub data: &'a [f32],
    /// Panels that are unpacked where they are read.
    pub coded: Option<&'a Coded>,
    /// Distance between steps of k.
    pub k_stride: usize,
    /// Distance between panels.
    pub panel_stride: usize,
}

impl<'a> Right<'a> {
    /// Values at the given distances.
    pub fn strided(data: &'a [f32], k_stride: usize, panel_stride: usize) -> Right<'a> {
        Right { data, coded: None, k_stride, panel_stride }
    }
    /// A row-major `[k, n]` matrix with `stride` values per row, read in place.
    pub fn rows(data: &'a [f32], stride: usize) -> Right<'a> {
        Right::strided(data, stride, PANEL)
    }
    /// Panels made by [`pack_transposed`] from an `[n, k]` matrix.
    pub fn packed(data: &'a [f32], k: usize) -> Right<'a> {
        Right::strided(data, PANEL, k * PANEL)
    }
    /// Panels of codes. A part of them is unpacked into a thread's own scratch, with the values that [`Right::packed`] would
    /// find there, and so with its bits.
    pub(crate) fn coded(panels: &'a Coded) -> Right<'a> {
        Right { data: &[], coded: Some(panels), k_stride: PANEL, panel_stride: KC * PANEL }
    }
}

/// One product; `c` is where its first output lies in the shared output slice.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Left factor, `[m, k]`.
    pub a: Left<'a>,
    /// Right factor, `[k, n]`.
    pub b: Right<'a>,
    /// Rows of the output.
    pub m: usize,
    /// Length of the sums.
    pub k: usize,
    /// Columns of the output.
    pub n: usize,
    /// Offset of the output's first element.
    pub c: usize,
}

/// `out[c + i * ldc + j] (+)= Σ_k A[i, k] B[k, j]` for every product; the outputs must not overlap.
///
/// With `accumulate` the chain of each output starts from the value that is there, else from zero.
/// Panics if a factor or the output is too short, or if the left factor is strided, or picked from, both ways.
pub fn gemm(products: &[Product], out: &mut [f32], ldc: usize, accumulate: bool) {
    for p in products {
        check(p, out.len(), ldc);
    }
    check_disjoint(products, ldc);
    let brought: Vec<Option<Buf>> = products.iter().map(bring_right).collect();
    let products: Vec<Product> = std::iter::zip(products, &brought)
        .map(|(p, panels)| {
            panels.as_ref().map_or(*p, |panels| Product { b: Right::packed(panels, p.k), ..*p })
        })
        .collect();
    let work: usize = products.iter().map(|p| p.m * p.n * p.k).sum();
    let target = if work < 1 << 16 { 1 } else { 4 * threads() };
    let mut tasks: Vec<(usize, Range<usize>, usize, usize)> = Vec::new();
    for (i, p) in products.iter().enumerate() {
        if p.m == 0 || p.n == 0 {
            continue;
        }
        let share = (target * p.m * p.n * p.k.max(1)).div_ceil(work.max(1)).max(1);
        let panels = p.n.div_ceil(PANEL);
        // As many blocks of rows for every thread, each of (nearly) the same height; also where few panels do not divide
        // among the threads, and where the left factor lies in strips: a task for every few panels would read it anew.
        let strips = share > 1 && p.a.in_strips();
        let uneven = share > panels && !panels.is_multiple_of(threads());
        let by_rows = p.m > MC || (uneven || strips) && p.m >= COPY_ROWS * threads();
        let most = if p.b.coded.is_none() && p.b.k_stride == PANEL { MC_PACKED } else { MC };
        let blocks = if by_rows { p.m.div_ceil(most).next_multiple_of(threads()) } else { 1 };
        let splits = if by_rows && strips { 1 } else { share.div_ceil(blocks).clamp(1, panels) };
        // Few rows over codes are quickest where whole groups of panels lie side by side.
        let group = if p.b.coded.is_some() && p.m <= FEW { GROUP } else { 1 };
        let width = panels.div_ceil(splits).next_multiple_of(group) * PANEL;
        for rows in shares(p.m, blocks) {
            tasks.extend((0..p.n).step_by(width).map(|n0| (i, rows.clone(), n0, width.min(p.n - n0))));
        }
    }
    let shared = SharedMut::new(out);
    parallel(tasks.len(), |t| {
        let (i, rows, n0, width) = &tasks[t];
        // Tasks write disjoint tiles of the output, inside it by `check`.
        SCRATCH.with(|s| {
            block(&products[*i], rows.clone(), *n0..n0 + width, shared, ldc, accumulate, &mut s.borrow_mut())
        });
    });
}

/// The panels of a right factor whose steps of k lie apart, where many rows go over them.
fn bring_right(p: &Product) -> Option<Buf> {
    let apart = p.b.coded.is_none() && p.b.k_stride > PANEL && p.b.panel_stride == PANEL;
    if !apart || p.m < BRING_ROWS {
        return None;
    }
    let mut panels = Buf::new(packed_len(p.n, p.k));
    let to = SharedMut::new(&mut panels);
    parallel(p.k.div_ceil(BRING_STEPS), |t| {
        for k in t * BRING_STEPS..p.k.min((t + 1) * BRING_STEPS) {
            for (i, from) in p.b.data[k * p.b.k_stride..][..p.n].chunks(PANEL).enumerate() {
                // SAFETY: every task has its own steps of each panel, all within `packed_len`.
                let to =
                    unsafe { std::slice::from_raw_parts_mut(to.ptr().add((i * p.k + k) * PANEL), PANEL) };
                to[..from.len()].copy_from_slice(from);
                to[from.len()..].fill(0.0);
            }
        }
    });
    Some(panels)
}

/// Copies of parts of the factors.
struct Scratch {
    left: Buf,
    right: Buf,
}

/// `0..n` in `parts` pieces whose lengths differ by one at most.
fn shares(n: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let (least, longer) = (n / parts, n % parts);
    let start = move |i: usize| i * least + i.min(longer);
    (0..parts).map(move |i| start(i)..start(i + 1))
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { left: Buf::new(MC * ROW), right: Buf::new(WIDE * KC * PANEL) });
}

fn check(p: &Product, out: usize, ldc: usize) {
    if p.m == 0 || p.n == 0 {
        return;
    }
    let end = extent(&[(p.m - 1, ldc), (p.c, 1), (p.n, 1)]);
    assert!(end <= out, "gemm: output of {out} too short for {}x{} at {}", p.m, p.n, p.c);
    assert!(p.m == 1 || ldc >= p.n, "gemm: output rows of {} lie {ldc} apart", p.n);
    if p.k == 0 {
        return;
    }
    let row = p.a.rows.map_or(p.m - 1, |r| r[..p.m].iter().copied().max().unwrap_or(0) as usize);
    let end = extent(&[(row, p.a.row_stride), (p.k - 1, p.a.col_stride)]);
    assert!(end < p.a.data.len(), "gemm: left factor too short for {}x{}", p.m, p.k);
    if let Some(coded) = p.b.coded {
        return coded.check(p.k, p.n);
    }
    // The last panel is read only as far as the product goes; the others are read whole.
    let last = (p.n - 1) / PANEL;
    let panel =
        |i: usize, column: usize| extent(&[(i, p.b.panel_stride), (p.k - 1, p.b.k_stride), (column, 1)]);
    let end = panel(last, (p.n - 1) % PANEL).max(if last > 0 { panel(last - 1, PANEL - 1) } else { 0 });
    assert!(end < p.b.data.len(), "gemm: right factor too short for {}x{}", p.k, p.n);
}

/// `Σ a * b`, saturating: a place that no slice reaches where the true one does not fit.
fn extent(terms: &[(usize, usize)]) -> usize {
    terms.iter().fold(0usize, |sum, &(a, b)| sum.saturating_add(a.saturating_mul(b)))
}

/// Panics if two products share a part of the output.
fn check_disjoint(products: &[Product], ldc: usize) {
    if products.len() < 2 {
        return;
    }
    let spans = products.iter().filter(|p| p.m > 0 && p.n > 0).map(|p| (p.c, p.c + (p.m - 1) * ldc + p.n));
    let mut spans: Vec<(usize, usize)> = spans.collect();
    spans.sort_unstable();
    assert!(spans.windows(2).all(|s| s[0].1 <= s[1].0), "gemm: products with overlapping outputs");
}

kernel! {
    /// The given rows (at most MC) and columns of one product.
    fn block<S>(p: &Product, rows: Range<usize>, cols: Range<usize>, out: SharedMut<f32>, ldc: usize, accumulate: bool,
                scratch: &mut Scratch) {
        let (m0, rows) = (rows.start, rows.len());
        if let Some(coded) = p.b.coded && rows <= FEW {
            let row = |i: usize| {
                let i = m0 + i.min(rows - 1);
                p.a.data.as_ptr().wrapping_add(p.a.rows.map_or(i, |picked| picked[i] as usize) * p.a.row_stride)
            };
            let left: [*const f32; FEW] = std::array::from_fn(row);
            let (column, cols, c) = (cols.start, cols.len(), out.ptr().add(p.c + m0 * ldc + cols.start));
            return coded.few::<S>(&Strip { rows: &left[..rows], step: p.a.col_stride, column, cols, c, ldc, load: accumulate });
        }
        let in_place = p.a.in_place();
        // Rows that lie apart evict one another from the first-level cache, and every strip of the task reads them.
        let copies = rows >= COPY_ROWS && p.b.k_stride > PANEL;
        let mut k0 = 0;
        loop {
            let kc = KC.min(p.k - k0);
            if !in_place && kc > 0 {
                pack_left::<S>(&p.a, m0, rows, k0, kc, &mut scratch.left);
            }
            let mut n = cols.start;
            while n < cols.end {
                let wide = if rows <= 3 { WIDE * PANEL } else { PANEL };
                let width = wide.min(cols.end - n);
                let panel = |n: usize, k: usize| {
                    p.b.data.as_ptr().wrapping_add((n / PANEL) * p.b.panel_stride + k * p.b.k_stride)
                };
                let mut b = panel(n, k0);
                let next = if n + width < cols.end { panel(n + width, k0) } else { panel(cols.start, k0 + kc) };
                let mut right = p.b;
                if let Some(coded) = right.coded {
                    for (i, to) in scratch.right.chunks_exact_mut(KC * PANEL).take(width.div_ceil(PANEL)).enumerate() {
                        coded.unpack::<S>(n / PANEL + i, k0, &mut to[..kc * PANEL]);
                    }
                    b = scratch.right.as_ptr();
                } else if copies && width == PANEL {
                    copy_right::<S>(b, right.k_stride, kc, &mut scratch.right);
                    (b, right.k_stride) = (scratch.right.as_ptr(), PANEL);
                }
                let strips = rows.div_ceil(S::MR);
                for (i, strip) in shares(rows, strips).enumerate() {
                    let r0 = strip.start;
                    let (a, a_rs, a_ks) = if in_place {
                        let at = (m0 + r0) * p.a.row_stride + k0 * p.a.col_stride;
                        (p.a.data.as_ptr().wrapping_add(at), p.a.row_stride, p.a.col_stride)
                    } else if p.a.in_strips() {
                        (scratch.left.as_ptr().add(r0 * kc), 1, strip.len())
                    } else {
                        (scratch.left.as_ptr().add(r0 * ROW), ROW, 1)
                    };
                    let c = out.ptr().add(p.c + (m0 + r0) * ldc + n);
                    let load = accumulate || k0 > 0;
                    let mut ahead = Ahead::NOTHING;
                    if strips > 1 {
                        let top = out.ptr().wrapping_add(p.c + m0 * ldc + n + width);
                        ahead.c = if i + 1 < strips { c.wrapping_add(strip.len() * ldc) } else { top };
                        if p.b.coded.is_none() {
                            ahead.ask_panel(next, p.b.k_stride, kc, (strips, i));
                        }
                    }
                    Tile { kc, a, a_rs, a_ks, b, right, c, ldc, cols: width, load }.run_asking::<S>(strip.len(), ahead);
                }
                n += width;
            }
            k0 += kc;
            if k0 >= p.k {
                break;
            }
        }
    }
}

/// Brings `kc` steps of one panel of the right factor together.
#[inline(always)]
unsafe fn copy_right<S: Simd>(b: *const f32, k_stride: usize, kc: usize, to: &mut [f32]) {
    for (k, to) in to.chunks_exact_mut(PANEL).take(kc).enumerate() {
        for w in (0..PANEL).step_by(LANES) {
            // SAFETY: the caller's promise: `kc` steps of PANEL values each, and a machine that has `S`.
            unsafe { S::store(to[w..].as_mut_ptr(), S::load(b.add(k * k_stride + w))) };
        }
    }
}

/// Brings the rows `m0..` and steps `k0..` of the left factor into `to`, where they do not lie well: rows that are
/// columns of the matrix become strips of at most `S::MR` values, step by step; picked rows are copied one after
/// another.
#[inline(always)]
unsafe fn pack_left<S: Simd>(a: &Left, m0: usize, rows: usize, k0: usize, kc: usize, to: &mut [f32]) {
    if a.in_strips() {
        for strip in shares(rows, rows.div_ceil(S::MR)) {
            let n = strip.len();
            let from = &a.data[k0 * a.col_stride + m0 + strip.start..];
            for (k, to) in to[strip.start * kc..].chunks_exact_mut(n).take(kc).enumerate() {
                let from = &from[k * a.col_stride..][..n];
                // A length known beforehand makes it a move or two.
                if n == S::MR {
                    to[..S::MR].copy_from_slice(&from[..S::MR])
                } else {
                    to.copy_from_slice(from)
                }
            }
        }
    } else {
        for i in 0..rows {
            let row = a.rows.map_or(m0 + i, |r| r[m0 + i] as usize) * a.row_stride;
            let to = &mut to[i * ROW..][..kc];
            if a.col_stride == 1 {
                to.copy_from_slice(&a.data[row + k0..][..kc]);
            } else {
                for (k, to) in to.iter_mut().enumerate() {
                    *to = a.data[row + (k0 + k) * a.col_stride];
                }
            }
        }
    }
}

/// The length of the panels of an `[n, k]` matrix.
pub fn packed_len(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Packs `w[n, k]`, row-major with `stride` values per row, into panels for products with its transpose:
/// panel p holds rows `32p..32p + 32` of `w`, step by step of k. Missing rows are zero.
pub fn pack_transposed(w: &[f32], n: usize, k: usize, stride: usize, out: &mut [f32]) {
    assert!(out.len() >= packed_len(n, k), "pack: output too short");
    if n == 0 || k == 0 {
        return;
    }
    assert!((n - 1) * stride + k <= w.len(), "pack: matrix too short");
    crate::threads::parallel_chunks(&mut out[..packed_len(n, k)], k * PANEL, |at, panel| {
        let n0 = at / k;
        let rows = PANEL.min(n - n0);
        pack_panel(&w[n0 * stride..], rows, k, stride, panel);
    });
}

/// One panel of [`pack_transposed`]; blocks of k keep both sides in the first-level cache.
pub(crate) fn pack_panel(w: &[f32], rows: usize, k: usize, stride: usize, panel: &mut [f32]) {
    let rows = rows.min(PANEL);
    let (steps, _) = panel.as_chunks_mut::<PANEL>();
    for (block, steps) in steps[..k].chunks_mut(16).enumerate() {
        for r in 0..rows {
            let from = &w[r * stride + block * 16..][..steps.len()];
            for (to, &v) in steps.iter_mut().zip(from) {
                to[r] = v;
            }
        }
        for to in steps {
            to[rows..].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::threads::set_threads;

    fn reference(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
        let mut c = vec![0.0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).fold(0.0, |s, x| a[i * k + x].mul_add(b[j * k + x], s));
            }
        }
        c
    }

    #[test]
    fn equals_one_ordered_chain_to_the_bit() {
        let mut rng = Rng::new(1);
        let shapes = [
            (1, 1, 1),
            (1, 300, 130),
            (2, 17, 64),
            (3, 5, 97),
            (13, 600, 33),
            (130, 31, 70),
            (64, 256, 512),
            (BRING_ROWS, 70, 97),
        ];
        for (m, k, n) in shapes {
            let a: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
            let b: Vec<f32> = (0..n * k).map(|_| rng.normal()).collect();
            let want = reference(&a, &b, m, k, n);
            let mut panels = vec![0.0; packed_len(n, k)];
            pack_transposed(&b, n, k, k, &mut panels);
            let bt: Vec<f32> = (0..k * n).map(|i| b[(i % n) * k + i / n]).collect();
            let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
            for t in [1, 2, 5] {
                set_threads(t);
                for left in [Left::rows(&a, k), Left::transposed(&at, m)] {
                    for right in [Right::packed(&panels, k), Right::rows(&bt, n)] {
                        let mut c = vec![f32::NAN; m * n];
                        gemm(&[Product { a: left, b: right, m, k, n, c: 0 }], &mut c, n, false);
                        assert_eq!(c, want, "{m}x{k}x{n} on {t} threads");
                    }
                }
            }
        }
    }

    #[test]
    fn one_row_gives_the_bits_of_many_and_accumulation_continues_the_chain() {
        let (m, k, n) = (37, 411, 93);
        let mut rng = Rng::new(2);
        let a: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
        let b: Vec<f32> = (0..n * k).map(|_| rng.normal()).collect();
        let want = reference(&a, &b, m, k, n);
        let mut panels = vec![0.0; packed_len(n, k)];
        pack_transposed(&b, n, k, k, &mut panels);
        for i in 0..m {
            let mut c = vec![0.0; n];
            let rows = [i as u32];
            let left = Left { rows: Some(&rows), ..Left::rows(&a, k) };
            gemm(&[Product { a: left, b: Right::packed(&panels, k), m: 1, k, n, c: 0 }], &mut c, n, false);
            assert_eq!(c, want[i * n..][..n]);
        }
        // Rows of one value, picked.
        let mut c = [0.0; 3];
        let left = Left { rows: Some(&[2, 0, 2]), ..Left::rows(&a, 1) };
        gemm(&[Product { a: left, b: Right::rows(&[3.0], 1), m: 3, k: 1, n: 1, c: 0 }], &mut c, 1, false);
        assert_eq!(c, [2, 0, 2].map(|i| 3.0 * a[i]));
        let bt: Vec<f32> = (0..k * n).map(|i| b[(i % n) * k + i / n]).collect();
        let mut c = vec![0.0; m * n];
        for (k0, kc) in [(0, 100), (100, 311)] {
            let left = Left { data: &a[k0..], ..Left::rows(&a, k) };
            let right = Right::rows(&bt[k0 * n..], n);
            gemm(&[Product { a: left, b: right, m, k: kc, n, c: 0 }], &mut c, n, true);
        }
        assert_eq!(c, want);
    }
}
