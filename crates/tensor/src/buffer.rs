//! Aligned buffers of f32 that return to a pool when dropped, so that a step reuses the memory of the last one.

use memmap2::MmapMut;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

/// One cache line of floats.
#[derive(Clone, Copy)]
#[repr(align(64))]
#[allow(dead_code, reason = "its floats are reached through slices of the whole buffer")]
struct Line([f32; 16]);

/// Lines from which memory is mapped for itself: 128 KiB, from where glibc begins to do so too.
const MAPPED: usize = 2048;

/// The lines of a buffer. Large ones are mapped each for itself and go back to the system whole: in an allocator's heap buffers of
/// changing sizes leave holes that add up to half of what is in use.
enum Lines {
    Heap(Box<[Line]>),
    Mapped(MmapMut),
}

impl Lines {
    /// So many lines of zeros.
    fn zeros(lines: usize) -> Lines {
        if lines < MAPPED {
            return Lines::Heap(vec![Line([0.0; 16]); lines].into());
        }
        let bytes = lines * size_of::<Line>();
        Lines::Mapped(MmapMut::map_anon(bytes).unwrap_or_else(|e| panic!("{bytes} bytes of memory: {e}")))
    }

    fn len(&self) -> usize {
        match self {
            Lines::Heap(lines) => lines.len(),
            Lines::Mapped(map) => map.len() / size_of::<Line>(),
        }
    }

    fn ptr(&self) -> *const f32 {
        match self {
            Lines::Heap(lines) => lines.as_ptr().cast(),
            Lines::Mapped(map) => map.as_ptr().cast(),
        }
    }

    fn ptr_mut(&mut self) -> *mut f32 {
        match self {
            Lines::Heap(lines) => lines.as_mut_ptr().cast(),
            Lines::Mapped(map) => map.as_mut_ptr().cast(),
        }
    }
}

/// Free buffers of one size, each with the time at which it was given, in that order.
type Idle = Vec<(u64, Lines)>;

/// Buffers that are free, and how much is in use.
struct Pool {
    /// By their number of lines.
    free: BTreeMap<usize, Idle>,
    /// Lines of free buffers, and of those in use.
    idle: usize,
    live: usize,
    /// Lines that were asked for by those in use, and the most that they have been.
    wanted: usize,
    most: usize,
    /// Counts what is given.
    time: u64,
}

/// One pool for all threads: what one thread makes another may drop.
static POOL: Mutex<Pool> = Mutex::new(Pool::new());

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().expect("nothing panics under this lock")
}

/// A slice of f32, 64-byte aligned. Its contents are whatever the last owner left unless made by [`Buf::zeros`].
pub struct Buf {
    lines: Lines,
    len: usize,
}

/// Rounds up to one of eight sizes per power of two: at most an eighth is wasted.
fn size_class(lines: usize) -> usize {
    let lines = lines.max(8);
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.next_multiple_of(step)
}

impl Pool {
    const fn new() -> Pool {
        Pool { free: BTreeMap::new(), idle: 0, live: 0, wanted: 0, most: 0, time: 0 }
    }

    /// A free buffer of at least `class` lines and at most twice that: batches differ in size from step to step, and what
    /// one step leaves should serve the next. Where there is none, one is to be made, and what has been free for longest goes back to the
    /// system until all buffers together are within an eighth of the most that was asked for at once.
    fn take(&mut self, class: usize) -> Option<Lines> {
        let fits = self.free.range(class..=2 * class).next().map(|(&lines, _)| lines);
        // The one that was in use last may still be in the processor's cache.
        let found = fits.and_then(|lines| self.pop(lines, Vec::pop));
        self.live += found.as_ref().map_or(class, Lines::len);
        self.wanted += class;
        self.most = self.most.max(self.wanted);
        if found.is_none() {
            self.shrink(self.most + self.most / 8);
        }
        found
    }

    /// Gives buffers back to the system, until those that are left have at most so many lines or all are in use.
    fn shrink(&mut self, lines: usize) {
        while self.live + self.idle > lines && self.idle > 0 {
            let oldest = self.free.iter().map(|(&lines, list)| (list[0].0, lines)).min();
            let (_, lines) = oldest.expect("some are idle");
            drop(self.pop(lines, |list| Some(list.remove(0))));
        }
    }

    /// One of the buffers of so many lines.
    fn pop(&mut self, lines: usize, pick: impl FnOnce(&mut Idle) -> Option<(u64, Lines)>) -> Option<Lines> {
        let list = self.free.get_mut(&lines)?;
        let (_, found) = pick(list)?;
        if list.is_empty() {
            self.free.remove(&lines);
        }
        self.idle -= lines;
        Some(found)
    }

    /// Takes back what was given for `class`.
    fn give(&mut self, lines: Lines, class: usize) {
        self.wanted -= class;
        self.live -= lines.len();
        self.idle += lines.len();
        self.time += 1;
        self.free.entry(lines.len()).or_default().push((self.time, lines));
    }
}

impl Buf {
    /// A buffer of `len` values, contents unspecified (but initialised memory).
    pub fn new(len: usize) -> Buf {
        let class = size_class(len.div_ceil(16));
        let reused = pool().take(class);
        Buf { lines: reused.unwrap_or_else(|| Lines::zeros(class)), len }
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
        let lines = std::mem::replace(&mut self.lines, Lines::Heap(Box::default()));
        pool().give(lines, size_class(self.len.div_ceil(16)));
    }
}

impl Deref for Buf {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: the lines have at least `len` initialised floats, and nothing else points to them.
        unsafe { std::slice::from_raw_parts(self.lines.ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.ptr_mut(), self.len) }
    }
}

/// Gives the memory of all unused buffers back to the system.
pub fn release_unused() {
    let mut pool = pool();
    pool.shrink(0);
    pool.most = pool.wanted;
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

    /// Buffers for these numbers of lines, in use at once; what the pool does not give is made.
    fn ask(pool: &mut Pool, classes: &[usize]) -> Vec<Lines> {
        classes.iter().map(|&class| pool.take(class).unwrap_or_else(|| Lines::zeros(class))).collect()
    }

    #[test]
    fn batches_of_all_sizes_leave_an_eighth_more_than_the_largest_used() {
        let mut pool = Pool::new();
        for batch in [[400, 120, 400], [440, 130, 440], [60, 20, 60], [500, 150, 500], [30, 10, 30]] {
            let buffers = ask(&mut pool, &batch);
            for (buffer, class) in buffers.iter().zip(batch) {
                assert!((class..=2 * class).contains(&buffer.len()), "{} for {class}", buffer.len());
            }
            assert!(pool.live + pool.idle <= pool.most + pool.most / 8, "{} and {}", pool.live, pool.idle);
            std::iter::zip(buffers, batch).for_each(|(b, class)| pool.give(b, class));
        }
        assert_eq!((pool.live, pool.most), (0, 1150));
        let again = ask(&mut pool, &[500, 150, 500]);
        assert_eq!(again.iter().map(Lines::len).collect::<Vec<_>>(), [500, 150, 500]);
        pool.shrink(0);
        assert_eq!((pool.idle, pool.live), (0, 1150), "what is in use stays");
    }
}
