//! Ranks that are processes, started and joined by an MPI.
//!
//! All calls are non-blocking ones that are asked again and again: so a rank that has gone, or hangs, is found out about.

use std::cell::Cell;
use std::time::{Duration, Instant};

use mpi::environment::Universe;
use mpi::request::{Request, Scope, scope};
use mpi::topology::{Process, SimpleCommunicator};
use mpi::traits::{Communicator, Destination, Equivalence, Source};
use mpi::{Tag, Threading};

use crate::{Comm, Lost};

/// What kind of parcel a message is.
const VALUES: Tag = 1;
const MESSAGE: Tag = 2;

/// How long a wait only gives way to other threads, before it sleeps between two looks.
const KEEN: Duration = Duration::from_millis(5);
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(100);
/// How long a wait goes on once the process is asked to stop: an MPI asks so before it kills what is left of a job.
const LAST: Duration = Duration::from_millis(300);

/// When a rank gives up on another, and what it does then.
pub struct Watch {
    /// The longest wait.
    pub patience: Duration,
    /// Whether the process is asked to stop.
    pub stopping: Box<dyn Fn() -> bool>,
    /// Is told of it; afterwards all ranks end with exit code 2.
    pub lost: Box<dyn Fn(&Lost)>,
}

/// This process among others.
pub struct Mpi {
    world: SimpleCommunicator,
    watch: Watch,
    waited: Cell<Duration>,
    sent: Cell<u64>,
    /// Leaves the MPI when dropped.
    universe: Cell<Option<Universe>>,
}

impl Mpi {
    /// Joins the ranks that the MPI has started this process with; none where it is no MPI that has started it, or twice.
    pub fn join(watch: Watch) -> Option<Mpi> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)?;
        let (waited, sent) = Default::default();
        Some(Mpi { world: universe.world(), watch, waited, sent, universe: Cell::new(Some(universe)) })
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
            if (self.watch.stopping)() && asked.get_or_insert_with(Instant::now).elapsed() > LAST {
                self.give_up(with, "was waited for when the run was stopped, or a rank had ended".into());
            }
            if waiting > self.watch.patience {
                self.give_up(with, format!("has not answered for {} s", waiting.as_secs()));
            }
        }
    }

    fn give_up(&self, rank: usize, what: String) -> ! {
        // The first rank speaks; another would end it before it has.
        if self.rank() > 0 {
            std::thread::sleep(2 * LAST);
        }
        (self.watch.lost)(&Lost { rank, what });
        self.world.abort(2)
    }

    fn count(&self, values: &[f32]) {
        self.sent.set(self.sent.get() + 4 * values.len() as u64);
    }
}

/// Whether a request is done, or there is none.
fn is_done<'a, D: ?Sized, S: Scope<'a>>(request: &mut Option<Request<'a, D, S>>) -> bool {
    if let Some(open) = request.take() {
        *request = open.test().err();
    }
    request.is_none()
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
        self.count(out);
        let (process, takes) = (self.process(with), !into.is_empty());
        scope(|scope| {
            let mut receive = takes.then(|| process.immediate_receive_into_with_tag(scope, into, VALUES));
            let mut send = (!out.is_empty()).then(|| process.immediate_send_with_tag(scope, out, VALUES));
            self.wait(with, || (is_done(&mut send) & is_done(&mut receive)).then_some(()));
        });
    }
    fn tell(&self, to: usize, message: &[u8]) {
        let process = self.process(to);
        scope(|scope| {
            let mut send = Some(process.immediate_send_with_tag(scope, message, MESSAGE));
            self.wait(to, || is_done(&mut send).then_some(()));
        });
    }
    fn hear(&self, from: usize) -> Vec<u8> {
        let process = self.process(from);
        let (message, status) = self.wait(from, || process.immediate_matched_probe_with_tag(MESSAGE));
        let len = status.count(u8::equivalent_datatype());
        let mut bytes = vec![0u8; usize::try_from(len).expect("a message of bytes")];
        message.matched_receive_into(&mut bytes[..]);
        bytes
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
