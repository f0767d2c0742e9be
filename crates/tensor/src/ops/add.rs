//! `a + b`.

use crate::cpu::math;
use crate::cuda::args;
use crate::memory::Data;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

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
