//! Attention on the processor: keys component by component in pages, register tiles, an online softmax.

use super::{AttentionShape, KvLayer, PAGE, Place, Segment};
use crate::buffer::Buf;
use crate::cpu::gemm::{PANEL, Right, Tile};
use crate::cpu::math::{exp, ln, scale as scale_by};
use crate::cpu::simd::{LANES, Simd, kernel};
use crate::threads::{SharedMut, parallel, threads};
use std::cell::RefCell;
use std::ops::Range;

/// Query rows of one tile of the backward pass.
const BACK_ROWS: usize = 48;
/// The tallest micro-kernel.
const MAX_ROWS: usize = 12;

/// Writes the batch's keys and values into the pages of every segment that has them.
pub(super) fn store(
    layer: &mut KvLayer,
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
    places: &[Place],
) {
    let (dk, dv, kvh) = (shape.qk_dim, shape.v_dim, shape.kv_heads);
    let mut work: Vec<(usize, usize, usize, usize)> = Vec::new(); // first row, page, first key in page, keys
    let mut written = vec![0u64; layer.k.len()];
    for (s, place) in segments.iter().zip(places) {
        let end = s.past.checked_add(s.rows).filter(|end| end.div_ceil(PAGE) <= s.pages.len());
        let end = end.unwrap_or_else(|| {
            panic!("attention: {} pages for {} + {} tokens", s.pages.len(), s.past, s.rows)
        });
        for &page in &s.pages[..end.div_ceil(PAGE)] {
            let sizes =
                layer.k.get(page as usize).zip(layer.v.get(page as usize)).map(|(k, v)| (k.len(), v.len()));
            assert!(
                sizes == Some((kvh * dk * PAGE, kvh * dv * PAGE)),
                "attention: page {page} of {sizes:?} values for {shape:?}"
            );
        }
        let mut at = s.past - place.past;
        for (mut row, rows) in place.spans() {
            let end = at + rows;
            while at < end {
                let keys = (PAGE - at % PAGE).min(end - at);
                let page = s.pages[at / PAGE] as usize;
                let slots = (u64::MAX >> (PAGE - keys)) << (at % PAGE);
                assert!(written[page] & slots == 0, "attention: two tokens for one place of page {page}");
                written[page] |= slots;
                work.push((row, page, at % PAGE, keys));
                row += keys;
                at += keys;
            }
        }
    }
    let k_pages: Vec<SharedMut<f32>> = layer.k.iter_mut().map(|b| SharedMut::new(b)).collect();
    let v_pages: Vec<SharedMut<f32>> = layer.v.iter_mut().map(|b| SharedMut::new(b)).collect();
    parallel(work.len(), |i| {
        let (row, page, first, keys) = work[i];
        for h in 0..kvh {
            let from = &k[(row * kvh + h) * dk..];
            for d in 0..dk {
                // SAFETY: inside the page, whose size was checked above; no other token has these places of it.
                let to = unsafe { k_pages[page].slice((h * dk + d) * PAGE + first, keys) };
                for (j, to) in to.iter_mut().enumerate() {
                    *to = from[j * kvh * dk + d];
                }
            }
            // SAFETY: as above.
            let to = unsafe { v_pages[page].slice((h * PAGE + first) * dv, keys * dv) };
            for (j, to) in to.chunks_exact_mut(dv).enumerate() {
                to.copy_from_slice(&v[((row + j) * kvh + h) * dv..][..dv]);
            }
        }
    });
}

/// Some query rows of one head; or, for a single token, of several key/value heads, whose keys lie side by side.
struct Task {
    segment: usize,
    kv_head: usize,
    kv_heads: usize,
    /// Offset of the first query row in `q`, and of its result in `out` and `lse`.
    q: usize,
    out: usize,
    lse: usize,
    /// Rows per key/value head.
    rows: usize,
    /// Keys of the first row; row i has `keys + i * step`.
    keys: usize,
    step: usize,
}

