//! Ranks that are threads of one process: the arithmetic of several machines, where there is one and no MPI.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::{Comm, Lost};

enum Parcel {
    Values(Vec<f32>),
    Message(Vec<u8>),
}

/// One of some ranks in one process.
pub struct Local {
    rank: usize,
    to: Vec<Sender<Parcel>>,
    from: Vec<Receiver<Parcel>>,
    waited: Cell<Duration>,
    sent: Cell<u64>,
}

/// Ranks that know each other, one for each thread.
pub fn ranks(count: usize) -> Vec<Local> {
    let (mut to, mut from): (Vec<Vec<_>>, Vec<Vec<_>>) = Default::default();
    to.resize_with(count, Vec::new);
    from.resize_with(count, Vec::new);
    for to in &mut to {
        for from in &mut from {
            let (sender, receiver) = channel();
            to.push(sender);
            from.push(receiver);
        }
    }
    let whole = to.into_iter().zip(from).enumerate();
    whole
        .map(|(rank, (to, from))| Local { rank, to, from, waited: Cell::default(), sent: Cell::default() })
        .collect()
}

/// Runs `work` on `count` ranks and gives what each found.
pub fn run<T: Send>(count: usize, work: impl Fn(Local) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = ranks(count).into_iter().map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank fails")).collect()
    })
}

impl Local {
    fn post(&self, to: usize, parcel: Parcel) {
        if self.to[to].send(parcel).is_err() {
            self.lost(to)
        }
    }

    fn take(&self, from: usize) -> Parcel {
        let begun = Instant::now();
        let parcel = self.from[from].recv();
        self.waited.set(self.waited.get() + begun.elapsed());
        parcel.unwrap_or_else(|_| self.lost(from))
    }

    fn lost(&self, rank: usize) -> ! {
        std::panic::panic_any(Lost { rank, what: "has ended".into() })
    }
}

impl Comm for Local {
    fn rank(&self) -> usize {
        self.rank
    }
    fn ranks(&self) -> usize {
        self.to.len()
    }
    fn send(&self, to: usize, values: &[f32]) {
        self.sent.set(self.sent.get() + 4 * values.len() as u64);
        self.post(to, Parcel::Values(values.to_vec()));
    }
    fn receive(&self, from: usize, values: &mut [f32]) {
        match self.take(from) {
            Parcel::Values(sent) => values.copy_from_slice(&sent),
            Parcel::Message(_) => panic!("rank {} takes values where rank {from} sent a message", self.rank),
        }
    }
    fn exchange(&self, with: usize, out: &[f32], into: &mut [f32]) {
        if !out.is_empty() {
            self.send(with, out);
        }
        if !into.is_empty() {
            self.receive(with, into);
        }
    }
    fn tell(&self, to: usize, message: &[u8]) {
        self.post(to, Parcel::Message(message.to_vec()));
    }
    fn hear(&self, from: usize) -> Vec<u8> {
        match self.take(from) {
            Parcel::Message(message) => message,
            Parcel::Values(_) => panic!("rank {} takes a message where rank {from} sent values", self.rank),
        }
    }
    fn swap(&self, with: usize, message: &[u8]) -> Vec<u8> {
        self.tell(with, message);
        self.hear(with)
    }
    fn waited(&self) -> Duration {
        self.waited.get()
    }
    fn sent(&self) -> u64 {
        self.sent.get()
    }
    fn leave(&self) {}
    fn end(&self, code: i32) -> ! {
        panic!("rank {} ended with {code}", self.rank)
    }
}
