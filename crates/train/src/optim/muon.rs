//! Muon: momentum, orthogonalised by Newton–Schulz iterations (Jordan et al. 2024), scaled so that its steps are of
//! AdamW's size and share its learning rates (Moonlight, Liu et al. 2025, section 2.2).

use model::ModelConfig;
use model::config::{TensorKind, TensorSpec, tensor_specs};
use tensor::Buf;
use tensor::cpu::gemm::{Left, Product, Right, gemm, pack_transposed, packed_len};
use tensor::cpu::{math, update};
use tensor::operations::{Part, add_product};

/// Newton–Schulz steps.
const STEPS: usize = 5;
/// Rows of one piece of a symmetric product.
const STRIP: usize = 32;
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
        math::blend(self.grad_scale, g, self.momentum, m);
        // Nesterov: look ahead along the momentum.
        let mut x = Buf::copy_of(m);
        math::blend(self.grad_scale, g, self.momentum, &mut x);
        let x = orthogonal(x, rows, cols);
        let size = 0.2 * (rows.max(cols) as f32).sqrt();
        math::blend(-self.lr * size, &x, 1.0 - self.lr * self.decay, p);
    }
}

/// Operations of one step on all of a model's matrices, about: symmetric products are computed by half.
pub(crate) fn muon_operations(config: &ModelConfig) -> f64 {
    let of = |shape: &[usize]| {
        let (n, k) = (shape[0].min(shape[1]) as f64, shape[0].max(shape[1]) as f64);
        STEPS as f64 * n * n * (3.0 * k + n)
    };
    tensor_specs(config).iter().filter(|spec| is_hidden_matrix(spec)).map(|spec| of(&spec.shape)).sum()
}

/// Whether Muon takes care of a tensor.
pub(super) fn is_hidden_matrix(spec: &TensorSpec) -> bool {
    matches!(spec.kind, TensorKind::Matrix | TensorKind::Expert { .. })
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
        // A = X Xᵀ, B = b A + c A², X <- a X + B X
        pack_transposed(&x, n, k, k, &mut panels);
        symmetric(&x, Right::packed(&panels, k), (n, k), &mut a);
        symmetric(&a, Right::rows(&a, n), (n, n), &mut b);
        math::blend(ABC.1, &a, ABC.2, &mut b);
        y.copy_from_slice(&x);
        math::scale(&mut y, ABC.0);
        add_product(Part::Optimizer, n, n, k);
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

/// `out [n, n] = left [n, k] · right` where that is symmetric: computed in strips up to the diagonal, and mirrored.
fn symmetric(left: &[f32], right: Right, (n, k): (usize, usize), out: &mut [f32]) {
    let strips: Vec<Product> = (0..n)
        .step_by(STRIP)
        .map(|row| {
            let rows = STRIP.min(n - row);
            add_product(Part::Optimizer, rows, k, row + rows);
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