pub(super) fn forward(
    q: &[f32],
    layer: &KvLayer,
    shape: &AttentionShape,
    segments: &[Segment],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let tasks = tasks(shape, segments);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    parallel(tasks.len(), |i| {
        let t = &tasks[i];
        STATE.with(|state| {
            let mut state = state.borrow_mut();
            let need = t.kv_heads * t.rows.min(MAX_ROWS) * (shape.v_dim + 2);
            if state.len() < need {
                *state = Buf::new(need);
            }
            attend(t, q, layer, shape, &segments[t.segment].pages, (out, lse), &mut state);
        });
    });
}

/// The work on a batch in pieces, several for each thread.
fn tasks(shape: &AttentionShape, segments: &[Segment]) -> Vec<Task> {
    let group = shape.heads / shape.kv_heads;
    let heads_at_once = (shape.kv_heads * segments.len() / (4 * threads())).clamp(1, shape.kv_heads);
    let mut tasks = Vec::new();
    let mut row = 0;
    for (segment, s) in segments.iter().enumerate() {
        let mut push = |row: usize, head: usize, kv_heads: usize, rows: usize, keys: usize, step: usize| {
            let lse = row * shape.heads + head;
            let (q, out) = (lse * shape.qk_dim, lse * shape.v_dim);
            tasks.push(Task { segment, kv_head: head / group, kv_heads, q, out, lse, rows, keys, step });
        };
        if s.rows == 1 {
            for h in (0..shape.kv_heads).step_by(heads_at_once) {
                push(row, h * group, heads_at_once.min(shape.kv_heads - h), group, s.past + 1, 0);
            }
        } else {
            for h in 0..shape.heads {
                // Tiles of several micro-kernels' height, so that a long prompt spreads over the threads.
                for r in (0..s.rows).step_by(8 * MAX_ROWS) {
                    push(row + r, h, 1, (8 * MAX_ROWS).min(s.rows - r), s.past + r + 1, 1);
                }
            }
        }
        row += s.rows;
    }
    tasks
}

thread_local! {
    static STATE: RefCell<Buf> = RefCell::new(Buf::new(0));
    static BACK: RefCell<Buf> = RefCell::new(Buf::new(0));
}

kernel! {
    fn attend<S>(task: &Task, q: &[f32], layer: &KvLayer, shape: &AttentionShape, pages: &[u32],
                 to: (SharedMut<f32>, SharedMut<f32>), state: &mut [f32]) {
        let (out, lse) = to;
        let (dk, dv) = (shape.qk_dim, shape.v_dim);
        // Rows of a tile are tokens of one head, or heads of one token.
        let (q_stride, out_stride, lse_stride) = if task.step == 1 {
            (shape.heads * dk, shape.heads * dv, shape.heads)
        } else {
            (dk, dv, 1)
        };
        let mut scores = [0.0f32; MAX_ROWS * PAGE];
        let mut r0 = 0;
        while r0 < task.rows {
            let rows = S::MR.min(task.rows - r0);
            let slots = task.kv_heads * rows;
            let (m, rest) = state.split_at_mut(slots);
            let (l, acc) = rest.split_at_mut(slots);
            m.fill(f32::NEG_INFINITY);
            l.fill(0.0);
            acc[..slots * dv].fill(0.0);
            let first_keys = task.keys + r0 * task.step;
            let all_keys = first_keys + (rows - 1) * task.step;
            // Pages that a window hides from all rows are passed over; they begin at the same places for every row.
            let seen = shape.window.map_or(0, |window| first_keys.saturating_sub(window) / PAGE * PAGE);
            for base in (seen..all_keys).step_by(PAGE) {
                let keys = PAGE.min(all_keys - base);
                let page = pages[base / PAGE] as usize;
                for h in 0..task.kv_heads {
                    let kt = &layer.k[page][(task.kv_head + h) * dk * PAGE..][..dk * PAGE];
                    let vs = &layer.v[page][(task.kv_head + h) * PAGE * dv..][..PAGE * dv];
                    let width = keys.next_multiple_of(PANEL);
                    Tile {
                        kc: dk,
                        a: q.as_ptr().add(task.q + (h * task.rows + r0) * q_stride),
                        a_rs: q_stride,
                        a_ks: 1,
                        b: kt.as_ptr(),
                        right: Right::strided(kt, PAGE, PANEL),
                        c: scores.as_mut_ptr(),
                        ldc: PAGE,
                        cols: width,
                        load: false,
                    }
                    .run::<S>(rows);
                    for i in 0..rows {
                        let keys = first_keys + i * task.step;
                        let count = keys.saturating_sub(base).min(PAGE);
                        let hidden = shape.window.map_or(0, |window| keys.saturating_sub(window).saturating_sub(base));
                        let (row, at) = (&mut scores[i * PAGE..][..width], h * rows + i);
                        weigh::<S>(row, hidden.min(PAGE)..count, shape.scale, &mut m[at], &mut l[at], &mut acc[at * dv..][..dv]);
                    }
                    Tile {
                        kc: keys,
                        a: scores.as_ptr(),
                        a_rs: PAGE,
                        a_ks: 1,
                        b: vs.as_ptr(),
                        right: Right::strided(vs, dv, PANEL),
                        c: acc.as_mut_ptr().add(h * rows * dv),
                        ldc: dv,
                        cols: dv,
                        load: true,
                    }
                    .run::<S>(rows);
                }
            }
            for (at, acc) in acc[..slots * dv].chunks_exact(dv).enumerate() {
                let row = at / rows * task.rows + r0 + at % rows;
                let inv = 1.0 / l[at];
                // SAFETY: inside the outputs, whose sizes follow from the shape; tasks have disjoint (row, head)s.
                let to = out.slice(task.out + row * out_stride, dv);
                for (o, a) in to.iter_mut().zip(acc) {
                    // Masked keys of a tile add 0, which makes a sum of -0 one of +0; so does this for all.
                    *o = a * inv + 0.0;
                }
                lse.slice(task.lse + row * lse_stride, 1)[0] = m[at] + ln(l[at]);
            }
            r0 += rows;
        }
    }
}

