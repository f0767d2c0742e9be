//! A small fork-join pool: one call per op, workers that spin briefly before they sleep.
//!
//! Work is handed out by an atomic counter, so which thread does which piece is left to chance; every op writes
//! disjoint pieces whose contents do not depend on the number of threads, so the bits do not depend on it either.

use std::any::Any;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, OnceLock, TryLockError};

/// The most threads that [`set_threads`] accepts.
const MAX_THREADS: usize = 1024;

/// How often a waiting thread looks before it sleeps: some tens of microseconds.
const SPINS: u32 = 4000;

#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    pieces: usize,
}
// SAFETY: the pointee is Sync and outlives the job: `parallel` takes the job back and returns only after every
// worker that has entered it has left it.
unsafe impl Send for Job {}

struct Shared {
    /// The job under way; none once all its pieces are handed out, so that nobody waits for a worker that is late.
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Counts jobs; a worker has a new one when it differs from what it saw last.
    epoch: AtomicUsize,
    next: AtomicUsize,
    /// Workers inside the job; they enter under the lock on `job`.
    working: AtomicUsize,
    /// The first panic of a worker in the current job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

struct Pool {
    shared: Arc<Shared>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

static POOL: OnceLock<Mutex<Option<Pool>>> = OnceLock::new();
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The number of threads that ops use: what [`set_threads`] set, else the number of cores.
pub fn threads() -> usize {
    match THREADS.load(Relaxed) {
        0 => {
            // Asking the system takes tens of microseconds, so ask once.
            let n = std::thread::available_parallelism().map_or(1, |n| n.get());
            THREADS.store(n, Relaxed);
            n
        }
        n => n,
    }
}

/// Sets the number of threads for all ops of this process, at least 1 and at most 1024.
pub fn set_threads(n: usize) {
    THREADS.store(n.clamp(1, MAX_THREADS), Relaxed);
}

/// Runs `f(0) … f(pieces - 1)`, in any order and on any thread, and returns when all are done.
///
/// A call from inside a piece, or while another thread is inside `parallel`, runs serially on the caller.
pub fn parallel(pieces: usize, f: impl Fn(usize) + Sync) {
    let n = threads().min(pieces);
    if n <= 1 || INSIDE.get() {
        return (0..pieces).for_each(f);
    }
    let cell = POOL.get_or_init(|| Mutex::new(None));
    let mut pool = match cell.try_lock() {
        Ok(pool) => pool,
        // The system refused a thread to an earlier call, which left no pool behind.
        Err(TryLockError::Poisoned(p)) => p.into_inner(),
        Err(TryLockError::WouldBlock) => return (0..pieces).for_each(f),
    };
    let wanted = threads() - 1;
    if pool.as_ref().is_none_or(|p| p.workers.len() != wanted) {
        if let Some(old) = pool.take() {
            old.shut_down();
        }
        *pool = Some(Pool::new(wanted));
    }
    let shared = &pool.as_ref().expect("made above").shared;
    let run: &(dyn Fn(usize) + Sync) = &f;
    // SAFETY: only the lifetime is erased; no worker is inside the job, or can enter it, when this function returns.
    let run = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(run) };
    let job = Job { run, pieces };
    shared.next.store(0, Relaxed);
    {
        let mut slot = shared.job.lock().expect("no piece runs under this lock");
        *slot = Some(job);
        shared.epoch.fetch_add(1, Release);
        shared.wake.notify_all();
    }
    let mine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(shared, job)));
    *shared.job.lock().expect("no piece runs under this lock") = None;
    let mut spins = 0;
    while shared.working.load(Acquire) > 0 {
        spins += 1;
        if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
    let theirs = shared.panic.lock().expect("nothing panics under this lock").take();
    // Unlocked before a panic goes on, or the lock would be poisoned.
    drop(pool);
    if let Some(panic) = mine.err().or(theirs) {
        std::panic::resume_unwind(panic);
    }
}

fn work(shared: &Shared, job: Job) {
    INSIDE.set(true);
    // SAFETY: see `Job`.
    let run = unsafe { &*job.run };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        loop {
            let i = shared.next.fetch_add(1, Relaxed);
            if i >= job.pieces {
                break;
            }
            run(i);
        }
    }));
    INSIDE.set(false);
    if let Err(panic) = result {
        shared.next.store(job.pieces, Relaxed);
        std::panic::resume_unwind(panic);
    }
}

impl Pool {
    fn new(workers: usize) -> Pool {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let workers = (0..workers)
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("tensor-{i}"))
                    .spawn(move || worker(&shared))
                    .expect("the system refused a thread")
            })
            .collect();
        Pool { shared, workers }
    }

    fn shut_down(self) {
        self.shared.stop.store(true, Release);
        {
            let _guard = self.shared.job.lock().expect("no piece runs under this lock");
            self.shared.epoch.fetch_add(1, Release);
            self.shared.wake.notify_all();
        }
        for w in self.workers {
            let _ = w.join();
        }
    }
}

fn worker(shared: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Acquire) == seen && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let job = {
            let mut slot = shared.job.lock().expect("no piece runs under this lock");
            while shared.epoch.load(Acquire) == seen {
                slot = shared.wake.wait(slot).expect("no piece runs under this lock");
            }
            seen = shared.epoch.load(Acquire);
            if slot.is_some() {
                shared.working.fetch_add(1, Relaxed);
            }
            *slot
        };
        if shared.stop.load(Acquire) {
            return;
        }
        if let Some(job) = job {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(shared, job)));
            if let Err(panic) = done {
                shared.panic.lock().expect("nothing panics under this lock").get_or_insert(panic);
            }
            shared.working.fetch_sub(1, Release);
        }
    }
}

/// A pointer that pieces of one op share; each piece writes its own region.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T);
// SAFETY: the ops that use it write disjoint regions from different pieces, which `slice` demands.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(s: &mut [T]) -> Self {
        SharedMut(s.as_mut_ptr())
    }
    /// The first element, for kernels whose pieces interleave too finely for slices.
    pub(crate) fn ptr(&self) -> *mut T {
        self.0
    }
    /// # Safety
    /// `at..at + len` lies inside the slice, and no other piece touches it meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// Splits `out` into pieces of `piece` elements (the last may be shorter) and runs `f(first element, piece)`.
pub fn parallel_chunks<T: Send>(out: &mut [T], piece: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let len = out.len();
    let piece = piece.max(1);
    let shared = SharedMut::new(out);
    parallel(len.div_ceil(piece), |i| {
        let at = i * piece;
        // SAFETY: pieces are disjoint and inside the slice.
        f(at, unsafe { shared.slice(at, piece.min(len - at)) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_on_any_number_of_threads() {
        for n in [1, 2, 5] {
            set_threads(n);
            for _ in 0..200 {
                let mut seen = vec![0u8; 97];
                parallel_chunks(&mut seen, 3, |_, c| c.iter_mut().for_each(|x| *x += 1));
                assert!(seen.iter().all(|&x| x == 1));
            }
        }
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_survives() {
        let hit = std::panic::catch_unwind(|| parallel(64, |i| assert!(i != 63, "on purpose")));
        assert!(hit.is_err());
        let count = AtomicUsize::new(0);
        parallel(64, |_| {
            count.fetch_add(1, Relaxed);
        });
        assert_eq!(count.load(Relaxed), 64);
    }
}
