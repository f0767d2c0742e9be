//! Continuous batching: which sequences take part in each step, and what comes of it.
//!
//! Work is divided by sequences where there are enough of them: every thread has a lane of its own, with its own cache,
//! and takes the next prompt from the common queue as soon as it has room. No thread then waits for another within a
//! step. A few sequences share one lane, whose ops are divided instead.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use model::{KvCache, Model, PassOptions, Segment};
use tensor::ops::Drawn;
use tensor::{Rng, Tape, Tensor, ops, threads};
use thiserror::Error;

use crate::pages::Pages;
use crate::sampler::{Sampling, Wish, choose};

/// One prompt and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Independent continuations; the prompt is computed once for all.
    pub samples: usize,
    /// Tokens of a continuation at most.
    pub max_new: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a continuation (and belong to it).
    pub stop_tokens: Vec<u32>,
    /// Sample `i`'s token at position `t` is a function of (seed, i, t) and the model alone.
    pub seed: u64,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or the caller said so.
    Stop,
    /// `max_new` tokens.
    Length,
}

/// A finished continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The tokens, with the stop token if there was one.
    pub token_ids: Vec<u32>,
    /// Their natural log-probabilities under the model at temperature 1, unfiltered.
    pub logprobs: Vec<f32>,
    /// Their log-probabilities at the temperature that they were drawn at, unfiltered: those of the policy that sampled,
    /// where nothing was filtered. The same as `logprobs` at temperature 1, and where the most likely token is taken.
    pub tempered_logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A token as it is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Index of the request.
    pub request: usize,
    /// Index of the sample.
    pub sample: usize,
    /// The token.
    pub id: u32,
    /// Its log-probability at temperature 1.
    pub logprob: f32,
}

/// What a request can be refused for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EngineError {
    /// Nothing to continue.
    #[error("prompt {request} is empty: give at least one token")]
    Empty {
        /// Index of the request.
        request: usize,
    },
    /// An id that the model does not have.
    #[error("prompt {request} has token id {id}, but the model's vocabulary has {vocab} ids (0 to {})", vocab - 1)]
    OutsideVocabulary {
        /// Index of the request.
        request: usize,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// More tokens than the model has positions.
    #[error(
        "prompt {request} has {prompt} tokens and asks for {max_new} more, but the model's context is {context}: \
         shorten the prompt or lower the number of new tokens"
    )]
    TooLong {
        /// Index of the request.
        request: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens asked for.
        max_new: usize,
        /// The model's context length.
        context: usize,
    },
}

/// How much is worked on at once. None of it changes a result.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Continuations in flight in one lane.
    pub sequences: usize,
    /// Rows of a step: one per continuation, the rest prompt tokens.
    pub rows: usize,
}

/// Sequences that make a lane of its own worth while, where the weights fit into the processor's cache and where not.
const LANE_SEQUENCES: (usize, usize) = (8, 32);
/// What the processor's cache is taken to hold. A step reads all weights and the keys and values of all sequences once:
/// where the weights fit, few sequences at a time are faster than many; where they do not, a lane reads them for as many
/// sequences as it can.
const CACHE_BYTES: usize = 16 << 20;

/// The number of lanes and their limits that suit a model and these requests.
///
/// Lanes drift apart, so that one reads keys and values, which takes the memory's time, while another multiplies.
fn plan(model: &Model, requests: &[Request]) -> (usize, Limits) {
    // A GPU has no use for lanes: it wants as many sequences at once as there are.
    if model.params().gpu().is_some() {
        return (1, Limits { sequences: 1024, rows: 8192 });
    }
    let everything = Limits { sequences: 256, rows: 512 };
    let weights = 4 * model.params().len();
    let sequences: usize = requests.iter().map(|r| r.samples).sum();
    let fits = 2 * weights <= CACHE_BYTES;
    let least = if fits { LANE_SEQUENCES.0 } else { LANE_SEQUENCES.1 };
    if sequences < least * threads::threads() {
        return (1, everything);
    }
    let lanes = threads::threads().min(requests.iter().filter(|r| r.samples > 0).count());
    let mut share = sequences.div_ceil(lanes).min(everything.sequences);
    if fits {
        let tokens = requests.iter().map(|r| r.prompt.len() + r.max_new / 2).max().unwrap_or(0);
        let each = model.new_cache().page_bytes() / KvCache::PAGE * tokens.max(1);
        share = share.min((CACHE_BYTES - weights) / (lanes * each)).max(least);
    }
    (lanes, Limits { sequences: share, ..everything })
}

