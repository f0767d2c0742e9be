//! Muon: momentum, orthogonalised by Newton–Schulz iterations (Jordan et al. 2024), scaled so that its steps are of
//! AdamW's size and share its learning rates (Moonlight, Liu et al. 2025, section 2.2).

use crate::buffer::Buf;
use crate::cpu::gemm::{Left, Product, Right, gemm, pack_transposed, packed_len};
use crate::cpu::{math, update};
use crate::cuda::gemm::{Matrices, batched, symmetric as symmetric_cuda};
use crate::cuda::{Gpu, args};
use crate::memory::Data;
use crate::operations::{Part, add_product};
use crate::params::Weight;
use crate::threads::{SharedMut, parallel};
use std::collections::BTreeMap;

/// Newton–Schulz steps.
pub const MUON_STEPS: usize = 5;
/// Rows of one piece of a symmetric product.
const STRIP: usize = 32;
/// Coefficients of the quintic iteration.
const ABC: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);

/// The constants of one step.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decoupled weight decay.
    pub decay: f32,
    /// Decay of the momentum.
    pub momentum: f32,
    /// Factor of the gradient (for clipping).
    pub grad_scale: f32,
}

impl Muon {
    /// What the orthogonal matrix and the weight are multiplied by.
    fn factors(&self, rows: usize, cols: usize) -> (f32, f32) {
        let size = 0.2 * (rows.max(cols) as f32).sqrt();
        (-self.lr * size, 1.0 - self.lr * self.decay)
    }

    /// One step on a matrix `p [rows, cols]` with gradient `g` and momentum `m`.
    fn step(&self, p: &mut [f32], g: &[f32], m: &mut [f32], (rows, cols): (usize, usize)) {
        if g.iter().all(|&g| g == 0.0) {
            return;
        }
        math::blend(self.grad_scale, g, self.momentum, m);
        // Nesterov: look ahead along the momentum.
        let mut x = Buf::copy_of(m);
        math::blend(self.grad_scale, g, self.momentum, &mut x);
        let x = orthogonal(x, rows, cols);
        let (step, keep) = self.factors(rows, cols);
        math::blend(step, &x, keep, p);
    }
}

/// One step on the given matrices of the weights `p`, with their gradients `g` and momenta `m`, where the weights lie.
/// A matrix whose gradient is zero took no part (an expert without tokens, an MTP layer that rested): it keeps its
/// weights and its momentum, since its orthogonalised momentum would be a step as long as any.
/// The momenta are those of the weights from `start` on, perhaps not of all; on a GPU, of all.
/// Panics if two of the matrices overlap, or one lies outside of the arenas.
pub fn muon(p: &mut Data, g: &Data, m: &mut Data, start: usize, weights: &[Weight], rule: Muon) {
    let mut order = weights.to_vec();
    order.sort_by_key(|w| w.offset);
    assert!(
        order.windows(2).all(|w| w[0].offset + w[0].len() <= w[1].offset)
            && order.last().is_none_or(|w| w.offset + w.len() <= p.len().min(start + m.len()))
            && order.first().is_none_or(|w| w.offset >= start)
            && g.len() == p.len(),
        "muon: matrices overlap or lie outside the arenas"
    );
    for w in &order {
        let (n, k) = (w.rows.min(w.cols), w.rows.max(w.cols));
        for _ in 0..MUON_STEPS {
            count_symmetric(n, k);
            count_symmetric(n, n);
            add_product(Part::Optimizer, n, n, k);
        }
    }
    if let Some(gpu) = p.gpu().cloned() {
        assert_eq!(start, 0, "muon: momenta of a part of the weights on a GPU");
        return on_gpu(&gpu, p, g, m, &order, rule);
    }
    // One matrix per piece of work, the largest first.
    order.sort_by_key(|w| std::cmp::Reverse(w.len()));
    let g = g.host();
    let (p, m) = (SharedMut::new(p.host_mut()), SharedMut::new(m.host_mut()));
    parallel(order.len(), |i| {
        let w = order[i];
        // SAFETY: the matrices lie inside and do not overlap.
        let (p, m) = unsafe { (p.slice(w.offset, w.len()), m.slice(w.offset - start, w.len())) };
        rule.step(p, &g[w.offset..][..w.len()], m, (w.rows, w.cols));
    });
}

