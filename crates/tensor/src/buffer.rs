//! Aligned buffers of f32 that return to a pool when dropped, so that a step reuses the memory of the last one.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

/// One cache line of floats.
#[derive(Clone, Copy)]
#[repr(align(64))]
#[allow(dead_code, reason = "its floats are reached through slices of the whole buffer")]
struct Line([f32; 16]);

/// Free buffers by their number of lines.
type Free = BTreeMap<usize, Vec<Vec<Line>>>;

/// One pool for all threads: what one thread makes another may drop.
static FREE: Mutex<Free> = Mutex::new(BTreeMap::new());

fn free() -> MutexGuard<'static, Free> {
    FREE.lock().expect("nothing panics under this lock")
}

/// A slice of f32, 64-byte aligned. Its contents are whatever the last owner left unless made by [`Buf::zeros`].
pub struct Buf {
    lines: Vec<Line>,
    len: usize,
}

/// Rounds up to one of eight sizes per power of two: at most an eighth is wasted.
fn size_class(lines: usize) -> usize {
    let lines = lines.max(8);
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.next_multiple_of(step)
}

/// A free buffer of at least `class` lines and at most twice that: batches differ in size from step to step, and what
/// one step leaves should serve the next. Where there is none, the next smaller one is outgrown: it is given back to the system,
/// so that what takes its place does not come on top of it.
fn take(free: &mut Free, class: usize) -> Option<Vec<Line>> {
    if let Some((&fits, _)) = free.range(class..=2 * class).next() {
        return pop(free, fits);
    }
    let (&outgrown, _) = free.range(class / 2..class).next_back()?;
    drop(pop(free, outgrown));
    None
}

fn pop(free: &mut Free, class: usize) -> Option<Vec<Line>> {
    let list = free.get_mut(&class)?;
    let found = list.pop();
    if list.is_empty() {
        free.remove(&class);
    }
    found
}

impl Buf {
    /// A buffer of `len` values, contents unspecified (but initialised memory).
    pub fn new(len: usize) -> Buf {
        let class = size_class(len.div_ceil(16));
        let reused = take(&mut free(), class);
        // SAFETY: all zeros are a valid Line. Memory fresh from the system is zero and need not be touched for that.
        let fresh = || unsafe { Box::new_zeroed_slice(class).assume_init() }.into_vec();
        Buf { lines: reused.unwrap_or_else(fresh), len }
    }

    /// A buffer of `len` zeros.
    pub fn zeros(len: usize) -> Buf {
        let mut b = Buf::new(len);
        b.fill(0.0);
        b
    }

    /// A copy of `x`.
    pub fn copy_of(x: &[f32]) -> Buf {
        let mut b = Buf::new(x.len());
        b.copy_from_slice(x);
        b
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        free().entry(lines.len()).or_default().push(lines);
    }
}

impl Deref for Buf {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: a Line is 16 initialised floats without padding, and len <= 16 * lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Gives the memory of all unused buffers back to the system.
pub fn release_unused() {
    free().clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lanes of the generator make their caches on their own threads, and the caller drops them, again and again.
    #[test]
    fn threads_share_what_they_drop() {
        let made = std::thread::spawn(|| Buf::new(3_000_001)).join().expect("no panic");
        let place = made.as_ptr();
        drop(made);
        let again = std::thread::spawn(|| Buf::new(2_900_000)).join().expect("no panic");
        assert_eq!(again.as_ptr(), place, "a fresh buffer, though a free one was there");
    }

    #[test]
    fn an_outgrown_buffer_goes_when_a_larger_one_comes() {
        let lines = |n: usize| vec![Line([0.0; 16]); n];
        let mut free: Free = [(100, vec![lines(100), lines(100)]), (10, vec![lines(10)])].into();
        assert!(take(&mut free, 101).is_none());
        assert_eq!(free[&100].len(), 1, "one of two was outgrown");
        assert!(take(&mut free, 60).is_some(), "and the other serves what is smaller");
        assert_eq!(
            free.keys().collect::<Vec<_>>(),
            [&10],
            "a small one is not outgrown by one five times its size"
        );
    }
}
