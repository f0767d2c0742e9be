//! Rows of a table, picked by token id.

use crate::buffer::Buf;
use crate::cpu::math;
use crate::params::Weight;
use crate::tape::{Tape, Tensor};
use crate::threads::parallel;

/// `table [vocab, hidden]` → `[ids, hidden]`. Panics if an id is outside the table.
pub fn embedding(tape: &Tape, ids: &[u32], table: Weight) -> Tensor {
    let h = table.cols;
    let rows = tape.params().get(table);
    let mut y = Buf::new(ids.len() * h);
    for (out, &id) in y.chunks_exact_mut(h).zip(ids) {
        assert!((id as usize) < table.rows, "embedding: token id {id} in a table of {}", table.rows);
        out.copy_from_slice(&rows[id as usize * h..][..h]);
    }
    let y = tape.output(y, ids.len(), h);
    if let Some(dy) = y.grad.clone() {
        let ids = ids.to_vec();
        tape.record(move |params| {
            let Some(dy) = dy.take() else { return };
            let mut grad = params.grad_mut(table);
            let shared = crate::threads::SharedMut::new(&mut grad);
            // Each piece owns the ids of one residue class, so a row sums its tokens in their order.
            let pieces = 8;
            parallel(pieces, |piece| {
                for (t, &id) in ids.iter().enumerate().filter(|(_, id)| **id as usize % pieces == piece) {
                    // SAFETY: ids are inside the table (checked above); a row belongs to one piece.
                    let row = unsafe { shared.slice(id as usize * h, h) };
                    math::add_assign(row, &dy[t * h..][..h]);
                }
            });
        });
    }
    y
}
