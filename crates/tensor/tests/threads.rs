//! The thread pool under use from many sides: several callers, changing sizes, panics.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tensor::threads::{parallel, parallel_chunks, set_threads, threads};

/// The number of threads is one setting of the process: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The threads that pieces of one call ran on.
fn used() -> usize {
    let seen = Mutex::new(HashSet::new());
    parallel(64, |_| {
        seen.lock().expect("no panic").insert(std::thread::current().id());
        std::thread::sleep(Duration::from_millis(1));
    });
    seen.into_inner().expect("no panic").len()
}

#[test]
fn several_callers_while_the_size_changes() {
    let _turn = TURN.lock().unwrap_or_else(|p| p.into_inner());
    std::thread::scope(|s| {
        for caller in 0..4 {
            s.spawn(move || {
                for round in 0..300 {
                    if caller == 0 {
                        set_threads(1 + round % 5);
                    }
                    let mut seen = vec![0u32; 41 + round % 7];
                    parallel_chunks(&mut seen, 2, |at, part| {
                        // A nested call runs on this thread.
                        let count = AtomicUsize::new(0);
                        parallel(3, |_| {
                            count.fetch_add(1, Relaxed);
                        });
                        part.iter_mut()
                            .enumerate()
                            .for_each(|(i, x)| *x += (at + i) as u32 + count.load(Relaxed) as u32);
                    });
                    assert!(seen.iter().enumerate().all(|(i, &x)| x as usize == i + 3));
                }
            });
        }
    });
}

#[test]
fn a_panic_keeps_its_message_and_leaves_the_pool_parallel() {
    let _turn = TURN.lock().unwrap_or_else(|p| p.into_inner());
    set_threads(4);
    let caller = std::thread::current().id();
    for on_caller in [true, false] {
        for _ in 0..10 {
            // Panics on every thread of one kind: the caller itself, or all workers.
            let panic = catch_unwind(AssertUnwindSafe(|| {
                parallel(64, |_| {
                    std::thread::sleep(Duration::from_micros(200));
                    let here = std::thread::current().id() == caller;
                    assert!(here != on_caller, "on purpose");
                });
            }));
            let panic = panic.expect_err("some thread of each kind takes a piece");
            let message = panic
                .downcast_ref::<&str>()
                .map(|m| (*m).to_owned())
                .or(panic.downcast_ref::<String>().cloned());
            assert_eq!(message.as_deref(), Some("on purpose"));
            let count = AtomicUsize::new(0);
            parallel(1000, |_| {
                count.fetch_add(1, Relaxed);
            });
            assert_eq!(count.load(Relaxed), 1000);
        }
        assert!(used() > 1, "the pool went serial");
    }
}

#[test]
fn sizes_without_sense() {
    let _turn = TURN.lock().unwrap_or_else(|p| p.into_inner());
    set_threads(0);
    assert_eq!(threads(), 1);
    set_threads(usize::MAX);
    assert!(threads() <= 1024);
    set_threads(3);
    parallel(0, |_| unreachable!("no pieces"));
    parallel_chunks(&mut [0u8; 0], 0, |_, _| unreachable!("no pieces"));
    let mut one = [0u8; 5];
    parallel_chunks(&mut one, 0, |at, x| x[0] = at as u8);
    assert_eq!(one, [0, 1, 2, 3, 4]);
}
