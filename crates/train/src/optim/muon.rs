//! Muon: momentum, orthogonalised by Newton–Schulz iterations (Jordan et al. 2024), scaled so that its steps are of
//! AdamW's size and share its learning rates (Moonlight, Liu et al. 2025, section 2.2).

use tensor::Buf;
use tensor::cpu::gemm::{Left, Product, Right, gemm, pack_transposed, packed_len};
use tensor::cpu::{math, update};
use tensor::operations::{Part, add_product};

/// Newton–Schulz steps.
const STEPS: usize = 5;
/// Coefficients of the quintic iteration.
const ABC: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);

/// The constants of one step.
pub(super) struct Muon {
    pub lr: f32,
    pub decay: f32,
    pub momentum: f32,
    /// Factor of the gradient (for clipping).
    pub grad_scale: f32,
}

impl Muon {
    /// One step on a matrix `p [rows, cols]` with gradient `g` and momentum `m`.
    pub(super) fn step(&self, p: &mut [f32], g: &[f32], m: &mut [f32], (rows, cols): (usize, usize)) {
        math::scale(m, self.momentum);
        math::axpy(self.grad_scale, g, m);
        // Nesterov: look ahead along the momentum.
        let mut x = Buf::copy_of(m);
        math::scale(&mut x, self.momentum);
        math::axpy(self.grad_scale, g, &mut x);
        let x = orthogonal(x, rows, cols);
        let size = 0.2 * (rows.max(cols) as f32).sqrt();
        math::scale(p, 1.0 - self.lr * self.decay);
        math::axpy(-self.lr * size, &x, p);
    }
}

/// The nearest matrix whose singular values are about one.
fn orthogonal(x: Buf, rows: usize, cols: usize) -> Buf {
    if rows > cols {
        let t = orthogonal(transpose(&x, rows, cols), cols, rows);
        return transpose(&t, cols, rows);
    }
    let mut x = x;
    let norm = update::squared_norm(&x).sqrt() as f32;
    math::scale(&mut x, 1.0 / (norm + 1e-7));
    let (n, k) = (rows, cols);
    let mut panels = Buf::new(packed_len(n, k));
    let (mut a, mut b, mut y) = (Buf::new(n * n), Buf::new(n * n), Buf::new(n * k));
    for _ in 0..STEPS {
        add_product(Part::Optimizer, n, k, 2 * n);
        add_product(Part::Optimizer, n, n, n);
        // A = X Xᵀ, B = b A + c A², X <- a X + B X
        pack_transposed(&x, n, k, k, &mut panels);
        gemm(
            &[Product { a: Left::rows(&x, k), b: Right::packed(&panels, k), m: n, k, n, c: 0 }],
            &mut a,
            n,
            false,
        );
        gemm(
            &[Product { a: Left::rows(&a, n), b: Right::rows(&a, n), m: n, k: n, n, c: 0 }],
            &mut b,
            n,
            false,
        );
        math::scale(&mut b, ABC.2);
        math::axpy(ABC.1, &a, &mut b);
        y.copy_from_slice(&x);
        math::scale(&mut y, ABC.0);
        gemm(
            &[Product { a: Left::rows(&b, n), b: Right::rows(&x, k), m: n, k: n, n: k, c: 0 }],
            &mut y,
            k,
            true,
        );
        std::mem::swap(&mut x, &mut y);
    }
    x
}

fn transpose(x: &[f32], rows: usize, cols: usize) -> Buf {
    let mut t = Buf::new(rows * cols);
    for r in 0..rows {
        for c in 0..cols {
            t[c * rows + r] = x[r * cols + c];
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::Rng;

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
