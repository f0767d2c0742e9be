//! Ranks that are processes, started and joined by an MPI.
//!
//! All calls are non-blocking ones that are asked again and again: so a rank that has gone, or hangs, is found out about.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ::mpi::environment::Universe;
use ::mpi::request::{Request, Scope, scope};
use ::mpi::topology::{Process, SimpleCommunicator};
use ::mpi::traits::{Communicator, Destination, Equivalence, Source};
use ::mpi::{Tag, Threading};

use comm::{Comm, Lost};

/// What kind of parcel a message is.
const VALUES: Tag = 1;
const MESSAGE: Tag = 2;

/// Values of a message that Open MPI sends over TCP without asking: 64 KiB with what it says of it.
const UNASKED: usize = 15_000;

/// How long a wait only gives way to other threads, before it sleeps between two looks.
const KEEN: Duration = Duration::from_millis(5);
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(100);
/// How long a wait is silent once the process is asked to stop: an MPI asks so a second before it kills what is left of a job.
const LAST: Duration = Duration::from_millis(300);

/// When a rank gives up on another, and what it does then.
pub struct Watch {
    /// The longest wait.
    pub patience: Duration,
    /// Whether the process is asked to stop: by somebody who wants the step to end well, or by an MPI that has lost a rank.
    pub stopping: Box<dyn Fn() -> bool>,
    /// Is told once of a rank that is still waited for then.
    pub late: Box<dyn Fn(usize)>,
    /// Is told of it; afterwards all ranks end with exit code 2.
    pub lost: Box<dyn Fn(&Lost)>,
}

/// This process among others.
pub struct Mpi {
    world: SimpleCommunicator,
    watch: Watch,
    was_late: Cell<bool>,
    waited: Cell<Duration>,
    sent: Cell<u64>,
    /// Leaves the MPI when dropped.
    universe: Cell<Option<Universe>>,
}

impl Mpi {
    /// Joins the ranks that the MPI has started this process with; none where it is no MPI that has started it, or twice.
    pub fn join(watch: Watch) -> Option<Mpi> {
        let (universe, _) = ::mpi::initialize_with_threading(Threading::Funneled)?;
        let (was_late, waited, sent) = Default::default();
        Some(Mpi {
            world: universe.world(),
            watch,
            was_late,
            waited,
            sent,
            universe: Cell::new(Some(universe)),
        })
    }

    fn process(&self, rank: usize) -> Process<'_> {
        self.world.process_at_rank(i32::try_from(rank).expect("an MPI counts ranks in i32"))
    }

    /// Asks until something is done.
    fn wait<T>(&self, with: usize, mut done: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        let mut asked: Option<Instant> = None;
        loop {
            if let Some(done) = done() {
                self.waited.set(self.waited.get() + begun.elapsed());
                return done;
            }
            let waiting = begun.elapsed();
            if waiting < KEEN {
                std::thread::yield_now();
                continue;
            }
            std::thread::sleep(NAP);
            // Rank 0 speaks; of that one, who waits for it.
            let speaks = (self.rank() == 0 || with == 0) && !self.was_late.get();
            if speaks && (self.watch.stopping)() && asked.get_or_insert_with(Instant::now).elapsed() > LAST {
                self.was_late.set(true);
                (self.watch.late)(with);
            }
            if waiting > self.watch.patience {
                self.give_up(Lost {
                    rank: with,
                    what: format!("has not answered for {} s", waiting.as_secs()),
                });
            }
        }
    }

    /// Sends a message, and does something else until it has gone.
    fn telling<T>(&self, to: usize, message: &[u8], meanwhile: impl FnOnce() -> T) -> T {
        let process = self.process(to);
        scope(|scope| {
            let send = process.immediate_send_with_tag(scope, message, MESSAGE);
            let done = meanwhile();
            self.finish(to, [send].into());
            done
        })
    }

    fn give_up(&self, lost: Lost) -> ! {
        // The first rank speaks; another would end it before it has.
        if self.rank() > 0 {
            std::thread::sleep(2 * LAST);
        }
        (self.watch.lost)(&lost);
        self.world.abort(2)
    }

    /// Asks until all requests are done, about one after the other.
    fn finish<'a, D: ?Sized, S: Scope<'a>>(&self, with: usize, mut open: VecDeque<Request<'a, D, S>>) {
        self.wait(with, || {
            while let Some(first) = open.pop_front() {
                if let Err(first) = first.test() {
                    open.push_front(first);
                    return None;
                }
            }
            Some(())
        });
    }
}

impl Comm for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }
    fn ranks(&self) -> usize {
        self.world.size() as usize
    }
    fn send(&self, to: usize, values: &[f32]) {
        self.exchange(to, values, &mut []);
    }
    fn receive(&self, from: usize, values: &mut [f32]) {
        self.exchange(from, &[], values);
    }
    fn exchange(&self, with: usize, out: &[f32], into: &mut [f32]) {
        self.sent.set(self.sent.get() + 4 * out.len() as u64);
        let process = self.process(with);
        // Where both ways are used at once, a message that has to be asked for would wait behind the other way's: one way at a time.
        let both = !out.is_empty() && !into.is_empty();
        let part = if both { UNASKED } else { usize::MAX };
        scope(|scope| {
            let receive = |part| process.immediate_receive_into_with_tag(scope, part, VALUES);
            let send = |part| process.immediate_send_with_tag(scope, part, VALUES);
            let mut open: VecDeque<_> = into.chunks_mut(part).map(receive).collect();
            open.extend(out.chunks(part).map(send));
            self.finish(with, open);
        });
    }
    fn tell(&self, to: usize, message: &[u8]) {
        self.telling(to, message, || ());
    }
    fn hear(&self, from: usize) -> Vec<u8> {
        let process = self.process(from);
        let (message, status) = self.wait(from, || process.immediate_matched_probe_with_tag(MESSAGE));
        let len = status.count(u8::equivalent_datatype());
        let mut bytes = vec![0u8; usize::try_from(len).expect("a message of bytes")];
        scope(|scope| {
            let receive = message.immediate_matched_receive_into(scope, &mut bytes[..]);
            self.finish(from, [receive].into());
        });
        bytes
    }
    fn swap(&self, with: usize, message: &[u8]) -> Vec<u8> {
        self.telling(with, message, || self.hear(with))
    }
    fn waited(&self) -> Duration {
        self.waited.get()
    }
    fn sent(&self) -> u64 {
        self.sent.get()
    }
    fn leave(&self) {
        drop(self.universe.take());
    }
    fn end(&self, code: i32) -> ! {
        self.world.abort(code)
    }
}
