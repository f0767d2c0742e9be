//! Continuous batching: which sequences take part in each step, and what comes of it.

use std::collections::VecDeque;

use model::{KvCache, Model, PassOptions, Segment};
use tensor::{Buf, Rng, Tape, Tensor, ops, threads};
use thiserror::Error;

use crate::pages::Pages;
use crate::sampler::Sampling;

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
    /// Its log-probability.
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
    /// Continuations in flight.
    pub sequences: usize,
    /// Rows of a step: one per continuation, the rest prompt tokens.
    pub rows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { sequences: 256, rows: 512 }
    }
}

/// A generator over one model.
pub struct Engine<'m> {
    model: &'m Model,
    limits: Limits,
    cache: KvCache,
    pages: Pages,
    /// Prompt and generated tokens that went through the model.
    computed: usize,
}

/// A prompt on its way through the model.
struct Prefill {
    request: usize,
    pages: Vec<u32>,
    done: usize,
    /// The prediction after the last prompt token, `[vocab]`, once `done` reaches the end.
    logits: Option<Buf>,
    /// Samples that have not started yet.
    next_sample: usize,
}

/// A continuation in flight.
struct Running {
    request: usize,
    sample: usize,
    pages: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

impl<'m> Engine<'m> {
    /// A generator with its own cache.
    pub fn new(model: &'m Model, limits: Limits) -> Engine<'m> {
        Engine { model, limits, cache: model.new_cache(), pages: Pages::default(), computed: 0 }
    }

    /// Tokens that went through the model so far: every prompt once, every generated token but the last of each.
    pub fn computed_tokens(&self) -> usize {
        self.computed
    }

    /// Bytes that the cache holds.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Continues every request; the result is `[request][sample]`. `on_token` sees each token as it is drawn and may
    /// end that continuation by returning false.
    pub fn run(
        &mut self,
        requests: &[Request],
        mut on_token: impl FnMut(Token) -> bool,
    ) -> Result<Vec<Vec<Completion>>, EngineError> {
        self.check(requests)?;
        let mut results: Vec<Vec<Option<Completion>>> =
            requests.iter().map(|r| vec![None; r.samples]).collect();
        let mut waiting: VecDeque<usize> = (0..requests.len()).filter(|&i| requests[i].samples > 0).collect();
        let mut prefills: VecDeque<Prefill> = VecDeque::new();
        let mut running: Vec<Running> = Vec::new();
        loop {
            let mut finish = |r: Running, reason| {
                results[r.request][r.sample] =
                    Some(Completion { token_ids: r.tokens, logprobs: r.logprobs, finish_reason: reason });
                r.pages
            };
            self.start_samples(requests, &mut prefills, &mut running, &mut on_token, &mut finish);
            while prefills.len() + running.len() < self.limits.sequences {
                let Some(request) = waiting.pop_front() else { break };
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
            self.step(requests, &mut prefills, &mut running, &mut on_token, &mut finish);
        }
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

    /// Starts the samples of finished prompts, as far as there is room.
    fn start_samples(
        &mut self,
        requests: &[Request],
        prefills: &mut VecDeque<Prefill>,
        running: &mut Vec<Running>,
        on_token: &mut impl FnMut(Token) -> bool,
        finish: &mut impl FnMut(Running, FinishReason) -> Vec<u32>,
    ) {
        for p in prefills.iter_mut() {
            let Some(logits) = &p.logits else { continue };
            let r = &requests[p.request];
            while p.next_sample < r.samples && running.len() < self.limits.sequences {
                let sample = p.next_sample;
                p.next_sample += 1;
                let mut seq = Running {
                    request: p.request,
                    sample,
                    pages: Vec::new(),
                    tokens: Vec::new(),
                    logprobs: Vec::new(),
                };
                let (id, logprob) = r.sampling.choose(logits, &mut token_rng(r, sample, 0));
                match (r.max_new > 0).then(|| accept(r, &mut seq, id, logprob, on_token)) {
                    None => drop(finish(seq, FinishReason::Length)),
                    Some(Some(reason)) => drop(finish(seq, reason)),
                    Some(None) => {
                        seq.pages = self.share_prompt(p, r.prompt.len());
                        running.push(seq);
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
    fn step(
        &mut self,
        requests: &[Request],
        prefills: &mut VecDeque<Prefill>,
        running: &mut Vec<Running>,
        on_token: &mut impl FnMut(Token) -> bool,
        finish: &mut impl FnMut(Running, FinishReason) -> Vec<u32>,
    ) {
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
        let room = self.limits.rows.max(tokens.len() + 64);
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
        let vocab = self.model.config().vocab_size();
        let mut chosen = vec![(0u32, 0.0f32); running.len()];
        threads::parallel_chunks(&mut chosen, 4, |at, out| {
            for (i, out) in out.iter_mut().enumerate() {
                let seq = &running[at + i];
                let r = &requests[seq.request];
                *out = r.sampling.choose(
                    &logits[(at + i) * vocab..][..vocab],
                    &mut token_rng(r, seq.sample, seq.tokens.len()),
                );
            }
        });
        for (row, (_, prefill)) in wanted.iter().enumerate() {
            if let Some(i) = prefill {
                prefills[*i].logits = Some(Buf::copy_of(&logits[row * vocab..][..vocab]));
            }
        }
        let mut still = Vec::with_capacity(running.len());
        for (mut seq, (id, logprob)) in running.drain(..).zip(chosen) {
            match accept(&requests[seq.request], &mut seq, id, logprob, on_token) {
                None => still.push(seq),
                Some(reason) => finish(seq, reason).iter().for_each(|&page| self.pages.release(page)),
            }
        }
        *running = still;
    }

    /// Logits of the wanted rows, `[wanted, vocab]`.
    fn predict(&mut self, tokens: &[u32], segments: &[Segment], wanted: &[(usize, Option<usize>)]) -> Buf {
        let tape = Tape::inference(self.model.params());
        let pass = self.model.forward(&tape, tokens, segments, PassOptions::default(), Some(&mut self.cache));
        let h = pass.hidden.cols();
        let mut rows = Buf::new(wanted.len() * h);
        for (to, (row, _)) in rows.chunks_exact_mut(h).zip(wanted) {
            to.copy_from_slice(pass.hidden.row(*row));
        }
        ops::logits(self.model.params(), &Tensor::constant(rows, wanted.len(), h), self.model.head())
    }
}

fn token_rng(r: &Request, sample: usize, position: usize) -> Rng {
    Rng::at(r.seed, &[sample as u64, position as u64])
}

/// Appends a token; says whether that ended the continuation.
fn accept(
    r: &Request,
    seq: &mut Running,
    id: u32,
    logprob: f32,
    on_token: &mut impl FnMut(Token) -> bool,
) -> Option<FinishReason> {
    seq.tokens.push(id);
    seq.logprobs.push(logprob);
    let go_on = on_token(Token { request: seq.request, sample: seq.sample, id, logprob });
    if !go_on || r.stop_tokens.contains(&id) {
        Some(FinishReason::Stop)
    } else if seq.tokens.len() >= r.max_new {
        Some(FinishReason::Length)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
