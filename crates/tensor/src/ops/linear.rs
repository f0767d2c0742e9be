//! `y = x Wᵀ (+ b)`.

use crate::cpu::gemm::{Left, Product, Right, gemm};
use crate::cpu::math;
use crate::cuda::gemm::{Layout, Matrices, product as cuda_product};
use crate::cuda::{Gpu, Math, Ptr, ROW_THREADS, args, row_grid};
use crate::memory::Data;
use crate::operations::{Part, add_product};
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// `x [tokens, in]`, `w [out, in]`, `bias [out]` → `[tokens, out]`.
pub fn linear(tape: &Tape, x: &Tensor, w: Weight, bias: Option<Weight>) -> Tensor {
    linear_in(tape.gpu().cloned(), tape, x, w, bias)
}

/// The same in f32 also where a GPU calculates fast: for few outputs that decide much, such as a router's.
pub fn exact_linear(tape: &Tape, x: &Tensor, w: Weight) -> Tensor {
    linear_in(tape.gpu().map(|gpu| gpu.with_math(Math::Exact)), tape, x, w, None)
}

fn linear_in(gpu: Option<Gpu>, tape: &Tape, x: &Tensor, w: Weight, bias: Option<Weight>) -> Tensor {
    assert_eq!(x.cols(), w.cols, "linear: {} features into a weight of {} x {}", x.cols(), w.rows, w.cols);
    if let Some(b) = bias {
        assert_eq!(b.len(), w.rows, "linear: bias of {} for {} outputs", b.len(), w.rows);
    }
    add_product(Part::Linear, x.rows(), w.cols, w.rows);
    let mut y = Data::new(tape.gpu(), x.rows() * w.rows);
    forward(gpu.as_ref(), tape.params(), x, w, bias, &mut y);
    let y = tape.output(y, x.rows(), w.rows);
    if let Some(dy) = y.grad.clone() {
        let x = x.clone();
        tape.record(move |params| {
            if let Some(dy) = dy.take() {
                backward(gpu.as_ref(), params, &x, &dy, w, bias);
            }
        });
    }
    y
}

/// `y = x Wᵀ (+ b)`.
pub(super) fn forward(
    gpu: Option<&Gpu>,
    params: &Params,
    x: &Tensor,
    w: Weight,
    bias: Option<Weight>,
    y: &mut Data,
) {
    match gpu {
        Some(gpu) => forward_cuda(gpu, params, x, w, bias, y),
        None => forward_cpu(params, x, w, bias, y.host_mut()),
    }
}

fn forward_cpu(params: &Params, x: &Tensor, w: Weight, bias: Option<Weight>, y: &mut [f32]) {
    product(params, x.host(), x.rows(), w, y);
    if let Some(b) = bias {
        let b = params.get(b);
        parallel_chunks(y, w.rows * 64, |_, rows| {
            rows.chunks_exact_mut(b.len()).for_each(|row| math::add_assign(row, b));
        });
    }
}

fn forward_cuda(gpu: &Gpu, params: &Params, x: &Tensor, w: Weight, bias: Option<Weight>, y: &mut Data) {
    let (m, n) = (x.rows(), w.rows);
    let y = y.on_mut(gpu);
    product_cuda(gpu, params, x.data.operand(gpu).at(0), m, w, y.at(0));
    if let Some(b) = bias {
        gpu.launch("elementwise_add_bias", row_grid(m, n), ROW_THREADS, args![y, params.on(gpu, b), n]);
    }
}

/// `out [rows, w.rows] = x [rows, w.cols] · wᵀ`, without a tape.
pub(crate) fn product(params: &Params, x: &[f32], rows: usize, w: Weight, out: &mut [f32]) {
    let panels = params.packed(w);
    let p =
        Product { a: Left::rows(x, w.cols), b: panels.right(w.cols), m: rows, k: w.cols, n: w.rows, c: 0 };
    gemm(&[p], out, w.rows, false);
}

