//! All continuations of a list of requests, for batch jobs.
//!
//! Work is divided by sequences where there are enough of them: every thread has a lane of its own, with its own cache,
//! and takes the next prompt from the common queue as soon as it has room. No thread then waits for another within a
//! step. A few sequences share one lane, whose ops are divided instead.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use model::{KvCache, Model};
use tensor::ops::Drawn;
use tensor::threads;

use crate::lane::{Lane, Limits, Sink, Ticket};
use crate::request::{Completion, EngineError, Extras, FinishReason, Request, Token, check};

/// Sequences that make a lane of its own worth while, where the weights fit into the processor's cache and where not.
const LANE_SEQUENCES: (usize, usize) = (8, 32);
/// What the processor's cache is taken to hold. A step reads all weights and the keys and values of all sequences once:
/// where the weights fit, few sequences at a time are faster than many; where they do not, a lane reads them for as many
/// sequences as it can.
const CACHE_BYTES: usize = 16 << 20;
/// What the keys and values of all sequences may take where the weights do not fit: more of them make a step hardly more worth its weights.
const MOST_BYTES: usize = 1 << 30;

/// The number of lanes and their limits that suit a model and these requests.
///
/// Lanes drift apart, so that one reads keys and values, which takes the memory's time, while another multiplies.
fn plan(model: &Model, requests: &[Request]) -> (usize, Limits) {
    // A GPU has no use for lanes: it wants as many sequences at once as there are.
    if model.params().gpu().is_some() {
        return (1, Limits { sequences: 1024, rows: 8192, ..Limits::default() });
    }
    let tokens = requests.iter().map(|r| r.prompt.len() + r.max_new / 2).max().unwrap_or(0);
    let batch = Batch {
        prompts: requests.iter().filter(|r| r.samples > 0).count(),
        sequences: requests.iter().map(|r| r.samples).sum(),
        sequence_bytes: model.new_cache().page_bytes() / KvCache::PAGE * tokens.max(1),
    };
    let (lanes, sequences) = batch.lanes(model.params().bytes());
    (lanes, Limits { sequences, ..Limits::default() })
}

/// What decides how a list of requests is divided on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Prompts that are continued.
    pub prompts: usize,
    /// Continuations in all.
    pub sequences: usize,
    /// What the keys and values of one of them take in the middle of its way, in bytes.
    pub sequence_bytes: usize,
}

impl Batch {
    /// The number of lanes, and the most sequences in flight in each, beside so many bytes of weights.
    fn lanes(&self, weights: usize) -> (usize, usize) {
        let most = Limits::default().sequences;
        let fits = 2 * weights <= CACHE_BYTES;
        let least = if fits { LANE_SEQUENCES.0 } else { LANE_SEQUENCES.1 };
        if self.sequences < least * threads::threads() {
            return (1, most);
        }
        let lanes = threads::threads().min(self.prompts);
        let share = self.sequences.div_ceil(lanes).min(most);
        let room = if fits { CACHE_BYTES - weights } else { MOST_BYTES };
        (lanes, share.min(room / (lanes * self.sequence_bytes)).max(least))
    }

    /// What all keys and values in flight take, about, in bytes.
    pub fn cache_bytes(&self, weights: usize) -> usize {
        let (lanes, sequences) = self.lanes(weights);
        self.sequences.min(lanes * sequences) * self.sequence_bytes
    }
}

/// A generator over one model.
pub struct Engine<'m> {
    model: &'m Model,
    limits: Option<Limits>,
    lanes: Vec<Lane<'m>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic in one lane ends the run")
}

impl<'m> Engine<'m> {
    /// A generator with its own caches; without `limits` it finds its own.
    pub fn new(model: &'m Model, limits: Option<Limits>) -> Engine<'m> {
        Engine { model, limits, lanes: Vec::new() }
    }

    /// Tokens that went through the model so far: every prompt once, every generated token but the last of each.
    pub fn computed_tokens(&self) -> usize {
        self.lanes.iter().map(|l| l.counts().computed).sum()
    }

    /// Bytes that the caches hold.
    pub fn cache_bytes(&self) -> usize {
        self.lanes.iter().map(Lane::cache_bytes).sum()
    }

    /// Continues every request; the result is `[request][sample]`. `on_token` sees each token as it is drawn and may
    /// end that continuation by returning false; tokens of one continuation come in order, those of several in any.
    pub fn run(
        &mut self,
        requests: &[Request],
        on_token: impl FnMut(Token) -> bool + Send,
    ) -> Result<Vec<Vec<Completion>>, EngineError> {
        requests.iter().enumerate().try_for_each(|(i, r)| check(self.model, i, r))?;
        let (lanes, limits) = plan(self.model, requests);
        let limits = self.limits.unwrap_or(limits);
        while self.lanes.len() < lanes {
            self.lanes.push(Lane::new(self.model, limits));
        }
        self.lanes.iter_mut().for_each(|lane| lane.set_limits(limits));
        let queue: Mutex<VecDeque<usize>> = Mutex::new((0..requests.len()).collect());
        let results = requests.iter().map(|r| vec![Completion::default(); r.samples]).collect();
        let shared = Mutex::new((on_token, results));
        threads::parallel_chunks(&mut self.lanes[..lanes], 1, |_, lane| {
            let mut collector = Collector { tickets: HashMap::new(), shared: &shared };
            serve(&mut lane[0], limits, requests, &queue, &mut collector);
        });
        Ok(shared.into_inner().expect("no lane panicked").1)
    }
}

/// Works until the queue is empty and what was taken from it is done.
fn serve<F: FnMut(Token) -> bool>(
    lane: &mut Lane,
    limits: Limits,
    requests: &[Request],
    queue: &Mutex<VecDeque<usize>>,
    collector: &mut Collector<F>,
) {
    loop {
        // No prompt is taken before its samples have room: the other lanes may be idle sooner.
        while lane.load() < limits.sequences {
            let Some(request) = lock(queue).pop_front() else { break };
            let ticket = lane.submit(requests[request].clone(), Extras::default());
            collector.tickets.insert(ticket.expect("the requests were checked"), request);
        }
        if lane.is_idle() {
            break;
        }
        lane.step(collector);
    }
}

/// Hands tokens on and puts completions together.
struct Collector<'r, F> {
    tickets: HashMap<Ticket, usize>,
    shared: &'r Mutex<(F, Vec<Vec<Completion>>)>,
}

impl<F: FnMut(Token) -> bool> Sink for Collector<'_, F> {
    fn token(&mut self, ticket: Ticket, sample: usize, drawn: Drawn, _: &[(u32, f32)]) -> bool {
        let request = self.tickets[&ticket];
        let (on_token, results) = &mut *lock(self.shared);
        let completion = &mut results[request][sample];
        completion.token_ids.push(drawn.token);
        completion.logprobs.push(drawn.logprob);
        completion.tempered_logprobs.push(drawn.tempered);
        on_token(Token { request, sample, id: drawn.token, logprob: drawn.logprob })
    }

    fn end(&mut self, ticket: Ticket, sample: usize, reason: FinishReason) {
        lock(self.shared).1[self.tickets[&ticket]][sample].finish_reason = reason;
    }
}

#[cfg(test)]
mod tests;
