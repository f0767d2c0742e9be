//! `s x`.

use crate::cpu::math;
use crate::cuda::{Gpu, Slab, args};
use crate::memory::Data;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel_chunks;

/// Every value of `x` times `s`.
pub fn scaled(tape: &Tape, x: &Tensor, s: f32) -> Tensor {
    let y = tape.output(times(tape.gpu(), &x.data, s), x.rows(), x.cols());
    if let (Some(gx), Some(gy)) = (x.grad.clone(), y.grad.clone()) {
        tape.record(move |params| {
            if let Some(dy) = gy.take() {
                gx.give(times(params.gpu(), &dy, s));
            }
        });
    }
    y
}

fn times(gpu: Option<&Gpu>, x: &Data, s: f32) -> Data {
    match gpu {
        Some(gpu) => {
            let mut y = Data::new(Some(gpu), x.len());
            launch(gpu, x.on(gpu), y.on_mut(gpu), s, x.len());
            y
        }
        None => {
            let mut y = x.copy();
            scale(None, &mut y, s);
            y
        }
    }
}

/// `x *= s`.
pub(super) fn scale(gpu: Option<&Gpu>, x: &mut Data, s: f32) {
    match gpu {
        Some(gpu) => {
            let (n, x) = (x.len(), x.on_mut(gpu));
            launch(gpu, x, x, s, n);
        }
        None => parallel_chunks(x.host_mut(), 1 << 14, |_, x| math::scale(x, s)),
    }
}

fn launch(gpu: &Gpu, x: &Slab, y: &Slab, s: f32, n: usize) {
    gpu.launch("elementwise_scale", [n.div_ceil(1024), 1, 1], 256, args![x, y, s, n as i64]);
}