/// Matrices of one shape go through the kernels together: a model has hundreds of matrices, but few shapes.
fn on_gpu(gpu: &Gpu, p: &mut Data, g: &Data, m: &mut Data, weights: &[Weight], rule: Muon) {
    let mut shapes: BTreeMap<(usize, usize), Vec<u32>> = BTreeMap::new();
    for w in weights {
        shapes
            .entry((w.rows, w.cols))
            .or_default()
            .push(u32::try_from(w.offset).expect("muon: arenas of up to 2^32 values"));
    }
    let (p, g, m) = (p.on_mut(gpu), g.on(gpu), m.on_mut(gpu));
    for ((rows, cols), offsets) in shapes {
        let (n, k, count) = (rows.min(cols), rows.max(cols), offsets.len());
        let offsets = gpu.upload_ints(&offsets);
        let tiles = [cols.div_ceil(32), rows.div_ceil(32), count];
        let (mut x, mut y) = (gpu.alloc(count * n * k), gpu.alloc(count * n * k));
        let (a, b) = (gpu.alloc(count * n * n), gpu.alloc(count * n * n));
        let any = gpu.alloc(count);
        gpu.launch("muon_any", [count, 1, 1], 256, args![g, &offsets, &any, n * k]);
        let args = args![g, m, &offsets, &any, &x, rows, cols, rule.grad_scale, rule.momentum];
        gpu.launch("muon_momentum", tiles, 256, args);

        let pieces = (n * k).div_ceil(update::PIECE);
        let (sums, norms) = (gpu.alloc(2 * count * pieces), gpu.alloc(2 * count));
        gpu.launch("muon_norm_pieces", [pieces, count, 1], 256, args![&x, &sums, n * k]);
        gpu.launch("muon_norm_total", [count, 1, 1], 256, args![&sums, &norms, pieces]);
        gpu.launch("muon_scale", [(n * k).div_ceil(1024), count, 1], 256, args![&x, &norms, n * k]);
        let flat = |values: usize| [values.div_ceil(1024), 1, 1];
        for _ in 0..MUON_STEPS {
            symmetric_cuda(gpu, &x, &a, n, k, count);
            symmetric_cuda(gpu, &a, &b, n, n, count);
            let args = args![&a, &b, ABC.1, ABC.2, (count * n * n) as i64];
            gpu.launch("muon_polynomial", flat(count * n * n), 256, args);
            let args = args![&x, &y, ABC.0, (count * n * k) as i64];
            gpu.launch("muon_scaled_copy", flat(count * n * k), 256, args);
            let places = Matrices { a: b.at(0), b: x.at(0), c: y.at(0) };
            batched(gpu, places, [n, k, n], [n, k, k], true, count);
            std::mem::swap(&mut x, &mut y);
        }
        let (step, keep) = rule.factors(rows, cols);
        gpu.launch("muon_apply", tiles, 256, args![p, &offsets, &any, &x, rows, cols, step, keep]);
    }
}

/// Counts `[n, k] · [k, n]` where it is symmetric: strips up to the diagonal.
fn count_symmetric(n: usize, k: usize) {
    for row in (0..n).step_by(STRIP) {
        let rows = STRIP.min(n - row);
        add_product(Part::Optimizer, rows, k, row + rows);
    }
}

