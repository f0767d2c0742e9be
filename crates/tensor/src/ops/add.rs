//! `a + b`.

use crate::buffer::Buf;
use crate::cpu::math;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// Element by element; both `[tokens, features]`.
pub fn add(tape: &Tape, a: &Tensor, b: &Tensor) -> Tensor {
    assert!(a.rows() == b.rows() && a.cols() == b.cols(), "add: shapes differ");
    let mut y = Buf::copy_of(a.data());
    parallel_chunks(&mut y, 1 << 14, |at, y| math::add_assign(y, &b.data()[at..at + y.len()]));
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