/// A generator over one model.
pub struct Engine<'m> {
    model: &'m Model,
    limits: Option<Limits>,
    lanes: Vec<Lane<'m>>,
}

/// Sequences that go through the model together, and their cache.
struct Lane<'m> {
    model: &'m Model,
    cache: KvCache,
    pages: Pages,
    /// Prompt and generated tokens that went through the model.
    computed: usize,
}

/// What the lanes of a run share.
struct Run<'r, F> {
    requests: &'r [Request],
    limits: Limits,
    waiting: Mutex<VecDeque<usize>>,
    results: Mutex<Vec<Vec<Option<Completion>>>>,
    on_token: Mutex<F>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic in one lane ends the run")
}

impl<F: FnMut(Token) -> bool> Run<'_, F> {
    fn finish(&self, r: Running, finish_reason: FinishReason) -> Vec<u32> {
        let Running { request, sample, pages, tokens: token_ids, logprobs, tempered_logprobs } = r;
        let done = Completion { token_ids, logprobs, tempered_logprobs, finish_reason };
        lock(&self.results)[request][sample] = Some(done);
        pages
    }

    /// Appends a token; says whether that ended the continuation.
    fn accept(&self, seq: &mut Running, drawn: Drawn) -> Option<FinishReason> {
        let Drawn { token: id, logprob, tempered } = drawn;
        let r = &self.requests[seq.request];
        seq.tokens.push(id);
        seq.logprobs.push(logprob);
        seq.tempered_logprobs.push(tempered);
        let token = Token { request: seq.request, sample: seq.sample, id, logprob };
        let go_on = (*lock(&self.on_token))(token);
        if !go_on || r.stop_tokens.contains(&id) {
            Some(FinishReason::Stop)
        } else if seq.tokens.len() >= r.max_new {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

/// A prompt on its way through the model.
struct Prefill {
    request: usize,
    pages: Vec<u32>,
    done: usize,
    /// The prediction after the last prompt token, `[1, vocab]`, once `done` reaches the end.
    logits: Option<Tensor>,
    /// The first sample that has not started yet.
    next_sample: usize,
}

impl Prefill {
    /// Samples that have not started yet.
    fn left(&self, requests: &[Request]) -> usize {
        requests[self.request].samples - self.next_sample
    }
}

/// A continuation in flight.
struct Running {
    request: usize,
    sample: usize,
    pages: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    tempered_logprobs: Vec<f32>,
}

impl Running {
    fn new(request: usize, sample: usize) -> Running {
        let (pages, tokens, logprobs, tempered_logprobs) = Default::default();
        Running { request, sample, pages, tokens, logprobs, tempered_logprobs }
    }
}

impl<'m> Engine<'m> {
    /// A generator with its own caches; without `limits` it finds its own.
    pub fn new(model: &'m Model, limits: Option<Limits>) -> Engine<'m> {
        Engine { model, limits, lanes: Vec::new() }
    }

    /// Tokens that went through the model so far: every prompt once, every generated token but the last of each.
    pub fn computed_tokens(&self) -> usize {
        self.lanes.iter().map(|l| l.computed).sum()
    }

    /// Bytes that the caches hold.
    pub fn cache_bytes(&self) -> usize {
        self.lanes.iter().map(|l| l.cache.bytes()).sum()
    }

    /// Continues every request; the result is `[request][sample]`. `on_token` sees each token as it is drawn and may
    /// end that continuation by returning false; tokens of one continuation come in order, those of several in any.
    pub fn run(
        &mut self,
        requests: &[Request],
        on_token: impl FnMut(Token) -> bool + Send,
    ) -> Result<Vec<Vec<Completion>>, EngineError> {
        self.check(requests)?;
        let waiting = (0..requests.len()).filter(|&i| requests[i].samples > 0).collect();
        let (lanes, limits) = plan(self.model, requests);
        let run = Run {
            requests,
            limits: self.limits.unwrap_or(limits),
            waiting: Mutex::new(waiting),
            results: Mutex::new(requests.iter().map(|r| vec![None; r.samples]).collect()),
            on_token: Mutex::new(on_token),
        };
        while self.lanes.len() < lanes {
            self.lanes.push(Lane::new(self.model));
        }
        threads::parallel_chunks(&mut self.lanes[..lanes], 1, |_, lane| lane[0].run(&run));
        let results = run.results.into_inner().expect("no lane panicked");
        Ok(results
            .into_iter()
            .map(|r| r.into_iter().map(|c| c.expect("every sample ran")).collect())
            .collect())
    }

    fn check(&self, requests: &[Request]) -> Result<(), EngineError> {
        let config = self.model.config();
        let (vocab, context) =
            (config.vocab_size(), config.max_position_embeddings().min(self.model.positions()));
        for (request, r) in requests.iter().enumerate() {
            if r.prompt.is_empty() {
                return Err(EngineError::Empty { request });
            }
            if let Some(&id) = r.prompt.iter().find(|&&id| id as usize >= vocab) {
                return Err(EngineError::OutsideVocabulary { request, id, vocab });
            }
            if r.prompt.len() + r.max_new > context {
                let prompt = r.prompt.len();
                return Err(EngineError::TooLong { request, prompt, max_new: r.max_new, context });
            }
        }
        Ok(())
    }
}

impl<'m> Lane<'m> {
    fn new(model: &'m Model) -> Lane<'m> {
        Lane { model, cache: model.new_cache(), pages: Pages::default(), computed: 0 }
    }

    /// Works until the queue is empty and what was taken from it is done.
    fn run<F: FnMut(Token) -> bool>(&mut self, run: &Run<F>) {
        let mut prefills: VecDeque<Prefill> = VecDeque::new();
        let mut running: Vec<Running> = Vec::new();
        loop {
            self.start_samples(run, &mut prefills, &mut running);
            // No prompt is taken before its samples have room: the other lanes may be idle sooner.
            let mut ahead = running.len() + prefills.iter().map(|p| p.left(run.requests)).sum::<usize>();
            while ahead < run.limits.sequences {
                let Some(request) = lock(&run.waiting).pop_front() else { break };
                ahead += run.requests[request].samples;
                prefills.push_back(Prefill {
                    request,
                    pages: Vec::new(),
                    done: 0,
                    logits: None,
                    next_sample: 0,
                });
            }
            if running.is_empty() && prefills.is_empty() {
                break;
            }
            self.step(run, &mut prefills, &mut running);
        }
    }

    /// Starts the samples of finished prompts, as far as there is room.
    fn start_samples<F: FnMut(Token) -> bool>(
        &mut self,
        run: &Run<F>,
        prefills: &mut VecDeque<Prefill>,
        running: &mut Vec<Running>,
    ) {
        let requests = run.requests;
        for p in prefills.iter_mut() {
            let Some(logits) = &p.logits else { continue };
            let r = &requests[p.request];
            while p.next_sample < r.samples && running.len() < run.limits.sequences {
                let count = (r.samples - p.next_sample).min(run.limits.sequences - running.len());
                let samples = p.next_sample..p.next_sample + count;
                p.next_sample = samples.end;
                let params = self.model.params();
                let rows = ops::pick_rows(params, logits, &vec![0; count]);
                let wish = |sample| Wish {
                    sampling: r.sampling,
                    seen: [&r.prompt[..], &[]],
                    rng: token_rng(r, sample, 0),
                };
                let chosen = choose(params, &rows, &samples.clone().map(wish).collect::<Vec<_>>());
                for (sample, drawn) in samples.zip(chosen) {
                    let mut seq = Running::new(p.request, sample);
                    match (r.max_new > 0).then(|| run.accept(&mut seq, drawn)) {
                        None => drop(run.finish(seq, FinishReason::Length)),
                        Some(Some(reason)) => drop(run.finish(seq, reason)),
                        Some(None) => {
                            seq.pages = self.share_prompt(p, r.prompt.len());
                            running.push(seq);
                        }
                    }
                }
            }
        }
        let all = std::mem::take(prefills);
        for p in all {
            if p.logits.is_some() && p.next_sample == requests[p.request].samples {
                p.pages.iter().for_each(|&page| self.pages.release(page));
            } else {
                prefills.push_back(p);
            }
        }
    }

    /// The pages of a new sample: whole pages of the prompt shared, the last, unfinished one copied.
    fn share_prompt(&mut self, p: &Prefill, prompt: usize) -> Vec<u32> {
        let whole = prompt / KvCache::PAGE;
        let mut pages = p.pages[..whole].to_vec();
        pages.iter().for_each(|&page| self.pages.share(page));
        if !prompt.is_multiple_of(KvCache::PAGE) {
            let copy = self.take_page();
            self.cache.copy_page(p.pages[whole], copy);
            pages.push(copy);
        }
        pages
    }

    fn take_page(&mut self) -> u32 {
        let page = self.pages.take();
        self.cache.grow(self.pages.len());
        page
    }

    /// One pass of the model: one token of every running sequence, and as many prompt tokens as there is room for.
    fn step<F: FnMut(Token) -> bool>(
        &mut self,
        run: &Run<F>,
        prefills: &mut VecDeque<Prefill>,
        running: &mut Vec<Running>,
    ) {
        let requests = run.requests;
        let mut tokens = Vec::new();
        let mut segments = Vec::new();
        // Rows whose prediction is wanted, and of which prefill (None: the next running sequence).
        let mut wanted: Vec<(usize, Option<usize>)> = Vec::new();
        for seq in running.iter_mut() {
            let past = requests[seq.request].prompt.len() + seq.tokens.len() - 1;
            if past / KvCache::PAGE == seq.pages.len() {
                seq.pages.push(self.take_page());
            }
            wanted.push((tokens.len(), None));
            tokens.push(*seq.tokens.last().expect("a running sequence has drawn a token"));
            segments.push(Segment { rows: 1, past, pages: seq.pages.clone() });
        }
        let room = run.limits.rows.max(tokens.len() + 64);
        for (i, p) in prefills.iter_mut().enumerate() {
            let prompt = &requests[p.request].prompt;
            let rows = (prompt.len() - p.done).min(room - tokens.len());
            if rows == 0 {
                continue;
            }
            while p.pages.len() * KvCache::PAGE < p.done + rows {
                p.pages.push(self.take_page());
            }
            tokens.extend_from_slice(&prompt[p.done..p.done + rows]);
            segments.push(Segment { rows, past: p.done, pages: p.pages.clone() });
            p.done += rows;
            if p.done == prompt.len() {
                wanted.push((tokens.len() - 1, Some(i)));
            }
        }
        self.computed += tokens.len();
        let logits = self.predict(&tokens, &segments, &wanted);
        let params = self.model.params();
        for (row, (_, prefill)) in wanted.iter().enumerate() {
            if let Some(i) = prefill {
                prefills[*i].logits = Some(ops::pick_rows(params, &logits, &[row as u32]));
            }
        }
        let of_running = if prefills.is_empty() {
            logits
        } else {
            ops::pick_rows(params, &logits, &(0..running.len() as u32).collect::<Vec<_>>())
        };
        let wish = |seq| {
            let Running { request, sample, tokens, .. }: &Running = seq;
            let r = &requests[*request];
            let rng = token_rng(r, *sample, tokens.len());
            Wish { sampling: r.sampling, seen: [&r.prompt, tokens], rng }
        };
        let chosen = choose(params, &of_running, &running.iter().map(wish).collect::<Vec<_>>());
        let mut still = Vec::with_capacity(running.len());
        for (mut seq, drawn) in running.drain(..).zip(chosen) {
            match run.accept(&mut seq, drawn) {
                None => still.push(seq),
                Some(reason) => run.finish(seq, reason).iter().for_each(|&page| self.pages.release(page)),
            }
        }
        *running = still;
    }

    /// Logits of the wanted rows, `[wanted, vocab]`.
    fn predict(&mut self, tokens: &[u32], segments: &[Segment], wanted: &[(usize, Option<usize>)]) -> Tensor {
        let tape = Tape::inference(self.model.params());
        let pass = self.model.forward(&tape, tokens, segments, PassOptions::default(), Some(&mut self.cache));
        let rows: Vec<u32> = wanted.iter().map(|(row, _)| *row as u32).collect();
        let params = self.model.params();
        ops::logits(params, &ops::pick_rows(params, &pass.hidden, &rows), self.model.head())
    }
}

fn token_rng(r: &Request, sample: usize, position: usize) -> Rng {
    Rng::at(r.seed, &[sample as u64, position as u64])
}

#[cfg(test)]
mod tests;
