//! `y = x Wᵀ (+ b)`.

use crate::buffer::Buf;
use crate::cpu::gemm::{Left, Product, Right, gemm};
use crate::cpu::math;
use crate::operations::{Part, add_product};
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// `x [tokens, in]`, `w [out, in]`, `bias [out]` → `[tokens, out]`.
pub fn linear(tape: &Tape, x: &Tensor, w: Weight, bias: Option<Weight>) -> Tensor {
    assert_eq!(x.cols(), w.cols, "linear: {} features into a weight of {} x {}", x.cols(), w.rows, w.cols);
    let mut y = Buf::new(x.rows() * w.rows);
    product(tape.params(), x.data(), x.rows(), w, &mut y);
    add_product(Part::Linear, x.rows(), w.cols, w.rows);
    if let Some(b) = bias {
        assert_eq!(b.len(), w.rows, "linear: bias of {} for {} outputs", b.len(), w.rows);
        let b = tape.params().get(b);
        parallel_chunks(&mut y, w.rows * 64, |_, rows| {
            rows.chunks_exact_mut(b.len()).for_each(|row| math::add_assign(row, b));
        });
    }
    let y = tape.output(y, x.rows(), w.rows);
    if let Some(dy) = y.grad.clone() {
        let x = x.clone();
        tape.record(move |params| {
            if let Some(dy) = dy.take() {
                backward(params, &x, &dy, w, bias);
            }
        });
    }
    y
}

/// `out [rows, w.rows] = x [rows, w.cols] · wᵀ`, without a tape.
pub(crate) fn product(params: &Params, x: &[f32], rows: usize, w: Weight, out: &mut [f32]) {
    let panels = params.packed(w);
    let p = Product {
        a: Left::rows(x, w.cols),
        b: Right::packed(&panels, w.cols),
        m: rows,
        k: w.cols,
        n: w.rows,
        c: 0,
    };
    gemm(&[p], out, w.rows, false);
}

fn backward(params: &Params, x: &Tensor, dy: &[f32], w: Weight, bias: Option<Weight>) {
    let (m, k, n) = (x.rows(), w.cols, w.rows);
    add_product(Part::Linear, m, k, n);
    if let Some(g) = &x.grad {
        add_product(Part::Linear, m, k, n);
        let b = Right::rows(params.get(w), k);
        g.write(m * k, |dx, add| {
            gemm(&[Product { a: Left::rows(dy, n), b, m, k: n, n: k, c: 0 }], dx, k, add)
        });
    }
    weight_gradient(params, x.data(), dy, m, w);
    if let Some(b) = bias {
        let mut db = params.grad_mut(b);
        parallel_chunks(&mut db, 64, |at, db| {
            for row in dy.chunks_exact(n) {
                math::add_assign(db, &row[at..at + db.len()]);
            }
        });
    }
}

/// `dW [n, k] += dyᵀ [n, m] · x [m, k]`.
pub(crate) fn weight_gradient(params: &Params, x: &[f32], dy: &[f32], m: usize, w: Weight) {
    let (k, n) = (w.cols, w.rows);
    let p = Product { a: Left::transposed(dy, n), b: Right::rows(x, k), m: n, k: m, n: k, c: 0 };
    if m > 0 {
        gemm(&[p], &mut params.grad_mut(w), k, true);
    }
}