/// The running softmax: turns a page's products, of which those in `seen` are of keys that the row sees, into weights relative
/// to the greatest score so far, `m`, and brings the sum of weights `l` and of weighted values `acc` to it.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    row: &mut [f32],
    seen: Range<usize>,
    scale: f32,
    m: &mut f32,
    l: &mut f32,
    acc: &mut [f32],
) {
    if seen.is_empty() {
        return row.fill(0.0);
    }
    row[..seen.start].fill(f32::NEG_INFINITY);
    row[seen.end..].fill(f32::NEG_INFINITY);
    // SAFETY: rows are whole vectors; the machine has `S` (caller).
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        for c in row.chunks_exact_mut(LANES) {
            let s = S::mul(S::load(c.as_ptr()), S::splat(scale));
            S::store(c.as_mut_ptr(), s);
            top = S::max(top, s);
        }
        let top = S::max_lane(top);
        let new = if top > *m { top } else { *m };
        let shift = S::splat(new);
        let mut sum = S::splat(0.0);
        for c in row.chunks_exact_mut(LANES) {
            let p = exp::<S>(S::sub(S::load(c.as_ptr()), shift));
            S::store(c.as_mut_ptr(), p);
            sum = S::add(sum, p);
        }
        if *m > f32::NEG_INFINITY {
            let mut one = [0.0f32; LANES];
            S::store(one.as_mut_ptr(), exp::<S>(S::splat(*m - new)));
            scale_by(acc, one[0]);
            *l *= one[0];
        }
        *l += S::sum(sum);
        *m = new;
    }
}

/// The gradients `dq`, `dk`, `dv` (the last two zeros so far) from `dy`.
pub(super) fn backward(
    qkv: (&[f32], &[f32], &[f32]),
    (y, dy, lse): (&[f32], &[f32], &[f32]),
    shape: &AttentionShape,
    places: &[Place],
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
) {
    let trees: Vec<&[Place]> = places.chunk_by(|_, next| next.past > 0).collect();
    let grads = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    parallel(trees.len() * shape.kv_heads, |i| {
        let (tree, kv_head) = (trees[i / shape.kv_heads], i % shape.kv_heads);
        // Pieces write disjoint (tree, head) parts; a trunk's gradients are summed in the order of its segments.
        BACK.with(|s| {
            for at in tree {
                back_segment(at, kv_head, qkv, (y, dy, lse), shape, grads, &mut s.borrow_mut());
            }
        });
    });
}

