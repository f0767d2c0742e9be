//! Sequences that go through the model together: they come and go between any two steps.
//!
//! A lane works on the oldest first. Every sequence in decoding gives a step one row; what room is left is filled with
//! pieces of prompts. Where the budget of pages runs out, kept prefixes go first, then the youngest sequence is put back:
//! its pages are freed, and its tokens are computed again later. By the engine's bitwise contract neither that, nor the
//! pieces, nor who else is there changes a token.

mod ahead;
mod draw;
mod pass;
mod piece;
mod room;

use std::collections::{HashMap, VecDeque};

use model::{KvCache, Model};
use tensor::Tensor;
use tensor::ops::Drawn;

use crate::guide::Guide;
use crate::pages::Pages;
use crate::prefix::{Link, Prefix};
use crate::request::{EngineError, Extras, FinishReason, Request, check};
use pass::Which;
use piece::{Pace, Piece};

/// How much is worked on at once. None of it changes a result.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Continuations in flight in one lane.
    pub sequences: usize,
    /// Rows of a pass: one per continuation, the rest prompt tokens.
    pub rows: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Whether pages are kept, within the budget, for prompts that begin alike.
    pub keep: bool,
    /// How many times as long as a step of decoding alone one may last that takes prompt tokens along, about; 0 for any.
    pub patience: f32,
    /// Whether the model's MTP layer, if it has one, goes along and guesses for requests that allow guesses.
    pub mtp: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { sequences: 256, rows: 512, pages: usize::MAX, keep: false, patience: 0.0, mtp: false }
    }
}

/// A request in a lane; those that come later are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Whoever listens to a lane.
pub trait Sink {
    /// A request has left the queue, and so many tokens of its prompt were found in the cache.
    fn begun(&mut self, _ticket: Ticket, _cached: usize) {}
    /// A token of a sample, with the `top_logprobs` that were asked for; false ends the continuation.
    fn token(&mut self, ticket: Ticket, sample: usize, drawn: Drawn, top: &[(u32, f32)]) -> bool;
    /// So many of a sample's next tokens were guessed, and so many of these came.
    fn guessed(&mut self, _ticket: Ticket, _sample: usize, _guessed: usize, _right: usize) {}
    /// The end of a sample.
    fn end(&mut self, ticket: Ticket, sample: usize, reason: FinishReason);
}

/// What a lane has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens that went through the model.
    pub computed: usize,
    /// Prompt tokens that were found in the cache instead.
    pub cached: usize,
    /// Tokens that were guessed, and those of them that came so.
    pub guessed: usize,
    /// See `guessed`.
    pub guessed_right: usize,
    /// Of these, the MTP layer's.
    pub mtp_guessed: usize,
    /// See `mtp_guessed`.
    pub mtp_guessed_right: usize,
    /// Sequences that were put back for lack of pages.
    pub put_back: usize,
}

/// A request in work.
struct Job {
    request: Request,
    extras: Extras,
    /// Samples that have not ended.
    open: usize,
    begun: bool,
}

/// One sequence: a continuation, or a prompt whose samples have not all begun.
struct Seq {
    ticket: Ticket,
    /// The sample; of a prompt the next one to begin.
    sample: usize,
    /// Whether it is the prompt that several samples share.
    trunk: bool,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// How many of them have their keys and values in `pages`.
    done: usize,
    pages: Vec<u32>,
    /// How many of them have gone through the MTP layer, in a lane with one; it is a token ahead of the model.
    ahead: usize,
    /// What the MTP layer takes for the next token.
    mtp_guess: Option<u32>,
    /// Pages that were handed to the kept prefixes, and the last one's link.
    kept: (usize, Link),
    /// Of a prompt that went through: the prediction after its last token, `[1, vocab]`.
    logits: Option<Tensor>,
    guide: Option<Box<dyn Guide>>,
}

impl Seq {
    fn new(
        ticket: Ticket,
        sample: usize,
        trunk: bool,
        tokens: Vec<u32>,
        guide: Option<Box<dyn Guide>>,
    ) -> Seq {
        Seq {
            ticket,
            sample,
            trunk,
            tokens,
            done: 0,
            ahead: 0,
            mtp_guess: None,
            pages: Vec::new(),
            kept: (0, 0),
            logits: None,
            guide,
        }
    }

