//! `s x`.

use crate::cpu::math;
use crate::memory::Data;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// Every value of `x` times `s`.
pub fn scaled(tape: &Tape, x: &Tensor, s: f32) -> Tensor {
    let y = tape.output(times(&x.data, s), x.rows(), x.cols());
    if let (Some(gx), Some(gy)) = (x.grad.clone(), y.grad.clone()) {
        tape.record(move |_| {
            if let Some(dy) = gy.take() {
                gx.give(times(&dy, s));
            }
        });
    }
    y
}

fn times(x: &Data, s: f32) -> Data {
    let mut y = x.copy();
    parallel_chunks(y.host_mut(), 1 << 14, |_, y| math::scale(y, s));
    y
}