/// [`product`] on a GPU.
pub(crate) fn product_cuda(gpu: &Gpu, params: &Params, x: Ptr, rows: usize, w: Weight, out: Ptr) {
    let weight = params.factor_on(gpu, w);
    let places = Matrices { a: x, b: weight.at(0), c: out };
    cuda_product(gpu, Layout::Nt, places, [rows, w.rows, w.cols], [w.cols, w.cols, w.rows], false);
}

pub(super) fn backward(
    gpu: Option<&Gpu>,
    params: &Params,
    x: &Tensor,
    dy: &Data,
    w: Weight,
    bias: Option<Weight>,
) {
    let (m, k, n) = (x.rows(), w.cols, w.rows);
    if params.trains(w) {
        add_product(Part::Linear, m, k, n);
    }
    if let Some(g) = &x.grad {
        add_product(Part::Linear, m, k, n);
        g.write(params.gpu(), m * k, |dx, add| input_gradient(gpu, params, dy, m, w, dx, add));
    }
    let bias = bias.filter(|&b| params.trains(b));
    match gpu {
        _ if !params.trains(w) && bias.is_none() => {}
        Some(gpu) => {
            let (x, factor) = (x.data.operand(gpu), dy.operand(gpu));
            weight_gradient_cuda(gpu, params, x.at(0), factor.at(0), m, w);
            if let Some(b) = bias {
                let args = args![dy.on(gpu), params.grad_on(gpu, b), m, n];
                gpu.launch("elementwise_bias_gradient", [n.div_ceil(32), 1, 1], 256, args);
            }
        }
        None => {
            let dy = dy.host();
            weight_gradient(params, x.host(), dy, m, w);
            if let Some(b) = bias {
                let mut db = params.grad_mut(b);
                parallel_chunks(&mut db, 64, |at, db| {
                    for row in dy.chunks_exact(n) {
                        math::add_assign(db, &row[at..at + db.len()]);
                    }
                });
            }
        }
    }
}

/// `dx [m, k] (+)= dy [m, n] · w [n, k]`.
fn input_gradient(
    gpu: Option<&Gpu>,
    params: &Params,
    dy: &Data,
    m: usize,
    w: Weight,
    dx: &mut Data,
    add: bool,
) {
    let (k, n) = (w.cols, w.rows);
    match gpu {
        Some(gpu) => {
            let (dy, weight) = (dy.operand(gpu), params.factor_on(gpu, w));
            let places = Matrices { a: dy.at(0), b: weight.at(0), c: dx.on_mut(gpu).at(0) };
            cuda_product(gpu, Layout::Nn, places, [m, k, n], [n, k, k], add);
        }
        None => {
            let values = params.values(w);
            let (a, b) = (Left::rows(dy.host(), n), Right::rows(&values, k));
            gemm(&[Product { a, b, m, k: n, n: k, c: 0 }], dx.host_mut(), k, add)
        }
    }
}

/// `dW [n, k] += dyᵀ [n, m] · x [m, k]`, if the weight is trained.
pub(crate) fn weight_gradient(params: &Params, x: &[f32], dy: &[f32], m: usize, w: Weight) {
    let (k, n) = (w.cols, w.rows);
    let p = Product { a: Left::transposed(dy, n), b: Right::rows(x, k), m: n, k: m, n: k, c: 0 };
    if m > 0 && params.trains(w) {
        gemm(&[p], &mut params.grad_mut(w), k, true);
    }
}

/// [`weight_gradient`] on a GPU.
pub(crate) fn weight_gradient_cuda(gpu: &Gpu, params: &Params, x: Ptr, dy: Ptr, m: usize, w: Weight) {
    if !params.trains(w) {
        return;
    }
    let (k, n) = (w.cols, w.rows);
    let places = Matrices { a: dy, b: x, c: params.grad_on(gpu, w) };
    cuda_product(gpu, Layout::Tn, places, [n, k, m], [n, k, k], true);
}
