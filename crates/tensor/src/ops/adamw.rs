//! AdamW over ranges of the arenas, and the norm that clipping needs.

use crate::cpu::update;
use crate::cuda::args;
use crate::memory::Data;
use std::ops::Range;

pub use crate::cpu::update::{AdamW, PIECE as NORM_PIECE, squared_norm_pieces};

/// One AdamW step on a range of the weights `p`, with their gradients `g` and both moments, where the weights lie. The moments
/// are those of the weights from `start` on, perhaps not of all.
/// Panics if the gradients are not of the weights, or the moments not of the range.
pub fn adamw(
    p: &mut Data,
    g: &Data,
    (m, v): (&mut Data, &mut Data),
    start: usize,
    range: Range<usize>,
    c: AdamW,
) {
    assert!(
        g.len() == p.len()
            && range.end <= p.len()
            && m.len() == v.len()
            && (start..=start + m.len()).contains(&range.start)
            && range.end <= start + m.len(),
        "adamw: {range:?} of arenas of {} values, with {} and {} moments from {start} on",
        p.len(),
        m.len(),
        v.len()
    );
    let of = range.start - start..range.end - start;
    let Some(gpu) = p.gpu().cloned() else {
        let (p, g) = (&mut p.host_mut()[range.clone()], &g.host()[range]);
        return update::adamw(p, g, &mut m.host_mut()[of.clone()], &mut v.host_mut()[of], c);
    };
    let (at, n) = (range.start, range.len());
    let (p, g) = (p.on_mut(&gpu).at(at), g.on(&gpu).at(at));
    let (m, v) = (m.on_mut(&gpu).at(of.start), v.on_mut(&gpu).at(of.start));
    let d = c.derived();
    let args = args![
        p,
        g,
        m,
        v,
        n as i64,
        c.beta1,
        c.beta2,
        d.rest1,
        d.rest2,
        d.keep,
        d.step,
        c.grad_scale,
        c.eps,
        d.root
    ];
    gpu.launch("optimizer_adamw", [n.div_ceil(1024).min(1 << 16), 1, 1], 256, args);
}

/// `Σ x²`, in pieces of fixed size that are summed in order in f64. Waits for the GPU if the values lie on one.
pub fn squared_norm(x: &Data) -> f64 {
    let Some(gpu) = x.gpu() else { return update::squared_norm(x.host()) };
    let pieces = x.len().div_ceil(update::PIECE);
    // Two values of four bytes make one of eight.
    let (sums, total) = (gpu.alloc(2 * pieces), gpu.alloc(2));
    let args = args![x.on(gpu), &sums, x.len() as i64];
    gpu.launch("optimizer_squared_norm_pieces", [pieces, 1, 1], 256, args);
    gpu.launch("optimizer_squared_norm_total", [1, 1, 1], 256, args![&sums, &total, pieces]);
    let mut norm = [0.0f64];
    gpu.download(&total, &mut norm);
    norm[0]
}
