//! `a + b`, and `a += b` where nothing goes back.

use crate::cpu::math;
use crate::cuda::args;
use crate::memory::Data;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// `to += more`, where `to` lies. Panics if the lengths differ.
pub fn add_assign(to: &mut Data, more: &Data) {
    assert_eq!(to.len(), more.len(), "add_assign: lengths differ");
    let Some(gpu) = to.gpu().cloned() else { return add_values(to.host_mut(), more.host()) };
    let n = to.len();
    let (more, to) = (more.on(&gpu), to.on_mut(&gpu));
    gpu.launch("elementwise_add", [n.div_ceil(1024).min(1 << 16), 1, 1], 256, args![to, more, to, n as i64]);
}

/// `to += more` in the host's memory. Panics if the lengths differ.
pub fn add_values(to: &mut [f32], more: &[f32]) {
    assert_eq!(to.len(), more.len(), "add_values: lengths differ");
    parallel_chunks(to, 1 << 14, |at, to| math::add_assign(to, &more[at..at + to.len()]));
}

/// Element by element; both `[tokens, features]`.
pub fn add(tape: &Tape, a: &Tensor, b: &Tensor) -> Tensor {
    assert!(a.rows() == b.rows() && a.cols() == b.cols(), "add: shapes differ");
    let n = a.rows() * a.cols();
    let mut y = Data::new(tape.gpu(), n);
    match tape.gpu() {
        Some(gpu) => {
            let (a, b) = (a.data.on(gpu), b.data.on(gpu));
            gpu.launch(
                "elementwise_add",
                [n.div_ceil(1024), 1, 1],
                256,
                args![a, b, y.on_mut(gpu), n as i64],
            );
        }
        None => {
            let (a, b) = (a.host(), b.host());
            parallel_chunks(y.host_mut(), 1 << 14, |at, y| {
                y.copy_from_slice(&a[at..at + y.len()]);
                math::add_assign(y, &b[at..at + y.len()]);
            });
        }
    }
    let y = tape.output(y, a.rows(), a.cols());
    if let Some(gy) = y.grad.clone() {
        let grads = [a.grad.clone(), b.grad.clone()];
        tape.record(move |_| {
            if let Some(dy) = gy.take() {
                grads.iter().flatten().for_each(|g| g.add(dy.clone()));
            }
        });
    }
    y
}
