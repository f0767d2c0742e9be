//! Each model's lane, on a plain thread of its own.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::{
    Counts, Drawn, EngineError, Extras, FinishReason, GpuError, Lane, Limits, Request, Sink, Ticket,
};
use model::KvCache;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::options::{Options, Served};

/// What is heard of a request.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It has left the queue; so many tokens of its prompt were found in the cache.
    Begun { cached: usize },
    /// A token of a sample.
    Token { sample: usize, drawn: Drawn, top: Vec<(u32, f32)> },
    /// So many of a sample's tokens were guessed ahead, and so many of these came.
    Guessed { sample: usize, guessed: usize, right: usize },
    /// The end of a sample.
    End { sample: usize, reason: FinishReason },
    /// The engine does not take it.
    Refused(EngineError),
}

/// A request on its way to the lane.
struct Submission {
    request: Request,
    extras: Extras,
    to: UnboundedSender<Heard>,
    stopped: Arc<[AtomicBool]>,
}

/// A request in work. Dropping it ends the request.
pub(crate) struct Work {
    heard: UnboundedReceiver<Heard>,
    stopped: Arc<[AtomicBool]>,
    open: Arc<AtomicUsize>,
    samples: usize,
}

impl Work {
    /// The next that is heard; nothing once all samples have ended or the lane is gone.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
    /// Lets a sample end at its next token.
    pub(crate) fn stop(&self, sample: usize) {
        self.stopped[sample].store(true, SeqCst);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.open.fetch_sub(self.samples, SeqCst);
    }
}

/// How a lane stands, as others may ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) counts: Counts,
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) used_pages: usize,
    pub(crate) idle_pages: usize,
    pub(crate) pages: usize,
}

/// Where requests for one model go.
pub(crate) struct Front {
    submissions: Sender<Submission>,
    /// Answers in work or waiting.
    open: Arc<AtomicUsize>,
    most: usize,
    standing: Arc<Mutex<Standing>>,
    alive: Arc<AtomicBool>,
    /// Tokens that the cache may hold.
    pub(crate) cache_tokens: usize,
    /// Tokens that are guessed ahead.
    pub(crate) speculate: usize,
}

impl Front {
    /// Starts the thread of a model's lane.
    pub(crate) fn start(served: Arc<Served>, options: &Options) -> std::io::Result<Front> {
        let speculate = options.speculate.unwrap_or(usize::from(served.model.has_mtp()));
        let mtp = speculate > 0;
        let cache = if mtp { served.model.new_cache_with_mtp() } else { served.model.new_cache() };
        let pages = (options.cache_bytes / cache.page_bytes().max(1)).max(2);
        let sequences = options.sequences;
        let limits = Limits { sequences, pages, keep: true, patience: 2.0, mtp, ..Limits::default() };
        let (submissions, received) = channel();
        let standing = Arc::new(Mutex::new(Standing { pages, ..Standing::default() }));
        let alive = Arc::new(AtomicBool::new(true));
        let front = Front {
            submissions,
            open: Arc::default(),
            most: options.queue,
            standing: standing.clone(),
            alive: alive.clone(),
            cache_tokens: (pages - 1) * KvCache::PAGE,
            speculate,
        };
        std::thread::Builder::new().name(format!("lane-{}", served.name)).spawn(move || {
            let work = AssertUnwindSafe(|| work(&served, limits, &received, &standing));
            if let Err(payload) = std::panic::catch_unwind(work) {
                let why = payload
                    .downcast_ref::<GpuError>()
                    .map_or("a fault of the program".to_owned(), GpuError::to_string);
                tracing::error!(model = served.name, why, "a model answers no more");
            }
            alive.store(false, SeqCst);
        })?;
        Ok(front)
    }