    /// The oldest is the least.
    fn age(&self) -> (Ticket, usize) {
        (self.ticket, self.sample)
    }
    fn left(&self) -> usize {
        self.tokens.len() - self.done
    }
}

/// A queue of requests and their way through one model.
pub struct Lane<'m> {
    model: &'m Model,
    limits: Limits,
    cache: KvCache,
    pages: Pages,
    prefix: Prefix,
    jobs: HashMap<Ticket, Job>,
    /// Without pages, the oldest first.
    waiting: VecDeque<Seq>,
    /// The oldest first.
    active: Vec<Seq>,
    next_ticket: u64,
    counts: Counts,
    pace: Pace,
    /// Where patience has an end: the piece of prompts that is on its way.
    piece: Option<Piece>,
}

impl<'m> Lane<'m> {
    /// A lane with a cache of its own.
    pub fn new(model: &'m Model, limits: Limits) -> Lane<'m> {
        let limits = Limits { mtp: limits.mtp && model.has_mtp(), ..limits };
        Lane {
            model,
            limits,
            cache: if limits.mtp { model.new_cache_with_mtp() } else { model.new_cache() },
            pages: Pages::default(),
            prefix: Prefix::default(),
            jobs: HashMap::new(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            next_ticket: 0,
            counts: Counts::default(),
            pace: Pace::default(),
            piece: None,
        }
    }

    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = Limits { mtp: self.limits.mtp, ..limits };
    }

    /// Queues a request. Its first token comes out of a later [`Lane::step`].
    ///
    /// # Errors
    /// What the model cannot continue, and what the cache could not hold even alone.
    pub fn submit(&mut self, request: Request, extras: Extras) -> Result<Ticket, EngineError> {
        check(self.model, 0, &request)?;
        let tokens = request.prompt.len() + request.max_new;
        // One page more: the samples of a prompt do not share its last page.
        let pages = tokens.div_ceil(KvCache::PAGE) + 1;
        if pages > self.limits.pages {
            return Err(EngineError::TooManyPages { tokens, pages, budget: self.limits.pages });
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if request.samples > 0 {
            let trunk = request.samples > 1;
            let guide = extras.guide.as_ref().filter(|_| !trunk).map(|make| make());
            self.waiting.push_back(Seq::new(ticket, 0, trunk, request.prompt.clone(), guide));
            self.jobs.insert(ticket, Job { open: request.samples, request, extras, begun: false });
        }
        Ok(ticket)
    }

    /// Forgets a request; no more is heard of it.
    pub fn cancel(&mut self, ticket: Ticket) {
        if self.jobs.remove(&ticket).is_none() {
            return;
        }
        self.waiting.retain(|s| s.ticket != ticket);
        let mut i = 0;
        while i < self.active.len() {
            if self.active[i].ticket == ticket {
                let seq = self.active.remove(i);
                self.release(seq);
            } else {
                i += 1;
            }
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Continuations that are in work or waiting, those that have not begun among them.
    pub fn load(&self) -> usize {
        self.jobs.values().map(|j| j.open).sum()
    }

    /// Continuations that wait for room.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|s| self.samples_of(s)).sum()
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes that the cache holds.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Pages in use, those kept for later among them.
    pub fn used_pages(&self) -> usize {
        self.pages.used()
    }

    /// Pages that are kept for later and used by nobody.
    pub fn idle_pages(&self) -> usize {
        self.prefix.idle(&self.pages)
    }

    /// A token of every sequence in decoding, and a part of the prompts; says whether there is more to do.
    pub fn step(&mut self, sink: &mut impl Sink) -> bool {
        self.begin_samples(sink);
        self.admit(sink);
        if self.limits.patience > 0.0 {
            self.patient_step(sink);
        } else {
            let decoding = self.active.iter().filter(|s| s.decodes()).count();
            let room = self.limits.rows.saturating_sub(decoding).max(64);
            if let Some(rows) = self.divide(Which::All, room) {
                self.pass(rows, sink);
            }
        }
        !self.is_idle()
    }

    /// Continuations that a sequence stands for.
    fn samples_of(&self, seq: &Seq) -> usize {
        if seq.trunk { self.jobs[&seq.ticket].request.samples - seq.sample } else { 1 }
    }
}

#[cfg(test)]
mod tests;