kernel! {
    fn back_segment<S>(at: &Place, kv_head: usize, qkv: (&[f32], &[f32], &[f32]), out: (&[f32], &[f32], &[f32]),
                       shape: &AttentionShape, grads: (SharedMut<f32>, SharedMut<f32>, SharedMut<f32>), scratch: &mut Buf) {
        let ((q, k, v), (y, dy, lse)) = (qkv, out);
        let (gq, gk, gv) = grads;
        let AttentionShape { heads, kv_heads, qk_dim: dk, v_dim: dv, scale, window } = *shape;
        let (group, all) = (heads / kv_heads, at.past + at.rows);
        let padded = all.div_ceil(PAGE) * PAGE;
        let need = padded * (dk + dv) + all * (2 * dk + dv);
        if scratch.len() < need {
            *scratch = Buf::new(need);
        }
        // Keys and values of this head by component, [page][dim][PAGE]; its keys by row, and the gradients of both.
        let (kt, rest) = scratch[..need].split_at_mut(padded * dk);
        let (vt, rest) = rest.split_at_mut(padded * dv);
        let (k_rows, rest) = rest.split_at_mut(all * dk);
        let (dk_rows, dv_rows) = rest.split_at_mut(all * dk);
        gather(k, kv_heads, kv_head, at, dk, k_rows);
        gather(v, kv_heads, kv_head, at, dv, dv_rows);
        by_component(k_rows, dk, kt);
        by_component(dv_rows, dv, vt);
        dk_rows.fill(0.0);
        dv_rows.fill(0.0);
        let (q_stride, y_stride) = (heads * dk, heads * dv);
        let mut p = [0.0f32; BACK_ROWS * PAGE];
        let mut ds = [0.0f32; BACK_ROWS * PAGE];
        for h in kv_head * group..(kv_head + 1) * group {
            let (q_at, y_at) = ((at.start * heads + h) * dk, (at.start * heads + h) * dv);
            let mut r0 = 0;
            while r0 < at.rows {
                let rows = BACK_ROWS.min(at.rows - r0);
                let mut delta = [0.0f32; BACK_ROWS];
                for i in 0..rows {
                    let o = y_at + (r0 + i) * y_stride;
                    delta[i] = dot_lanes::<S>(&y[o..o + dv], &dy[o..o + dv]);
                }
                let seen = window.map_or(0, |window| (at.past + r0 + 1).saturating_sub(window) / PAGE * PAGE);
                let mut base = seen;
                while base < at.past + r0 + rows {
                    let keys = PAGE.min(at.past + r0 + rows - base);
                    let width = keys.next_multiple_of(LANES);
                    let (ktp, vtp) = (&kt[base * dk..][..PAGE * dk], &vt[base * dv..][..PAGE * dv]);
                    let (qp, dyp) = (q.as_ptr().add(q_at + r0 * q_stride), dy.as_ptr().add(y_at + r0 * y_stride));
                    let by_key = |data| Right::strided(data, PAGE, PANEL);
                    strips::<S>(rows, Tile { kc: dk, a: qp, a_rs: q_stride, a_ks: 1, b: ktp.as_ptr(), right: by_key(ktp), c: p.as_mut_ptr(), ldc: PAGE, cols: width, load: false });
                    strips::<S>(rows, Tile { kc: dv, a: dyp, a_rs: y_stride, a_ks: 1, b: vtp.as_ptr(), right: by_key(vtp), c: ds.as_mut_ptr(), ldc: PAGE, cols: width, load: false });
                    for i in 0..rows {
                        let count = (at.past + r0 + i + 1).saturating_sub(base).min(keys);
                        let (p, ds) = (&mut p[i * PAGE..][..width], &mut ds[i * PAGE..][..width]);
                        let shift = S::splat(-lse[(at.start + r0 + i) * heads + h]);
                        for j in (0..count).step_by(LANES) {
                            let e = exp::<S>(S::fma(S::load(p.as_ptr().add(j)), S::splat(scale), shift));
                            let d = S::mul(S::mul(e, S::sub(S::load(ds.as_ptr().add(j)), S::splat(delta[i]))), S::splat(scale));
                            S::store(p.as_mut_ptr().add(j), e);
                            S::store(ds.as_mut_ptr().add(j), d);
                        }
                        p[count..].fill(0.0);
                        ds[count..].fill(0.0);
                        let hidden = window.map_or(0, |w| (at.past + r0 + i + 1).saturating_sub(w).saturating_sub(base));
                        p[..hidden.min(width)].fill(0.0);
                        ds[..hidden.min(width)].fill(0.0);
                    }
                    let rows_of = |data: &'static [f32], stride| Right::strided(data, stride, PANEL);
                    let dvp = dv_rows.as_mut_ptr().add(base * dv);
                    strips::<S>(keys, Tile { kc: rows, a: p.as_ptr(), a_rs: 1, a_ks: PAGE, b: dyp, right: rows_of(&[], y_stride), c: dvp, ldc: dv, cols: dv, load: true });
                    let dkp = dk_rows.as_mut_ptr().add(base * dk);
                    strips::<S>(keys, Tile { kc: rows, a: ds.as_ptr(), a_rs: 1, a_ks: PAGE, b: qp, right: rows_of(&[], q_stride), c: dkp, ldc: dk, cols: dk, load: true });
                    let dqp = gq.ptr().add(q_at + r0 * q_stride);
                    let kp = k_rows.as_ptr().add(base * dk);
                    strips::<S>(rows, Tile { kc: keys, a: ds.as_ptr(), a_rs: PAGE, a_ks: 1, b: kp, right: rows_of(&[], dk), c: dqp, ldc: q_stride, cols: dk, load: base > seen });
                    base += PAGE;
                }
                r0 += rows;
            }
        }
        let mut row = 0;
        for (first, rows) in at.spans() {
            for r in first..first + rows {
                // SAFETY: rows of the batch, of whose heads only this piece of work writes this one.
                let (to_k, to_v) = (gk.slice((r * kv_heads + kv_head) * dk, dk), gv.slice((r * kv_heads + kv_head) * dv, dv));
                add_to(to_k, &dk_rows[row * dk..][..dk]);
                add_to(to_v, &dv_rows[row * dv..][..dv]);
                row += 1;
            }
        }
    }
}