    /// Hands a request in; says how many are there already if that is too many.
    pub(crate) fn submit(&self, request: Request, extras: Extras) -> Result<Work, usize> {
        let samples = request.samples;
        let before = self.open.fetch_add(samples, SeqCst);
        if before + samples > self.most {
            self.open.fetch_sub(samples, SeqCst);
            return Err(before);
        }
        let (to, heard) = unbounded_channel();
        let stopped: Arc<[AtomicBool]> = (0..samples).map(|_| AtomicBool::new(false)).collect();
        // Where the lane is gone, the channel is closed, as the one who waits finds out.
        let _ = self.submissions.send(Submission { request, extras, to, stopped: stopped.clone() });
        Ok(Work { heard, stopped, open: self.open.clone(), samples })
    }

    /// How the lane stood a moment ago.
    pub(crate) fn standing(&self) -> Standing {
        *self.standing.lock().expect("nothing panics under this lock")
    }

    /// Whether the lane works.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(SeqCst)
    }
}

/// Who listens to which request.
#[derive(Default)]
struct Listeners(HashMap<Ticket, Listener>);

struct Listener {
    to: UnboundedSender<Heard>,
    stopped: Arc<[AtomicBool]>,
    open: usize,
}

impl Sink for Listeners {
    fn begun(&mut self, ticket: Ticket, cached: usize) {
        if let Some(l) = self.0.get(&ticket) {
            let _ = l.to.send(Heard::Begun { cached });
        }
    }
    fn token(&mut self, ticket: Ticket, sample: usize, drawn: Drawn, top: &[(u32, f32)]) -> bool {
        let Some(l) = self.0.get(&ticket) else { return false };
        let sent = l.to.send(Heard::Token { sample, drawn, top: top.to_vec() });
        sent.is_ok() && !l.stopped[sample].load(SeqCst)
    }
    fn guessed(&mut self, ticket: Ticket, sample: usize, guessed: usize, right: usize) {
        if let Some(l) = self.0.get(&ticket) {
            let _ = l.to.send(Heard::Guessed { sample, guessed, right });
        }
    }
    fn end(&mut self, ticket: Ticket, sample: usize, reason: FinishReason) {
        let Some(l) = self.0.get_mut(&ticket) else { return };
        let _ = l.to.send(Heard::End { sample, reason });
        l.open -= 1;
        if l.open == 0 {
            self.0.remove(&ticket);
        }
    }
}

/// How often those who have gone away are looked for, and the standing is told.
const ROUND: Duration = Duration::from_millis(50);

/// The lane's life: until nobody can submit any more.
fn work(served: &Served, limits: Limits, received: &Receiver<Submission>, standing: &Mutex<Standing>) {
    let mut lane = Lane::new(&served.model, limits);
    let mut listeners = Listeners::default();
    let mut round = Instant::now();
    loop {
        if lane.is_idle() {
            tell(&lane, limits, standing);
            let Ok(first) = received.recv() else { return };
            take(&mut lane, &mut listeners, first);
        }
        while let Ok(next) = received.try_recv() {
            take(&mut lane, &mut listeners, next);
        }
        lane.step(&mut listeners);
        if round.elapsed() > ROUND {
            let gone: Vec<Ticket> =
                listeners.0.iter().filter(|(_, l)| l.to.is_closed()).map(|(t, _)| *t).collect();
            for ticket in gone {
                lane.cancel(ticket);
                listeners.0.remove(&ticket);
            }
            tell(&lane, limits, standing);
            round = Instant::now();
        }
    }
}

fn take(lane: &mut Lane, listeners: &mut Listeners, s: Submission) {
    let open = s.request.samples;
    match lane.submit(s.request, s.extras) {
        Ok(ticket) => {
            listeners.0.insert(ticket, Listener { to: s.to, stopped: s.stopped, open });
        }
        Err(refusal) => drop(s.to.send(Heard::Refused(refusal))),
    }
}

fn tell(lane: &Lane, limits: Limits, standing: &Mutex<Standing>) {
    let (load, waiting) = (lane.load(), lane.waiting());
    *standing.lock().expect("nothing panics under this lock") = Standing {
        counts: lane.counts(),
        running: load - waiting,
        waiting,
        used_pages: lane.used_pages(),
        idle_pages: lane.idle_pages(),
        pages: limits.pages,
    };
}
