//! Rows of a table, picked by token id.

use crate::cpu::math;
use crate::cuda::{ROW_THREADS, args};
use crate::memory::{Data, Ints};
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};
use crate::threads::{SharedMut, parallel};

/// `table [vocab, hidden]` → `[ids, hidden]`. Panics if an id is outside the table.
pub fn embedding(tape: &Tape, ids: &[u32], table: Weight) -> Tensor {
    let (n, h) = (ids.len(), table.cols);
    let outside = ids.iter().find(|&&id| id as usize >= table.rows);
    assert!(outside.is_none(), "embedding: token id {outside:?} in a table of {}", table.rows);
    let ids: Ints = ids.to_vec().into();
    let mut y = Data::new(tape.gpu(), n * h);
    match tape.gpu() {
        Some(gpu) => tape.params().rows_on(gpu, table, &ids, y.on_mut(gpu).at(0)),
        None => {
            for (out, &id) in y.host_mut().chunks_exact_mut(h).zip(ids.host()) {
                tape.params().read_row(table, id as usize, out);
            }
        }
    }
    let y = tape.output(y, n, h);
    if let Some(dy) = y.grad.clone().filter(|_| tape.params().trains(table)) {
        tape.record(move |params| {
            if let Some(dy) = dy.take() {
                backward(params, &ids, &dy, table);
            }
        });
    }
    y
}

/// Adds `dy [ids, hidden]` to the table's gradient: a row sums its tokens in their order.
fn backward(params: &Params, ids: &Ints, dy: &Data, table: Weight) {
    let h = table.cols;
    if let Some(gpu) = params.gpu() {
        let (order, first) = runs(ids.host());
        let count = first.len() - 1;
        let (order, first) = (gpu.upload_ints(&order), gpu.upload_ints(&first));
        let args = args![dy.on(gpu), ids.on(gpu), &order, &first, params.grad_on(gpu, table), h];
        return gpu.launch("embedding_backward", [count, h.div_ceil(ROW_THREADS), 1], ROW_THREADS, args);
    }
    let (ids, dy) = (ids.host(), dy.host());
    let mut grad = params.grad_mut(table);
    let shared = SharedMut::new(&mut grad);
    // Each piece owns the ids of one residue class.
    let pieces = 8;
    parallel(pieces, |piece| {
        for (t, &id) in ids.iter().enumerate().filter(|(_, id)| **id as usize % pieces == piece) {
            // SAFETY: ids are inside the table (checked by the forward pass); a row belongs to one piece.
            let row = unsafe { shared.slice(id as usize * h, h) };
            math::add_assign(row, &dy[t * h..][..h]);
        }
    });
}

/// The tokens sorted by id, those of one id in their order; where each run of equal ids begins, and the end.
fn runs(ids: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&t| ids[t as usize]);
    let id = |at: usize| ids[order[at] as usize];
    let mut first: Vec<u32> =
        (0..order.len()).filter(|&at| at == 0 || id(at) != id(at - 1)).map(|at| at as u32).collect();
    first.push(ids.len() as u32);
    (order, first)
}