/// The nearest matrix whose singular values are about one.
fn orthogonal(x: Buf, rows: usize, cols: usize) -> Buf {
    if rows > cols {
        let t = orthogonal(math::transposed(&x, rows, cols), cols, rows);
        return math::transposed(&t, cols, rows);
    }
    let mut x = x;
    let norm = update::squared_norm(&x).sqrt() as f32;
    math::scale(&mut x, 1.0 / (norm + 1e-7));
    let (n, k) = (rows, cols);
    let mut panels = Buf::new(packed_len(n, k));
    let (mut a, mut b, mut y) = (Buf::new(n * n), Buf::new(n * n), Buf::new(n * k));
    for _ in 0..MUON_STEPS {
        // A = X Xᵀ, B = b A + c A², X <- a X + B X
        pack_transposed(&x, n, k, k, &mut panels);
        symmetric(&x, Right::packed(&panels, k), (n, k), &mut a);
        symmetric(&a, Right::rows(&a, n), (n, n), &mut b);
        math::blend(ABC.1, &a, ABC.2, &mut b);
        y.copy_from_slice(&x);
        math::scale(&mut y, ABC.0);
        let product = Product { a: Left::rows(&b, n), b: Right::rows(&x, k), m: n, k: n, n: k, c: 0 };
        gemm(&[product], &mut y, k, true);
        std::mem::swap(&mut x, &mut y);
    }
    x
}

/// `out [n, n] = left [n, k] · right` where that is symmetric: computed in strips up to the diagonal, and mirrored.
fn symmetric(left: &[f32], right: Right, (n, k): (usize, usize), out: &mut [f32]) {
    let strips: Vec<Product> = (0..n)
        .step_by(STRIP)
        .map(|row| {
            let rows = STRIP.min(n - row);
            let a = Left::rows(&left[row * k..], k);
            Product { a, b: right, m: rows, k, n: row + rows, c: row * n }
        })
        .collect();
    gemm(&strips, out, n, false);
    for row in (STRIP..n).step_by(STRIP) {
        let (above, strip) = out.split_at_mut(row * n);
        for (col, above) in above.chunks_exact_mut(n).enumerate() {
            for (to, strip) in above[row..].iter_mut().zip(strip.chunks_exact(n)).take(STRIP) {
                *to = strip[col];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    #[test]
    fn symmetric_products_are_whole() {
        let (n, k) = (75, 40);
        let mut rng = Rng::new(5);
        let mut x = Buf::new(n * k);
        x.iter_mut().for_each(|v| *v = rng.normal());
        let mut panels = Buf::new(packed_len(n, k));
        pack_transposed(&x, n, k, k, &mut panels);
        let right = Right::packed(&panels, k);
        let (mut half, mut whole) = (Buf::new(n * n), Buf::new(n * n));
        symmetric(&x, right, (n, k), &mut half);
        gemm(&[Product { a: Left::rows(&x, k), b: right, m: n, k, n, c: 0 }], &mut whole, n, false);
        assert!(half[..] == whole[..], "the same bits as the full product");
    }

    #[test]
    fn a_matrix_without_a_gradient_rests() {
        let (w, mut rng) =
            ([Weight { offset: 0, rows: 3, cols: 4 }, Weight { offset: 12, rows: 3, cols: 4 }], Rng::new(2));
        let mut random = || {
            let mut x = Buf::new(24);
            x.iter_mut().for_each(|v| *v = rng.normal());
            x
        };
        let (p, m, mut g) = (random(), random(), random());
        g[..12].fill(0.0);
        let (mut p2, mut m2) = (Data::from(Buf::copy_of(&p)), Data::from(Buf::copy_of(&m)));
        let rule = Muon { lr: 0.02, decay: 0.1, momentum: 0.95, grad_scale: 1.0 };
        muon(&mut p2, &g.into(), &mut m2, 0, &w, rule);
        assert_eq!((&p2.host()[..12], &m2.host()[..12]), (&p[..12], &m[..12]));
        assert!(p2.host()[12..].iter().zip(&p[12..]).all(|(a, b)| a != b));
    }

    #[test]
    fn singular_values_come_near_one() {
        for (rows, cols) in [(8, 20), (20, 8), (16, 16)] {
            let mut rng = Rng::new(3);
            let mut x = Buf::new(rows * cols);
            x.iter_mut().for_each(|v| *v = rng.normal());
            let o = orthogonal(x, rows, cols);
            // The squared Frobenius norm is the sum of the squared singular values; each lies in about [0.7, 1.2].
            let mean = update::squared_norm(&o) / rows.min(cols) as f64;
            assert!((0.5..1.4).contains(&mean), "{rows}x{cols}: {mean}");
        }
    }
}