/// The rows of one head of a sequence, one after the other: `[past + rows, dim]`.
fn gather(x: &[f32], heads: usize, head: usize, at: &Place, dim: usize, out: &mut [f32]) {
    let rows = at.spans().into_iter().flat_map(|(first, rows)| first..first + rows);
    for (to, row) in out.chunks_exact_mut(dim).zip(rows) {
        to.copy_from_slice(&x[(row * heads + head) * dim..][..dim]);
    }
}

fn add_to(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
}

/// Runs a tile of any height in strips.
#[inline(always)]
unsafe fn strips<S: Simd>(rows: usize, t: Tile) {
    let mut r = 0;
    while r < rows {
        let n = S::MR.min(rows - r);
        // SAFETY: the whole tile is valid (caller), so each strip of it is.
        unsafe { Tile { a: t.a.add(r * t.a_rs), c: t.c.add(r * t.ldc), ..t }.run::<S>(n) };
        r += n;
    }
}

#[inline(always)]
unsafe fn dot_lanes<S: Simd>(x: &[f32], y: &[f32]) -> f32 {
    let mut i = 0;
    // SAFETY: both slices have x.len() values.
    unsafe {
        let mut acc = S::splat(0.0);
        while i < x.len() {
            let n = LANES.min(x.len() - i);
            let (a, b) = (S::load_partial(x.as_ptr().add(i), n), S::load_partial(y.as_ptr().add(i), n));
            acc = S::fma(a, b, acc);
            i += LANES;
        }
        S::sum(acc)
    }
}

/// Rows of `dim` values → `[page][dim][PAGE]`, zeros behind the end.
fn by_component(rows: &[f32], dim: usize, out: &mut [f32]) {
    for (page, out) in rows.chunks(dim * PAGE).zip(out.chunks_exact_mut(dim * PAGE)) {
        let n = page.len() / dim;
        for (d, lane) in out.chunks_exact_mut(PAGE).enumerate() {
            for (j, to) in lane.iter_mut().enumerate() {
                *to = if j < n { page[j * dim + d] } else { 0.0 };
            }
        }
    }
}
